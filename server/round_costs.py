"""What a round takes, measured at start and corrected by what rounds take lately.

Plain Python, no clock.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from specdec.config import LONGEST_DRAFT
from specdec.round import Try

Measured = Mapping[tuple[int, int], float]
"""Seconds by (rows, draft length)."""


class Growth(NamedTuple):
    """What rounds take longer for each byte that every row has behind it beyond `behind`, by some
    (rows, draft length)."""

    behind: int
    seconds: Measured


class RoundCosts:
    """Seconds of a round in which b rows draft γ bytes each, from measured (b, γ).

    `drafted` are plain rounds and those that a prophet drafts for, `looked_up` those whose drafts
    are looked up, of the same row counts; `growth` is that of both.
    """

    AMONG = 4
    """So many plain rounds among others at least are a basis."""
    SLOWLY = 2000
    """Rounds in which is learned how much longer those take."""
    GRAIN = 64
    """What is behind rows is told apart by so many bytes: prices are kept from one to the next."""

    def __init__(
        self,
        drafted: Measured,
        looked_up: Measured | None = None,
        growth: Growth | None = None,
    ) -> None:
        plain = {pair: seconds for pair, seconds in drafted.items() if not pair[1]}
        grows = growth.seconds if growth else {}
        self._behind = growth.behind if growth else 0
        self._kinds = (
            _Table(drafted, grows, in_steps=True),
            _Table(plain | dict(looked_up or {}), grows),
        )
        # what rounds cost lately against what was measured
        self._plain = 1.0
        self._held_up = 0.0
        self._lately: dict[int, Lately] = {}

    @property
    def lengths(self) -> tuple[int, ...]:
        """Those that were measured of a prophet's drafts, 0 among them."""
        return self._kinds[False].lengths

    @property
    def lookup_lengths(self) -> tuple[int, ...]:
        """Those that were measured of drafts that are looked up, 0 among them."""
        return self._kinds[True].lengths

    def lie_behind(self, places: float) -> None:
        """From now on rows have so many bytes behind them, in the mean: attention takes longer, of
        plain rounds by the larger share."""
        beyond = max(0, round(places - self._behind) // self.GRAIN * self.GRAIN)
        for table in self._kinds:
            table.beyond = beyond

    def seconds(self, rows: int, gamma: int, made: float | None = None) -> float:
        """Of rounds that a prophet drafts for; where it omits drafts, `made` of γ in the mean.
        Between what was measured linear, outside in proportion to the last two."""
        table = self._kinds[False]
        if not gamma:
            return self.plain(rows)
        return self.plain(rows) * (
            1 + table.lately.at(table.drafting(rows, gamma if made is None else made))
        )

    def added(self, rows: int, made: float) -> float:
        """What so many drafts a row of a prophet's add to a round, in plain ones: as measured at
        start, and as seen in calls that had plain rounds too.  Others tell as much of the
        machine's pace as of drafts."""
        table = self._kinds[False]
        return table.truly.mean * table.drafting(rows, made)

    def lookup_added(self, rows: int, length: int) -> float:
        """The same of so many that are looked up for one of the rows."""
        table = self._kinds[True]
        return table.truly.mean * table.prices(rows)[length] / rows

    def p_min(self, rows: int) -> float:
        """The chance below which a draft is not worth its place in the pass: what that adds to a
        round, measured in plain ones, which give a byte.  As measured of what is looked up, if
        that was: by when its chance is known, a prophet's draft has been made."""
        table = self._kinds[len(self.lookup_lengths) > 1]
        lengths = table.lengths[1:] if len(table.lengths) > 2 else table.lengths
        few, many = lengths[0], lengths[-1]
        prices = table.prices(rows)
        return min(1.0, max(0.0, (prices[many] - prices[few]) / max(1, many - few)))

    def share(self, rows: int, drafting: int, gamma: int, made: float | None = None) -> float:
        """A row's share of those seconds.

        A prophet drafts for all at once: the `drafting` rows for which it may bear what that adds;
        all, where that is 0.
        """
        plain = self.plain(rows)
        return plain / rows + (self.seconds(rows, gamma, made) - plain) / (drafting or rows)

    def shares(self, rows: int, drafting: int = 0) -> dict[int, float]:
        """The same by every length that was measured of a prophet's drafts."""
        table, plain = self._kinds[False], self.plain(rows)
        none, each = plain / rows, plain / (drafting or rows)
        lately, prices = table.lately, table.prices(rows)
        return {
            gamma: none + each * lately.at(prices[gamma]) if gamma else none
            for gamma in self.lengths
        }

    def lookup_shares(self, rows: int) -> dict[int, float]:
        """The same of drafts that are looked up: they are found for a row now and then, which pays
        for that round alone."""
        table, plain = self._kinds[True], self.plain(rows)
        lately, prices = table.lately, table.prices(rows)
        return {
            gamma: plain / rows + plain * lately.at(prices[gamma] / rows)
            for gamma in table.lengths[1:]
        }

    def plain(self, rows: int) -> float:
        """What plain rounds of so many rows take, by what they took lately against what they
        should, or until there were a few by what rounds of other rows did."""
        lately = self._lately.get(rows)
        pace = lately.mean if lately is not None and lately.enough else self._plain
        return pace * self._kinds[False].plain(rows)

    def observe_plain(self, rows: int, seconds: float, rounds: int) -> None:
        """So many plain rounds, in which no prompt was consumed, took so long each."""
        pace = seconds / self._kinds[False].plain(rows)
        self._plain += 0.1 * (min(2 * self._plain, pace) - self._plain)
        self._lately.setdefault(rows, Lately()).observe(pace, rounds)
        # nothing shows now what drafts cost: what was seen last fades
        for table in self._kinds:
            table.lately.fade(0.9999**rounds)

    def observe(self, rounds: Iterable[tuple[Try, ...]], seconds: Sequence[float]) -> None:
        """Rounds one behind the other took so long: what each row tried in each.

        Where plain rounds are among them the others are held against those: from one moment to
        another a machine's pace changes by more than what drafts add.  How much longer such plain
        rounds take than plain rounds by themselves is the drafts' doing too; that is learned
        slowly.
        """
        plain: list[float] = []
        fitting = [_Fitting(), _Fitting()]
        for row, took in zip(rounds, seconds, strict=True):
            asked = [tried for tried in row if tried.drafted or tried.omitted]
            if not asked:
                plain.append(took)
                continue
            looked_up = asked[0].tier >= 0
            # a prophet drafts in steps, as many as the longest draft has: few rows that draft among
            # many cost more than their share, and tell nothing
            if looked_up:
                alike = all(tried.tier >= 0 for tried in asked)
            else:
                wanted = asked[0].wanted
                alike = len(asked) == len(row)
                alike &= all(tried.wanted == wanted and tried.tier < 0 for tried in asked)
            if alike:
                prices = self._kinds[looked_up].prices(len(row))
                seen = fitting[looked_up]
                seen.count += 1
                seen.added += sum([prices[tried.drafted] for tried in row]) / len(row)
                seen.seconds += took
        basis, held_up = self.plain(len(row)), 0.0
        if len(plain) >= self.AMONG:
            longer = sum(plain) / len(plain) / basis - 1
            self._held_up += (longer - self._held_up) * min(0.2, len(plain) / self.SLOWLY)
            basis, held_up = sum(plain) / len(plain), max(0.0, self._held_up)
        drafting = len(seconds) - len(plain)
        for table, seen in zip(self._kinds, fitting, strict=True):
            if seen.count:
                each = seen.seconds / seen.count / basis * (1 + held_up) - 1
                each += held_up * len(plain) / drafting
                measured = seen.added / seen.count
                table.lately.observe(measured, each, seen.count)
                if len(plain) >= self.AMONG and measured:
                    longer = seen.seconds / seen.count / basis - 1
                    table.truly.observe(max(0.0, longer / measured), seen.count)


@dataclass
class _Fitting:
    """Rounds of a call from which prices can be learned: what was measured to be added to plain
    rounds, in those, and the seconds that they took."""

    count: int = 0
    added: float = 0.0
    seconds: float = 0.0


class _Table:
    """What was measured of drafts of one kind, and what they add to a round lately."""

    KNOWN = 3.0
    """For so many rounds counts what was measured."""
    TRULY = 500
    """Rounds of which is remembered how far that was off."""

    def __init__(self, measured: Measured, growth: Measured, in_steps: bool = False) -> None:
        """`in_steps`: what drafts costs something even where it makes none."""
        self._rows = sorted({rows for rows, _ in measured})
        self.lengths = tuple(sorted({gamma for _, gamma in measured}))
        if not self._rows or len(measured) != len(self._rows) * len(self.lengths):
            raise ValueError("costs must be measured for every pair of row count and draft length")
        if self.lengths[0] != 0:
            raise ValueError("costs of plain rounds are missing")
        smoothed = _smoothed(measured, self._rows, self.lengths)
        grows = sorted({rows for rows, _ in growth}), sorted({gamma for _, gamma in growth})
        self._measured, self._growth = {}, {}
        for rows in self._rows:
            self._measured[rows] = [smoothed[rows, gamma] for gamma in self.lengths]
            if growth:
                self._growth[rows] = [_at(growth, grows, rows, gamma) for gamma in self.lengths]
        self._steps = self.lengths[1:] if in_steps and len(self.lengths) > 2 else self.lengths
        self._places = [_between(self._steps, length) for length in range(LONGEST_DRAFT + 1)]
        """Of each length between those."""
        self.beyond = 0
        """So many bytes more are behind each row than when it was measured."""
        self._seconds: dict[tuple[int, int], dict[int, float]] = {}
        self._prices: dict[tuple[int, int], list[float]] = {}
        """Both by rows and what is behind them."""
        points = [self.prices(rows)[gamma] for rows in self._rows for gamma in self.lengths[1:]]
        self.lately = _Line(points, self.KNOWN / max(1, len(points)))
        self.truly = Lately(1.0, self.TRULY)
        """What drafts add, against what they were measured to."""

    def plain(self, rows: int) -> float:
        """Seconds."""
        return self._expected(rows)[0]

    def _expected(self, rows: int) -> dict[int, float]:
        """Seconds by the lengths that were measured."""
        beyond = self.beyond
        if (rows, beyond) not in self._seconds:
            few, many, further = _between(self._rows, rows)
            between = _mean(self._measured[few], self._measured[many], further)
            if rows > self._rows[-1]:  # they take no less than the most that were measured
                between = list(map(max, between, self._measured[self._rows[-1]]))
            if self._growth and beyond:
                more = _mean(self._growth[few], self._growth[many], further)
                between = [
                    value + beyond * max(0.0, each)
                    for value, each in zip(between, more, strict=True)
                ]
            self._seconds[rows, beyond] = dict(zip(self.lengths, between, strict=True))
        return self._seconds[rows, beyond]

    def prices(self, rows: int) -> list[float]:
        """What 0, 1, … drafts of a row each were measured to add, if all rows have them, in plain
        rounds."""
        known = rows, self.beyond
        if known not in self._prices:
            seconds = self._expected(rows)
            self._prices[known] = [
                max(0.0, ((1 - further) * seconds[few] + further * seconds[many]) / seconds[0] - 1)
                for few, many, further in self._places
            ]
        return self._prices[known]

    def drafting(self, rows: int, made: float) -> float:
        """The same of so many in the mean, perhaps less than one: what drafting costs before the
        first place to verify is there all the same."""
        prices = self.prices(rows)
        few, many, further = _between(self._steps, made)
        return max(0.0, (1 - further) * prices[few] + further * prices[many])


def _at(values: Measured, known: tuple[list[int], list[int]], rows: int, gamma: int) -> float:
    """Linear between what was measured at some rows and draft lengths, outside in proportion to the
    last two."""
    few, many, further = _between(known[0], rows)
    less, more, beyond = _between(known[1], gamma)
    low, high = (
        (1 - beyond) * values[count, less] + beyond * values[count, more] for count in (few, many)
    )
    return (1 - further) * low + further * high


def _mean(low: Sequence[float], high: Sequence[float], further: float) -> list[float]:
    """As far from the one to the other."""
    return [(1 - further) * a + further * b for a, b in zip(low, high, strict=True)]


class _Line:
    """What drafts add to a round lately, by what they were measured to add; in plain rounds.

    The line of least squares through what was seen, newer rounds counting more, and through what
    was measured, as if that had been seen too.  It need not go through 0: a round that drafts may
    cost something whatever its length.
    """

    MEMORY = 0.97

    def __init__(self, measured: Sequence[float], weight: float) -> None:
        self._known, self._seen = [0.0] * 5, [0.0] * 5
        for added in measured:
            self._add(self._known, added, added, weight)
        self._fitted: tuple[float, float] | None = None

    @staticmethod
    def _add(sums: list[float], x: float, y: float, weight: float) -> None:
        for index, value in enumerate((1.0, x, y, x * x, x * y)):
            sums[index] += weight * value

    def at(self, x: float) -> float:
        if self._fitted is None:
            self._fitted = self._fit()
        at_none, slope = self._fitted
        return max(0.0, at_none + slope * x)

    def _fit(self) -> tuple[float, float]:
        count, xs, ys, squares, products = (
            known + seen for known, seen in zip(self._known, self._seen, strict=True)
        )
        spread = count * squares - xs * xs
        if spread > 1e-6 * count * squares:
            slope = max(0.0, (count * products - xs * ys) / spread)
            if slope * xs <= ys:
                return (ys - slope * xs) / count, slope
            return 0.0, max(0.0, products / squares)  # nothing costs less than none
        return 0.0, ys / xs if xs > 0 else 0.0  # of one length alone something is known

    def observe(self, x: float, y: float, rounds: int) -> None:
        """So many rounds."""
        believed = self.at(x)
        # a round that something else held up counts like one of twice the length
        y = min(max(y, 0.5 * (believed - 1)), 2 * believed + 1)
        self.fade(self.MEMORY**rounds)
        self._add(self._seen, x, y, rounds)

    def fade(self, share: float) -> None:
        """What was seen counts for less."""
        self._seen = [share * value for value in self._seen]
        self._fitted = None


class Lately:
    """The mean of what is seen again and again: of all, then of the last 60 or so.  What it begins
    with, if anything, counts as if it had been seen `ENOUGH` times."""

    ENOUGH = 8

    def __init__(self, begin: float | None = None, memory: int = 60) -> None:
        self.mean, self._rounds = begin or 0.0, self.ENOUGH if begin else 0
        self._memory = memory

    @property
    def enough(self) -> bool:
        return self._rounds >= self.ENOUGH

    def observe(self, value: float, rounds: int) -> None:
        """So many rounds, one behind the other, had so much each."""
        if self.enough:  # rounds that something held up count like slow ones
            value = min(value, 2 * self.mean)
        self._rounds = min(self._rounds + rounds, self._memory)
        self.mean += (value - self.mean) * min(1.0, rounds / self._rounds)


def _smoothed(
    measured: Measured, rows: Sequence[int], lengths: Sequence[int]
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


def _between(known: Sequence[int], value: float) -> tuple[int, int, float]:
    """Two of the sorted numbers and how far from the first to the second the value is."""
    if len(known) == 1:
        return known[0], known[0], 0.0
    above = min(max(1, bisect_right(known, value)), len(known) - 1)
    low, high = known[above - 1], known[above]
    return low, high, (value - low) / (high - low)
