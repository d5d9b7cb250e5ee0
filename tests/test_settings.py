"""Flags, variables and defaults."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from server.settings import Settings, read_settings


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"SPECDEC_{name.upper()}", raising=False)


def test_defaults() -> None:
    settings = read_settings([])
    assert settings == Settings()
    assert settings.checkpoint == Path("checkpoints/default")
    assert (settings.host, settings.port, settings.max_context) == ("127.0.0.1", 8000, None)


def test_flags_win_over_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDEC_MAX_BATCH", "3")
    monkeypatch.setenv("SPECDEC_PORT", "3")
    settings = read_settings(["--port", "4", "--max-context=100", "--checkpoint", "x/y"])
    assert (settings.max_batch, settings.port, settings.max_context) == (3, 4, 100)
    assert settings.checkpoint == Path("x/y")


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--max-batch", "0"], "--max-batch or SPECDEC_MAX_BATCH"),
        (["--max-batch", "257"], "--max-batch"),
        (["--max-batch", "x"], "--max-batch"),
        (["--draft-length", "17"], "--draft-length"),
        (["--mode", "fast"], "--mode"),
        (["--device", "tpu"], "--device"),
        (["--dtype", "float16"], "--dtype"),
        (["--port", "65536"], "--port"),
        (["--max-context", "0"], "--max-context"),
        (["--log-level", "loud"], "--log-level"),
        (["--max-bat", "3"], "--max-bat"),
        (["--max_batch", "3"], "--max_batch"),
        (["--unknown"], "--unknown"),
        (["stray"], "stray"),
    ],
)
def test_mistakes_end_the_process_with_a_line(
    args: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        read_settings(args)
    assert end.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("python -m server: error: ")
    assert named in last


def test_a_wrong_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPECDEC_DRAFT_LENGTH", "many")
    with pytest.raises(SystemExit):
        read_settings([])
    assert "SPECDEC_DRAFT_LENGTH" in capsys.readouterr().err


def test_help_tells_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        read_settings(["--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, field in Settings.model_fields.items():
        assert field.description
        assert field.description in text
        assert f"--{name.replace('_', '-')} " in text


def test_settings_are_frozen_and_closed() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1
    with pytest.raises(ValidationError):
        Settings(prot=1)  # type: ignore[call-arg]
