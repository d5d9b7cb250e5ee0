"""How many drafts are accepted, or made at all, estimated by position.  Plain Python."""

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from operator import mul

from specdec.config import LONGEST_DRAFT


class Reached:
    """How far the drafts of some rounds went."""

    def __init__(self) -> None:
        self._tried, self._kept = [0] * (LONGEST_DRAFT + 1), [0] * (LONGEST_DRAFT + 1)
        self.rounds = 0

    def add(self, drafted: int, kept: int, times: int = 1) -> None:
        """So many rounds of so many drafts, of which the first ones were kept."""
        self._tried[min(kept + 1, drafted)] += times
        self._kept[kept] += times
        self.rounds += times

    @cached_property
    def by_position(self) -> list[tuple[int, int]]:
        """How often draft k was tried, and how often it was kept, once all rounds were added."""
        both = (accumulate(counts[:0:-1]) for counts in (self._tried, self._kept))
        return list(zip(*both, strict=True))[::-1]


class Acceptance:
    """How often draft k of a row was right where all before it were, lately; or likely enough to be
    made.

    `prior` is what is believed of a row that has drafted little, or the chance `at_first` of each.
    """

    WEIGHT = 6.0
    """Rounds that the prior counts for."""

    def __init__(
        self,
        prior: "Acceptance | None" = None,
        memory: float = 100,
        at_first: float = 0.7,
    ) -> None:
        self._prior, self._at_first = prior, at_first
        self._tried, self._kept = [0.0] * LONGEST_DRAFT, [0.0] * LONGEST_DRAFT
        self._forget = 1 - 1 / memory
        self._trust = self.WEIGHT
        """Rounds that the prior counts for against hope: a row may become another."""
        self._chances: list[float] = []
        """As they were last reckoned, from these of the prior; none once something was seen."""
        self._known: list[float] | None = None
        self._expected: list[float] = []
        self._hopes: dict[float, list[float]] = {}
        """What rows of which nothing was seen may hope for, by their trust."""

    def observe(self, reached: Reached) -> None:
        self._chances = []
        self._hopes = {}
        for k, (tried, kept) in enumerate(reached.by_position):
            if not tried:
                break
            forget = self._forget**tried
            self._tried[k] = self._tried[k] * forget + tried
            self._kept[k] = self._kept[k] * forget + kept

    def fade(self) -> None:
        """What was seen a while ago counts for less."""
        self._trust *= 0.87
        if self._seen():
            self._tried = [0.87 * t for t in self._tried]
            self._kept = [0.87 * k for k in self._kept]
            self._chances = []

    def _seen(self) -> bool:
        """Whether anything was; a row of which nothing was is what is believed of any."""
        return self._tried[0] > 0

    def chances(self) -> list[float]:
        """By position."""
        known = self._prior.chances() if self._prior else None
        if known is not None and not self._seen():
            return known
        if not self._chances or known is not self._known:
            self._chances, self._known = self._reckon(known), known
            self._expected = []
        return self._chances

    def _reckon(self, prior: list[float] | None) -> list[float]:
        """The chances, given those of the prior, if there is one."""
        if prior is None:
            # positions never reached: as those that were
            tried, kept = sum(self._tried), sum(self._kept)
            usual = (kept + self._at_first) / (tried + 1)
            return [
                (k + usual * self.WEIGHT) / (t + self.WEIGHT)
                for t, k in zip(self._tried, self._kept, strict=True)
            ]
        # a row that does worse than others at the places that it reached will at the others too
        usual = sum(p * t for p, t in zip(prior, self._tried, strict=True))
        shift = (sum(self._kept) + self.WEIGHT) / (usual + self.WEIGHT)
        return [
            (k + (p * shift if p * shift < 1 else 1.0) * self.WEIGHT) / (t + self.WEIGHT)
            for t, k, p in zip(self._tried, self._kept, prior, strict=True)
        ]

    def expected(self) -> list[float]:
        """Bytes of a round with 0, 1, … drafts."""
        if self._prior and not self._seen():
            return self._prior.expected()
        chances = self.chances()
        self._expected = self._expected or _bytes(chances)
        return self._expected

    def hoped(self) -> list[float]:
        """The same if every chance were as good as what was seen still allows."""
        if not self._prior:
            return self.hoped_of_others(math.inf)
        if not self._seen():
            return self._prior.hoped_of_others(self._trust)
        others = (min(t, self._trust) for t in self._prior._tried)
        counts = [t + more for t, more in zip(self._tried, others, strict=True)]
        return _hopeful(self.chances(), counts)

    def hoped_of_others(self, trust: float) -> list[float]:
        """Of rows that have this prior, and of which nothing was seen."""
        if trust not in self._hopes:
            self._hopes[trust] = _hopeful(self.chances(), [min(t, trust) for t in self._tried])
        return self._hopes[trust]


def _hopeful(chances: Sequence[float], counts: Sequence[float]) -> list[float]:
    """Bytes of a round if each of these chances, seen so many times, were better than it seems."""
    hopes = []
    for chance, count in zip(chances, counts, strict=True):
        likely = (chance * count + 1) / (count + 2)
        hopes.append(min(1.0, likely + 1.5 * math.sqrt(likely * (1 - likely) / (count + 2))))
    return _bytes(hopes)


def _bytes(chances: Sequence[float]) -> list[float]:
    return list(accumulate(accumulate(chances, mul), initial=1.0))
