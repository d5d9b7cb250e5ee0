"""One line for each request that ends, and for each that is refused.

Prompts are in it only if the operator wants them; outputs never are.
"""

import logging
import time
from collections.abc import Sequence

from server.errors import ApiError
from server.messages import Event, Failed, Finished, Submission
from server.metrics import RequestMeter
from server.request_id import traceparent

logger = logging.getLogger(__name__)


class RequestLog:
    """A request of one choice or several; the line comes with the last choice's end.

    Counts and sizes are summed over the choices; of the times that they waited, consumed and
    decoded, those of the slowest are told; of first bytes, which are the meters', the first.
    """

    def __init__(
        self, submissions: Sequence[Submission], meters: Sequence[RequestMeter], *, prompts: bool
    ) -> None:
        self._submissions, self._meters = submissions, meters
        self._prompts = prompts
        self._trace = _trace(traceparent.get())
        self._arrival = time.perf_counter()
        self._ends: list[Finished | Failed] = []

    def observe(self, event: Event) -> None:
        if isinstance(event, (Finished, Failed)):
            self._ends.append(event)
            if len(self._ends) == len(self._submissions):
                logger.info("request", extra=self._fields())

    def _fields(self) -> dict[str, object]:
        first = self._submissions[0]
        finished = [end for end in self._ends if isinstance(end, Finished)]
        speculations = [end.speculation for end in finished]
        timings = [end.timing for end in finished]
        firsts = [m.first_byte_s for m in self._meters if m.first_byte_s is not None]
        results = [e.reason.value if isinstance(e, Finished) else "error" for e in self._ends]
        drafted = sum(s.drafted for s in speculations)
        accepted = sum(s.accepted for s in speculations)
        fields: dict[str, object] = {
            "request_id": first.request_id,
            **self._trace,
            "result": ",".join(dict.fromkeys(results)),
            "mode": first.mode.value,
            "choices": len(self._submissions),
            "prompt_bytes": sum(len(s.prompt) for s in self._submissions),
            "output_bytes": sum(end.completion_tokens for end in finished),
            "rounds": sum(s.rounds for s in speculations),
            "drafted": drafted,
            "accepted": accepted,
            "acceptance": accepted / drafted if drafted else None,
            "lookup_drafted": sum(s.lookup_drafted for s in speculations),
            "lookup_accepted": sum(s.lookup_accepted for s in speculations),
            "queue_s": max((t.queue_s for t in timings), default=None),
            "prefill_s": max((t.prefill_s for t in timings), default=None),
            "decode_s": max((t.decode_s for t in timings), default=None),
            "first_byte_s": min(firsts, default=None),
            "seconds": time.perf_counter() - self._arrival,
        }
        if self._prompts:
            # bytes as Python writes them: readable, and nothing is lost
            prompts = [repr(s.prompt)[2:-1] for s in self._submissions]
            fields["prompts"] = list(dict.fromkeys(prompts))
        return fields


def log_refusal(error: ApiError, request_id: str | None) -> None:
    fields: dict[str, object] = {"request_id": request_id, **_trace(traceparent.get())}
    fields |= {"result": error.code, "status": error.status, "param": error.param}
    logger.info("refused", extra=fields)


def _trace(parent: str | None) -> dict[str, object]:
    return {"traceparent": parent} if parent else {}
