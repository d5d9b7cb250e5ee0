"""Decoders whose rounds are those of CUDA graphs, on whatever device there is.

With torch's operations in any type, or with the Triton kernels: compiled on a GPU, elsewhere
interpreted (`TRITON_INTERPRET`, which conftest sets).
"""

from collections import defaultdict
from typing import Any

import torch
from fakes import WIDTH, FakeDrafter, Guess, HashModel
from tiny import CPU
from torch import Tensor

from bench.host import Fixed
from specdec.attention import GatheredAttention
from specdec.decoder import Decoder
from specdec.drafter import Drafter, Picker
from specdec.graph_round import GraphRounds
from specdec.kinds import build_drafter
from specdec.model import ByteLlama
from specdec.packed import PackedModel, PackedStack
from specdec.prophet import Prophet
from specdec.round import SlotModel
from specdec.state import SlotState
from specdec.static_round import TorchStaticRule

LENGTHS = (1, 2, 3, 5, 8, 12, 16)


def run_ahead(decoder: Decoder[Any], burst: int) -> None:
    """Calls of so many rounds are begun before the one before them is read; 0: none is."""
    assert isinstance(decoder.run_round, GraphRounds)
    decoder.ahead = burst > 0
    decoder.run_round._bursts = defaultdict(lambda: Fixed(max(1, burst)))


def gathered_stack(*arguments: Any, **options: Any) -> PackedStack:
    """With attention that reads nothing on the host, as on other devices than the CPU."""
    stack = PackedStack(*arguments, **options)
    capacity = stack.keys.shape[3]
    dtype = options["dtype"]
    stack.attention = GatheredAttention(stack.config, capacity, options["device"], dtype)
    return stack


def graph_rounds_of(
    model: SlotModel, drafter: Drafter | None, slots: int, context: int, lengths: tuple[int, ...]
) -> Decoder[Any]:
    """Of a model and a drafter with a slot more than `slots`."""
    state = SlotState(slots + 1, CPU, keeps_noise=False)
    rounds = GraphRounds(model, drafter, state, TorchStaticRule, lengths)
    return Decoder(
        model, drafter, slots=slots, context=context, device=CPU, run_round=rounds, state=state
    )


def torch_graph_decoder(
    model: ByteLlama,
    prophet: Prophet | None,
    *,
    slots: int = 8,
    dtype: torch.dtype = torch.float64,
    lengths: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16),
) -> Decoder[Any]:
    context = model.config.max_position_embeddings
    options: dict[str, Any] = {
        "slots": slots + 1,
        "context": context,
        "device": CPU,
        "dtype": dtype,
        "make_stack": gathered_stack,
    }
    packed = PackedModel(model, **options)
    drafter = build_drafter(prophet, **options) if prophet else None
    return graph_rounds_of(packed, drafter, slots, context, lengths)


class SparingDrafter(FakeDrafter):
    """Checks what it is told of rows in slots, and lets the scratch slot be."""

    def __init__(self, model: HashModel, guess: Guess, scratch: int) -> None:
        super().__init__(model, guess)
        self.scratch = scratch

    def observe(
        self, slots: Tensor, start: Tensor, hidden: Tensor, tokens: Tensor, advance: Tensor
    ) -> None:
        assert hidden.shape == (*tokens.shape, WIDTH)
        real = slots != self.scratch
        super().observe(slots[real], start[real], hidden[real], tokens[real], advance[real])

    def draft(
        self, slots: Tensor, last: Tensor, length: Tensor, gamma: int, rule: Picker
    ) -> Tensor:
        self.observed[self.scratch] = []
        assert length[slots == self.scratch].eq(0).all()
        return super().draft(slots, last, length, gamma, rule)


def fake_graph_decoder(guess: Guess, slots: int, context: int = 160) -> Decoder[HashModel]:
    model = HashModel(slots + 1, context)
    drafter = SparingDrafter(model, guess, slots)
    return graph_rounds_of(model, drafter, slots, context, LENGTHS)  # type: ignore[arg-type]
