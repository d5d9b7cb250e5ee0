"""What the HTTP side and the engine thread say to each other: small frozen records, no tensors.

A `Submission` goes in; for each, any number of `Progress` come out and then exactly one
`Finished` or `Failed`.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain
from typing import TypeVar

from specdec.logprobs import ByteLogprob
from specdec.sampling import SamplingParams

SHUTTING_DOWN = "the server is shutting down"
"""Why a request failed that the server's end cut off."""


class Mode(StrEnum):
    """The decode path of a request: one byte per pass, drafts, or whichever pays."""

    BASE = "base"
    SPECULATIVE = "speculative"
    AUTO = "auto"


class FinishReason(StrEnum):
    LENGTH = "length"
    STOP = "stop"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"


class Exactness(StrEnum):
    """exact: the same bytes in any mode and any batch; fast: but for near-ties."""

    EXACT = "exact"
    FAST = "fast"


@dataclass(frozen=True)
class Submission:
    """One text to continue.  `request_id` is unique among the requests in flight.

    `draft_length` is 0 for base, what each round drafts for speculative, and the most that the
    prophet may for auto; `lookup_length` the most that auto may look up in the text.  `stops` are
    byte strings that end the output and are left out of it unless `include_stop`; `eos` is the
    model's end-of-document byte unless the request ignores it.  `timeout_s` after it was submitted
    the request ends with what it has, waiting or running.  With `echo` the output begins with the
    prompt.  `logprobs` wants log-probabilities of the output, and of so many alternatives.
    `interval_s`: output is wanted in pieces of so many seconds, 0: as it comes, inf: at the end.
    """

    request_id: str
    prompt: bytes
    max_tokens: int
    params: SamplingParams
    seed: int
    mode: Mode
    draft_length: int
    eos: int | None
    stops: tuple[bytes, ...] = ()
    include_stop: bool = False
    timeout_s: float = math.inf
    echo: bool = False
    logprobs: int | None = None
    interval_s: float = 0.0
    lookup_length: int = 0

    @property
    def scores_prompt(self) -> bool:
        return self.echo and self.logprobs is not None

    @property
    def awaited(self) -> bool:
        """Whether somebody wants output before the end."""
        return self.interval_s < math.inf


@dataclass(frozen=True)
class Speculation:
    """What drafting did for one request.

    `rounds` are passes of the model that emitted bytes, `drafts` those of them that had a draft to
    verify, `drafted` the bytes drafted; of these and of those `accepted` so many were looked up in
    the text.
    """

    rounds: int = 0
    drafts: int = 0
    drafted: int = 0
    accepted: int = 0
    accepted_per_position: tuple[int, ...] = ()
    lookup_drafted: int = 0
    lookup_accepted: int = 0


@dataclass(frozen=True)
class Timing:
    """Seconds that one request waited, consumed its prompt and decoded, and those from its arrival
    to its first byte by the engine's clock, if there was one."""

    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    first_byte_s: float | None = None


@dataclass(frozen=True)
class Progress:
    """More output, in order, never empty.

    `echo`: it is the prompt.  `logprobs`, if wanted, one for each byte.
    """

    output: bytes
    echo: bool = False
    logprobs: tuple[ByteLogprob, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The end: what output was still held back, why, and the figures of the whole request.

    `completion_tokens` counts every byte of output, those of earlier `Progress` included but for
    an echoed prompt.  `begun`: its prompt was consumed.  `cached_tokens` bytes of the prompt were
    taken over from a slot that held them.
    """

    output: bytes
    reason: FinishReason
    completion_tokens: int
    speculation: Speculation = field(default_factory=Speculation)
    timing: Timing = field(default_factory=Timing)
    logprobs: tuple[ByteLogprob, ...] = ()
    begun: bool = True
    cached_tokens: int = 0


@dataclass(frozen=True)
class Failed:
    """The request ended by an error of the server's, or because that had to end."""

    message: str

    @property
    def cut_off(self) -> bool:
        return self.message == SHUTTING_DOWN


Event = Progress | Finished | Failed
Deliver = Callable[[Event], None]
"""Who is told what happens to a request."""


@dataclass(frozen=True)
class EngineInfo:
    """What is loaded, fixed from start on."""

    model_name: str
    device: str
    dtype: str
    exactness: Exactness
    context: int
    max_batch: int
    eos: int | None
    longest_draft: int
    """0 without a prophet."""
    longest_lookup: int
    """What mode auto looks up at most, 0: nothing."""
    parameters: int
    prophet_parameters: int
    cache_bytes: int


@dataclass(frozen=True)
class EngineStatus:
    """A glance at a running engine, cheap enough for every scrape."""

    running: int
    waiting: int
    rounds: int
    idle: bool
    """No work was waiting or running at the last look."""
    seconds_since_progress: float
    """Since the last round ended or work last arrived at an idle engine."""
    alive: bool
    """The engine thread runs."""
    failures: int = 0
    """Rounds that failed since the last one that did not."""


Of = TypeVar("Of")


def joined(events: Iterable[tuple[Of, Event]]) -> list[tuple[Of, Event]]:
    """The same output with the `Progress` of each in one piece, and the ends behind them all.

    >>> joined([(7, Progress(b"a")), (7, Progress(b"bc"))])
    [(7, Progress(output=b'abc', echo=False, logprobs=()))]
    """
    pieces: dict[tuple[Of, bool], list[Progress]] = {}
    ends: list[tuple[Of, Event]] = []
    for of, event in events:
        if isinstance(event, Progress):
            pieces.setdefault((of, event.echo), []).append(event)
        else:
            ends.append((of, event))
    return [*((of, _join(parts)) for (of, _), parts in pieces.items()), *ends]


def _join(parts: list[Progress]) -> Progress:
    if len(parts) == 1:
        return parts[0]
    output = b"".join(part.output for part in parts)
    logprobs = tuple(chain.from_iterable(part.logprobs for part in parts))
    return Progress(output, parts[0].echo, logprobs)
