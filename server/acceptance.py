"""How many drafts are accepted, estimated by position from what was seen.  Plain Python."""

import math
from collections.abc import Sequence


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

    def observe(self, drafted: int, accepted: int, times: int = 1) -> None:
        """In so many rounds."""
        forget = self._forget**times
        for k in range(min(accepted + 1, drafted)):
            self._tried[k] = self._tried[k] * forget + times
            self._kept[k] = self._kept[k] * forget + times * (k < accepted)

    def fade(self) -> None:
        """What was seen a while ago counts for less."""
        self._tried = [0.87 * t for t in self._tried]
        self._kept = [0.87 * k for k in self._kept]

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
