"""A row whose draft lengths are left open: what it may draft, and what that promises.

Where its text repeats itself drafts may be looked up in it (`specdec.lookup`), else the prophet
drafts: a case for each of `TIERS`, with a draft length and chances of its own, and the usual case.
In a case for which nothing is looked up the row does as usual.  Plain Python, no clock.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from server.acceptance import Acceptance, Reached
from specdec.lookup import NO_LOOKUP, TIERS, Lookup

USUAL, CASES = 0, 1 + len(TIERS)
"""The index of the usual case, the first, and how many there are."""


class Shares:
    """A row's share of a round's seconds by draft length: of what the prophet drafts, 0 among them,
    and of what is looked up, of which there is none where it cannot pay; and where the prophet
    drafts and all is `omitted`."""

    def __init__(
        self, drafted: Mapping[int, float], looked_up: Mapping[int, float], omitted: float
    ) -> None:
        self.drafted, self.looked_up, self._omitted = drafted, looked_up, omitted
        self._asked: dict[int, tuple[Sequence[float], Mapping[int, float]]] = {}

    def drafting(self, made: Sequence[float]) -> Mapping[int, float]:
        """The same by what the prophet is asked for, where it makes so many drafts of 0, 1, … in
        the mean, and a byte in any case.  Each draft counts as often as it is made: rounds of the
        mean length would look cheaper than those of many lengths are.

        Rows of which nothing was seen share `made`, and the answer.
        """
        if id(made) not in self._asked:
            none, *lengths = self.drafted
            seconds = {none: self.drafted[none]}
            fewer, took = 0, self._omitted
            before = took
            for gamma in lengths:
                likely = (made[gamma] - made[fewer]) / (gamma - fewer)
                took += likely * (self.drafted[gamma] - before)
                fewer, before = gamma, self.drafted[gamma]
                seconds[gamma] = max(seconds[none], took)
            self._asked[id(made)] = made, seconds
        return self._asked[id(made)][1]


class Mean(NamedTuple):
    """Of rounds of one or several rows: bytes, and the seconds that these rows have a share in."""

    gain: float
    seconds: float


PROMISE = 0.05
"""Bytes a round, of all rounds, that a case must promise at best to be tried: trying costs too."""
TRIALS = 4
"""So many rounds try what the prophet does not usually draft, and so many at least what is not
usually looked up, if it is found: all rounds of a call."""


class Case:
    """`length` bytes are drafted, of at most `most`; or `probe`, in `TRIALS` rounds."""

    def __init__(self, most: int, usual: Acceptance, met: float) -> None:
        self.most, self.acceptance = most, Acceptance(usual)
        self.met = met
        """How often it was the case lately, in rounds in which that was looked for; as it was
        before where it is not."""
        self.length = self.probe = self.trials = 0


class OpenRow:
    """`usual` is what is believed of any row's drafts, by case, `met` of how often each is, and
    `made` of how many drafts the prophet makes of those that are wanted.

    The prophet may draft up to `most` bytes for it, and up to `longest` may be looked up.
    """

    KNOWN = 8.0
    """Rounds that `met` counts for."""

    def __init__(
        self,
        most: int,
        usual: Sequence[Acceptance],
        met: Sequence[float],
        made: Acceptance,
        longest: int = 0,
    ) -> None:
        share = self.KNOWN / sum(met)
        self.cases = [
            Case(longest if index else most, each, share * met[index])
            for index, each in enumerate(usual)
        ]
        self._made = Acceptance(made)
        self._looks = False
        self._drafting: Mapping[int, float] = {}
        """Its share of a round's seconds by draft length of the prophet's, as far as it goes."""
        self._expected: dict[int, list[float]] = {}
        self._share: dict[int, float] = {}

    @property
    def drafts(self) -> bool:
        return any(case.length for case in self.cases)

    @property
    def tries(self) -> bool:
        return any(case.probe for case in self.cases)

    @property
    def lengths(self) -> list[int]:
        """By case."""
        return [case.length for case in self.cases]

    @property
    def looked_for(self) -> list[int]:
        """The usual case and those for which something is looked up."""
        return [i for i, case in enumerate(self.cases) if i == USUAL or case.length or case.probe]

    def settle(self, lengths: Sequence[int]) -> None:
        for case, length in zip(self.cases, lengths, strict=True):
            case.length = length

    def rest(self) -> None:
        """Drafts nothing and tries nothing."""
        self.settle([0] * CASES)
        self.try_nothing()

    def try_nothing(self) -> None:
        for case in self.cases:
            case.probe = 0

    def next_draft(self) -> tuple[int, Lookup]:
        """What the prophet is to draft in the next rounds, and what to look up."""
        usual, *others = self.cases
        length = usual.length or usual.probe
        self._looks = any(case.length or case.probe for case in others)
        if not self._looks:
            return length, NO_LOOKUP
        return length, tuple(case.length or case.probe for case in others)

    def pause(self) -> None:
        """Drafts nothing in the next rounds."""
        self._looks = False

    def observe(self, index: int, accepted: Reached, made: Reached) -> None:
        """What drafts gave in a case, and how many were made, if it is the usual one."""
        case, rounds = self.cases[index], accepted.rounds
        case.acceptance.observe(accepted)
        if index == USUAL:
            self._made.observe(made)
        else:
            case.trials -= rounds
            if case.trials <= 0:
                case.probe = 0
            case.met += rounds
            self.cases[USUAL].met -= rounds  # of the rounds that `look_again` counts

    def look_again(self, rounds: int) -> int:
        """So many rounds are over; in how many of them its text was looked through."""
        looked, usual = rounds if self._looks else 0, self.cases[USUAL]
        usual.met += looked
        usual.trials -= rounds  # whatever came of them: they are calls of their own
        if usual.trials <= 0:
            usual.probe = 0
        return looked

    def weigh(self, shares: Shares) -> None:
        """Settles what is believed of it while it is decided."""
        total = sum(case.met for case in self.cases)
        self._drafting = shares.drafting(self._made.expected())
        self._expected, self._share = {}, {}
        for index, case in enumerate(self.cases):
            if index == USUAL or (case.most and shares.looked_up):
                self._expected[index] = case.acceptance.expected()
                self._share[index] = case.met / total
            else:
                case.length = case.probe = 0
        if total > 100:  # what was met a while ago counts for less
            for index in self.looked_for:
                self.cases[index].met /= 2

    def mean(self, shares: Shares) -> Mean:
        """Of a round as it is settled."""
        lengths = self.lengths
        gain = seconds = 0.0
        rest = 1.0
        for index, share in self._share.items():
            length = lengths[index]
            if length and index != USUAL:
                gain += share * self._expected[index][length]
                seconds += share * shares.looked_up[length]
                rest -= share
        gain += rest * self._expected[USUAL][lengths[USUAL]]
        return Mean(gain, seconds + rest * self._drafting[lengths[USUAL]])

    def answer(self, shares: Shares, others: Mean, margin: float, more: float) -> list[int]:
        """The lengths, by case, that give the most bytes per second in rounds beside `others`, at
        least `margin` times what plain rounds give; what is settled stays unless another has
        `more` times its bytes.

        Each case by itself: of the bytes of a text so many are in each, however fast they come.
        """
        at_none = self._drafting[0]
        plain = (others.gain + 1) / (others.seconds + at_none)

        def best(index: int, known: Mapping[int, float], usually: float) -> tuple[float, int]:
            expected, case = self._expected[index], self.cases[index]
            found = held = usually, 0, 1.0  # the rate, the length, its bytes less what it delays
            for gamma, seconds in known.items():
                if 0 < gamma <= case.most:
                    better = (others.gain + expected[gamma]) / (others.seconds + seconds)
                    delayed = plain * (seconds - at_none)
                    if better > usually and expected[gamma] >= margin * (1 + delayed):
                        each = better, gamma, expected[gamma] - delayed
                        found = max(found, each)
                        held = each if gamma == case.length else held
            rate, length, _ = held if held[1] and found[2] <= more * held[2] else found
            return rate, length

        usually, usual = best(USUAL, self._drafting, plain)
        lengths = [usual] + [0] * (CASES - 1)
        for index in self._expected:
            if index != USUAL:
                lengths[index] = best(index, shares.looked_up, usually)[1]
        return lengths

    def wish(self, shares: Shares, others: Mean, longest: int) -> float:
        """What to try of cases for which nothing is drafted, if that may pay in rounds beside
        `others`.  How many times as fast as plain ones rounds are in the usual case."""
        length, at_none = self.cases[USUAL].length, self._drafting[0]
        gain, took = self._expected[USUAL][length], self._drafting[length]
        rate = (others.gain + gain) / (others.seconds + took)
        worth = gain - rate * took
        for index, case in enumerate(self.cases):
            case.probe = 0
            if index in self._expected and not case.length:
                case.acceptance.fade()
                seconds = shares.looked_up
                if index == USUAL:
                    self._made.fade()
                    seconds = shares.drafting(self._made.hoped())
                value, length = self._best(index, case.acceptance.hoped(), seconds, rate)
                if self._share[index] * (value - worth) > PROMISE:
                    case.trials = TRIALS
                    case.probe = min(length, longest if index == USUAL else 1)
        return rate * at_none

    def _best(
        self, index: int, expected: Sequence[float], known: Mapping[int, float], rate: float
    ) -> tuple[float, int]:
        """What is worth most in a case, and with which length, of those whose seconds are known."""
        most, worth, length = self.cases[index].most, -math.inf, 0
        for gamma, seconds in known.items():
            value = expected[gamma] - rate * seconds
            if value > worth and gamma <= most:
                worth, length = value, gamma
        return worth, length
