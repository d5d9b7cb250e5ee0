"""What the model says of bytes: log-probabilities before any sampling parameter.

Computed from the same rows that decoding computes, in float64, so that they do not depend on the
path taken.  R places, V = 256 bytes, K alternatives.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ByteLogprob:
    """A byte of text, its log-probability and the likeliest bytes at its place, likeliest first.

    The first byte of a text has none.
    """

    byte: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Logprobs:
    """chosen [..., R], top bytes and their log-probabilities [..., R, K]."""

    chosen: Tensor
    top_bytes: Tensor
    top: Tensor

    def records(self, row: int, content: bytes, alternatives: int) -> tuple[ByteLogprob, ...]:
        """The first len(content) places of a row, `alternatives` of the K for each."""
        count = len(content)
        chosen = self.chosen[row, :count].tolist()
        top_bytes = self.top_bytes[row, :count, :alternatives].tolist()
        top = self.top[row, :count, :alternatives].tolist()
        return tuple(
            ByteLogprob(byte, logprob, tuple(zip(others, their, strict=True)))
            for byte, logprob, others, their in zip(content, chosen, top_bytes, top, strict=True)
        )


def logprobs_of(logits: Tensor, chosen: Tensor, alternatives: int) -> Logprobs:
    """Of logits [..., R, V] and the bytes chosen [..., R]; equal ones lowest byte first."""
    scores = logits.double().log_softmax(-1)
    ordered, index = scores.sort(dim=-1, descending=True, stable=True)
    of_chosen = scores.gather(-1, chosen[..., None])[..., 0]
    return Logprobs(of_chosen, index[..., :alternatives], ordered[..., :alternatives])
