"""What drafting may lose against plain rounds.  Plain Python, no clock."""


class Budget:
    """Seconds that drafting has saved against plain rounds, and that may be lost to trying.

    A hundredth of all time may be lost.  What was saved may be lost again, but no more than `most`:
    what paid once may not pay now.  Once all is lost there must be `again` before drafts go on.
    Debts are twice that at most: one dear call of many rows must not keep others plain for long.
    """

    SHARE = 0.01

    def __init__(self, first: float, again: float, most: float) -> None:
        self._left, self._again, self._most = first, again, most
        self.open = True

    def spend(self, plain: float, seconds: float) -> None:
        """A round took `seconds` and gave what plain rounds give in `plain`."""
        left = self._left + self.SHARE * seconds + plain - seconds
        self._left = max(min(left, self._most), -2 * self._again)
        self.open = self._left > (0.0 if self.open else self._again)
