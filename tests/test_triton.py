"""The Triton kernels against torch's operations, and a row's bits in any company.

Compiled where there is a GPU, elsewhere interpreted, which is slow: few rows, small models.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import agreeing_prophet, tiny_model, tiny_prophet
from torch import Tensor

triton = pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
    pytest.skip("Triton's interpreter fails with NumPy 2.4", allow_module_level=True)

import triton.language as tl  # noqa: E402

from bench import tiles  # noqa: E402
from specdec import triton_rule_kernels as rule_kernels  # noqa: E402
from specdec import triton_stack  # noqa: E402
from specdec.build import build_graph_decoder  # noqa: E402
from specdec.decoder import Decoder, Job, generate  # noqa: E402
from specdec.drafter import Following  # noqa: E402
from specdec.kinds import build_drafter  # noqa: E402
from specdec.noise import gumbel  # noqa: E402
from specdec.packed import PackedModel  # noqa: E402
from specdec.sampling import SamplingParams  # noqa: E402
from specdec.state import SlotState  # noqa: E402
from specdec.static_round import Inputs, TorchStaticRule  # noqa: E402
from specdec.triton_drafters import build_triton_drafter  # noqa: E402
from specdec.triton_rule import TritonRule  # noqa: E402
from specdec.triton_stack import TritonStack  # noqa: E402

# the interpreter makes numbers of arrays of one element
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:triton")
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs of a program are in no sum, and the interpreter runs programs one by one."""
    if INTERPRETED:
        monkeypatch.setattr(triton_stack, "COLUMNS", 256)


def _filled(context: int, kv_heads: int, dtype: torch.dtype = torch.float32) -> PackedModel:
    """A model on the kernels whose caches hold something at every place."""
    model = tiny_model(kv_heads=kv_heads, context=context)
    packed = PackedModel(
        model, slots=4, context=context, device=DEVICE, dtype=dtype, make_stack=TritonStack
    )
    generator = torch.Generator().manual_seed(0)
    for cache in (packed.stack.keys, packed.stack.values):
        cache.copy_(torch.randn(cache.shape, generator=generator))
    return packed


def _forward(model: PackedModel, rows: list[tuple[int, int, int]]) -> tuple[Tensor, Tensor]:
    """Of rows (byte, slot, place), the cache left as it was."""
    kept = model.stack.keys.clone(), model.stack.values.clone()
    tokens, slot, place = torch.tensor(rows, device=DEVICE).T.contiguous()
    result = model.forward(tokens, slot, place, place, ((len(rows), 1),))
    model.stack.keys.copy_(kept[0])
    model.stack.values.copy_(kept[1])
    return result


@pytest.mark.parametrize(("kv_heads", "context"), [(1, 640), (2, 160)])
def test_a_pass_gives_what_torch_gives(kv_heads: int, context: int) -> None:
    """With one split of the cache and with several, at their borders."""
    ours = _filled(context, kv_heads)
    places = [0, 5, 255, 256, 600] if context == 640 else [0, 63, 64, 150]
    reference = PackedModel(
        tiny_model(kv_heads=kv_heads, context=context),
        slots=4,
        context=context,
        device=DEVICE,
        dtype=torch.float32,
    )
    own = ours.stack.keys.shape[3]
    reference.stack.keys[:, :, :, :own] = ours.stack.keys
    reference.stack.values[:, :, :, :own] = ours.stack.values
    rows = [(40 + index, index % 3 + 1, place) for index, place in enumerate(places)]
    tokens, slot, place = torch.tensor(rows, device=DEVICE).T.contiguous()
    expected = reference.forward(tokens, slot, place, place, ((len(rows), 1),))
    for a, b in zip(ours.forward(tokens, slot, place, place, ()), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    for cache, other in (
        (ours.stack.keys, reference.stack.keys),
        (ours.stack.values, reference.stack.values),
    ):
        torch.testing.assert_close(cache, other[:, :, :, :own], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_has_the_same_bits_in_any_company(dtype: torch.dtype) -> None:
    model = _filled(640, 1, dtype)
    row = (101, 2, 300)
    alone = _forward(model, [row])
    others = [(7 * n % 256, (0, 1, 3)[n % 3], 37 * n % 200) for n in range(17)]
    for company, at in ((1, 1), (15, 15), (17, 16)):
        rows = others[:company]
        rows.insert(at, row)
        together = _forward(model, rows)
        for a, b in zip(alone, together, strict=True):
            assert torch.equal(a[0], b[at])
    # in another slot that holds the same
    for cache in (model.stack.keys, model.stack.values):
        cache[:, 0] = cache[:, 2]
    for a, b in zip(alone, _forward(model, [others[1], (101, 0, 300)]), strict=True):
        assert torch.equal(a[0], b[1])


@triton.jit
def _noise_kernel(seed, position, noise):
    row = tl.program_id(0)
    byte = tl.arange(0, 256)
    value = rule_kernels.gumbel(tl.load(seed + row), tl.load(position + row), byte)
    tl.store(noise + row * 256 + byte, value)


def test_noise_has_the_bits_of_torchs() -> None:
    seed = torch.tensor([0, 5, -7, 2**62], device=DEVICE)
    position = torch.tensor([1, 2, 100, 2**33], device=DEVICE)
    noise = torch.empty(4, 256, dtype=torch.float64, device=DEVICE)
    _noise_kernel[(4,)](seed, position, noise, enable_fp_fusion=False)
    assert torch.equal(noise, gumbel(seed, position))


PARAMS = [
    SamplingParams(),
    SamplingParams(temperature=0, frequency_penalty=0.4),
    SamplingParams(temperature=0.7, top_k=3),
    SamplingParams(top_p=0.5, min_p=0.02),
    SamplingParams(
        temperature=1.3,
        presence_penalty=1,
        repetition_penalty=1.3,
        min_tokens=9,
        logit_bias=((3, 5.0), (7, -float("inf"))),
    ),
]


def test_the_rule_is_that_of_torch() -> None:
    """Integer logits, so that thresholds meet ties; a row idles."""
    logits = torch.randn(6, 2, 256, generator=torch.Generator().manual_seed(1)).mul(2).round()
    counts = torch.randint(0, 2, (5, 256), generator=torch.Generator().manual_seed(2))
    logits = logits.to(DEVICE)
    outcomes = []
    for make_rule in (TorchStaticRule, TritonRule):
        state = SlotState(6, DEVICE, keeps_noise=False)
        for slot, params in enumerate(PARAMS):
            state.open(slot, b"abcd", 40 if slot else 5, params, slot, 3)
        state.counts[:5] = counts.to(DEVICE)
        inputs = Inputs(6, 5, DEVICE)
        inputs.send([0, 1, 2, 3, 4], [1, 1, 0, 1, 1], [True] * 5)
        rule = make_rule(state, inputs, 2)
        drafts = rule.pick(0, logits[:, 0])
        drafts[1] += 1  # one that is wrong
        tokens = torch.stack((rule.last, drafts % 256), 1)
        chosen = rule.judge(logits, tokens)
        result, committed = rule.settle(tokens, chosen)
        outcomes.append((drafts[:5], chosen[:5], result, committed, state))
    for a, b in zip(outcomes[0][:2], outcomes[1][:2], strict=True):
        assert torch.equal(a, b)
    (*_, result, committed, state), (*_, ours, our_committed, our_state) = outcomes
    assert torch.equal(result[:5], ours[:5])
    assert ours[5, 2:].tolist() == [0, 0, 0]
    assert ours[:5, 2].tolist() == [1, 1, 1, 2, 2]
    assert torch.equal(committed, our_committed)
    for name in ("length", "last", "counts"):
        assert torch.equal(getattr(state, name)[:5], getattr(our_state, name)[:5])


class Recording:
    """A rule that takes the likeliest byte and remembers scores."""

    def __init__(self) -> None:
        self.scores: list[Tensor] = []

    def pick(self, step: int, logits: Tensor, following: Following | None = None) -> Tensor:
        if following:
            logits = following.added(logits)
        self.scores.append(logits.clone())
        return logits.argmax(-1)


@pytest.mark.parametrize("parallel", [False, True])
def test_drafters_draft_as_those_of_torch(parallel: bool) -> None:
    model = tiny_model()
    prophet = tiny_prophet(model, parallel=parallel)
    slots = torch.tensor([2, 0], device=DEVICE)
    last = torch.tensor([65, 200], device=DEVICE)
    hidden = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]], device=DEVICE)
    seen = []
    for build in (build_drafter, build_triton_drafter):
        drafter = build(prophet, slots=4, context=160, device=DEVICE, dtype=torch.float32)
        start = torch.zeros_like(last)
        # of the second row one place is committed
        drafter.observe(slots, start, hidden, tokens, torch.tensor([3, 1], device=DEVICE))
        rule = Recording()
        length = torch.tensor([3, 1], device=DEVICE)
        drafts = drafter.draft(slots, last, length, 3, rule)
        # and again behind what was committed, from the states that were kept
        drafter.observe(slots, length, -hidden, tokens + 3, torch.tensor([2, 3], device=DEVICE))
        more = drafter.draft(slots, last, length + torch.tensor([2, 3], device=DEVICE), 2, rule)
        seen.append((drafts, more, *rule.scores))
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("parallel", [False, True])
def test_rows_that_share_rounds_have_the_bytes_of_base_alone(parallel: bool) -> None:
    model = tiny_model(depth=1, context=64)
    decoder = build_graph_decoder(
        model,
        agreeing_prophet(model, parallel=parallel),
        slots=3,
        device=DEVICE,
        dtype=torch.float32,
        context=64,
        draft_lengths=(2,),
        capture=None,
    )
    params = SamplingParams(temperature=0.8, frequency_penalty=0.3)
    jobs = [Job(b"a b", 6, params, 4, draft_length=n) for n in (2, 0)]
    jobs.append(Job(b"zz", 4, SamplingParams(temperature=0), 5, draft_length=1))
    together = generate(decoder, jobs)
    assert together[0].output == together[1].output
    (alone,) = generate(decoder, [Job(b"zz", 4, SamplingParams(temperature=0), 5)])
    assert together[2].output == alone.output


def test_a_setting_is_measured_by_itself_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = triton_stack.COLUMNS, dict(triton_stack.LAUNCH)
    other = kept[0] // 2
    monkeypatch.setattr(tiles, "BEHIND", 4)
    monkeypatch.setattr(tiles, "REPLAYS", 2)
    monkeypatch.setattr(tiles, "TURNS", 1)
    monkeypatch.setattr(tiles, "SETTINGS", {"COLUMNS": (kept[0], other), "num_stages": (2, -1)})
    model = tiny_model(depth=1, context=64)
    built: list[tuple[int, int]] = []

    def build() -> Decoder[Any]:
        launch = triton_stack.LAUNCH["num_stages"]
        built.append((triton_stack.COLUMNS, launch))
        if launch < 0:
            raise ValueError("no such stages")
        return build_graph_decoder(
            model,
            None,
            slots=2,
            device=DEVICE,
            dtype=torch.float32,
            context=24,
            draft_lengths=(),
            capture=None,
        )

    def timed(call: Callable[[], object]) -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    rows = list(tiles.measure(build, [1, 2], timed))
    assert built == [(kept[0], 3), (other, 3), (kept[0], 2), (kept[0], -1)]
    assert [row["default"] for row in rows] == [True, False, False, False]
    for row in rows[:3]:
        assert row.get("exact"), row
        assert all(row["round_us"][batch] > 0 for batch in ("1", "2"))
    assert rows[3]["error"] == "ValueError: no such stages"
    assert kept == (triton_stack.COLUMNS, triton_stack.LAUNCH)


@pytest.mark.slow
def test_kernels_compile_for_hopper_without_a_gpu(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    here = Path(__file__).parent
    subprocess.run(
        [sys.executable, str(here / "compile_kernels.py")],
        check=True,
        env=environment,
        cwd=here.parent,
    )
