"""Decoders whose rounds are those of CUDA graphs, on whatever device there is.

With torch's operations in any type, or with the Triton kernels: compiled on a GPU, elsewhere
interpreted (`TRITON_INTERPRET`, which conftest sets).
"""

from typing import Any

import torch
from tiny import CPU

from specdec.attention import GatheredAttention
from specdec.decoder import Decoder
from specdec.drafter import Drafter
from specdec.graph_round import GraphRounds
from specdec.kinds import build_drafter
from specdec.model import ByteLlama
from specdec.packed import PackedModel, PackedStack
from specdec.prophet import Prophet
from specdec.round import SlotModel
from specdec.state import SlotState
from specdec.static_round import TorchStaticRule


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
    state = SlotState(slots + 1, CPU)
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
