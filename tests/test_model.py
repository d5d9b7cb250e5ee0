"""The same numbers as transformers' Llama, from the same files: whole, in chunks, byte by byte.

S slots, N packed rows, T positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from specdec.attention import CACHE_TILE
from specdec.checkpoint import load_model, save_checkpoint
from specdec.config import BlockConfig, ModelConfig
from specdec.model import ByteLlama
from specdec.packed import PackedModel

CONTEXT = 96
TOLERANCE = 1e-4


def config(
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    hidden_size: int = 48,
    theta: float = 10000.0,
    tied: bool = False,
    eps: float = 1e-5,
    context: int = CONTEXT,
) -> ModelConfig:
    block = BlockConfig(hidden_size, heads, kv_heads, head_dim, 56, theta, eps)
    return ModelConfig(block, 2, context, tied)


CONFIGS = {
    "all heads": config(4, 4, 12),
    "grouped": config(6, 2, 8, theta=500000.0),
    "one key-value head": config(4, 1, 12, tied=True),
    "wide heads": config(4, 2, 32, theta=100.0),
    "narrow heads": config(3, 3, 6, hidden_size=96, tied=True, theta=1e6, eps=1e-3),
    "past a tile of the cache": config(4, 2, 12, context=CACHE_TILE + 32),
}


def randomized(shape: ModelConfig) -> ByteLlama:
    """Weights large enough that attention is far from even, and norms that differ."""
    generator = torch.Generator().manual_seed(11)
    model = ByteLlama(shape)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.data = 0.1 * drawn + (1.0 if parameter.ndim == 1 else 0.0)
    return model


@dataclass(frozen=True)
class Case:
    """A model read from a directory, and what transformers reads from it about three texts."""

    model: ByteLlama
    tokens: Tensor
    """[S, T]"""
    logits: Tensor
    """[S, T, 256]"""
    hidden: Tensor
    """[S, T, D], after the final norm"""

    @property
    def context(self) -> int:
        return self.tokens.shape[1]

    def packed(self) -> PackedModel:
        return PackedModel(
            self.model,
            slots=3,
            context=self.context,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module", params=CONFIGS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    directory: Path = tmp_path_factory.mktemp("model")
    save_checkpoint(directory, randomized(CONFIGS[request.param]), None, torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(
        directory, local_files_only=True, dtype=torch.float32
    )
    length = theirs.config.max_position_embeddings
    tokens = torch.randint(256, (3, length), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        result = theirs(tokens, output_hidden_states=True, use_cache=False)
    return Case(load_model(directory), tokens, result.logits, result.hidden_states[-1])


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    difference = (found - expected).abs().max().item()
    assert difference < TOLERANCE


def test_whole_sequences_have_transformers_logits(case: Case) -> None:
    hidden = case.model(case.tokens)
    assert_close(hidden, case.hidden)
    assert_close(case.model.logits(hidden), case.logits)


def test_the_comparison_would_notice_attention(case: Case) -> None:
    """What a byte sees of the others moves its logits by far more than the tolerance."""
    changed = case.tokens.clone()
    changed[:, 0] ^= 1
    moved = (case.model.logits(case.model(changed)) - case.logits).abs().amax(-1)
    assert (moved[:, 1:].amin(1) > 100 * TOLERANCE).all()


@dataclass
class Feeder:
    """Feeds a case's texts through the cache, any slot any number of bytes at a time."""

    case: Case
    packed: PackedModel
    places: list[int]
    """Bytes that each slot has consumed."""

    def feed(self, *groups: tuple[Sequence[int], int]) -> None:
        """One pass: each group's slots by its width; the results are compared as they come."""
        spans = [
            (slot, torch.arange(self.places[slot], self.places[slot] + width))
            for slots, width in groups
            for slot in slots
        ]
        slot = torch.cat([torch.full_like(places, slot) for slot, places in spans])
        position = torch.cat([places for _, places in spans])
        hidden, logits = self.packed.forward(
            self.case.tokens[slot, position],
            slot,
            position,
            position,
            tuple((len(slots), width) for slots, width in groups),
        )
        assert_close(hidden, self.case.hidden[slot, position])
        assert_close(logits, self.case.logits[slot, position])
        for index, places in spans:
            self.places[index] = int(places[-1]) + 1


@pytest.fixture
def feeder(case: Case) -> Feeder:
    return Feeder(case, case.packed(), [0, 0, 0])


def test_byte_by_byte_has_transformers_logits(feeder: Feeder) -> None:
    for _ in range(feeder.case.context):
        feeder.feed(([0, 1, 2], 1))
    assert feeder.places == [feeder.case.context] * 3


def test_a_single_row_has_transformers_logits(feeder: Feeder) -> None:
    for _ in range(24):
        feeder.feed(([1], 1))


@pytest.mark.parametrize("width", [2, 3, 8, 32, CONTEXT])
def test_chunks_have_transformers_logits(feeder: Feeder, width: int) -> None:
    for _ in range(feeder.case.context // width):
        feeder.feed(([2, 0, 1], width))


def test_slots_at_different_places_with_mixed_widths_have_transformers_logits(
    feeder: Feeder,
) -> None:
    feeder.feed(([1], 40))
    feeder.feed(([0], 1), ([1], 5))
    feeder.feed(([2, 0], 7), ([1], 1))
    feeder.feed(([1], 3), ([2], 30), ([0], 1))
    feeder.feed(([2, 1, 0], 9))
    feeder.feed(([0, 2], 1), ([1], 2))
    feeder.feed(([0], 64), ([2], 1), ([1], 17))
    assert feeder.places == [83, 77, 48]


def test_what_was_rejected_can_be_overwritten(feeder: Feeder) -> None:
    """A round that is cut back leaves keys behind it that no later row may see."""
    feeder.feed(([0, 1, 2], 20))
    for cut in (12, 17, 9):
        feeder.places = [cut, cut + 1, cut + 2]
        scrambled = feeder.packed.forward(
            torch.full((6,), 7),
            torch.tensor([0, 0, 1, 1, 2, 2]),
            torch.tensor([cut, cut + 1, cut + 1, cut + 2, cut + 2, cut + 3]),
            torch.tensor([cut, cut + 1, cut + 1, cut + 2, cut + 2, cut + 3]),
            ((3, 2),),
        )
        assert scrambled[0].isfinite().all()
        feeder.feed(([2, 1, 0], 1))
        feeder.feed(([0], 4), ([1, 2], 6))


def test_no_more_places_than_the_model_has(case: Case) -> None:
    with pytest.raises(ValueError, match="exceeds"):
        PackedModel(
            case.model,
            slots=1,
            context=case.context + 1,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
