"""A random validation prompt, continued by both paths: texts, times, mean accepted of γ.

Times are synchronised with the device.  They are one run of each path, after a short one that is
not timed: a look, not a benchmark.
"""

import time
from dataclasses import replace

import numpy as np
import torch

from specdec.build import build_decoder, decoding
from specdec.decoder import Job, Output, generate
from specdec.model import ByteLlama
from specdec.prophet import Prophet
from specdec.sampling import SamplingParams
from train.data import Corpus

PROMPT_BYTES = 128
WHOLE_BYTES = 512
DRAFT_LENGTH = 5
WARM_UP_BYTES = 16


def readable(content: bytes) -> str:
    """Text for people: what cannot be printed becomes a dot."""
    text = content.decode("utf-8", "replace")
    return "".join(c if c.isprintable() or c in "\n\t" else "·" for c in text)


def demonstrate(model: ByteLlama, prophet: Prophet | None, corpus: Corpus, step: int) -> str:
    """The demonstration of a step, as text; without a prophet, of the base path alone.

    The prompt is a function of the step.  A short context or sample makes it shorter.
    """
    device = next(model.parameters()).device
    context = min(WHOLE_BYTES, model.config.max_position_embeddings)
    draw = np.random.default_rng(step)
    sample = corpus.validation[draw.integers(len(corpus.validation))]
    length = min(PROMPT_BYTES, context // 2, len(sample.content))
    start = int(draw.integers(len(sample.content) - length + 1))
    prompt = sample.content[start : start + length].tobytes()
    decoder = build_decoder(
        model, prophet, slots=1, context=context, device=device, dtype=torch.float32
    )
    new = context - length
    jobs = [
        Job(prompt, new, SamplingParams(), step, draft_length)
        for draft_length in ((0, DRAFT_LENGTH) if prophet else (0,))
    ]
    outputs, seconds = [], []
    with decoding(decoder):
        for job in jobs:
            generate(decoder, [replace(job, max_tokens=min(WARM_UP_BYTES, new))])
        for job in jobs:
            _synchronize(device)
            began = time.perf_counter()
            outputs.append(generate(decoder, [job])[0])
            _synchronize(device)
            seconds.append(time.perf_counter() - began)
    return _text(step, sample.name, prompt, outputs, seconds)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _text(step: int, name: str, prompt: bytes, outputs: list[Output], seconds: list[float]) -> str:
    rule = "─" * 72
    lines = [f"{rule}\nstep {step}, prompt from {name}:", readable(prompt)]
    base = outputs[0]
    lines += [f"{rule}\nbase, {seconds[0] * 1e3:.0f} ms:", readable(base.output)]
    for speculative in outputs[1:]:
        mean = speculative.accepted / max(1, speculative.rounds)
        equal = base.output == speculative.output
        lines += [
            f"{rule}\nspeculative, {seconds[1] * 1e3:.0f} ms, "
            + ("the same bytes" if equal else "other bytes from a near-tie on:"),
            *(() if equal else (readable(speculative.output),)),
            f"mean accepted {mean:.2f} of {DRAFT_LENGTH}",
        ]
    return "\n".join([*lines, rule])
