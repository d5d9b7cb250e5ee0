"""How auto decides, against rows with known chances of acceptance and rounds of known cost."""

import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

import pytest

from server.acceptance import Acceptance, Reached
from server.budget import Budget
from server.draft_lengths import LENGTHS, LOOKUP_LENGTHS, DraftLengths
from server.open_row import TRIALS, Mean
from server.round_costs import Growth, RoundCosts
from specdec.lookup import NO_LOOKUP
from specdec.round import MOST_ROUNDS, PLAIN, RowResult, Try

Cost = Callable[[int, int], float]


def measured(cost: Cost, rows: tuple[int, ...] = (1, 2, 4, 8)) -> RoundCosts:
    return RoundCosts({(b, gamma): cost(b, gamma) for b in rows for gamma in LENGTHS})


def cheap(rows: int, gamma: int) -> float:
    """Verifying costs little: drafting pays wherever anything is accepted."""
    return 1 + 0.05 * rows + 0.02 * rows * gamma + 0.02 * gamma


def dear(rows: int, gamma: int) -> float:
    """Every place costs what a pass over one costs."""
    return rows * (gamma + 1) + 0.2 * gamma


def result(*tries: Try) -> RowResult:
    drafted, accepted = sum(t.drafted for t in tries), sum(t.accepted for t in tries)
    return RowResult(b"x" * (len(tries) + accepted), drafted, accepted, ended=False, tries=tries)


def reached(drafted: int, kept: int, times: int = 1) -> Reached:
    counts = Reached()
    counts.add(drafted, kept, times)
    return counts


def tell(
    lengths: DraftLengths,
    drafted: Mapping[int, int],
    accepted: Mapping[int, int],
    seconds: float | None,
    left: Collection[int] = (),
) -> None:
    """Of one round, in which what was accepted is given by slot; if it is looked at."""
    if lengths.over(drafted, 1):
        gave = {slot: result(Try(n, accepted[slot])) for slot, n in drafted.items()}
        lengths.observe(gave, [] if seconds is None else [seconds], seconds, left)


class Simulation:
    """Rows with a chance of acceptance each, decoded for so many bytes."""

    def __init__(self, cost: Cost, chances: list[float], seed: int = 0) -> None:
        self.cost, self.chances = cost, chances
        self.random = random.Random(seed)

    def accepted(self, slot: int, drafted: int) -> int:
        count = 0
        while count < drafted and self.random.random() < self.chances[slot]:
            count += 1
        return count

    def rate(
        self, choose: Callable[[], dict[int, int]], rounds: int, told: DraftLengths | None
    ) -> float:
        """Bytes per second."""
        total = spent = 0.0
        for _ in range(rounds):
            lengths = choose()
            accepted = {slot: self.accepted(slot, drafted) for slot, drafted in lengths.items()}
            count = len(lengths)
            seconds = sum(self.cost(count, gamma) for gamma in lengths.values()) / count
            if told:
                tell(told, lengths, accepted, seconds)
            total += sum(accepted.values()) + count
            spent += seconds
        return total / spent

    def best_fixed(self, rounds: int) -> float:
        return max(
            self.rate(
                lambda gamma=gamma: dict.fromkeys(range(len(self.chances)), gamma), rounds, None
            )  # type: ignore[misc]
            for gamma in LENGTHS
        )


def auto(simulation: Simulation, rounds: int, costs: RoundCosts | None = None) -> float:
    lengths = DraftLengths(costs or measured(simulation.cost), longest=16)
    for slot in range(len(simulation.chances)):
        lengths.enter(slot, 16)
    return simulation.rate(lambda: lengths.plan([]).lengths, rounds, lengths)


@pytest.mark.parametrize("cost", [cheap, dear])
@pytest.mark.parametrize("chance", [0.0, 0.2, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("rows", [1, 2, 5, 8])
def test_as_fast_as_the_best_fixed_length_and_never_slower_than_plain(
    cost: Cost, chance: float, rows: int
) -> None:
    simulation = Simulation(cost, [chance] * rows)
    plain = simulation.rate(lambda: dict.fromkeys(range(rows), 0), 200, None)
    reached = auto(simulation, 4000)
    assert reached > 0.97 * plain
    assert reached > 0.93 * simulation.best_fixed(4000)


def test_rows_are_told_apart() -> None:
    simulation = Simulation(lambda rows, gamma: rows + 0.3 * rows * gamma, [0.95, 0.05])
    lengths = DraftLengths(measured(simulation.cost), longest=16)
    for slot in (0, 1):
        lengths.enter(slot, 16)
    simulation.rate(lambda: lengths.plan([]).lengths, 1000, lengths)
    planned = lengths.plan([]).lengths
    assert planned[0] >= 3
    assert planned[1] <= 1


def test_a_row_that_changes_is_followed() -> None:
    simulation = Simulation(lambda rows, gamma: 1 + 0.25 * gamma, [0.05])
    lengths = DraftLengths(measured(simulation.cost), longest=16)
    lengths.enter(0, 16)
    simulation.rate(lambda: lengths.plan([]).lengths, 300, lengths)
    assert lengths.plan([]).lengths[0] == 0
    simulation.chances = [0.95]
    rate = simulation.rate(lambda: lengths.plan([]).lengths, 6000, lengths)
    assert lengths.plan([]).lengths[0] >= 4
    assert rate > 1.5


def probes(cost: Cost, rounds: int) -> int:
    """Rounds with drafts, of a row of which none is ever right, behind the first hundred."""
    lengths = DraftLengths(measured(cost), longest=16)
    lengths.enter(0, 16)
    count = 0
    for turn in range(rounds):
        planned = lengths.plan([]).lengths
        count += turn >= 100 and planned[0] > 0
        tell(lengths, planned, {0: 0}, cost(1, planned[0]))
    return count


def test_a_row_that_does_not_draft_tries_again_only_where_that_may_pay() -> None:
    assert probes(dear, 12000) == 0
    assert 4 <= probes(lambda rows, gamma: 1 + 0.3 * gamma, 12000) <= 80


def test_costs_that_were_measured_wrong_are_corrected() -> None:
    """A profile that promises cheap rounds, where every place costs."""
    simulation = Simulation(dear, [0.5])
    reached = auto(simulation, 8000, measured(cheap))
    assert reached > 0.95


def test_a_round_that_was_held_up_changes_no_decision() -> None:
    def cost(rows: int, gamma: int) -> float:
        return rows * (1 + 0.15 * gamma)

    lengths = DraftLengths(measured(cost), longest=16)
    lengths.enter(0, 16)
    simulation = Simulation(cost, [0.8])
    simulation.rate(lambda: lengths.plan([]).lengths, 300, lengths)
    drafting = lengths.plan([]).lengths[0]
    assert drafting >= 3
    tell(lengths, {0: drafting}, {0: drafting}, 100.0)
    planned = [lengths.plan([]).lengths[0] for _ in range(30)]
    assert min(planned) >= drafting - 2


def test_rows_that_have_left_cost_and_are_given_nothing() -> None:
    def rounds_until_closed(left: list[int]) -> int:
        lengths = DraftLengths(measured(cheap), longest=16)
        lengths.enter(0, 16)
        for turn in range(1000):
            tell(lengths, {0: 4, ~1: 4}, {0: 4, ~1: 4}, 3.5 * cheap(2, 0), left)
            if not lengths._budget(2).open:
                return turn
        return 1000

    assert rounds_until_closed([~1]) < 100  # five bytes in place of ten, for the price of seven
    assert rounds_until_closed([]) == 1000  # a row that always drafts: not its loss
    lengths = DraftLengths(measured(cheap), longest=16)
    lengths.enter(1, 16)
    before = lengths._usual[0].chances(), lengths._rows[1].cases[0].acceptance.chances()
    tell(lengths, {~1: 4}, {~1: 0}, 1.0, [~1])
    assert (lengths._usual[0].chances(), lengths._rows[1].cases[0].acceptance.chances()) == before


def test_no_row_drafts_more_than_it_may_and_fixed_rows_are_left_alone() -> None:
    lengths = DraftLengths(measured(cheap), longest=16)
    lengths.enter(3, 2)
    lengths.enter(5, 16)
    for _ in range(50):
        planned = lengths.plan([0, 7]).lengths
        assert set(planned) == {3, 5}
        assert planned[3] <= 2
        tell(lengths, {**planned, 0: 0, 1: 7}, {**planned, 0: 0, 1: 7}, 1.0)
    assert lengths.plan([0, 7]).lengths[3] == 2
    assert lengths.plan([0, 7]).lengths[5] > 2
    lengths.leave(3)
    lengths.leave(3)
    assert set(lengths.plan([]).lengths) == {5}
    lengths.leave(5)
    assert lengths.plan([1]).lengths == {}


def test_costs_between_and_beyond_what_was_measured() -> None:
    costs = RoundCosts({(b, gamma): b * (1.0 + gamma) for b in (1, 4) for gamma in (0, 2)})
    assert [costs.seconds(b, 2) for b in (1, 2, 3, 4, 8)] == pytest.approx([3, 6, 9, 12, 24])
    assert [costs.seconds(2, gamma) for gamma in (0, 1, 3)] == pytest.approx([2, 4, 8])
    slower = RoundCosts({(1, 0): 2.0, (2, 0): 1.0})  # as measured on a busy machine
    assert [slower.plain(rows) for rows in (1, 2, 8)] == [2, 1, 1]
    only = RoundCosts({(1, 0): 1.0, (1, 3): 2.0})
    assert only.seconds(1, 3) == 2
    with pytest.raises(ValueError, match="every pair"):
        RoundCosts({(1, 0): 1.0, (2, 3): 2.0})
    with pytest.raises(ValueError, match="plain"):
        RoundCosts({(1, 1): 1.0})


def test_what_a_row_has_not_tried_is_believed_of_it_as_of_others() -> None:
    usual = Acceptance()
    for _ in range(200):
        usual.observe(reached(4, 4))
    fresh = Acceptance(usual)
    assert fresh.chances() == pytest.approx(usual.chances(), abs=0.02)
    poor = Acceptance(usual)
    for _ in range(40):
        poor.observe(reached(1, 0))
    assert poor.chances()[0] < 0.15
    assert poor.chances()[3] < 0.5
    assert poor.expected()[0] == 1
    assert poor.expected() == sorted(poor.expected())


def loss(cost: Cost, believed: Cost, chance: float, rounds: int) -> float:
    """The share of time that auto loses to plain rounds where it is told wrong prices."""
    simulation = Simulation(cost, [chance] * 4)
    plain = simulation.rate(lambda: dict.fromkeys(range(4), 0), 10, None)
    return 1 - auto(simulation, rounds, measured(believed)) / plain


def test_what_is_lost_to_trying_has_an_end() -> None:
    """However wrong prices and drafts are: forty rounds and some at first, then one in a
    hundred."""
    for chance in (0.0, 0.3):
        for rounds in (2000, 20000):
            assert loss(dear, cheap, chance, rounds) < 0.012 + 80 / rounds


def test_budget() -> None:
    budget = Budget(first=4.0, again=1.0, most=10.0)
    for _ in range(3):
        budget.spend(plain=1.0, seconds=2.0)  # lost: 1, of which 0.02 may be
    assert budget.open
    for _ in range(2):
        budget.spend(plain=1.0, seconds=2.0)
    assert not budget.open
    rounds = 0
    while not budget.open:
        budget.spend(plain=1.0, seconds=1.0)
        rounds += 1
    assert 180 < rounds < 200  # from 0.9 below to 1.0 above, by a hundredth each
    for _ in range(100):
        budget.spend(plain=2.0, seconds=1.0)
    rounds = 0
    while budget.open:
        budget.spend(plain=1.0, seconds=2.0)
        rounds += 1
    assert rounds == 11  # what was saved beyond 10 is not there to be lost
    budget.spend(plain=1.0, seconds=1000.0)
    for _ in range(300):  # nor are debts beyond 2
        budget.spend(plain=1.0, seconds=1.0)
    assert budget.open


def test_plain_rounds_are_timed_again_while_rows_draft() -> None:
    """The yardstick is kept true, a few plain rounds side by side at a time."""
    lengths = DraftLengths(measured(cheap), longest=16)
    lengths.enter(0, 16)
    planned = []
    for _ in range(2 * DraftLengths.PLAIN_EVERY + 200):
        planned.append(lengths.plan([]).lengths[0])
        tell(lengths, {0: planned[-1]}, {0: planned[-1]}, 0.5)
    plain = [turn for turn, gamma in enumerate(planned) if turn > 50 and not gamma]
    assert len(plain) == 2 * DraftLengths.PLAIN
    assert plain[DraftLengths.PLAIN - 1] - plain[0] == DraftLengths.PLAIN - 1


def test_rounds_of_others_bring_the_next_plain_ones_no_nearer() -> None:
    lengths = DraftLengths(measured(cheap), longest=16)
    lengths.enter(0, 16)
    for _ in range(40):
        planned = lengths.plan([]).lengths
        tell(lengths, planned, planned, 0.5)
    lengths.leave(0)
    for _ in range(2 * DraftLengths.PLAIN_EVERY):
        tell(lengths, {1: 0}, {1: 0}, 1.0)
    lengths.enter(0, 16)
    assert lengths.plan([]).lengths[0] > 0


def test_rows_that_leave_call_for_a_decision_a_while_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows at once, but those that are left may end as soon."""
    lengths = DraftLengths(measured(cheap), longest=16)
    decided: list[int] = []
    honest = lengths._decide

    def counted(fixed: Sequence[int]) -> None:
        decided.append(lengths.rows)
        honest(fixed)

    monkeypatch.setattr(lengths, "_decide", counted)
    for slot in range(8):
        lengths.enter(slot, 16)

    def rounds(count: int) -> None:
        for _ in range(count):
            planned = lengths.plan([]).lengths
            tell(lengths, planned, dict.fromkeys(planned, 0), cheap(len(planned), 1))

    rounds(1)
    assert decided == [8]
    rounds(DraftLengths.FIRST + 4)
    assert decided == [8, 8]
    for slot in range(4):
        lengths.leave(slot)
    rounds(DraftLengths.FIRST)
    assert decided == [8, 8]
    rounds(1)
    assert decided == [8, 8, 4]
    for slot in range(4):
        lengths.enter(slot, 16)
    rounds(1)
    assert decided == [8, 8, 4, 8]


@pytest.mark.parametrize(("left", "alone"), [(DraftLengths.FEW, [1]), (DraftLengths.FEW - 1, [])])
def test_the_row_that_is_left_alone_is_decided_for_at_once_unless_it_is_about_to_end(
    left: int, alone: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = DraftLengths(measured(cheap), longest=16)
    for slot in range(2):
        lengths.enter(slot, 16)
    lengths.plan([], left=left)
    decided: list[int] = []
    monkeypatch.setattr(lengths, "_decide", lambda fixed: decided.append(lengths.rows))
    lengths.leave(0)
    planned = lengths.plan([], left=left)
    assert decided == alone
    assert (planned.rounds == MOST_ROUNDS) == (not alone)  # its call ends for no decision either
    # a row that has much to write does not wait for one that is about to end
    lengths.over(planned.lengths, DraftLengths.FIRST)
    lengths.enter(0, 16)
    lengths.plan([], left=DraftLengths.FEW)
    assert decided == [*alone, 2]


@pytest.mark.parametrize("rows", [1, 4])
def test_one_row_tries_at_a_time_and_for_one_call(rows: int) -> None:
    lengths = DraftLengths(measured(lambda rows, gamma: rows * (1 + 0.75 * gamma)), longest=16)
    for slot in range(rows):
        lengths.enter(slot, 16)
    for _ in range(8):  # drafts that are hardly ever right, but may be for one or the other
        tell(lengths, dict.fromkeys(range(rows), 1), dict.fromkeys(range(rows), 0), None)
    tried = []
    for _ in range(60):
        planned = lengths.plan([])
        trying = [slot for slot, length in planned.lengths.items() if length]
        assert len(trying) <= 1
        if trying:
            assert planned.rounds == TRIALS
            tried += trying
        # what was looked up in the text instead is no trial, and ends it all the same
        each = {
            slot: Try(1, 1, 0) if slot in trying and len(tried) % 2 else Try(length, 0)
            for slot, length in planned.lengths.items()
        }
        seconds = [1.0 * rows] * planned.rounds
        lengths.over(planned.lengths, planned.rounds)
        gave = {slot: result(*[tried] * planned.rounds) for slot, tried in each.items()}
        lengths.observe(gave, seconds, sum(seconds))
        if trying:
            assert not lengths.plan([]).lengths[trying[0]]
    assert set(tried) == set(range(rows))


def test_what_is_behind_rows_makes_plain_rounds_dearer_than_drafts() -> None:
    """Attention reads a text once, however many places of it are verified."""
    longer = {(1, 0): 0.01, (1, 4): 0.014}

    def costs() -> RoundCosts:
        drafted = {(1, gamma): 1.0 + gamma for gamma in LENGTHS}
        return RoundCosts(drafted, {(1, 1): 2.0, (1, 5): 6.0}, Growth(100, longer))

    near = costs()
    for places in (0, 100, 163):
        near.lie_behind(places)
        assert near.seconds(1, 2) == 3.0
        assert near.p_min(1) == 1.0
    near.lie_behind(1124.0)
    assert near.plain(1) == pytest.approx(1 + 10.24)
    assert near.seconds(1, 2) == pytest.approx(3 + 12.288)
    assert near.p_min(1) == pytest.approx((1 + 1.024) / (1 + 10.24))
    assert near.lookup_shares(1)[5] == pytest.approx(6 + 15.36)
    near.lie_behind(100)
    assert near.seconds(1, 2) == 3.0
    for behind, drafts in ((100.0, False), (1124.0, True)):
        lengths = DraftLengths(costs(), longest=16)
        lengths.enter(0, 16)
        lengths.lie_behind(behind)
        assert (lengths.plan([]).lengths[0] > 0) == drafts
    # what was seen of plain rounds tells how fast the machine is, whatever lies behind
    near.observe_plain(1, 2.0, 50)
    assert near.plain(1) == 2.0
    near.lie_behind(1124.0)
    assert near.plain(1) == pytest.approx(2 * (1 + 10.24))
    assert near.seconds(1, 2) == pytest.approx(2 * (3 + 12.288))


def test_rows_are_not_watched_where_no_draft_can_pay() -> None:
    def cost(rows: int, gamma: int) -> float:
        """Free at one row, in proportion to places at eight."""
        return 1 + rows * gamma * (0 if rows == 1 else 1)

    lengths = DraftLengths(measured(cost, rows=(1, 8)), longest=16)
    asked = 4 * DraftLengths.TOLD
    assert all(lengths.worth_watching(1) for _ in range(asked))
    assert sum(lengths.worth_watching(8) for _ in range(asked)) == 4
    # where nothing that was drafted was ever right, one row alone is not worth it either
    lengths = DraftLengths(measured(lambda rows, gamma: 1 + 0.2 * gamma), longest=16)
    lengths.enter(0, 16)
    assert lengths.worth_watching(1)
    for _ in range(400):
        tell(lengths, {0: 16}, {0: 0}, 4.2)
    assert sum(lengths.worth_watching(1) for _ in range(asked)) == 4


class Repeating:
    """One row whose text matches in a share of the rounds, in one way, with a chance for more."""

    def __init__(self, share: float, tier: int, chance: float, prophet: float = 0.0) -> None:
        self.share, self.tier, self.chance, self.prophet = share, tier, chance, prophet
        self.random = random.Random(1)
        self.counts: Counter[Try] = Counter()

    def repeats(self, slot: int) -> Mapping[Try, int]:
        counts, self.counts = self.counts, Counter()
        return counts

    def right(self, drafted: int, chance: float) -> int:
        count = 0
        while count < drafted and self.random.random() < chance:
            count += 1
        return count

    def rate(self, lengths: DraftLengths, cost: Cost, calls: int) -> float:
        """Bytes per second, in calls of eight rounds."""
        total = spent = 0.0
        for _ in range(calls):
            planned = lengths.plan([])
            tries, seconds = [], []
            for _ in range(min(8, planned.rounds)):
                drafted, tier = planned.lengths[0], -1
                accepted = self.right(drafted, self.prophet)
                if self.random.random() < self.share:
                    right = self.right(16, self.chance)
                    self.counts[Try(16, right, self.tier)] += 1
                    if length := planned.lookups[0][self.tier]:
                        drafted, accepted, tier = length, min(length, right), self.tier
                else:
                    self.counts[PLAIN] += 1
                tries.append(Try(drafted, accepted, tier))
                seconds.append(cost(1, drafted))
            if lengths.over(planned.lengths, len(tries)):
                lengths.observe({0: result(*tries)}, seconds, sum(seconds))
            total += len(tries) + sum(tried.accepted for tried in tries)
            spent += sum(seconds)
        return total / spent


def nothing(slot: int) -> Mapping[Try, int]:
    """Of texts that never repeat themselves, or of which nothing is known."""
    return {}


def looking(
    cost: Cost,
    longest: int = 0,
    repeats: Callable[[int], Mapping[Try, int]] = nothing,
    rows: tuple[int, ...] = (1, 8),
) -> DraftLengths:
    """Of rows for which up to 16 bytes may be looked up."""
    drafted = {(b, gamma): cost(b, gamma) for b in rows for gamma in (LENGTHS if longest else (0,))}
    looked_up = {(b, gamma): cost(b, gamma) for b in rows for gamma in LOOKUP_LENGTHS}
    return DraftLengths(RoundCosts(drafted, looked_up), longest, repeats)


def dear_places(rows: int, gamma: int) -> float:
    """Four places cost two and a half."""
    return rows * (1 + 0.5 * gamma)


def mild_places(rows: int, gamma: int) -> float:
    """Ten cost three."""
    return rows * (1 + 0.3 * gamma)


def test_what_a_text_repeats_is_looked_up_as_far_as_it_pays() -> None:
    for share, tier, chance, least in (
        (0.5, 3, 0.99, 1.45),
        (0.5, 0, 0.9, 1.15),
        (0.9, 1, 0.95, 1.4),
    ):
        text = Repeating(share, tier, chance)
        lengths = looking(dear_places, repeats=text.repeats)
        lengths.enter(0, 0, 16)
        text.rate(lengths, dear_places, 100)
        assert text.rate(lengths, dear_places, 1000) > least
        lookup = lengths.plan([]).lookups[0]
        assert lookup[tier] >= (8 if chance == 0.99 else 1)


@pytest.mark.parametrize("chance", [0.0, 0.3, 0.45])
def test_what_does_not_pay_is_not_looked_up(chance: float) -> None:
    text = Repeating(0.5, 0, chance)
    lengths = looking(dear_places, repeats=text.repeats)
    lengths.enter(0, 0, 16)
    assert text.rate(lengths, dear_places, 2000) > 0.98


def test_nobody_looks_where_right_drafts_would_not_pay() -> None:
    """Among eight rows a place costs what a row does."""
    lengths = looking(lambda rows, gamma: rows * (1.0 + gamma) + (0.0 if rows > 1 else 2.0))
    lengths.enter(0, 0, 16)
    assert lengths.plan([]).lookups[0] != NO_LOOKUP
    for slot in range(1, 8):
        lengths.enter(slot, 0, 16)
    for _ in range(2):
        lengths._age = 10**6  # decided again
        assert set(lengths.plan([]).lookups.values()) == {NO_LOOKUP}


def test_where_nothing_is_found_the_prophet_drafts() -> None:
    def cost(rows: int, gamma: int) -> float:
        return rows * (1 + 0.2 * gamma)

    text = Repeating(0.3, 2, 0.98, prophet=0.7)
    lengths = looking(cost, 16, text.repeats)
    lengths.enter(0, 16, 16)
    text.rate(lengths, cost, 150)
    planned = lengths.plan([])
    assert planned.lengths[0] >= 1
    assert planned.lookups[0][2] > planned.lengths[0]


def test_what_texts_repeat_is_no_reason_not_to_draft() -> None:
    """Where it repeats itself bytes come fast; they come no sooner for drafting less elsewhere."""
    text = Repeating(0.5, 3, 0.99, prophet=0.7)
    lengths = looking(mild_places, 16, text.repeats)
    lengths.enter(0, 16, 16)
    assert text.rate(lengths, mild_places, 400) > 2.0
    planned = lengths.plan([])
    assert planned.lookups[0][3] >= 8
    assert planned.lengths[0] >= 1
    # nor is the prophet to be surer of its drafts than their places in such rounds are dear
    alone = 2.19 / 1.6
    assert lengths.p_min(1) == pytest.approx(0.3 * alone, rel=0.15)


def test_a_prophet_that_comes_to_pay_drafts_beside_what_is_looked_up() -> None:
    """Though that hardly changes how many bytes a second there are in all."""
    text = Repeating(0.5, 3, 0.99, prophet=0.1)
    lengths = looking(mild_places, 16, text.repeats)
    lengths.enter(0, 16, 16)
    text.rate(lengths, mild_places, 300)
    assert not lengths.plan([]).lengths[0]
    text.prophet = 0.7
    text.rate(lengths, mild_places, 1500)
    assert lengths.plan([]).lengths[0]


def test_a_length_stays_unless_another_is_better_by_more_than_a_little() -> None:
    lengths = DraftLengths(measured(lambda rows, gamma: rows * (1 + 0.2 * gamma)), longest=16)
    lengths.enter(0, 16)
    row = lengths._rows[0]
    row.observe(reached(16, 3, 400), reached(16, 16, 400))
    lengths._decide([])
    assert row.lengths[0] == 3
    shares = lengths._shares(1, 1)
    row.weigh(shares)
    for held, more, expected in ((2, 1.5, 2), (2, 1.0, 3), (16, 1.5, 3), (0, 1.5, 3)):
        row.settle([held, *row.lengths[1:]])
        assert row.answer(shares, Mean(0.0, 0.0), 1.04, more)[0] == expected


def test_no_row_looks_up_more_than_it_may() -> None:
    lengths = looking(lambda rows, gamma: 1 + 0.01 * gamma)
    lengths.enter(0, 0, 2)
    lengths.enter(1, 0, 0)
    for _ in range(20):
        planned = lengths.plan([])
        assert set(planned.lookups) <= {0}
        assert max(planned.lookups.get(0, NO_LOOKUP)) <= 2
        gave = {0: result(Try(2, 2, 3)), 1: result(PLAIN)}
        if lengths.over(planned.lengths, 1):
            lengths.observe(gave, [1.0], 1.0)
    assert lengths.plan([]).lookups[0] == (2, 2, 2, 2)


def test_plain_rounds_among_others_are_no_yardstick() -> None:
    """They take longer than plain rounds alone; what they lose is the drafts' loss."""
    costs = RoundCosts({(1, 0): 1.0}, {(1, gamma): 1 + 0.1 * gamma for gamma in (1, 4, 16)})
    rounds = [(Try(4, 4, 0),), *[(PLAIN,)] * 4]
    for _ in range(3000):
        costs.observe(rounds, [1.4, *[1.3] * 4])
    assert costs.plain(1) == 1.0
    assert costs.lookup_shares(1)[4] == pytest.approx(1.4 + 4 * 0.3, abs=0.1)


def test_a_machine_that_changes_its_pace_changes_no_price() -> None:
    costs = RoundCosts({(1, 0): 1.0}, {(1, gamma): 1 + 0.1 * gamma for gamma in (1, 4, 16)})
    rounds = [(Try(4, 4, 0),), *[(PLAIN,)] * 4]
    for turn in range(200):
        pace = 1.3 if turn % 2 else 0.7
        costs.observe(rounds, [1.4 * pace, *[pace] * 4])
    assert costs.lookup_shares(1)[4] == pytest.approx(1.4, abs=0.05)


def test_what_drafts_truly_add_is_seen_beside_plain_rounds_alone() -> None:
    both = {(1, gamma): 1 + 0.1 * gamma for gamma in (0, 4, 8)}
    costs = RoundCosts(both, {(1, gamma): 1 + 0.1 * gamma for gamma in (1, 4, 16)})
    assert costs.added(1, 6) == pytest.approx(0.6)
    for _ in range(300):  # at twice the pace, which is not the drafts' doing
        costs.observe([(Try(4, 4),)] * 8, [2.8] * 8)
    assert costs.added(1, 6) == pytest.approx(0.6)
    for _ in range(300):
        costs.observe([(Try(4, 4),), *[(PLAIN,)] * 4], [2 * 1.6, *[2.0] * 4])
    assert costs.added(1, 6) == pytest.approx(0.9, rel=0.05)
    assert costs.lookup_added(1, 4) == pytest.approx(0.4)


def test_a_row_that_may_draft_less_than_the_others_takes_a_length_that_has_a_price() -> None:
    lengths = looking(lambda rows, gamma: rows * (1 + 0.01 * gamma), longest=16)
    lengths.enter(0, 16, 16)
    assert lengths.plan([]).lengths[0] > 7
    lengths.enter(1, 7, 4)
    lengths._age = 10**6  # decided again
    planned = lengths.plan([])
    assert planned.lengths[1] <= 7
    assert max(planned.lookups[1]) <= 4


def test_prices_are_learned_from_rounds_that_fit_among_others_that_do_not() -> None:
    costs = RoundCosts(
        {(2, gamma): 1 + 0.1 * gamma for gamma in (0, 4)},
        {(2, gamma): 1 + 0.1 * gamma for gamma in (1, 4, 16)},
    )
    rounds = [(Try(4, 4, 0), Try(4, 0, 1)), (Try(4, 1), PLAIN), (Try(4, 1), Try(4, 2))]
    for _ in range(200):
        costs.observe(rounds, [2.0, 9.0, 3.0])
    looked_up = costs._kinds[True]
    assert looked_up.lately.at(looked_up.prices(2)[4]) == pytest.approx(2.0 - 1.0, abs=0.1)
    assert costs.seconds(2, 4) == pytest.approx(3.0, abs=0.2)


def test_a_row_pays_for_what_is_looked_up_for_it_alone() -> None:
    """Its round is 0.5 longer, not a quarter of what four that draft make it."""
    costs = RoundCosts({(4, 0): 1.0}, {(4, gamma): 1 + 0.2 * gamma for gamma in (1, 4, 16)})
    assert costs.lookup_shares(4)[1] == pytest.approx(0.25 + 0.2 / 4)
    for _ in range(200):
        costs.observe([(Try(1, 1, 0), PLAIN, PLAIN, PLAIN)], [1.5])
        costs.observe([(Try(4, 1, 0), PLAIN, PLAIN, PLAIN)], [1.65])
    shares = costs.lookup_shares(4)
    assert costs.shares(4)[0] == 0.25
    assert shares[1] == pytest.approx(0.25 + 0.5, abs=0.03)
    assert shares[4] == pytest.approx(0.25 + 0.65, abs=0.05)


@pytest.mark.parametrize("alone", [False, True])
def test_a_prophet_that_may_draft_for_one_of_many_is_paid_by_that_one(alone: bool) -> None:
    """A round of four is half as long again where it drafts: too much for one row's bytes."""

    def cost(rows: int, gamma: int) -> float:
        return 1 + 0.125 * rows * (gamma > 0)

    lengths = DraftLengths(measured(cost, rows=(1, 4)), longest=16)
    for slot in range(4):
        lengths.enter(slot, 0 if alone and slot else 1)
    simulation = Simulation(cost, [0.9] * 4)
    simulation.rate(lambda: lengths.plan([]).lengths, 400, lengths)
    assert lengths.plan([]).lengths == dict.fromkeys(range(4), 0 if alone else 1)
    assert lengths._costs.shares(4, 1)[1] == pytest.approx(0.25 + 0.5, abs=0.1)
    assert lengths._costs.shares(4)[1] == pytest.approx(0.25 + 0.5 / 4, abs=0.1)


def test_rows_that_never_draft_earn_nothing_for_those_that_do() -> None:
    lengths = looking(lambda rows, gamma: 1 + 0.01 * gamma)
    before = lengths._budget(1)._left
    observed = 0
    for _ in range(10):
        if lengths.over({0: 0}, 32):
            lengths.observe({0: result(*[PLAIN] * 32)}, [1.0] * 32, 33.0)
            observed += 1
    assert observed
    assert lengths._budget(1)._left == before
    lengths.enter(1, 0, 16)
    lengths._drafting = lengths._trying = False
    for _ in range(10):
        if lengths.over({0: 0, 1: 0}, 32):
            lengths.observe({s: result(*[PLAIN] * 32) for s in (0, 1)}, [1.0] * 32, 33.0)
    assert lengths._budget(2)._left > before


@pytest.mark.parametrize("rounds", [1, 7, 26])
def test_the_yardstick_is_kept_true_in_calls_of_any_length(rounds: int) -> None:
    lengths = looking(lambda rows, gamma: 1 + 0.01 * gamma)
    lengths.enter(0, 0, 16)
    plain = total = 0
    share = DraftLengths.PLAIN / (DraftLengths.PLAIN_EVERY + DraftLengths.PLAIN)
    for _ in range(8000 // rounds):
        planned = lengths.plan([])
        count = min(rounds, planned.rounds)
        drafted = planned.lookups != {0: NO_LOOKUP}
        plain += count * (not drafted)
        total += count
        tries = [Try(16, 16, 3) if drafted else Try(0, 0)] * count
        if lengths.over(planned.lengths, count):
            lengths.observe({0: result(*tries)}, [1.2 if drafted else 1.0] * count, 1.2 * count)
    assert plain / total == pytest.approx(share, rel=0.25)


def test_what_calls_with_drafts_take_the_host_beyond_others_is_booked() -> None:
    lengths = looking(lambda rows, gamma: 1 + 0.01 * gamma)
    lengths.enter(0, 0, 16)
    lengths.plan([])
    for _ in range(20):
        lengths.observe({0: result(*[PLAIN] * 4)}, [1.0] * 4, 5.0)
    for _ in range(400):  # four bytes for the price of two, and twenty for the host
        lengths.observe({0: result(*[Try(1, 1, 0)] * 2)}, [1.0] * 2, 22.0)
    assert not lengths._budget(1).open


def test_what_many_rows_lose_is_no_loss_of_one() -> None:
    lengths = DraftLengths(measured(cheap), longest=16)
    for slot in range(8):
        lengths.enter(slot, 16)
    for _ in range(40):
        tell(lengths, dict.fromkeys(range(8), 4), dict.fromkeys(range(8), 0), 4 * cheap(8, 0))
    assert lengths.plan([]).lengths == dict.fromkeys(range(8), 0)
    assert not lengths._budget(8).open
    assert not lengths._budget(9).open
    for slot in range(7):
        lengths.leave(slot)
    assert lengths._budget(1).open
    for _ in range(40):
        tell(lengths, {7: 4}, {7: 4}, cheap(1, 4))
    lengths.plan([])
    assert lengths.plan([]).lengths[7] > 0


def test_calls_that_are_shorter_take_the_host_more_often() -> None:
    lengths = looking(lambda rows, gamma: 1 + 0.01 * gamma)
    lengths.enter(0, 0, 16)
    lengths.plan([])
    lengths.observe({0: result(*[PLAIN] * 100)}, [1.0] * 100, 101.0)
    for _ in range(400):  # four bytes for the price of two and a half, and two for the host
        lengths.observe({0: result(*[Try(1, 1, 0)] * 2)}, [1.25] * 2, 4.5)
    assert not lengths._budget(1).open


def test_what_a_prophet_has_missed_is_no_price() -> None:
    """The first round behind plain ones tells it; the budget pays for that, drafts do not."""
    costs = measured(cheap)
    lengths = DraftLengths(costs, longest=16)
    lengths.enter(0, 16)
    believed = costs.seconds(1, 3)
    for _ in range(50):
        for drafts, took in ((0, cheap(1, 0)), (3, 5 * cheap(1, 3))):
            lengths.plan([])
            tell(lengths, {0: drafts}, {0: drafts}, took)
    assert costs.seconds(1, 3) == pytest.approx(believed)
    for _ in range(50):
        lengths.plan([])
        tell(lengths, {0: 3}, {0: 3}, 1.2 * cheap(1, 3))
    assert costs.seconds(1, 3) > 1.1 * believed


def test_nothing_is_decided_while_more_rows_are_about_to_come() -> None:
    """But after a while it is: prompts may be consumed all the time."""
    lengths = DraftLengths(measured(cheap), longest=16)
    lengths.enter(0, 16)
    for _ in range(DraftLengths.FIRST):
        assert lengths.plan([], consuming=True).lengths == {0: 0}
        tell(lengths, {0: 0}, {0: 0}, None)
    assert lengths.plan([], consuming=True).lengths[0] > 0
    for soon in (True, False):
        lengths = DraftLengths(measured(cheap), longest=16)
        lengths.enter(0, 16)
        assert (lengths.plan([], consuming=soon).lengths[0] > 0) == (not soon)
        assert lengths.plan([]).lengths[0] > 0


def test_a_row_of_which_nothing_was_seen_is_as_the_others() -> None:
    usual = Acceptance(memory=400)
    one, other = Acceptance(usual), Acceptance(usual)
    for accepted in (3, 0, 8, 2):
        usual.observe(reached(8, accepted, 5))
        assert one.expected() == usual.expected()
        assert one.hoped() == other.hoped()
        assert all(h > e for h, e in zip(one.hoped()[1:], one.expected()[1:], strict=True))
    before = one.hoped()
    one.fade()
    assert one.hoped()[1] > before[1]
    assert other.hoped() == before
    one.observe(reached(8, 0))
    assert one.expected()[1] < usual.expected()[1]


class Choosy:
    """Rows whose prophet knows the chance of each draft, and omits unlikely ones."""

    def __init__(self, cost: Cost, rows: int, sure: float) -> None:
        self.cost, self.rows, self.sure = cost, rows, sure
        self.random = random.Random(3)

    def tried(self, wanted: int, p_min: float) -> Try:
        made = accepted = 0
        likely, right = 1.0, True
        for _ in range(wanted):
            chance = 0.98 if self.random.random() < self.sure else 0.25
            likely *= chance
            if likely < p_min:
                break
            made += 1
            right &= self.random.random() < chance
            accepted += right
        return Try(made, accepted, omitted=wanted - made)

    def rate(self, lengths: DraftLengths, rounds: int, p_min: float | None = None) -> float:
        """Bytes per second; a round costs what is verified, and a step more for each row."""
        total = spent = 0.0
        for _ in range(rounds):
            wanted = lengths.plan([]).lengths
            least = lengths.p_min(self.rows) if p_min is None else p_min
            tries = {slot: self.tried(gamma, least) for slot, gamma in wanted.items()}
            seconds = sum(
                self.cost(self.rows, tried.drafted) if tried.wanted else self.cost(self.rows, 0)
                for tried in tries.values()
            )
            seconds = seconds / self.rows + 0.15 * any(wanted.values())
            if lengths.over(wanted, 1):
                gave = {slot: result(tried) for slot, tried in tries.items()}
                lengths.observe(gave, [seconds], seconds)
            total += sum(1 + tried.accepted for tried in tries.values())
            spent += seconds
        return total / spent


def choosing(cost: Cost, rows: int) -> DraftLengths:
    """Of rows whose costs were measured with every draft made."""
    drafted = {(rows, g): cost(rows, g) + 0.15 * (g > 0) for g in LENGTHS}
    lengths = DraftLengths(RoundCosts(drafted), longest=16)
    for slot in range(rows):
        lengths.enter(slot, 16)
    return lengths


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("sure", [0.2, 0.6, 0.9])
def test_what_is_omitted_costs_nothing_and_counts(rows: int, sure: float) -> None:
    """Where all drafts are made they pay less, or not at all."""
    rates = [
        Choosy(dear_places, rows, sure).rate(choosing(dear_places, rows), 4000, p_min)
        for p_min in (None, 0.0)
    ]
    plain = rows / dear_places(rows, 0)
    assert rates[0] > 0.97 * plain
    assert rates[1] > 0.97 * plain
    if sure > 0.5:
        assert rates[0] > 1.1 * rates[1]
        assert rates[0] > 1.2 * plain


def test_a_draft_must_be_as_likely_as_its_place_is_dear() -> None:
    def cost(rows: int, gamma: int) -> float:
        return rows * (1 + 0.3 * (gamma > 0) + 0.2 * gamma)

    costs = measured(cost)
    assert [costs.p_min(rows) for rows in (1, 3, 8)] == pytest.approx([0.2] * 3)
    assert measured(dear).p_min(1) == 1.0
    assert measured(lambda rows, gamma: float(rows)).p_min(2) == 0.0
    assert RoundCosts({(1, 0): 1.0, (1, 4): 3.0}).p_min(1) == 0.5
    assert RoundCosts({(1, 0): 1.0}).p_min(1) == 0.0
    # what making drafts costs is spent when they are found unlikely
    both = RoundCosts({(1, 0): 1.0, (1, 4): 3.0}, {(1, 1): 1.5, (1, 3): 2.0, (1, 6): 2.75})
    assert both.p_min(1) == pytest.approx(0.25)
    # where drafting pays, time is worth more
    lengths = DraftLengths(costs, longest=16)
    assert lengths.p_min(1) == pytest.approx(0.2)
    lengths.enter(0, 16)
    simulation = Simulation(cost, [0.9])
    rate = simulation.rate(lambda: lengths.plan([]).lengths, 1500, lengths)
    assert lengths.p_min(1) == pytest.approx(0.2 * rate, rel=0.2)
    assert rate > 1.5


def test_a_round_whose_drafts_were_all_omitted_is_no_plain_one() -> None:
    costs = RoundCosts({(1, 0): 1.0, (1, 1): 1.6, (1, 2): 2.0, (1, 4): 2.8})
    assert costs.seconds(1, 4, 0.0) == pytest.approx(1.2, rel=0.02)
    assert costs.seconds(1, 4, 1.5) == pytest.approx(1.8, rel=0.02)
    assert costs.seconds(1, 0) == 1.0
    for _ in range(200):
        costs.observe([(Try(0, 0, omitted=4),), (Try(2, 1, omitted=2),)] * 4, [1.5, 2.3] * 4)
    assert costs.plain(1) == 1.0
    assert costs.seconds(1, 4, 1.0) == pytest.approx(1.9, rel=0.02)


def test_a_call_ends_where_the_next_decision_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is settled is looked at in one call of three."""
    lengths = DraftLengths(measured(cheap), longest=16)
    decided, learned = [0], [0]

    def counting(name: str, counter: list[int]) -> None:
        honest = getattr(lengths, name)

        def counted(*arguments: object) -> None:
            counter[0] += 1
            honest(*arguments)

        monkeypatch.setattr(lengths, name, counted)

    counting("_decide", decided)
    counting("_learn", learned)
    lengths.enter(0, 16)
    calls = 0
    for _ in range(60):
        planned = lengths.plan([])
        gamma = planned.lengths[0]
        tries = [Try(gamma, gamma - 1 if gamma else 0)] * planned.rounds
        seconds = [cheap(1, gamma)] * planned.rounds
        calls += 1
        if lengths.over(planned.lengths, planned.rounds):
            lengths.observe({0: result(*tries)}, seconds, sum(seconds))
    plain_spells = calls - decided[0]  # nothing is decided between them
    assert 0 < plain_spells < 10
    assert calls / 4 < learned[0] < calls / 2


@pytest.mark.parametrize("pays", [True, False])
def test_how_often_texts_repeat_themselves_is_known_whether_or_not_that_pays(pays: bool) -> None:
    def cost(rows: int, gamma: int) -> float:
        return rows + (0.5 if pays else 20.0) * gamma

    text = Repeating(0.05, 3, 0.99)
    lengths = looking(cost, repeats=text.repeats)
    lengths.enter(0, 0, 16)
    text.rate(lengths, cost, 4000)
    assert (lengths.plan([]).lookups[0][3] > 0) == pays
    assert 0.035 < lengths._met[4] / sum(lengths._met) < 0.07


@pytest.mark.parametrize(("right", "expected"), [(16, 16), (0, 0)])
def test_what_a_row_s_text_repeated_is_believed_of_the_next_one(right: int, expected: int) -> None:
    """Without a trial, and though nothing was looked up for the first."""
    told = {PLAIN: 70, Try(16, right, 3): 30}
    lengths = looking(dear_places, repeats=lambda slot: told if slot else {})
    lengths.enter(1, 0, 16)
    lengths.leave(1)
    lengths.enter(0, 0, 16)
    assert lengths.plan([]).lookups[0] == (0, 0, 0, expected)


@pytest.mark.parametrize(("share", "looked_up"), [(0.1, True), (0.001, False)])
def test_what_gains_little_of_all_bytes_is_not_looked_up(share: float, looked_up: bool) -> None:
    """However good its drafts are: rounds behind it take longer."""
    text = Repeating(share, 3, 0.99)
    lengths = looking(dear_places, repeats=text.repeats)
    lengths.enter(0, 0, 16)
    text.rate(lengths, dear_places, 3000)
    row = lengths._rows[0]
    assert row.cases[4].acceptance.expected()[16] > 1.3 * 9
    assert (lengths.plan([]).lookups[0][3] > 0) == looked_up


def test_nothing_is_asked_of_a_row_whose_text_is_not_looked_through() -> None:
    asked: list[int] = []

    def repeats(slot: int) -> Mapping[Try, int]:
        asked.append(slot)
        return {}

    lengths = looking(dear_places, 16, repeats)
    lengths.enter(0, 16, 0)
    lengths.enter(1, 16, 4)
    assert set(lengths.plan([]).lookups) == {1}
    lengths.leave(0)
    lengths.leave(1)
    lengths.leave(1)
    assert asked == [1, 1]
