"""What was measured of one runner, and how far it agrees with mode base.

Knows seconds and bytes; does not know who gave them.
"""

from dataclasses import dataclass, field

import torch

from bench.report import Record, quartiles
from server.messages import Mode
from specdec.model import ByteLlama
from train.measurement import loop_start


@dataclass
class Agreement:
    """How far a peer's outputs are those of mode base; places count from the first output byte."""

    total: int = 0
    equal: int = 0
    looping: int = 0
    """Bytes that repeat what stands before them, as greedy outputs end by doing; easy to draft."""
    firsts: list[int] = field(default_factory=list)
    """Where outputs that differ do so first."""
    margins: list[float] = field(default_factory=list)
    """There, between the two bytes' logits."""

    def add(self, model: ByteLlama, prompt: bytes, base: bytes, other: bytes) -> None:
        assert len(base) == len(other)
        same = [a == b for a, b in zip(base, other, strict=True)]
        self.total += len(same)
        self.equal += sum(same)
        self.looping += len(other) - loop_start(other)
        if not all(same):
            place = same.index(False)
            scores = reference(model, prompt + base[:place])[-1]
            self.firsts.append(place)
            self.margins.append(float((scores[base[place]] - scores[other[place]]).abs()))


@dataclass
class Side:
    """What was measured of one runner."""

    error: float = 0.0
    """The largest of its logits."""
    share: float = 0.0
    """The deviation of its errors in that of the logits."""
    seconds: list[float] = field(default_factory=list)
    first_byte: list[float] = field(default_factory=list)
    agreement: Agreement = field(default_factory=Agreement)


@torch.inference_mode()
def reference(model: ByteLlama, text: bytes) -> torch.Tensor:
    """The module's logits [T, 256] over a text."""
    return model.logits(model(torch.tensor([list(text)])))[0]


def report(sides: dict[str, Side], batch: int, tokens: int) -> list[dict[str, object]]:
    """A record for each runner; ratios are to mode base, paired by turn, above 1 if faster."""
    base, rows = sides[Mode.BASE], []
    for name, side in sides.items():
        agreement = side.agreement
        ratios = [ours / its for ours, its in zip(base.seconds, side.seconds, strict=True)]
        # each may be off by its error at either byte
        tie = 2 * max(side.error, base.error)
        rows.append(
            {
                "name": name,
                "bytes_per_second": round(batch * tokens / quartiles(side.seconds)[1], 1),
                "ratio_to_base": [round(ratio, 3) for ratio in quartiles(ratios)],
                "first_byte_ms": round(quartiles(side.first_byte)[1] * 1e3, 2),
                "largest_logit_error": round(side.error, 4),
                "logit_error_share": round(side.share, 5),
                "equal_bytes": round(agreement.equal / agreement.total, 4),
                "looping_bytes": round(agreement.looping / agreement.total, 4),
                "outputs": agreement.total // tokens,
                "differing_outputs": len(agreement.firsts),
                "first_difference": min(agreement.firsts, default=None),
                "largest_margin": round(max(agreement.margins, default=0.0), 4),
                "no_near_ties": sum(margin > tie for margin in agreement.margins),
            }
        )
    return rows


HEADER = (
    "| prompts | batch | who | bytes/s | against base [quartiles] | first byte, ms | "
    "in loops | equal bytes | first difference | margin there, at most | logits off by at most |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def line(domain: str, batch: int, row: Record) -> str:
    low, middle, high = row["ratio_to_base"]
    place = row["first_difference"]
    differs = (
        "none" if place is None else f"byte {place}, {row['differing_outputs']} of {row['outputs']}"
    )
    margin = "–" if place is None else f"{row['largest_margin']:.3f}"
    return (
        f"| {domain} | {batch} | {row['name']} | {row['bytes_per_second']:,.0f} | "
        f"{middle:.2f} [{low:.2f}, {high:.2f}] | {row['first_byte_ms']:.1f} | "
        f"{row['looping_bytes']:.0%} | {row['equal_bytes']:.1%} | {differs} | {margin} | "
        f"{row['largest_logit_error']:.3f} |"
    )
