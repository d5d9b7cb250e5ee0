"""What `bench.host` measures: all rounds that it says, and every byte of every request."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench import host
from specdec.decoder import Decoder


def test_it_measures_calls_of_so_many_rounds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host, "ROUNDS", 12)
    monkeypatch.setattr(host, "TURNS", 2)
    calls: list[tuple[int, int]] = []
    whole = Decoder.begin

    def begin(self: Decoder[Any], drafts: dict[int, int], *more: Any, **named: Any) -> Any:
        begun = whole(self, drafts, *more, **named)
        if drafts:
            calls.append((len(drafts), begun.rounds))
        return begun

    monkeypatch.setattr(Decoder, "begin", begin)
    path = tmp_path / "host.json"
    assert host.main(["--rows", "1", "3", "--rounds", "1", "4", "--json", str(path)]) == 0
    record = json.loads(path.read_text())
    asked = [(each["rows"], each["rounds_a_call"]) for each in record["host"]]
    assert asked == [(1, 1), (1, 4), (3, 1), (3, 4)]
    assert {(1, 1), (1, 4), (3, 1), (3, 4)} <= set(calls)
    # each of them decodes 2 turns of 12 rounds, then 2 of 2 requests a slot
    assert sum(rounds for rows, rounds in calls if rows == 1) >= 2 * (24 + 2 * 2 * host.OUTPUT)


def test_an_engine_gives_all_that_was_asked_and_leaves_its_slots_free() -> None:
    decoder = host.build(2, 3)
    assert host.engine_speed(decoder, turns=1) > 0
    assert decoder._rows == [None, None]
    decoder.context = host.PROMPT
    with pytest.raises(RuntimeError, match="a request ended with Failed"):
        host.engine_speed(decoder, turns=1)
