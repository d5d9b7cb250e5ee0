"""What a trained pair is worth in decoding: bytes per round and acceptance on unseen bytes.

Counts only, no times: `bench.decode` measures those.
"""

from dataclasses import dataclass

import numpy as np
import torch

from specdec.build import build_decoder
from specdec.decoder import Job, generate
from specdec.model import ByteLlama
from specdec.prophet import AutoregressiveProphet
from specdec.sampling import SamplingParams
from train.data import Sample

PROMPTS = 16
PROMPT_BYTES = 128
NEW_BYTES = 128


@dataclass(frozen=True)
class Acceptance:
    """`by_position[k]` is the share of rounds in which draft k+1 was accepted."""

    temperature: float
    draft_length: int
    bytes_per_round: float
    by_position: tuple[float, ...]


def measure_acceptance(
    model: ByteLlama,
    prophet: AutoregressiveProphet,
    sample: Sample,
    *,
    temperature: float,
    draft_length: int,
) -> tuple[Acceptance, list[tuple[bytes, bytes]]]:
    """Continues evenly spread prompts of the sample; returns figures and (prompt, output) pairs."""
    device = next(model.parameters()).device
    decoder = build_decoder(
        model,
        prophet,
        slots=PROMPTS,
        context=PROMPT_BYTES + NEW_BYTES,
        device=device,
        dtype=torch.float32,
    )
    starts = np.linspace(0, len(sample.content) - PROMPT_BYTES, PROMPTS).astype(np.int64)
    params = SamplingParams(temperature=temperature)
    jobs = [
        Job(
            sample.content[start : start + PROMPT_BYTES].tobytes(),
            NEW_BYTES,
            params,
            seed=index,
            draft_length=draft_length,
        )
        for index, start in enumerate(starts)
    ]
    outputs = generate(decoder, jobs)
    rounds = sum(out.rounds for out in outputs)
    by_position = np.sum([out.accepted_per_position for out in outputs], axis=0) / rounds
    figures = Acceptance(
        temperature=temperature,
        draft_length=draft_length,
        bytes_per_round=round(sum(len(out.output) for out in outputs) / rounds, 3),
        by_position=tuple(round(float(share), 3) for share in by_position),
    )
    pairs = [(job.prompt, out.output) for job, out in zip(jobs, outputs, strict=True)]
    return figures, pairs
