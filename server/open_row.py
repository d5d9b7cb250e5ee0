"""A row whose draft lengths are left open: what it may draft, and what that promises.

Where its text repeats itself drafts may be looked up in it (`specdec.lookup`), else the prophet
drafts: a case for each of `TIERS`, with a draft length and chances of its own, and the usual case.
In a case for which nothing is looked up the row does as usual.  What looking up gives is seen
whether or not anything is (`Decoder.repeats`); what the prophet's drafts give has to be tried.
Plain Python, no clock.
"""

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
"""Bytes a round, of all rounds, that drafts must promise at best to be tried: trying costs too."""
WORTH = 0.02
"""The same that must be gained where something is looked up: plain rounds behind it take longer."""
TRIALS = 4
"""So many rounds try what is not usually drafted: all rounds of a call."""


class Case:
    """`length` bytes are drafted, of at most `most`."""

    def __init__(self, most: int, usual: Acceptance, met: float) -> None:
        self.most, self.acceptance = most, Acceptance(usual)
        self.met = met
        """In how many rounds it was the case lately: that the text matched so, or not at all."""
        self.length = 0


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
        self.probe = 0
        """What the prophet drafts in `TRIALS` rounds though it usually does not."""
        self._trials = 0
        self._drafting: Mapping[int, float] = {}
        """Its share of a round's seconds by draft length of the prophet's, as far as it goes."""
        self._expected: dict[int, list[float]] = {}
        self._share: dict[int, float] = {}

    @property
    def drafts(self) -> bool:
        return any(case.length for case in self.cases)

    @property
    def may_look(self) -> bool:
        """Whether anything may be looked up in its text."""
        return self.cases[-1].most > 0

    @property
    def lengths(self) -> list[int]:
        """By case."""
        return [case.length for case in self.cases]

    def settle(self, lengths: Sequence[int]) -> None:
        for case, length in zip(self.cases, lengths, strict=True):
            case.length = length

    def rest(self) -> None:
        """Drafts nothing and tries nothing."""
        self.settle([0] * CASES)
        self.probe = 0

    def next_draft(self) -> tuple[int, Lookup]:
        """What the prophet is to draft in the next rounds, and what to look up."""
        usual, *others = self.lengths
        return usual or self.probe, tuple(others) if any(others) else NO_LOOKUP

    def observe(self, accepted: Reached, made: Reached) -> None:
        """What the prophet's drafts gave, and how many were made."""
        self.cases[USUAL].acceptance.observe(accepted)
        self._made.observe(made)

    def observe_repeats(self, without: int, matches: Mapping[int, Reached]) -> None:
        """In so many rounds its text did not match; what it would have given where it did, by
        case."""
        self.cases[USUAL].met += without
        for index, reached in matches.items():
            self.cases[index].met += reached.rounds
            self.cases[index].acceptance.observe(reached)

    def try_on(self, rounds: int) -> None:
        """So many rounds are over, whatever came of them: trials are calls of their own."""
        self._trials -= rounds
        if self._trials <= 0:
            self.probe = 0

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
                case.length = 0
        if total > 100:  # what was met a while ago counts for less
            for case in self.cases:
                case.met /= 2

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
            least = WORTH if index != USUAL else 0.0
            found = held = usually, 0, 1.0  # the rate, the length, its bytes less what it delays
            for gamma, seconds in known.items():
                if 0 < gamma <= case.most:
                    better = (others.gain + expected[gamma]) / (others.seconds + seconds)
                    delayed = plain * (seconds - at_none)
                    gained = others.gain + expected[gamma] - usually * (others.seconds + seconds)
                    enough = expected[gamma] >= margin * (1 + delayed)
                    if enough and gained * self._share[index] > least:
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
        """What the prophet, where it drafts nothing, is to try, if that may pay in rounds beside
        `others`.  How many times as fast as plain ones rounds are in the usual case."""
        case, at_none = self.cases[USUAL], self._drafting[0]
        gain, took = self._expected[USUAL][case.length], self._drafting[case.length]
        rate = (others.gain + gain) / (others.seconds + took)
        self.probe = 0
        if not case.length:
            case.acceptance.fade()
            self._made.fade()
            hoped, known = case.acceptance.hoped(), shares.drafting(self._made.hoped())
            values = {
                g: hoped[g] - rate * seconds for g, seconds in known.items() if g <= case.most
            }
            best = max(values, key=values.__getitem__)
            if self._share[USUAL] * (values[best] - gain + rate * took) > PROMISE:
                self._trials, self.probe = TRIALS, min(best, longest)
        return rate * at_none
