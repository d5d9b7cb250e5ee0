"""The endpoints, with an engine that plays scripts."""

import base64
import math
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fake_engine import INFO, Client, FakeEngine, encode, error_of, say
from hypothesis import given, settings
from hypothesis import strategies as st

from server.messages import Failed, Mode, Submission


def submitted(engine: FakeEngine | None = None, **request: Any) -> Submission:
    """What the engine gets for a request that passes."""
    engine = engine or FakeEngine(say(b"x"))
    with Client(engine) as client:
        response = client.generate(**request)
    assert response.status_code == 200, response.text
    return engine.submissions[-1]


def refused(engine: FakeEngine | None = None, **request: Any) -> tuple[int, str, str]:
    """Status, field and code for a request that does not, and reaches no engine."""
    engine = engine or FakeEngine(say(b"x"))
    with Client(engine) as client:
        response = client.generate(**request)
    assert not engine.submissions
    error = error_of(response)
    return response.status_code, error["param"], error["code"]


def test_an_answer() -> None:
    with Client(FakeEngine(say(b"h\xc3", b"\xa9", rest=b"!\xff"))) as client:
        response = client.generate(prompt="é", seed=-5, request_id="it:1")
    assert response.status_code == 200
    assert response.headers["X-Request-ID"] == "it:1"
    assert response.json() == {
        "request_id": "it:1",
        "index": 0,
        "model": "fake",
        "text": "hé!\ufffd",
        "bytes": encode(b"h\xc3\xa9!\xff"),
        "logprobs": None,
        "utf8_valid": False,
        "finish_reason": "stop",
        "mode": "auto",
        "seed": -5,
        "exactness": "exact",
        "usage": {"prompt_tokens": 2, "completion_tokens": 5, "cached_tokens": 0},
        "speculation": {
            "rounds": 2,
            "drafted": 8,
            "accepted": 3,
            "accepted_per_position": [2, 1, 0, 0],
            "lookup_drafted": 0,
            "lookup_accepted": 0,
            "mean_bytes_per_round": 2.5,
        },
        "timing": {"queue_s": 0.25, "prefill_s": 0.5, "decode_s": 2.0, "bytes_per_second": 2.5},
    }


def test_an_empty_output() -> None:
    with Client(FakeEngine(say())) as client:
        answer = client.generate(prompt="a").json()
    assert (answer["text"], answer["bytes"], answer["utf8_valid"]) == ("", "", True)


def test_a_submission_has_everything_decided() -> None:
    submission = submitted(
        prompt_bytes=encode(b"\x00\xff"),
        max_tokens=5,
        temperature=0,
        seed=3,
        mode="speculative",
        draft_length=7,
        stop=["a"],
        stop_bytes=["AA=="],
        request_id="r",
    )
    assert submission.params.temperature == 0
    assert replace(submission, params=INFO) == Submission(  # type: ignore[arg-type]
        request_id="r",
        prompt=b"\x00\xff",
        max_tokens=5,
        params=INFO,  # type: ignore[arg-type]
        seed=3,
        mode=Mode.SPECULATIVE,
        draft_length=7,
        eos=0,
        stops=(b"a", b"\x00"),
        timeout_s=600.0,
        interval_s=math.inf,
    )


def test_ids_and_seeds_are_drawn() -> None:
    first, second = submitted(prompt="a"), submitted(prompt="a")
    assert first.request_id != second.request_id
    assert first.seed != second.seed
    assert 0 <= first.seed < 2**53


def test_what_the_model_declares_is_used() -> None:
    assert submitted(prompt="").prompt == b"\x00"
    assert submitted(prompt_bytes="", ignore_eos=True).prompt == b"\x00"
    assert submitted(prompt="a", ignore_eos=True).eos is None
    assert submitted(FakeEngine(say(), eos=None), prompt="a").eos is None
    for field in ("prompt", "prompt_bytes"):
        status, param, _ = refused(FakeEngine(say(), eos=None), **{field: ""})
        assert (status, param) == (422, field)


def test_the_room_in_the_context() -> None:
    assert submitted(prompt="a" * 10).max_tokens == INFO.context - 10
    assert submitted(FakeEngine(say(), context=1000), prompt="a" * 10).max_tokens == 256
    assert submitted(prompt="a" * 63, max_tokens=1).max_tokens == 1
    code = "context_length_exceeded"
    assert refused(prompt="é" * 32) == (400, "prompt", code)
    assert refused(prompt_bytes=encode(b"a" * 1000)) == (400, "prompt_bytes", code)
    assert refused(prompt="a" * 63, max_tokens=2) == (400, "max_tokens", code)
    assert refused(prompt="a", max_tokens=2**70) == (400, "max_tokens", code)
    assert refused(prompt="a", min_tokens=100)[:2] == (400, "min_tokens")


def test_decode_paths() -> None:
    def path(
        server: str = "auto", longest: int = 8, lookup: int = 0, **request: Any
    ) -> tuple[Mode, int] | tuple[Mode, int, int]:
        engine = FakeEngine(say(), longest_draft=longest, longest_lookup=lookup)
        with Client(engine, mode=server, draft_length=4) as client:
            response = client.generate(prompt="a", **request)
        assert response.status_code == 200, response.text
        assert response.json()["mode"] == engine.submissions[0].mode
        asked = engine.submissions[0]
        if lookup:
            return asked.mode, asked.draft_length, asked.lookup_length
        return asked.mode, asked.draft_length

    assert path() == (Mode.AUTO, 8)
    assert path(mode="speculative") == (Mode.SPECULATIVE, 4)
    assert path(mode="speculative", longest=3) == (Mode.SPECULATIVE, 3)
    assert path(longest=0) == (Mode.BASE, 0)
    assert path(server="base") == (Mode.BASE, 0)
    assert path(server="base", mode="auto") == (Mode.AUTO, 8)
    assert path(mode="base") == (Mode.BASE, 0)
    assert path(mode="speculative", draft_length=8) == (Mode.SPECULATIVE, 8)
    assert path(draft_length=1) == (Mode.AUTO, 1)
    assert path(lookup=16) == (Mode.AUTO, 8, 16)
    assert path(lookup=16, longest=0) == (Mode.AUTO, 0, 16)
    assert path(lookup=16, draft_length=12) == (Mode.AUTO, 8, 12)
    assert path(lookup=4, draft_length=6) == (Mode.AUTO, 6, 4)
    assert path(lookup=16, mode="speculative") == (Mode.SPECULATIVE, 4, 0)
    assert path(lookup=16, mode="base") == (Mode.BASE, 0, 0)


def test_drafts_that_cannot_be() -> None:
    def without_prophet() -> FakeEngine:
        return FakeEngine(say(), longest_draft=0)

    assert refused(without_prophet(), prompt="a", mode="speculative") == (400, "mode", "no_prophet")
    assert refused(without_prophet(), prompt="a", draft_length=1)[:2] == (400, "draft_length")
    assert refused(prompt="a", draft_length=9)[:2] == (400, "draft_length")
    with Client(FakeEngine(say()), mode="base") as client:
        assert error_of(client.generate(prompt="a", draft_length=1))["param"] == "draft_length"


def test_wrong_fields_are_refused_in_the_envelope() -> None:
    assert refused(prompt="a", temperature=-1) == (422, "temperature", "greater_than_equal")
    assert refused(prompt="a", unknown=1) == (422, "unknown", "extra_forbidden")
    assert refused(prompt="a", n=0) == (422, "n", "greater_than_equal")
    assert refused(prompt="a", max_tokens=0) == (422, "max_tokens", "invalid_field")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[" * 100_000, 400),
        (b"\xff", 400),
        (b"[]", 422),
        (b"null", 422),
        (rb'{"prompt": "\ud800"}', 422),
        (b'{"prompt": "a", "temperature": NaN}', 422),
        (b'{"prompt": "a", "prompt": "b"}', 422),
        (b'{"prompt": "a", "x": {"y": 1, "\\u0079": 1}}', 422),
        (b'{"prompt": "a", "temperature": 1e999}', 422),
        (b'{"prompt": "' + b"a" * 16 * 2**20 + b'"}', 413),
    ],
)
def test_bodies_that_are_refused(body: bytes, status: int) -> None:
    with Client(FakeEngine(say())) as client:
        response = client.post_raw(body)
    assert response.status_code == status
    error_of(response)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"prompt": "a", "prompt": "b"}', "prompt"),
        (b'{"logit_bias": {"10": 1, "10": 2}}', "logit_bias.10"),
        (b'{"a": {"b": {"c": 1, "\\u0063": 1}}}', "a.b.c"),
        (b'{"a": [{"b": 1, "b": 1}]}', "b"),  # where lists are does not show
    ],
)
def test_names_that_are_given_twice(body: bytes, param: str) -> None:
    with Client(FakeEngine(say())) as client:
        error = error_of(client.post_raw(body))
    assert (error["param"], error["code"]) == (param, "duplicate_field")


def test_content_types() -> None:
    with Client(FakeEngine(say(b"x"))) as client:
        for accepted in ("application/json", "Application/JSON; charset=utf-8"):
            assert client.post_raw(b'{"prompt": "a"}', accepted).status_code == 200
        for other in ("", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"):
            response = client.post_raw(b'{"prompt": "a"}', other)
            assert response.status_code == 415
            assert error_of(response)["code"] == "unsupported_media_type"


@settings(max_examples=40)
@given(prompt=st.binary(min_size=1, max_size=40), output=st.binary(max_size=40))
def test_bytes_survive_both_ways(prompt: bytes, output: bytes) -> None:
    engine = FakeEngine(say(output) if output else say())
    with Client(engine) as client:
        answer = client.generate(prompt_bytes=encode(prompt)).json()
    assert engine.submissions[0].prompt == prompt
    assert base64.b64decode(answer["bytes"]) == output
    assert answer["text"] == output.decode(errors="replace")
    assert answer["utf8_valid"] == (answer["text"].encode() == output)


def test_request_ids() -> None:
    with Client(FakeEngine(say(b"x"))) as client:

        def header_of(header: str, **fields: Any) -> httpx.Response:
            return client.generate({"X-Request-ID": header}, prompt="a", **fields)

        assert header_of("from-header").json()["request_id"] == "from-header"
        assert header_of("from-header").headers["X-Request-ID"] == "from-header"
        assert header_of("other", request_id="mine").headers["X-Request-ID"] == "mine"
        for wrong in ("a b", "x" * 129, "é", ""):
            response = client.request(
                "POST",
                "/generate",
                json={"prompt": "a"},
                headers=[(b"X-Request-ID", wrong.encode("latin-1"))],
            )
            assert (response.status_code, error_of(response)["param"]) == (422, "X-Request-ID")
        # be it that the body has the id that counts
        beside = header_of("", request_id="mine")
        assert (beside.status_code, error_of(beside)["param"]) == (422, "X-Request-ID")
        late = header_of("late", max_tokens=1000)
        assert (late.status_code, late.headers["X-Request-ID"]) == (400, "late")


def test_an_error_of_the_engine() -> None:
    with Client(FakeEngine(lambda _: [Failed("a round failed")])) as client:
        response = client.generate(prompt="a", request_id="r")
        assert response.status_code == 500
        assert error_of(response)["message"] == "a round failed"
        assert response.headers["X-Request-ID"] == "r"
        # the id is free again
        assert client.generate(prompt="a", request_id="r").status_code == 500


def test_an_unforeseen_error_tells_nothing() -> None:
    class Broken(FakeEngine):
        def submit(self, *_: Any) -> None:
            raise RuntimeError("secret")

    with Client(Broken()) as client:
        for _ in range(2):
            response = client.generate(prompt="a", request_id="r")
            assert response.status_code == 500
            assert error_of(response)["code"] == "internal_error"
            assert "secret" not in response.text


def test_paths_and_methods_that_are_not_there() -> None:
    with Client(FakeEngine(say())) as client:
        for path in ("/nothing", "/generate/", "/"):
            response = client.get(path)
            assert (response.status_code, error_of(response)["code"]) == (404, "not_found")
        response = client.get("/generate")
        assert (response.status_code, response.headers["Allow"]) == (405, "POST")
        assert client.request("POST", "/health").headers["Allow"] == "GET, HEAD"
        assert error_of(response)["code"] == "method_not_allowed"
