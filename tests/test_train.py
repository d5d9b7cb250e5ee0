"""The trainer: what it learns, what a stopped run resumes to, what it refuses, what it exports."""

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from specdec.checkpoint import load_model, load_prophet
from train.__main__ import main
from train.config import ModelShape, TrainConfig
from train.curve import plot
from train.data import Corpus
from train.data_files import DataError
from train.export import export
from train.objective import Losses
from train.save import TrainingError
from train.source import Packing
from train.trainer import Trainer
from train.world import World

CPU = torch.device("cpu")
TINY = ModelShape(
    hidden_size=32,
    depth=2,
    heads=2,
    kv_heads=1,
    intermediate_size=48,
    context=512,
    draft_length=5,
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    words = ["if ", "not ", "done: ", "return ", "x\n", "y\n", "for "]
    draw = random.Random(0)
    path = tmp_path / "words.bin"
    path.write_bytes("".join(draw.choice(words) for _ in range(8000)).encode())
    return path


def config(text: Path, **changes: object) -> TrainConfig:
    base = TrainConfig(
        data=(str(text),),
        steps=8,
        batch=4,
        windows=(64, 128),
        window_shares=(0.85, 0.15),
        warmup=2,
        evaluate_every=4,
        save_every=3,
        validation_bytes=1024,
        dtype="float32",
        shape=TINY,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [*trainer.model.state_dict().values(), *trainer.prophet.state_dict().values()]


def test_it_learns_what_the_bytes_are(text: Path, tmp_path: Path) -> None:
    trainer = Trainer(config(text, steps=60, dtype="bfloat16"), tmp_path / "run", CPU)
    trainer.directory.mkdir()
    trainer.run()
    first, last = (trainer.curve[i]["words.bin"] for i in (0, -1))
    assert isinstance(first, dict)
    assert isinstance(last, dict)
    assert last["model"] < first["model"] - 1
    assert last["prophet"] < first["prophet"] - 0.5
    assert min(last["acceptance"]) > 0.5


@pytest.mark.parametrize("stopped_at", [1, 3, 5, 7])
def test_a_stopped_run_resumes_to_the_weights_of_an_unbroken_one(
    text: Path, tmp_path: Path, stopped_at: int
) -> None:
    unbroken = Trainer(config(text), tmp_path / "unbroken", CPU)
    unbroken.directory.mkdir()
    unbroken.run()

    broken = Trainer(config(text), tmp_path / "broken", CPU)
    broken.directory.mkdir()
    while broken.step < stopped_at:
        broken.train_step()
        if broken.step % 3 == 0:
            broken.save()  # what lies behind the last save is lost, as by kill -9
    resumed = Trainer(config(text), tmp_path / "broken", CPU)
    assert resumed.resume() == (stopped_at >= 3)
    assert resumed.step == stopped_at // 3 * 3
    resumed.run()
    for a, b in zip(weights(unbroken), weights(resumed), strict=True):
        assert torch.equal(a, b)


def test_a_failing_save_keeps_the_last_one(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(config(text), tmp_path, CPU)
    trainer.train_step()
    trainer.save()
    before = trainer.save_path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    trainer.train_step()
    with pytest.raises(TrainingError, match="No space left on device"):
        trainer.save()
    assert trainer.save_path.read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_a_loss_that_is_not_a_number_stops_before_it_reaches_the_weights(
    text: Path, tmp_path: Path
) -> None:
    trainer = Trainer(config(text), tmp_path, CPU)
    trainer.model.head.weight.data.fill_(float("nan"))
    trainer.prophet.requires_grad_(True)
    before = trainer.prophet.head.weight.clone()
    with pytest.raises(TrainingError, match="step 0 is nan; the last save is kept"):
        trainer.train_step()
    assert torch.equal(trainer.prophet.head.weight, before)


def test_resuming_under_another_configuration_is_refused(text: Path, tmp_path: Path) -> None:
    trainer = Trainer(config(text), tmp_path, CPU)
    trainer.save()
    other = Trainer(config(text, seed=1), tmp_path, CPU)
    with pytest.raises(TrainingError, match="--seed was 0, is 1; give"):
        other.resume()


def test_accumulated_batches_are_one_batch(text: Path, tmp_path: Path) -> None:
    # every offset, so that both train the prophet at the same; no clipping, which forgets sizes
    whole = config(text, windows=(64,), window_shares=(1.0,), starts=1.0, clip=1e9)
    halves = Trainer(replace(whole, batch=2, accumulate=2), tmp_path / "halves", CPU)
    at_once = Trainer(whole, tmp_path / "whole", CPU)
    drawn = torch.cat([halves.corpus.batch(0, draw, 2, 64) for draw in (0, 1)])

    class Drawn:
        def batch(self, *arguments: int) -> torch.Tensor:
            return drawn

    at_once.corpus = Drawn()  # type: ignore[assignment]
    losses = []
    for trainer in (halves, at_once):
        trainer.optimizers.step = lambda share: None  # type: ignore[method-assign]
        losses.append(trainer.train_step())
    for name in ("total", "model_bits", "prophet_bits", "acceptance"):
        torch.testing.assert_close(getattr(losses[0], name), getattr(losses[1], name))
    for ours, theirs in zip(
        halves.optimizers.parameters, at_once.optimizers.parameters, strict=True
    ):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_validations_of_all_windows_are_in_the_longest(text: Path, tmp_path: Path) -> None:
    """Else a run would look better for having gone on to longer windows."""
    trainer = Trainer(config(text, steps=8, validation_bytes=512), tmp_path, CPU)
    lengths = []
    losses = trainer.losses

    def seen(tokens: torch.Tensor, draw: int, model: torch.nn.Module, drafts: int) -> Losses:
        lengths.append(tuple(tokens.shape))
        return losses(tokens, draw, model, drafts)

    trainer.losses = seen  # type: ignore[method-assign]
    for trainer.step in (0, 7):
        assert trainer.config.window_at(trainer.step)[1] == (128 if trainer.step else 64)
        trainer.evaluate()
    # as many bytes at once as in a step
    assert lengths == [(2, 128)] * 4


def test_the_leader_says_which_type_is_faster(text: Path, tmp_path: Path) -> None:
    class Follower(World):
        def leaders(self, value: object) -> torch.dtype:  # type: ignore[override]
            return torch.bfloat16

    auto = config(text, dtype="auto")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("train.trainer.matrix_type", lambda name, device: torch.float32)
        assert Trainer(auto, tmp_path, CPU, Follower()).dtype == torch.bfloat16
        assert Trainer(auto, tmp_path, CPU).dtype == torch.float32


def test_batches_that_cannot_be_shared_are_refused_before_the_first_step(
    text: Path, tmp_path: Path
) -> None:
    four = World()
    four.size = 4
    with pytest.raises(ValueError, match="batch: 2 rows cannot be shared evenly by 4"):
        Trainer(config(text), tmp_path, CPU, four)  # 4 rows of 64 bytes, then 2 of 128


def test_the_configuration_survives_its_json(text: Path) -> None:
    whole = config(text, mix=(1.0,), validation=(str(text),))
    assert TrainConfig.from_json(whole.to_json()) == whole


def test_the_schedule_rises_holds_and_falls_to_zero(text: Path) -> None:
    schedule = config(text, steps=100, warmup=10, decay_fraction=0.5)
    rates = [schedule.rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:50] == [1.0] * 40
    assert rates[-1] == pytest.approx(0.02)
    assert rates[50:] == sorted(rates[50:], reverse=True)
    curriculum = replace(schedule, prophet_curriculum=0.5, shape=ModelShape(draft_length=6))
    assert [curriculum.drafts_at(step) for step in (0, 9, 10, 49, 50, 99)] == [1, 1, 2, 5, 6, 6]
    assert {schedule.drafts_at(step) for step in range(100)} == {schedule.shape.draft_length}
    assert schedule.window_at(0) == (4, 64)
    assert schedule.window_at(99) == (2, 128)


def test_the_command_trains_and_exports_a_checkpoint_that_loads(text: Path, tmp_path: Path) -> None:
    zipped = tmp_path / "words.gz"
    zipped.write_bytes(gzip.compress(text.read_bytes()))
    flags = {
        "steps": 3,
        "batch": 2,
        "windows": "64 128",
        "window-shares": "0.85 0.15",
        "validation-bytes": 512,
        "test-prompts": 4,
        "hidden-size": 32,
        "depth": 2,
        "heads": 2,
        "kv-heads": 1,
        "intermediate-size": 48,
        "context": 512,
    }
    arguments = ["--data", str(zipped), "--out", str(tmp_path / "run"), "--device", "cpu"]
    arguments += [
        part for name, value in flags.items() for part in (f"--{name}", *str(value).split())
    ]
    assert main([*arguments, "--about-data", "Seven words, public domain."]) == 0
    directory = tmp_path / "run" / "checkpoint"
    model, prophet = load_model(directory), load_prophet(directory)
    assert model.config.max_position_embeddings == 512
    assert prophet is not None
    record = json.loads((directory / "training.json").read_text())
    assert record["steps"] == 3
    assert record["config"]["data"] == ["words.gz"]
    card = (directory / "README.md").read_text()
    assert "Seven words, public domain." in card
    assert "| words.gz | 5 | 0.7 |" in card
    assert str(tmp_path) not in card


def test_an_export_holds_the_weights_of_the_run(text: Path, tmp_path: Path) -> None:
    trainer = Trainer(config(text), tmp_path, CPU)
    trainer.train_step()
    export(trainer, tmp_path / "out", "words")
    loaded = load_model(tmp_path / "out")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name].bfloat16().float()), name


def corpus(*paths: Path, mix: tuple[float, ...] = (), window: int = 50) -> Corpus:
    packing = Packing(separator=None, by_file=False, validation_fraction=0.1)
    cache = paths[0].parent / "cache"
    arguments = tuple(map(str, paths))
    sources = tuple((path,) for path in arguments) if mix else (arguments,)
    return Corpus.open(sources, mix, (), packing, window, cache)


def test_batches_depend_on_seed_and_step_alone(text: Path) -> None:
    words = corpus(text, text, mix=(3.0, 1.0), window=64)
    assert torch.equal(words.batch(1, 5, 4, 64), words.batch(1, 5, 4, 64))
    assert not torch.equal(words.batch(1, 5, 4, 64), words.batch(1, 6, 4, 64))
    assert not torch.equal(words.batch(1, 5, 4, 64), words.batch(2, 5, 4, 64))


def test_validation_bytes_are_never_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "halves.bin"
    path.write_bytes(b"a" * 900 + b"z" * 100)
    halves = corpus(path)
    drawn = torch.cat([halves.batch(0, step, 8, 50) for step in range(50)])
    assert set(drawn.unique().tolist()) == {ord("a")}
    rows = halves.validation[0].spread(1000, 50)
    assert set(rows.unique().tolist()) == {ord("z")}


def test_a_set_shorter_than_a_window_is_refused(text: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.bin"
    short.write_bytes(b"short")
    with pytest.raises(DataError, match=r"short\.bin: 5 bytes for training"):
        corpus(short)
    (tmp_path / "long.bin").write_bytes(bytes(400))
    with pytest.raises(DataError, match=r"long\.bin: 40 bytes for validation are fewer than one"):
        corpus(tmp_path / "long.bin")
    for part in ("validation", "test"):
        with pytest.raises(DataError, match=rf"short\.bin: 5 bytes for {part}"):
            Trainer(config(text, **{part: (str(short),)}), tmp_path, CPU)


def test_samples_of_one_name_are_told_apart_by_their_directories(
    text: Path, tmp_path: Path
) -> None:
    paths = [tmp_path / "deep" / language / "text.bin" for language in ("en", "de")]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_bytes(text.read_bytes())
    held_out = tuple(map(str, [*paths, text]))
    opened = Trainer(config(text, validation=held_out), tmp_path / "run", CPU).corpus
    names = [f"{path.parent.name}/text.bin" for path in paths]
    assert [sample.name for sample in opened.validation[:2]] == names
    assert [sample.name for sample in corpus(*paths, mix=(1.0, 1.0)).training] == names
    assert [sample.name for sample in corpus(paths[0], text, mix=(1.0, 1.0)).training] == [
        "text.bin",
        "words.bin",
    ]
    assert [sample.name for sample in corpus(text, text, mix=(1.0, 1.0)).training] == [
        "words.bin",
        "words.bin",
    ]


def test_the_command_reports_bad_data_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(tmp_path / "no"), "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'no'}: no such file\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mix": (1.0, 2.0)}, "--mix: has 2 weights for 1"),
        ({"mix": (0.0,)}, "--mix: must be above 0"),
        ({"steps": 0}, "--steps: must be at least 1"),
        ({"dtype": "int8"}, "--dtype: .* not int8"),
        ({"windows": (64, 1024)}, "--windows: 1024 exceeds the --context of 512"),
        ({"windows": (64,)}, "--windows, --window-shares: must name the same number"),
        ({"window_shares": (0.0, 0.0)}, "--window-shares: must not all be 0"),
        ({"windows": (5, 64)}, "--windows: must exceed the --draft-length of 5"),
        ({"seed": 2**32}, "--seed: must be at least 0 and at most 4294967295"),
        ({"seed": -1}, "--seed"),
        ({"split": "file", "data_limit": 9, "validation": ()}, "--data-limit"),
    ],
)
def test_impossible_configurations_are_refused_by_name(
    text: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config(text, **changes)


def test_a_curve_whose_samples_had_other_names_before_is_drawn() -> None:
    rows = [
        {"step": step, "seconds": 1.0, name: {"model": 2.0, "prophet": 3.0, "acceptance": [0.5]}}
        for step, name in ((0, "text.bin"), (5, "en/text.bin"), (9, "en/text.bin"))
    ]
    assert plot(rows).startswith(b"\x89PNG")
