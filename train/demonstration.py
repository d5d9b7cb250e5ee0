"""A random validation prompt, continued by both paths: texts, times, mean accepted of γ.

Times are synchronised with the device.  They are one run of each path: a look, not a benchmark.
"""

import time

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


def readable(content: bytes) -> str:
    """Text for people: what cannot be printed becomes a dot."""
    text = content.decode("utf-8", "replace")
    return "".join(c if c.isprintable() or c in "\n\t" else "·" for c in text)


def demonstrate(model: ByteLlama, prophet: Prophet, corpus: Corpus, step: int) -> str:
    """The demonstration of a step, as text.  The prompt is a function of the step."""
    device = next(model.parameters()).device
    context = min(WHOLE_BYTES, model.config.max_position_embeddings)
    draw = np.random.default_rng(step)
    sample = corpus.validation[draw.integers(len(corpus.validation))]
    start = int(draw.integers(len(sample.content) - PROMPT_BYTES))
    prompt = sample.content[start : start + PROMPT_BYTES].tobytes()
    decoder = build_decoder(
        model, prophet, slots=1, context=context, device=device, dtype=torch.float32
    )
    outputs, seconds = [], []
    for draft_length in (0, DRAFT_LENGTH):
        job = Job(prompt, context - PROMPT_BYTES, SamplingParams(), step, draft_length)
        _synchronize(device)
        began = time.perf_counter()
        with decoding(decoder):
            outputs.append(generate(decoder, [job])[0])
        _synchronize(device)
        seconds.append(time.perf_counter() - began)
    return _text(step, sample.name, prompt, outputs, seconds)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _text(step: int, name: str, prompt: bytes, outputs: list[Output], seconds: list[float]) -> str:
    base, speculative = outputs
    mean = speculative.accepted / max(1, speculative.rounds)
    equal = base.output == speculative.output
    rule = "─" * 72
    return "\n".join(
        (
            f"{rule}\nstep {step}, prompt from {name}:",
            readable(prompt),
            f"{rule}\nbase, {seconds[0] * 1e3:.0f} ms:",
            readable(base.output),
            f"{rule}\nspeculative, {seconds[1] * 1e3:.0f} ms, "
            + ("the same bytes" if equal else "other bytes from a near-tie on:"),
            *(() if equal else (readable(speculative.output),)),
            f"mean accepted {mean:.2f} of {DRAFT_LENGTH}\n{rule}",
        )
    )
