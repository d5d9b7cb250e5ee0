"""How many rounds follow one another on a device before the host has its turn.

What the host does about a call grows with its rows and not with its rounds, so among many rows the
device would wait for it.  But who arrives waits for what has been begun, and a row that ends idles
in it to its end: so a call has as many rounds as take the device about as long as the host.  Knows
neither rows nor clocks.
"""

import math

MOST_BURST = 16
"""Rounds of a call at most."""


class Bursts:
    """For rounds of one number of rows."""

    MORE = 1.25
    """Times what the host takes, which is not always the same."""
    LONGEST_HOST_S = 20e-3
    """What takes longer is no work of the host's: nobody was there, or something held it up."""
    MEMORY = 16
    """Calls that the mean is of, or so; one counts for no more than twice that."""

    def __init__(self) -> None:
        self._host_s = 0.0

    def observe(self, host_s: float) -> None:
        """A call took the host so many seconds in which it did not wait for the device."""
        if not self._host_s:
            self._host_s = min(host_s, self.LONGEST_HOST_S)
        elif host_s < self.LONGEST_HOST_S:
            self._host_s += (min(host_s, 2 * self._host_s) - self._host_s) / self.MEMORY

    def rounds(self, seconds: float | None, span_s: float) -> int:
        """Of the next call, where a round takes so many `seconds`, None if that is not known;
        together they take `span_s` at most."""
        if not seconds:
            return 1
        wanted = math.ceil(self.MORE * self._host_s / seconds)
        return int(max(1, min(wanted, MOST_BURST, span_s / seconds)))
