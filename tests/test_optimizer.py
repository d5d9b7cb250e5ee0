"""Muon: directions, momentum, state; what auto precision chooses."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from train import precision
from train.muon import NEWTON_SCHULZ, STEPS, Muon, orthogonalize
from train.precision import matrix_type


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 40, 12), (1, 12, 40)])
def test_an_orthogonalized_matrix_keeps_its_directions_and_evens_their_sizes(
    shape: tuple[int, int, int],
) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    result = orthogonalize(matrices, torch.float32)
    assert result.shape == matrices.shape
    for before, after in zip(matrices, result, strict=True):
        u, sizes, vh = torch.linalg.svd(before, full_matrices=False)
        core = u.T @ after @ vh.T
        expected = sizes / sizes.norm()
        for _ in range(STEPS):
            expected = sum(
                c * expected**power for c, power in zip(NEWTON_SCHULZ, (1, 3, 5), strict=True)
            )
        torch.testing.assert_close(core, expected.diag(), atol=1e-4, rtol=0)
        assert 0.65 < core.diagonal().median() < 1.25


def test_it_steps_as_the_muon_of_torch_does() -> None:
    torch.manual_seed(0)
    shapes = [(16, 8), (8, 16), (16, 8)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    one = Muon(ours, lr=0.02, momentum=0.9, weight_decay=0.1, dtype=torch.float32)
    # theirs multiplies in bfloat16
    other = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        one.step()
        other.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=3e-3, rtol=0)


def test_its_state_goes_through_a_save() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(8, 4))
    start = weight.detach().clone()
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, "dtype": torch.float32}
    first = Muon([weight], **options)  # type: ignore[arg-type]
    gradients = torch.randn(2, 8, 4)
    weight.grad = gradients[0]
    first.step()
    halfway = nn.Parameter(weight.detach().clone())
    second = Muon([halfway], **options)  # type: ignore[arg-type]
    second.load_state_dict(deepcopy(first.state_dict()))
    for parameter, optimizer in ((weight, first), (halfway, second)):
        parameter.grad = gradients[1]
        optimizer.step()
    assert torch.equal(weight, halfway)
    assert not torch.equal(weight, start)


def test_it_refuses_what_is_not_a_matrix() -> None:
    with pytest.raises(ValueError, match="matrices"):
        Muon([nn.Parameter(torch.zeros(4))], lr=1, momentum=0, weight_decay=0, dtype=torch.float32)


def test_auto_takes_the_faster_type_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert matrix_type("bfloat16", cpu) is torch.bfloat16
    assert matrix_type("float32", cuda) is torch.float32
    assert matrix_type("auto", cuda) is torch.bfloat16
    for faster in (torch.bfloat16, torch.float32):
        monkeypatch.setattr(precision, "_seconds", lambda dtype, f=faster: float(dtype is not f))
        assert matrix_type("auto", cpu) is faster
