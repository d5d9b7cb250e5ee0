"""What a round is: draft, one pass of the model, accept, advance.

A committed row is x_0..x_m with m in the cache still to come.  The pass consumes x_m, d_1..d_γ;
its output i is judged by the byte rule at index m+1+i.  A draft is kept while it equals the
model's own choice, so the bytes that a round emits are those of plain decoding:

    drafts    d_1  d_2  d_3              d_1 = c_0, d_2 ≠ c_1: one draft accepted,
    choices   c_0  c_1  c_2  c_3         two bytes emitted, c_0 and c_1

Here are the records; `specdec.torch_round` runs a round on any device, `specdec.native_round` in
one call of the compiled core.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from specdec.attention import Groups
from specdec.interrupt import Interrupt
from specdec.logprobs import ByteLogprob
from specdec.lookup import NO_LOOKUP, Lookup
from specdec.sampling import Features
from specdec.state import SlotState

MOST_ROUNDS = 256
"""That one call runs: what the host adds to each is shared among them."""


class Broken(RuntimeError):
    """The device is in no state to decode on in this process."""


class SlotModel(Protocol):
    """A model that decodes slots: `specdec.packed.PackedModel`, or a fake in tests."""

    def forward(
        self, tokens: Tensor, slot: Tensor, position: Tensor, write_index: Tensor, groups: Groups
    ) -> tuple[Tensor, Tensor]: ...

    def copy(self, source: int, target: int, places: int) -> None: ...


@dataclass(frozen=True)
class Decode:
    """A row to decode with `drafts` drafts, 0 for plain.

    Of so many `alternatives` the log-probabilities are given, of none below 0.  A row that is
    `watched` may draft, now or later: the drafter is told of it.  Where its text matches in a way
    for which `lookup` has drafts, those are taken instead; None: it is not looked through.
    """

    slot: int
    drafts: int
    features: Features
    alternatives: int = -1
    watched: bool = False
    lookup: Lookup | None = None

    @property
    def longest(self) -> int:
        """Drafts at most."""
        return max(self.drafts, *(self.lookup or NO_LOOKUP))


@dataclass(frozen=True)
class Prefill:
    """Prompt bytes that one slot consumes from index `start` on; nothing is sampled.

    `following` are the prompt's bytes one further, if their log-probabilities are wanted.  The
    drafter is told of the places from `watched` on, if any.
    """

    slot: int
    text: bytes
    start: int
    following: bytes | None = None
    alternatives: int = 0
    watched: int | None = None


@dataclass(frozen=True)
class Round:
    """What is to be done, decoding up to `repeats` times.  The compiled core, which repeats nothing
    while prompts are consumed, goes on until a row ends, `span_s` seconds are over or the
    `interrupt` is set; on CUDA graphs so many rounds are begun, none behind the interrupt, and a
    row that has ended idles in the others; torch's operations run one.

    Of a row's drafts the core leaves out those from the first on with which the chance that all
    are right, as the drafter sees it, falls below `p_min`; nothing that is looked up.
    """

    decodes: tuple[Decode, ...] = ()
    prefills: tuple[Prefill, ...] = ()
    repeats: int = 1
    span_s: float = math.inf
    interrupt: Interrupt = field(default_factory=Interrupt)
    p_min: float = 0.0


class Try(NamedTuple):
    """Drafts of one row in one round, how many were accepted, the index in `TIERS` of where they
    were looked up, or -1, and how many further ones were omitted as unlikely."""

    drafted: int
    accepted: int
    tier: int = -1
    omitted: int = 0

    @property
    def wanted(self) -> int:
        return self.drafted + self.omitted


PLAIN = Try(0, 0)
"""A round without drafts."""


@dataclass(frozen=True)
class RowResult:
    """What one row got from a round, or from several, which `tries` tells apart: those up to its
    end.  From the core they are as many for each row, for no row ends before the last one.

    `omitted` counts drafts that were wanted and not made, for being unlikely.  `ended`: its last
    byte is the end-of-document byte.  `logprobs`, if wanted, are those of
    `output`, or of prompt bytes for a row that consumed some: of the bytes that follow those
    consumed.
    """

    output: bytes
    drafted: int
    accepted: int
    ended: bool
    logprobs: tuple[ByteLogprob, ...] = ()
    tries: tuple[Try, ...] = ()
    omitted: int = 0
    times: Mapping[Try, int] | None = field(default=None, compare=False, repr=False)
    """How often each of `tries` came about, where that was counted."""

    @property
    def rounds(self) -> tuple[Try, ...]:
        return self.tries or (Try(self.drafted, self.accepted),)

    @property
    def wanted(self) -> int:
        return self.drafted + self.omitted

    @cached_property
    def tally(self) -> Mapping[Try, int]:
        """How often each came about."""
        return self.times or Counter(self.rounds)


class Seconds(NamedTuple):
    """Where the time of rounds went: drafts, the model's pass, all from the byte rule on."""

    draft: float = 0.0
    verify: float = 0.0
    accept: float = 0.0


@dataclass(frozen=True)
class RoundResult:
    """For each row, in order; of a prefill that is not scored nothing is told.

    `elapsed`: what each of the `rounds` took, of those of the core; in `drafting` of them drafts
    were wanted.
    """

    decodes: tuple[RowResult, ...]
    prefills: tuple[RowResult, ...]
    seconds: Seconds = field(default_factory=Seconds)
    elapsed: tuple[float, ...] = ()
    drafting: int = 0
    rounds: int = 1


class Outcome(Protocol):
    """A `RoundResult`, perhaps still on its way: the first look at `decodes` waits for it.  How
    many rounds were begun is known at once."""

    @property
    def rounds(self) -> int: ...

    @property
    def decodes(self) -> tuple[RowResult, ...]: ...

    @property
    def prefills(self) -> tuple[RowResult, ...]: ...

    @property
    def seconds(self) -> Seconds: ...

    @property
    def elapsed(self) -> tuple[float, ...]: ...

    @property
    def drafting(self) -> int: ...


RunRound = Callable[[Any, Any, SlotState, Round], Outcome]
"""(model, drafter or None, state, round): changes the state, and what the others keep of slots."""
