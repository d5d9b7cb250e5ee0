"""Muon: momentum of a matrix, orthogonalised, as its step (Jordan et al. 2024).

Matrices of one shape are orthogonalised together, in the type that the caller says multiplies
fastest.  Knows matrices only; what they belong to is `train.optimizer`'s business.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of Jordan et al.: singular values end between about 0.7 and 1.2."""
STEPS = 5


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Each of matrices [N, R, C] with its singular values brought near 1, in float32."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(dtype)
    # the series converges for singular values up to 1; the Frobenius norm bounds them
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * (square @ square)) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; decoupled weight decay.

    A matrix taller than wide steps √(rows / columns) further, so that the change of its outputs
    does not depend on its shape.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(matrices, {"lr": lr})
        self.momentum, self.weight_decay, self.dtype = momentum, weight_decay, dtype
        for parameter in self.param_groups[0]["params"]:
            if parameter.ndim != 2:
                raise ValueError(f"Muon steps matrices, not a tensor {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                shapes.setdefault(parameter.shape, []).append(parameter)
        for (rows, columns), parameters in shapes.items():
            ahead = []
            for parameter in parameters:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                assert parameter.grad is not None
                state["momentum"].lerp_(parameter.grad, 1 - self.momentum)
                ahead.append(torch.lerp(parameter.grad, state["momentum"], self.momentum))
            directions = orthogonalize(torch.stack(ahead), self.dtype)
            stretch = max(1.0, rows / columns) ** 0.5
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.mul_(1 - group["lr"] * self.weight_decay)
                parameter.add_(direction, alpha=-group["lr"] * stretch)
