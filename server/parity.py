"""Requests that drafts helped to write, written again without any: are the bytes the same?

Of the requests in modes speculative and auto one in so many is picked when it comes.  Once it has
ended it is decoded again in mode base, in a slot that nobody needs meanwhile (given up if a client
needs it after all), and what comes is compared with what its client got.  Lives on the event loop.
Compares bytes and why they ended, not log-probabilities, and knows nothing of what another device
or version would write.
"""

import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from server.engine_like import EngineLike
from server.mailbox import Mailbox
from server.messages import (
    Deliver,
    Event,
    Exactness,
    Finished,
    FinishReason,
    Mode,
    Progress,
    Submission,
)
from server.metrics import Metrics

logger = logging.getLogger(__name__)


@dataclass
class _Copy:
    """What was written for a request: bytes, an echo left out, and the end once there is one."""

    submission: Submission
    output: bytearray = field(default_factory=bytearray)
    end: Event | None = None

    def see(self, event: Event) -> None:
        if isinstance(event, Progress):
            if not event.echo:
                self.output += event.output
            return
        self.end = event
        if isinstance(event, Finished):
            self.output += event.output

    @property
    def reason(self) -> FinishReason | None:
        return self.end.reason if isinstance(self.end, Finished) else None

    @property
    def whole(self) -> bool:
        """Whether it ended where plain decoding must end too."""
        return self.reason in (FinishReason.LENGTH, FinishReason.STOP)


class ParityAudit:
    """One check at a time, of at most `MOST_PENDING` requests that wait for theirs.

    `every`: one request in so many, 0: none.  `room` says whether a slot is free and may be used.
    """

    MOST_PENDING = 16

    def __init__(
        self,
        every: int,
        engine: EngineLike,
        metrics: Metrics,
        mailbox: Mailbox,
        room: Callable[[], bool],
    ) -> None:
        self._every = every
        self._engine = engine
        self._metrics = metrics
        self._mailbox = mailbox
        self._room = room
        self._seen = 0
        self._pending: deque[_Copy] = deque()
        self._again: _Copy | None = None
        """What mode base has written of the first that is pending."""

    def follow(self, submission: Submission) -> Deliver | None:
        """What is to be told the request's events, if it is picked."""
        if submission.mode is Mode.BASE or not self._every:
            return None
        self._seen = (self._seen + 1) % self._every
        if self._seen:
            return None
        return partial(self._see, _Copy(submission))

    def _see(self, copy: _Copy, event: Event) -> None:
        copy.see(event)
        if copy.end is None:
            return
        if not copy.whole or len(self._pending) == self.MOST_PENDING:
            self._metrics.parity_skipped.inc()
            return
        self._pending.append(copy)

    def proceed(self) -> None:
        """Begins the next check, if none is under way and there is room."""
        if self._again is not None or not self._pending or not self._room():
            return
        original = self._pending[0].submission
        submission = replace(
            original,
            request_id=f"{original.request_id}#parity",  # no client's id has this sign
            mode=Mode.BASE,
            draft_length=0,
            lookup_length=0,
            timeout_s=math.inf,
            echo=False,
            logprobs=None,
            interval_s=math.inf,
        )
        self._again = _Copy(submission)
        self._engine.submit(submission, partial(self._mailbox.post, self._arrive))

    def give_way(self) -> None:
        """Ends the check under way, if there is one.  Begun anew, it might never end, and take more
        rounds from clients than it is worth."""
        if self._again is not None:
            self._engine.cancel(self._again.submission.request_id)

    def _arrive(self, event: Event) -> None:
        again = self._again
        assert again is not None
        again.see(event)
        if again.end is None:
            return
        self._again = None
        copy = self._pending.popleft()
        if again.whole:
            self._compare(copy, again)
        else:
            self._metrics.parity_skipped.inc()
        self.proceed()

    def _compare(self, copy: _Copy, again: _Copy) -> None:
        mode = copy.submission.mode
        self._metrics.parity_checks.labels(mode).inc()
        if (copy.output, copy.reason) == (again.output, again.reason):
            return
        self._metrics.parity_mismatches.labels(mode).inc()
        # at near-ties the grade fast allows it
        exact = self._engine.info.exactness is Exactness.EXACT
        logger.log(
            logging.ERROR if exact else logging.WARNING,
            "an output is not the one that plain decoding gives",
            extra={
                "request_id": copy.submission.request_id,
                "mode": mode.value,
                "seed": copy.submission.seed,
                "first_difference": _first_difference(copy.output, again.output),
                "output_bytes": len(copy.output),
                "base_output_bytes": len(again.output),
            },
        )


def _first_difference(one: bytes | bytearray, other: bytes | bytearray) -> int:
    """The first index at which they differ, be it that one has ended.

    >>> _first_difference(b"abc", b"abd"), _first_difference(b"ab", b"abc")
    (2, 2)
    """
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)
