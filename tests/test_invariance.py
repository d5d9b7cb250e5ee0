"""The check finds what it must find, and where it finds nothing bits are equal indeed."""

import pytest
import torch
import torch.nn.functional as F
from tiny import CPU, tiny_model

from specdec.attention import GatheredAttention
from specdec.invariance import measure_invariance
from specdec.packed import PackedModel


def _packed(dtype: torch.dtype, slots: int = 4) -> PackedModel:
    return PackedModel(tiny_model(context=640), slots=slots, context=640, device=CPU, dtype=dtype)


def test_a_pass_that_depends_on_its_row_count_is_found() -> None:
    model = _packed(torch.float64)
    plain = model.stack.head

    def treacherous(x: torch.Tensor) -> torch.Tensor:
        return plain(x) * (1 + 1e-12 * (x.shape[0] % 2))

    model.stack.head = treacherous
    found = measure_invariance(model)
    assert not found.exact
    assert found.differing > 0
    assert 0 < found.largest < 1e-9


def test_an_attention_that_sees_its_neighbours_is_found() -> None:
    model = _packed(torch.float64)
    honest = model.stack.attention.mix

    def leaking(
        query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, plan: object
    ) -> torch.Tensor:
        mixed = honest(query, keys, values, plan)
        return mixed + 1e-9 * F.pad(mixed[:-1], (0, 0, 1, 0))

    model.stack.attention.mix = leaking  # type: ignore[method-assign]
    assert measure_invariance(model).differing > 100


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("slots", [1, 2, 8])
def test_the_report_counts_every_place(dtype: torch.dtype, slots: int) -> None:
    found = measure_invariance(_packed(dtype, slots))
    assert found.places == 640
    assert found.exact == (found.differing == 0)
    assert found.exact or found.largest > 0


def test_both_attentions_agree() -> None:
    """The one for the CPU and the one for other devices, on rows of mixed slots and widths."""
    model = _packed(torch.float64)
    other = _packed(torch.float64)
    capacity = model.stack.keys.shape[3]
    other.stack.attention = GatheredAttention(model.config.block, capacity, CPU, torch.float64)
    generator = torch.Generator().manual_seed(1)
    begin = torch.zeros(4, dtype=torch.int64)
    for groups in ((4, 30),), ((2, 1), (2, 3)), ((1, 5), (1, 1), (1, 7)), ((3, 2),):
        slots, places, slot = [], [], 0
        for count, width in groups:
            for _ in range(count):
                slots.append(torch.full((width,), slot))
                places.append(begin[slot] + torch.arange(width))
                begin[slot] += width
                slot += 1
        index, place = torch.cat(slots), torch.cat(places)
        tokens = torch.randint(0, 256, place.shape, generator=generator)
        for a, b in zip(
            model.forward(tokens, index, place, place, groups),
            other.forward(tokens, index, place, place, groups),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
