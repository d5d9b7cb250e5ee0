"""What a trained pair is worth in decoding: bytes per round and acceptance on given prompts.

Counts only, no times: `bench.decode` measures those.  What follows the start of a loop in a greedy
output is left out: a loop is easy to draft and would flatter the prophet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from specdec.build import build_decoder, decoding
from specdec.decoder import Job, Output, generate
from specdec.model import ByteLlama
from specdec.prophet import Prophet
from specdec.sampling import SamplingParams
from train.data import Sample

PROMPT_BYTES = 256
NEW_BYTES = 256
"""What a prompt and its continuation have where context and sample are long enough."""

SLOTS = 16


@dataclass(frozen=True)
class Acceptance:
    """`by_position[k]` is the share of rounds in which draft k+1 was accepted."""

    temperature: float
    draft_length: int
    bytes_per_round: float
    by_position: tuple[float, ...]


def prompt_bytes(context: int, samples: Sequence[Sample]) -> int:
    """Length of the prompts: at most half of the context, and no longer than any sample."""
    return min(PROMPT_BYTES, context // 2, *(len(sample.content) for sample in samples))


def spread_prompts(sample: Sample, count: int, length: int) -> list[bytes]:
    """Evenly spread prompts of a sample, at most `count`."""
    return [bytes(row.tolist()) for row in sample.spread(count * length, length)]


def loop_start(output: bytes) -> int:
    """Where an output begins to repeat itself to its end; its length where it does not.

    A loop is a stretch of at most a third of the output, written at least three times, the last
    perhaps in part, 32 bytes or more in all; it starts with the second time.
    """
    for period in range(1, len(output) // 3 + 1):
        repeated = 0
        while (
            repeated < len(output) - period
            and output[-1 - repeated] == output[-1 - repeated - period]
        ):
            repeated += 1
        if repeated >= max(2 * period, 32 - period):
            return len(output) - repeated
    return len(output)


def measure_acceptance(
    model: ByteLlama,
    prophet: Prophet,
    prompts: Sequence[bytes],
    *,
    temperature: float,
    draft_length: int,
) -> tuple[Acceptance, list[bytes]]:
    """Continues the prompts with the seeds 0, 1, …; returns figures and outputs.

    Outputs have NEW_BYTES, or as many as the context leaves behind the longest prompt.
    """
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    new = min(NEW_BYTES, model.config.max_position_embeddings - longest)
    decoder = build_decoder(
        model, prophet, slots=SLOTS, context=longest + new, device=device, dtype=torch.float32
    )
    params = SamplingParams(temperature=temperature)
    jobs = [
        Job(prompt, new, params, seed=index, draft_length=draft_length)
        for index, prompt in enumerate(prompts)
    ]
    outputs: list[Output] = []
    with decoding(decoder):
        for begin in range(0, len(jobs), SLOTS):
            outputs += generate(decoder, jobs[begin : begin + SLOTS], rounds=1)
    rounds = emitted = 0
    by_position = [0] * draft_length
    for out in outputs:
        stop = len(out.output) if temperature else loop_start(out.output)
        done = 0
        for result in out.results:
            if done >= stop:
                break
            done += len(result.output)
            rounds += 1
            emitted += len(result.output)
            for position in range(result.accepted):
                by_position[position] += 1
    figures = Acceptance(
        temperature=temperature,
        draft_length=draft_length,
        bytes_per_round=round(emitted / rounds, 3),
        by_position=tuple(round(count / rounds, 3) for count in by_position),
    )
    return figures, [out.output for out in outputs]
