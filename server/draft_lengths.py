"""How many bytes each row drafts that leaves it open: what gives the most bytes per second.

What a round costs was measured at start (`RoundCosts`) and is corrected by what rounds cost lately;
how many drafts are accepted is estimated for each row by position (`Acceptance`), from all rows at
first.  Rows of a batch share a round, so they are decided together (`DraftLengths`).  Estimates can
be wrong; what drafting has lost against plain rounds is added up from what was measured, and there
is an end to it (`Budget`).  Plain Python, no tensors, no clock.
"""

import math
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence

LENGTHS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
"""Draft lengths that are considered."""


class RoundCosts:
    """Seconds of a round in which b rows draft γ bytes each, from measured (b, γ)."""

    def __init__(self, measured: Mapping[tuple[int, int], float]) -> None:
        self._rows = sorted({rows for rows, _ in measured})
        self.lengths = tuple(sorted({gamma for _, gamma in measured}))
        if not self._rows or len(measured) != len(self._rows) * len(self.lengths):
            raise ValueError("costs must be measured for every pair of row count and draft length")
        if self.lengths[0] != 0:
            raise ValueError("costs of plain rounds are missing")
        self._measured = _smoothed(measured, self._rows, self.lengths)
        # what rounds cost lately against what was measured, and what drafts add to them likewise
        self._plain = self._drafts = 1.0
        self._lately: dict[int, _Lately] = {}

    def seconds(self, rows: int, gamma: int) -> float:
        """Between what was measured linear, outside in proportion to the last two."""
        plain = self._expected(rows, 0)
        added = self._plain * self._drafts * (self._expected(rows, gamma) - plain)
        return self.plain(rows) + added

    def plain(self, rows: int) -> float:
        """What plain rounds of so many rows took lately, or until there were a few should take."""
        lately = self._lately.get(rows)
        if lately is not None and lately.rounds >= _Lately.ENOUGH:
            return lately.seconds
        return self._plain * self._expected(rows, 0)

    def _expected(self, rows: int, gamma: int) -> float:
        few, many, further = _between(self._rows, rows)
        less, more, beyond = _between(self.lengths, gamma)
        low, high = (
            (1 - beyond) * self._measured[count, less] + beyond * self._measured[count, more]
            for count in (few, many)
        )
        return (1 - further) * low + further * high

    def observe(self, lengths: Sequence[int], seconds: float) -> None:
        """A round that consumed no prompt took so long."""
        rows = len(lengths)
        plain = self._expected(rows, 0)
        if any(lengths):
            # few rows that draft among many cost more than their share: such rounds tell nothing
            added = self._expected(rows, lengths[0]) - plain
            if added > 0 and len(set(lengths)) == 1:
                beyond = (seconds - self.plain(rows)) / self._plain
                self._drafts = _nearer(self._drafts, beyond / added)
        else:
            self._plain = _nearer(self._plain, seconds / plain)
            self._lately.setdefault(rows, _Lately()).observe(seconds)
            # nothing shows now what drafts cost: what was seen last fades
            self._drafts += 0.0005 * (1.0 - self._drafts)


class _Lately:
    """Seconds of plain rounds of one number of rows: the mean of all, then of the last 30 or so."""

    ENOUGH = 8

    def __init__(self) -> None:
        self.seconds, self.rounds = 0.0, 0

    def observe(self, seconds: float) -> None:
        self.rounds += 1
        if self.rounds > self.ENOUGH:  # a round that something held up counts like a slow one
            seconds = min(seconds, 2 * self.seconds)
        self.seconds += (seconds - self.seconds) / min(self.rounds, 30)


class Budget:
    """Seconds that drafting has saved against plain rounds, and that may be lost to trying.

    A hundredth of all time may be lost.  What was saved may be lost again, but no more than `most`:
    what paid once may not pay now.  Once all is lost there must be `again` before drafts go on.
    """

    SHARE = 0.01

    def __init__(self, first: float, again: float, most: float) -> None:
        self._left, self._again, self._most = first, again, most
        self.open = True

    def spend(self, plain: float, seconds: float) -> None:
        """A round took `seconds` and gave what plain rounds give in `plain`."""
        left = self._left + self.SHARE * seconds + plain - seconds
        self._left = min(left, self._most)
        self.open = self._left > (0.0 if self.open else self._again)


def _smoothed(
    measured: Mapping[tuple[int, int], float], rows: Sequence[int], lengths: Sequence[int]
) -> dict[tuple[int, int], float]:
    """Half of what was measured and half of the line through it: a draft costs what a place to
    verify costs, and a round that something held up is not another price."""
    result = dict(measured)
    drafting = [gamma for gamma in lengths if gamma]
    if len(drafting) > 2:
        middle = sum(drafting) / len(drafting)
        spread = sum((gamma - middle) ** 2 for gamma in drafting)
        for count in rows:
            mean = sum(measured[count, gamma] for gamma in drafting) / len(drafting)
            slope = sum((g - middle) * measured[count, g] for g in drafting) / spread
            for gamma in drafting:
                line = mean + slope * (gamma - middle)
                result[count, gamma] = (measured[count, gamma] + max(0.0, line)) / 2
    return result


def _nearer(value: float, seen: float) -> float:
    """A tenth of the way; a round that something else held up moves it no further than another."""
    return value + 0.1 * (min(2 * value, max(0.5 * value, seen)) - value)


def _between(known: Sequence[int], value: int) -> tuple[int, int, float]:
    """Two of the sorted numbers and how far from the first to the second the value is."""
    if len(known) == 1:
        return known[0], known[0], 0.0
    above = min(max(1, bisect_right(known, value)), len(known) - 1)
    low, high = known[above - 1], known[above]
    return low, high, (value - low) / (high - low)


class Acceptance:
    """How often draft k of a row was right where all before it were, lately.

    `prior` is what is believed of a row that has drafted little.
    """

    WEIGHT = 6.0
    """Rounds that the prior counts for."""

    def __init__(
        self, longest: int, prior: "Acceptance | None" = None, memory: float = 100
    ) -> None:
        self._prior = prior
        self._tried, self._kept = [0.0] * longest, [0.0] * longest
        self._forget = 1 - 1 / memory

    def observe(self, drafted: int, accepted: int) -> None:
        for k in range(min(accepted + 1, drafted)):
            self._tried[k] = self._tried[k] * self._forget + 1
            self._kept[k] = self._kept[k] * self._forget + (k < accepted)

    def fade(self) -> None:
        """What was seen a while ago counts for less."""
        self._tried = [0.96 * t for t in self._tried]
        self._kept = [0.96 * k for k in self._kept]

    def chances(self) -> list[float]:
        """By position."""
        if self._prior is None:
            # positions never reached: as those that were
            tried, kept = sum(self._tried), sum(self._kept)
            usual = (kept + 0.7) / (tried + 1)
            return [
                (k + usual * self.WEIGHT) / (t + self.WEIGHT)
                for t, k in zip(self._tried, self._kept, strict=True)
            ]
        prior = self._prior.chances()
        # a row that does worse than others at the places that it reached will at the others too
        usual = sum(p * t for p, t in zip(prior, self._tried, strict=True))
        shift = (sum(self._kept) + self.WEIGHT) / (usual + self.WEIGHT)
        return [
            (k + min(1.0, p * shift) * self.WEIGHT) / (t + self.WEIGHT)
            for t, k, p in zip(self._tried, self._kept, prior, strict=True)
        ]

    def expected(self) -> list[float]:
        """Bytes of a round with 0, 1, … drafts."""
        return _bytes(self.chances())

    def hoped(self) -> list[float]:
        """The same if every chance were as good as what was seen still allows."""
        hopes = []
        for chance, tried in zip(self.chances(), self._tried, strict=True):
            likely = (chance * tried + 1) / (tried + 2)
            hopes.append(min(1.0, likely + 1.5 * math.sqrt(likely * (1 - likely) / (tried + 2))))
        return _bytes(hopes)


def _bytes(chances: Sequence[float]) -> list[float]:
    total, reached, result = 1.0, 1.0, [1.0]
    for chance in chances:
        reached *= chance
        total += reached
        result.append(total)
    return result


class DraftLengths:
    """Decides for all rows that leave it open, every few rounds."""

    EVERY = 32
    """Rounds between decisions, and eight more for each row: they cost time too."""
    FIRST = 8
    """Rounds until the second decision; then twice as many, and so on."""
    GAIN = 1.03
    """What another decision has to bring at least."""
    MARGIN = 1.05
    """What drafting has to promise over plain decoding: costs are believed that well, no better."""
    PROBE = 3
    """A row that does not draft tries so many bytes once between decisions, if that may pay."""
    RESTING = 4
    """Decisions are so many times rarer while nobody drafts and nothing speaks for trying."""
    TOLD = 16
    """Among so many rows whose drafts could hardly pay one may draft all the same."""
    PLAIN_EVERY, PLAIN = 400, 6
    """While rows draft, so many rounds among so many are plain: what they cost is the yardstick."""
    LOOK_EVERY = 8
    """While nobody drafts one round in so many is observed."""
    SETTLING = 2
    """The first of them are not timed: a round behind one of another length takes longer."""

    def __init__(self, costs: RoundCosts, longest: int) -> None:
        self._costs, self._longest = costs, longest
        self._usual = Acceptance(longest, memory=400)
        self._rows: dict[int, _Open] = {}
        self._age = 0
        self._wait = self.FIRST
        self._decided = self._drafting = False
        self._since_plain = 0
        self._settling = self._hopeless = self._unseen = 0
        one = costs.seconds(1, 0)
        self._budget = Budget(first=40 * one, again=10 * one, most=200 * one)

    def enter(self, slot: int, most: int) -> None:
        """A row begins to decode that may draft up to `most` bytes a round."""
        row = _Open(most, Acceptance(self._longest, self._usual))
        if self._rows:  # as the others until it is decided
            lengths = [other.length for other in self._rows.values()]
            row.length = min(most, max(set(lengths), key=lengths.count))
        else:
            self._decided = False
        self._rows[slot] = row

    @property
    def rows(self) -> int:
        """How many there are to decide for."""
        return len(self._rows)

    def worth_watching(self, rows: int) -> bool:
        """Whether a row that begins to decode among so many may ever draft.

        What a prophet has to be told costs a share of the prompt; where drafts could not pay even
        if they were as good as is still thinkable, only one row in `TOLD` pays it.
        """
        plain, hoped = self._costs.plain(rows), self._usual.hoped()
        drafting = (gamma for gamma in self._costs.lengths if 0 < gamma <= self._longest)
        least = self.MARGIN / plain
        if any(hoped[g] > least * self._costs.seconds(rows, g) for g in drafting):
            return True
        self._hopeless += 1
        return self._hopeless % self.TOLD == 0

    def leave(self, slot: int) -> None:
        self._rows.pop(slot, None)

    def plan(self, fixed: Sequence[int]) -> dict[int, int]:
        """The next round's draft length of each row, beside rows whose lengths are fixed."""
        if not self._rows:
            return {}
        if not self._decided or self._age >= self._wait:
            # soon again at first: what was measured may be far off
            most = self.EVERY + 8 * len(self._rows)
            self._wait = min(2 * self._wait, most) if self._decided else self.FIRST
            self._age = 0
            self._decide(fixed)
            self._decided = True
            self._drafting = any(row.length for row in self._rows.values())
            tries = any(row.probe for row in self._rows.values())
            if not (self._drafting or tries) and self._wait == most:
                self._wait *= self.RESTING
        self._age += 1
        if self._drafting:
            self._since_plain += 1
            if self._since_plain > self.PLAIN_EVERY:
                if self._since_plain == self.PLAIN_EVERY + self.PLAIN:
                    self._since_plain = 0
                return dict.fromkeys(self._rows, 0)
        return {slot: row.next_length() for slot, row in self._rows.items()}

    def looks(self, lengths: Mapping[int, int]) -> bool:
        """Whether a round that was planned so is to be observed: looking takes time too."""
        if self._drafting or any(lengths.values()):
            return True
        self._unseen += 1
        return self._unseen >= self.LOOK_EVERY

    def observe(
        self,
        lengths: Mapping[int, int],
        results: Mapping[int, int],
        seconds: float | None,
        left: Collection[int] = (),
    ) -> None:
        """A round is over: drafts and accepted ones by slot, and how long it took, if it consumed
        no prompt.

        Of rows that had `left` when the round was read, under numbers that are no slot's, what they
        cost counts and nothing that they were given.
        """
        drafts = any(lengths.values())
        if drafts:
            for slot, drafted in lengths.items():
                if drafted and slot not in left:
                    self._usual.observe(drafted, results[slot])
                    if slot in self._rows:
                        self._rows[slot].acceptance.observe(drafted, results[slot])
        if seconds is None or not lengths:
            return
        passed, self._unseen = max(1, self._unseen), 0
        settled = self._settling == 0
        self._settling = self.SETTLING if drafts else max(0, self._settling - 1)
        if drafts or settled:
            self._costs.observe(list(lengths.values()), seconds)
        rows = len(lengths)
        plain = self._costs.plain(rows)
        mine = self._rows.keys() | left
        if any(drafted for slot, drafted in lengths.items() if slot not in mine):
            return  # what rows that always draft cost is not this one's loss
        if drafts:
            given = sum(1 + results[slot] for slot in lengths if slot not in left) / rows
            self._budget.spend(plain * given, min(seconds, 3 * given * plain))
            if not self._budget.open:
                self._age = self._wait  # decided again at once
        else:
            self._budget.spend(passed * plain, passed * plain)

    def _decide(self, fixed: Sequence[int]) -> None:
        rows = list(self._rows.values())
        count = len(rows) + len(fixed)
        cost = {g: self._costs.seconds(count, g) / count for g in self._costs.lengths}
        beside = sum(self._costs.seconds(count, gamma) for gamma in fixed) / count
        # what fixed rows will yield is not known here; they draft as others do
        usual = self._usual.expected()
        given = sum(usual[min(gamma, self._longest)] for gamma in fixed)
        expected = [row.acceptance.expected() for row in rows]

        def rate(lengths: Sequence[int]) -> float:
            gain = sum(e[gamma] for e, gamma in zip(expected, lengths, strict=True))
            return (given + gain) / (beside + sum(cost[gamma] for gamma in lengths))

        held = [row.length for row in rows]
        if not self._budget.open:
            for row in rows:
                row.length = row.probe = 0
            return
        chosen, best = held, rate(held)
        for _ in range(4):  # Dinkelbach: the best answer to a rate has a better rate, or is best
            answer = [
                self._answer(row, e, cost, best) for row, e in zip(rows, expected, strict=True)
            ]
            if answer == chosen or rate(answer) <= best:
                break
            chosen, best = answer, rate(answer)
        plain = [0] * len(rows)
        worth = best >= self.MARGIN * rate(plain)
        if not worth:
            chosen, best = plain, rate(plain)
        if not self._decided or not worth or best > self.GAIN * rate(held):
            for row, gamma in zip(rows, chosen, strict=True):
                row.length = gamma
        for row in rows:
            if not row.length:
                row.acceptance.fade()
                wish = self._answer(row, row.acceptance.hoped(), cost, best)
                row.probe = min(wish, self.PROBE)

    def _answer(
        self, row: "_Open", expected: Sequence[float], cost: Mapping[int, float], rate: float
    ) -> int:
        """The draft length that is worth most where a second is worth `rate` bytes."""
        lengths = (gamma for gamma in self._costs.lengths if gamma <= row.most)
        return max(lengths, key=lambda gamma: expected[gamma] - rate * cost[gamma])


class _Open:
    """A row whose draft length is decided here."""

    def __init__(self, most: int, acceptance: Acceptance) -> None:
        self.most, self.acceptance = most, acceptance
        self.length = self.probe = 0

    def next_length(self) -> int:
        probe, self.probe = self.probe, 0
        return self.length or probe
