"""What every prophet offers.

A prophet predicts, from the model's states up to some byte, the bytes that follow it.  Training
calls `at_starts`; how it drafts while decoding is its drafter's (`specdec.drafter`).
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from specdec.config import ProphetConfig
from specdec.layers import Stack


class Prophet(nn.Module, ABC):
    """D width of the model, γ drafts; `config` says which kind this is."""

    config: ProphetConfig
    stack: Stack

    @abstractmethod
    def at_starts(self, hidden: Tensor, tokens: Tensor, starts: Tensor, gamma: int) -> Tensor:
        """The training forward: scores [B, M, γ, 256] of what follows each start.

        hidden [B, T, D] is what the model gave for tokens [B, T]; starts [M] are indices m with
        m + γ < T, so that every target x_{m+1}..x_{m+γ} lies in the window.
        """


def require_room(tokens: Tensor, starts: Tensor, gamma: int) -> None:
    """ValueError where a start of a window [B, T] has no room for γ targets behind it."""
    length = tokens.shape[1]
    if int(starts.min()) < 0 or int(starts.max()) + gamma >= length:
        raise ValueError(f"a start leaves no room for {gamma} targets in {length} bytes")
