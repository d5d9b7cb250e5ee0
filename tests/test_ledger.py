"""What rounds add up to."""

import pytest

from server.ledger import Ledger
from server.round_costs import RoundCosts
from server.tally import Tally, buckets
from specdec.round import PLAIN, RowResult, Seconds, Try


def row(size: int) -> RowResult:
    return RowResult(b"x" * size, size - 1, size - 1, ended=False)


def test_parts_of_rounds() -> None:
    ledger = Ledger(None)
    ledger.enter({0: row(3)}, {0: 2}, False, 0.010, Seconds(0.002, 0.004, 0.001), drafting=1)
    ledger.enter({0: row(1)}, {0: 0}, True, 0.020, Seconds(0.0, 0.015, 0.001))
    figures = ledger.figures({}, 5, None, 1)
    totals = {phase: tally.total for phase, tally in figures.phases.items()}
    assert totals == pytest.approx(
        {"draft": 0.002, "verify": 0.004, "prefill": 0.015, "accept": 0.002, "host": 0.007}
    )
    assert {phase: sum(tally.counts) for phase, tally in figures.phases.items()} == {
        "draft": 1,
        "verify": 1,
        "prefill": 1,
        "accept": 2,
        "host": 2,
    }
    assert figures.draft_lengths[:3] == (1, 0, 1)
    assert (figures.decode_s, figures.base_s) == (0, 0)  # nobody knows what rounds cost
    assert (figures.places_held, figures.pid) == (5, 1)


def test_a_round_that_is_one_piece() -> None:
    ledger = Ledger(None)
    ledger.enter({0: row(3)}, {0: 2}, False, 0.010, Seconds(verify=0.008))
    phases = ledger.figures({}, 5, None, 1).phases
    counts = {phase: sum(tally.counts) for phase, tally in phases.items()}
    assert counts == {"draft": 0, "verify": 1, "prefill": 0, "accept": 0, "host": 1}
    assert phases["host"].total == pytest.approx(0.002)


def test_parts_of_several_rounds_in_one_call() -> None:
    ledger = Ledger(None)
    tries = Try(2, 1), Try(0, 0), Try(3, 3, 1), Try(0, 0)
    both = {
        0: RowResult(b"x" * 8, 5, 4, ended=False, tries=tries),
        1: RowResult(b"x" * 4, 0, 0, ended=False, tries=(PLAIN,) * 4),
    }
    spent = Seconds(0.002, 0.004, 0.004)
    ledger.enter(both, [0], False, 0.012, spent, (), (1e-3,) * 4, drafting=2)
    figures = ledger.figures({}, 0, None, 1)
    counts = {phase: sum(tally.counts) for phase, tally in figures.phases.items()}
    assert counts == {"draft": 2, "verify": 4, "prefill": 0, "accept": 4, "host": 4}
    assert sum(tally.total for tally in figures.phases.values()) == pytest.approx(0.012)
    assert figures.draft_lengths[:4] == (2, 0, 1, 1)


def test_speed_up_is_what_plain_rounds_would_have_cost() -> None:
    ledger = Ledger(RoundCosts({(1, 0): 1.0, (1, 2): 1.5, (2, 0): 1.2, (2, 2): 1.8}))
    ledger.enter({0: row(3)}, {}, False, 1.5, Seconds(), drafting=1)
    ledger.enter({0: row(3), 1: row(1)}, {}, False, 1.5, Seconds())  # a graph tells nothing
    ledger.enter({0: row(3)}, {}, True, 9.0, Seconds())  # consumed prompt too: not comparable
    for _ in range(2):  # nothing is priced twice
        figures = ledger.figures({}, 0, None, 1)
        assert figures.decode_s == pytest.approx(3.0)
        # three rounds of one row, and two of two rows that gave four bytes, a draft each
        assert figures.base_s == pytest.approx(3 * 1.0 + 2 * 1.2)


def test_base_is_held_against_rounds_at_their_own_pace() -> None:
    costs = RoundCosts(
        {(1, 0): 1.0, (1, 2): 1.5, (2, 0): 1.2, (2, 2): 1.8}, {(1, 4): 1.4, (2, 4): 1.8}
    )
    ledger = Ledger(costs)
    each = (3.0,) * 4  # three times as long as when they were measured

    def enter(*tries: tuple[Try, ...], drafting: int = 0) -> float:
        """The speed-up of four rounds."""
        before = ledger.figures({}, 0, None, 1)
        rows = {
            slot: RowResult(
                b"x" * sum(1 + t.accepted for t in row),
                sum(t.drafted for t in row),
                sum(t.accepted for t in row),
                ended=False,
                tries=row,
            )
            for slot, row in enumerate(tries)
        }
        ledger.enter(rows, list(rows), False, 12.0, Seconds(), (), each, drafting)
        after = ledger.figures({}, 0, None, 1)
        return (after.base_s - before.base_s) / (after.decode_s - before.decode_s)

    assert enter((PLAIN,) * 4) == pytest.approx(1)
    assert enter((PLAIN,) * 4, (PLAIN,) * 4) == pytest.approx(1)
    assert enter((Try(2, 1),) * 4, drafting=4) == pytest.approx(2 / 1.5)
    # half of the rounds draft
    assert enter((Try(2, 1), PLAIN) * 2, drafting=2) == pytest.approx(1.5 / 1.25)
    # one of two rows does
    assert enter((Try(2, 2),) * 4, (PLAIN,) * 4, drafting=4) == pytest.approx(2 / 1.25)
    # what is looked up costs what that was measured to cost, and no prophet is asked
    assert enter((Try(4, 4, 0), PLAIN) * 2, drafting=2) == pytest.approx(3 / 1.2)
    lookups = enter((Try(4, 4, 0), PLAIN) * 2, (PLAIN,) * 4, drafting=2)
    assert lookups == pytest.approx(2 / (1 + 0.5 * 0.5 / 2))
    both = enter((Try(4, 4, 0), Try(2, 1)) * 2, drafting=4)
    assert both == pytest.approx(3.5 / (1 + 0.5 * 0.4 + 0.5 * 0.5))


def test_figures_stay_as_they_were() -> None:
    ledger = Ledger(None)
    before = ledger.figures({}, 0, None, 1)
    ledger.enter({0: row(1)}, {0: 0}, False, 0.1, Seconds(0.0, 0.05, 0.01))
    assert not any(before.phases["verify"].counts)
    assert not any(before.draft_lengths)


def test_bounds_are_inclusive() -> None:
    tally = Tally(buckets(50e-6, 1e-3))
    assert tally.bounds == (5e-05, 1e-4, 2e-4, 5e-4, 1e-3)
    tally.observe(5e-05, 3)
    tally.observe(2.0)
    assert tally.counts == [3, 0, 0, 0, 0, 1]


def test_what_came_for_rows_that_have_left_is_nobodys() -> None:
    costs = RoundCosts({(1, 0): 1.0, (2, 0): 2.0})
    ledger = Ledger(costs)
    ledger.enter({0: row(3), 1: row(5)}, {0, 1}, False, 1.0, Seconds(), gone={1})
    figures = ledger.figures({}, 0, None, 1)
    assert figures.base_s == 3 * 1.0
    assert sum(figures.draft_lengths) == 1
