"""The demonstration: what is timed, what is shown, what fits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tiny import agreeing_prophet, tiny_model

import train.demonstration
from specdec.decoder import Decoder, Job, Output, generate
from train.data import Corpus, Sample
from train.demonstration import DRAFT_LENGTH, WARM_UP_BYTES, demonstrate


def corpus(size: int) -> Corpus:
    content = np.random.default_rng(0).integers(97, 123, size).astype(np.uint8)
    sample = (Sample("letters.bin", content),)
    return Corpus(sample, (1.0,), sample, sample)


def test_both_paths_are_warm_before_either_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, int]] = []

    def watched(decoder: Decoder[Any], jobs: Sequence[Job]) -> list[Output]:
        seen.append(("decode", jobs[0].draft_length, jobs[0].max_tokens))
        return generate(decoder, jobs)

    def clock() -> float:
        seen.append(("clock", 0, 0))
        return float(len(seen))

    monkeypatch.setattr(train.demonstration, "generate", watched)
    monkeypatch.setattr(train.demonstration.time, "perf_counter", clock)
    model = tiny_model()
    demonstrate(model, agreeing_prophet(model), corpus(1000), 0)
    tick = ("clock", 0, 0)
    new = model.config.max_position_embeddings // 2
    assert seen == [
        ("decode", 0, WARM_UP_BYTES),
        ("decode", DRAFT_LENGTH, WARM_UP_BYTES),
        *(tick, ("decode", 0, new), tick),
        *(tick, ("decode", DRAFT_LENGTH, new), tick),
    ]


@pytest.mark.parametrize("size", [1, 50, 1000])
def test_it_is_a_function_of_the_step_and_fits_the_sample(size: int) -> None:
    model = tiny_model()
    prophet = agreeing_prophet(model)
    texts = [demonstrate(model, prophet, corpus(size), 3).splitlines() for _ in range(2)]
    # times apart
    kept = [[line for line in text if not line.endswith((" ms:", "bytes"))] for text in texts]
    assert kept[0] == kept[1]
    prompt = texts[0][texts[0].index("step 3, prompt from letters.bin:") + 1]
    assert len(prompt) == min(size, 80)
    assert any(line.startswith("mean accepted ") for line in texts[0])


def test_without_a_prophet_it_shows_the_base_path_alone() -> None:
    text = demonstrate(tiny_model(), None, corpus(500), 0)
    assert "base, " in text
    assert "speculative" not in text
    assert "accepted" not in text
