"""What decoding knows of every slot, in preallocated tensors.

A slot holds one row: the text x_0..x_m of which the model's cache holds x_0..x_{m-1}.  A round
only changes these tensors.  Knows nothing of requests' names, stop strings or queues.

S slots, K positions of noise kept ahead.
"""

import torch
from torch import Tensor

from specdec.config import VOCAB_SIZE
from specdec.noise import gumbel_ahead
from specdec.sampling import SamplingParams, SamplingRows

NOISE_AHEAD = 64
"""Positions of noise computed at a time: the generator's many small operations are then shared."""


class SlotState:
    """`length[i]` is m, the index of the last byte `last[i]`; `end[i]` the index to stop before.

    Without `keeps_noise` there is none here, for rounds that make their own.
    """

    def __init__(
        self,
        slots: int,
        device: torch.device,
        *,
        keeps_noise: bool = True,
    ) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        self.slots, self.device = slots, device
        self._keeps_noise = keeps_noise
        self.length = zeros(slots)
        self.last = zeros(slots)
        self.end = zeros(slots)
        self.seed = zeros(slots)
        self.counts = zeros(slots, VOCAB_SIZE)
        self.sampling = SamplingRows.neutral(slots, device)
        kept = (slots, NOISE_AHEAD if keeps_noise else 0, VOCAB_SIZE)
        self.noise = torch.zeros(kept, dtype=torch.float64, device=device)
        self.noise_start = zeros(slots)
        # the host's copy of noise_start, so that refilling needs no read from the device
        self._noise_from = [0] * slots

    def open(
        self,
        slot: int,
        prompt: bytes,
        end: int,
        params: SamplingParams,
        seed: int,
        eos: int | None,
    ) -> None:
        """Puts a row into a slot; its prompt but the last byte is still to be consumed."""
        self.length[slot] = len(prompt) - 1
        self.last[slot] = prompt[-1]
        self.end[slot] = end
        self.seed[slot] = seed
        self.counts[slot] = 0
        self.sampling.set(slot, params, eos, len(prompt))
        self._noise_from[slot] = -1

    def refill_noise(self, slots: list[int], lengths: list[int], width: int) -> None:
        """Makes noise for positions length+1..length+width of the slots be at hand."""
        if not self._keeps_noise:
            return
        stale = [
            (slot, length + 1)
            for slot, length in zip(slots, lengths, strict=True)
            if self._noise_from[slot] < 0
            or length + 1 < self._noise_from[slot]
            or length + 1 + width > self._noise_from[slot] + NOISE_AHEAD
        ]
        if not stale:
            return
        for slot, start in stale:
            self._noise_from[slot] = start
        # a copy from pinned memory does not wait for the rounds before it
        table = torch.tensor(stale, pin_memory=self.device.type == "cuda")
        # each aligned, whatever their number: kernels are compiled for what addresses divide by
        index, start = (part.clone() for part in table.to(self.device, non_blocking=True).T)
        self.noise_start[index] = start
        self.noise[index] = gumbel_ahead(self.seed[index], start, NOISE_AHEAD)

    def noise_at(self, slots: Tensor, position: Tensor) -> Tensor:
        """Noise [..., 256] of slots and positions [...]."""
        return self.noise[slots, position - self.noise_start[slots]]
