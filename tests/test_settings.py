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
        (["--draft-p-min", "1.01"], "--draft-p-min or SPECDEC_DRAFT_P_MIN"),
        (["--draft-p-min", "nan"], "--draft-p-min"),
        (["--mode", "fast"], "--mode"),
        (["--device", "tpu"], "--device"),
        (["--dtype", "float16"], "--dtype"),
        (["--port", "65536"], "--port"),
        (["--max-context", "0"], "--max-context"),
        (["--log-level", "loud"], "--log-level"),
        (["--max-waiting", "-1"], "--max-waiting"),
        (["--max-waiting-bytes", "-1"], "--max-waiting-bytes"),
        (["--max-body-bytes", "0"], "--max-body-bytes"),
        (["--max-connections", "15"], "--max-connections or SPECDEC_MAX_CONNECTIONS"),
        (["--max-seconds", "0"], "--max-seconds"),
        (["--max-seconds", "inf"], "--max-seconds"),
        (["--stall-seconds", "0"], "--stall-seconds"),
        (["--drain-seconds", "-1"], "--drain-seconds"),
        (["--drain-seconds", "nan"], "--drain-seconds"),
        (["--api-key", ""], "--api-keys"),
        (["--api-key", "good,"], "--api-keys"),
        (["--api-key", "two words"], "--api-keys"),
        (["--api-key", "clé"], "--api-keys"),
        (["--api-key-file", "/no/such/file"], "--api-key-file"),
        (["--api-key-file", "/"], "--api-key-file"),
        (["--cors-origin", "example.org"], "--cors-origins"),
        (["--cors-origin", "https://a.org/path"], "--cors-origins"),
        (["--ssl-certfile", __file__], "--ssl-keyfile"),
        (["--ssl-keyfile", __file__], "--ssl-keyfile"),
        (["--ssl-certfile", "/no/such/file", "--ssl-keyfile", __file__], "--ssl-certfile"),
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


def test_several_keys_and_origins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert Settings().all_keys == ()
    file = tmp_path / "keys"
    file.write_text("from-file\n\n  another  \n")
    settings = read_settings(["--api-key=a", "--api-key=b, c", "--api-key-file", str(file)])
    assert settings.all_keys == (b"a", b"b", b"c", b"from-file", b"another")
    monkeypatch.setenv("SPECDEC_API_KEYS", "x,y")
    monkeypatch.setenv("SPECDEC_CORS_ORIGINS", "https://a.org,http://localhost:3000")
    settings = read_settings([])
    assert settings.all_keys == (b"x", b"y")
    assert settings.cors_origins == ("https://a.org", "http://localhost:3000")
    assert read_settings(["--cors-origin", "*"]).cors_origins == ("*",)
    assert read_settings(["--open-metrics"]).open_metrics


@pytest.mark.parametrize("content", [b"", b"\n \n", b"two words\n", b"\xff\n", b"good\nbad,\n"])
def test_a_file_without_proper_keys_is_refused(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(SystemExit):
        read_settings(["--api-key-file", str(file)])
    assert "--api-key-file" in capsys.readouterr().err


def test_keys_are_never_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPECDEC_API_KEYS", "hunter2,hunter3")
    settings = read_settings([])
    for shown in (repr(settings), str(settings), settings.model_dump_json()):
        assert "hunter" not in shown
    for args in (["--help"], ["--api-key", "hunter4 hunter5"], ["--port", "x"]):
        with pytest.raises(SystemExit):
            read_settings(args)
        output = capsys.readouterr()
        assert "hunter" not in output.out + output.err


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
