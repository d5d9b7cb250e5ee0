"""The byte rule: byte_t = argmax(process(logits_t) + noise(seed, t)).

Every rule acts on one row by itself, so that what shares a batch cannot matter.  Ties go to the
lowest byte.  The slow statement of the same rule, a row at a time, is `specdec.oracle`.

R rows, V = 256 bytes.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from specdec.config import VOCAB_SIZE


@dataclass(frozen=True)
class SamplingParams:
    """How one request chooses its bytes.  Neutral values, the defaults, change nothing.

    temperature 0 is greedy.  top_k 0 is off.  Penalties count output bytes only.  `min_tokens`
    bans the end-of-document byte until so many bytes are out.  `logit_bias` maps bytes to what is
    added to their logits.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        ranges = {
            "temperature": (0.0, 1e6),
            "top_k": (0, VOCAB_SIZE),
            "top_p": (0.0, 1.0),
            "min_p": (0.0, 1.0),
            "presence_penalty": (-100.0, 100.0),
            "frequency_penalty": (-100.0, 100.0),
            "repetition_penalty": (1e-3, 1e3),
            "min_tokens": (0, 1 << 40),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} must be from {low} to {high}, not {value}")
        if self.top_p == 0:
            raise ValueError("top_p must be above 0")
        banned = 0
        for byte, bias in self.logit_bias:
            if not 0 <= byte < VOCAB_SIZE:
                raise ValueError(f"logit_bias: {byte} is not a byte (0 to 255)")
            if not bias < float("inf"):
                raise ValueError(f"logit_bias of byte {byte} must be below infinity, not {bias}")
            banned += bias == float("-inf")
        if len({byte for byte, _ in self.logit_bias}) < len(self.logit_bias):
            raise ValueError("logit_bias names a byte twice")
        if banned == VOCAB_SIZE:
            raise ValueError("logit_bias bans every byte: nothing is left to choose from")

    @property
    def features(self) -> "Features":
        """What of the rule is not neutral here."""
        return Features(
            sampled=self.temperature > 0,
            filtered=self.top_k > 0 or self.top_p < 1 or self.min_p > 0,
            adjusted=bool(
                self.presence_penalty
                or self.frequency_penalty
                or self.repetition_penalty != 1
                or self.min_tokens
                or self.logit_bias
            ),
        )


@dataclass(frozen=True)
class Features:
    """Which parts of the rule any row of a batch needs; the rest is skipped, bits unchanged."""

    sampled: bool = False
    filtered: bool = False
    adjusted: bool = False

    def __or__(self, other: "Features") -> "Features":
        return Features(
            self.sampled or other.sampled,
            self.filtered or other.filtered,
            self.adjusted or other.adjusted,
        )


@dataclass(frozen=True)
class SamplingRows:
    """Parameters of R rows (or of every slot), a tensor each; bias is [R, 256], the rest [R]."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    presence_penalty: Tensor
    frequency_penalty: Tensor
    repetition_penalty: Tensor
    bias: Tensor
    eos: Tensor
    """The end-of-document byte, -1 where there is none."""
    allow_eos_from: Tensor
    """The first absolute index at which the end-of-document byte may be chosen."""

    @classmethod
    def neutral(cls, rows: int, device: torch.device) -> "SamplingRows":
        def full(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((rows,), value, dtype=dtype, device=device)

        return cls(
            temperature=full(0, torch.float64),
            top_k=full(0, torch.int64),
            top_p=full(1, torch.float64),
            min_p=full(0, torch.float64),
            presence_penalty=full(0, torch.float64),
            frequency_penalty=full(0, torch.float64),
            repetition_penalty=full(1, torch.float64),
            bias=torch.zeros(rows, VOCAB_SIZE, dtype=torch.float64, device=device),
            eos=full(-1, torch.int64),
            allow_eos_from=full(0, torch.int64),
        )

    def set(self, row: int, params: SamplingParams, eos: int | None, output_start: int) -> None:
        """Writes one request's parameters; its first output byte has index `output_start`."""
        for name in (
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
        ):
            getattr(self, name)[row] = getattr(params, name)
        self.bias[row] = 0
        for byte, bias in params.logit_bias:
            self.bias[row, byte] = bias
        self.eos[row] = -1 if eos is None else eos
        self.allow_eos_from[row] = output_start + params.min_tokens

    def take(self, rows: Tensor) -> "SamplingRows":
        return SamplingRows(*(getattr(self, item.name)[rows] for item in fields(self)))


def adjust(logits: Tensor, rows: SamplingRows, counts: Tensor, position: Tensor) -> Tensor:
    """Penalties, bias and the ban before min_tokens, on logits [R, 256] (float64).

    counts [R, 256] are the output bytes so far, position [R] the index of the byte to choose.
    """
    seen = counts > 0
    repetition = rows.repetition_penalty[:, None]
    repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(seen, repeated, logits)
    logits = logits - rows.presence_penalty[:, None] * seen
    logits = logits - rows.frequency_penalty[:, None] * counts
    logits = logits + rows.bias
    banned = position < rows.allow_eos_from
    is_eos = torch.arange(VOCAB_SIZE, device=logits.device) == rows.eos[:, None]
    return logits.masked_fill(banned[:, None] & is_eos, -torch.inf)


def filter_top(logits: Tensor, rows: SamplingRows) -> Tensor:
    """top_k, then top_p of what is left, then min_p; what falls out becomes -inf.

    Ties at top_k's threshold stay.  top_p takes bytes in falling order, ties by byte value, while
    the probability before them is under top_p.  Weights relative to the likeliest are compared,
    not probabilities: those of ties are whole numbers, whose sums are exact in any order.
    A row with neutral values keeps its bits.
    """
    ordered = logits.sort(dim=-1, descending=True).values
    last = (rows.top_k - 1).clamp_min(0)
    threshold = ordered.gather(-1, last[:, None])
    out = (logits < threshold) & (rows.top_k > 0)[:, None]
    logits = logits.masked_fill(out, -torch.inf)

    ordered, index = logits.sort(dim=-1, descending=True, stable=True)
    weight = ordered.exp()  # the top is 0
    before = weight.cumsum(-1) - weight
    enough = rows.top_p[:, None] * weight.sum(-1, keepdim=True)
    out_ordered = (before >= enough) & (rows.top_p < 1)[:, None]
    out_ordered[:, 0] = False
    out = torch.zeros_like(out_ordered).scatter(-1, index, out_ordered)
    logits = logits.masked_fill(out, -torch.inf)

    floor = ordered[:, :1] + rows.min_p.log()[:, None]
    return logits.masked_fill(logits < floor, -torch.inf)


def process(
    logits: Tensor, rows: SamplingRows, counts: Tensor, position: Tensor, features: Features
) -> Tensor:
    """Scores [R, 256] in float64 whose argmax, after adding the noise, is the byte.

    Greedy rows (temperature 0) come out as their adjusted logits; `choose` adds no noise to them.
    """
    logits = logits.double()
    if features.adjusted:
        logits = adjust(logits, rows, counts, position)
    if not features.sampled:
        return logits
    greedy = (rows.temperature == 0)[:, None]
    temperature = torch.where(greedy, 1.0, rows.temperature[:, None])
    # the top at 0, so that a tiny temperature gives -inf below it rather than inf - inf
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature
    if features.filtered:
        scaled = filter_top(scaled, rows)
    return torch.where(greedy, logits, scaled.log_softmax(-1))


def choose(
    logits: Tensor,
    rows: SamplingRows,
    counts: Tensor,
    position: Tensor,
    noise: Tensor | None,
    features: Features,
) -> Tensor:
    """The bytes [R] (int64) that the rule gives for logits [R, 256].

    noise [R, 256] is that of (seed, position); it may be None when no row samples.
    """
    scores = process(logits, rows, counts, position, features)
    if features.sampled:
        if noise is None:
            raise ValueError("rows that sample need noise")
        scores = torch.where((rows.temperature == 0)[:, None], scores, scores + noise)
    return scores.argmax(-1)
