"""/v1 as OpenAI's own client meets it, and what that client does not show."""

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fake_engine import INFO, Client, FakeEngine, app_of, encode, error_of, say
from live import live
from patience import PATIENCE_S

from server.messages import Event, Failed, FinishReason, Progress, Submission


def echo(submission: Submission) -> list[Event]:
    """Says the prompt again and what it was given to decide."""
    return list(say(submission.prompt, b"\xc3", b"\xa9!")(submission))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with live(app_of(FakeEngine(echo))) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as opened:
        yield opened


def test_a_completion(client: openai.OpenAI) -> None:
    completion = client.completions.create(
        model="fake",
        prompt="a",
        max_tokens=5,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        logit_bias={"10": -100},
        seed=-3,
        stop=["\n"],
        user="someone",
        n=1,
        best_of=1,
        echo=False,
        logprobs=None,
        suffix=None,
        extra_body={"top_k": 5, "mode": "base", "ignore_eos": True, "request_id": "mine"},
    )
    assert (completion.id, completion.object, completion.model) == (
        "cmpl-mine",
        "text_completion",
        "fake",
    )
    assert completion.created > 1_700_000_000
    (choice,) = completion.choices
    assert (choice.index, choice.text, choice.finish_reason) == (0, "aé!", "stop")
    assert choice.logprobs is None
    assert choice.bytes == encode("aé!".encode())  # type: ignore[attr-defined]
    assert completion.usage is not None
    usage = completion.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (1, 4, 5)
    extras: dict[str, Any] = completion.specdec  # type: ignore[attr-defined]
    assert (extras["request_id"], extras["mode"], extras["exactness"]) == ("mine", "base", "exact")
    (figures,) = extras["choices"]
    assert (figures["seed"], figures["utf8_valid"]) == (-3, True)
    assert figures["speculation"]["rounds"] == 2
    assert figures["timing"]["decode_s"] == 2.0


def test_a_prompt_of_several_outputs_counts_once(client: openai.OpenAI) -> None:
    completion = client.completions.create(model="fake", prompt=["one", "three"], n=3)
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == len("one") + len("three")
    assert len(completion.choices) == 6


def test_several_prompts_of_every_kind(client: openai.OpenAI) -> None:
    def texts(prompt: Any) -> list[str]:
        completion = client.completions.create(model="fake", prompt=prompt, seed=2**63 - 1)
        assert [choice.index for choice in completion.choices] == [*range(len(completion.choices))]
        extras: dict[str, Any] = completion.specdec  # type: ignore[attr-defined]
        seeds = [figures["seed"] for figures in extras["choices"]]
        assert seeds == [2**63 - 1, -(2**63), -(2**63) + 1][: len(seeds)]
        assert completion.usage is not None
        assert completion.usage.completion_tokens == sum(
            len(base64.b64decode(choice.bytes))  # type: ignore[attr-defined]
            for choice in completion.choices
        )
        return [choice.text.removesuffix("é!") for choice in completion.choices]

    assert texts("one") == ["one"]
    assert texts(["one", "two"]) == ["one", "two"]
    assert texts([104, 105]) == ["hi"]
    assert texts([[104], [], [105]]) == ["h", "\0", "i"]
    assert texts(["", "b"]) == ["\0", "b"]


def test_a_stream(client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(
            model="fake",
            prompt=["a", "b"],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *pieces, last = chunks
    assert len({chunk.id for chunk in chunks}) == 1
    assert (last.choices, last.usage is not None) == ([], True)
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.total_tokens) == (2, 10)
    assert all(piece.usage is None for piece in pieces)
    for index, prompt in enumerate("ab"):
        own = [chunk.choices[0] for chunk in pieces if chunk.choices[0].index == index]
        assert "".join(choice.text for choice in own) == f"{prompt}é!"
        assert [choice.finish_reason for choice in own] == [None, None, None, "stop"]
        (figures,) = [
            chunk.specdec["choices"][0]  # type: ignore[attr-defined]
            for chunk in pieces
            if chunk.choices[0].index == index and chunk.choices[0].finish_reason
        ]
        assert figures["index"] == index


def test_asynchronously(url: str) -> None:
    async def scenario() -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
            completion = await client.completions.create(model="fake", prompt="a")
            assert completion.choices[0].text == "aé!"
            stream = await client.completions.create(model="fake", prompt="b", stream=True)
            assert "".join([chunk.choices[0].text async for chunk in stream]) == "bé!"
            assert [model.id async for model in client.models.list()] == ["fake"]

    asyncio.run(scenario())


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object, model.owned_by) == ("fake", "model", "specdec")
    assert model.max_model_len == INFO.context  # type: ignore[attr-defined]
    assert client.models.retrieve("fake") == model
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("other")
    assert error.value.code == "model_not_found"


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    create = client.completions.create
    with pytest.raises(openai.NotFoundError) as missing:
        create(model="other", prompt="a")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    for field, value in (
        ("best_of", 2),
        ("suffix", "x"),
    ):
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            create(model="fake", prompt="a", **{field: value})
        assert (refused.value.code, refused.value.param) == ("not_supported", field)
    with pytest.raises(openai.UnprocessableEntityError) as unknown:
        create(model="fake", prompt="a", extra_body={"max_length": 5})
    assert unknown.value.param == "max_length"
    with pytest.raises(openai.BadRequestError) as long:
        create(model="fake", prompt="a" * 100)
    assert long.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("settings", "key", "error", "code"),
    [
        ({"api_keys": ("right",)}, "wrong", openai.AuthenticationError, "invalid_api_key"),
        ({"max_waiting": 0}, "any", openai.RateLimitError, "overloaded"),
        ({}, "any", openai.InternalServerError, "draining"),
    ],
)
def test_refusals_are_the_clients_own(
    settings: dict[str, Any], key: str, error: type[openai.APIStatusError], code: str
) -> None:
    app = app_of(FakeEngine(max_batch=1), **settings)
    with (
        live(app) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) as client,
    ):
        if code == "overloaded":  # one takes the only slot, and keeps it
            stream = client.completions.create(model="", prompt="a", stream=True)
            next(iter(stream))
        if code == "draining":
            app.state.service.draining = True
        with pytest.raises(error) as refusal:
            client.completions.create(model="", prompt="a")
        assert refusal.value.code == code
        if code == "overloaded":
            assert int(refusal.value.response.headers["Retry-After"]) >= 1
            stream.close()


def test_an_error_in_a_stream_is_raised() -> None:
    engine = FakeEngine(lambda _: [Progress(b"x"), Failed("a round failed")])
    with (
        live(app_of(engine)) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        stream = client.completions.create(model="fake", prompt="a", stream=True)
        assert next(stream).choices[0].text == "x"
        with pytest.raises(openai.APIError, match="a round failed"):
            next(stream)
        with pytest.raises(openai.InternalServerError, match="a round failed"):
            client.completions.create(model="fake", prompt="a")


def test_the_stream_on_the_wire() -> None:
    with Client(FakeEngine(say(b"a", rest=b"\xff", reason=FinishReason.TIMEOUT))) as client:
        response = client.complete(prompt="x", stream=True, request_id="r", seed=1)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["X-Request-ID"] == "r"
    *lines, done, end = response.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    first, last = (json.loads(line.removeprefix("data: ")) for line in lines)
    assert first.keys() == {"id", "object", "created", "model", "choices"}
    assert first["choices"] == [
        {"index": 0, "text": "a", "bytes": "YQ==", "finish_reason": None, "logprobs": None}
    ]
    assert last["choices"][0] == {
        "index": 0,
        "text": "\ufffd",
        "bytes": encode(b"\xff"),
        "finish_reason": "timeout",
        "logprobs": None,
    }
    assert last["specdec"]["choices"][0]["utf8_valid"] is False


def test_a_stream_that_fails_ends_as_streams_do() -> None:
    with Client(FakeEngine(lambda _: [Failed("a round failed")])) as client:
        response = client.complete(prompt=["x", "y"], stream=True)
    error, done, _ = response.text.split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"]["message"] == "a round failed"
    assert done == "data: [DONE]"


def test_one_failure_fails_the_request_and_cancels_the_rest() -> None:
    class HalfBroken(FakeEngine):
        def _play(self, submission: Submission, deliver: Any) -> None:
            if submission.prompt == b"bad":
                deliver(Failed("a round failed"))
            else:
                super()._play(submission, deliver)

    engine = HalfBroken()
    with Client(engine, drain_seconds=PATIENCE_S) as client:
        for stream in (False, True):
            response = client.complete(prompt=["a", "bad", "b"], request_id="r", stream=stream)
            assert "a round failed" in response.text
            # once the others have ended, the id is free
            assert client.run(client.app.state.service.drain())
    assert engine.cancelled == ["r", "r#2"] * 2


def test_the_model_may_be_left_out() -> None:
    with Client(FakeEngine(say(b"x"))) as client:
        for fields in ({}, {"model": None}, {"model": ""}, {"model": "fake"}):
            answer = client.complete(prompt="a", **fields).json()
            assert answer["model"] == "fake"


def test_defaults_are_openais() -> None:
    engine = FakeEngine(say(b"x"))
    with Client(engine) as client:
        assert client.complete().status_code == 200
        assert client.complete(prompt="a" * 60).status_code == 200
    first, second = engine.submissions
    assert (first.prompt, first.max_tokens, first.params.temperature) == (b"\x00", 16, 1.0)
    assert second.max_tokens == 4
    with Client(FakeEngine(say(), eos=None)) as client:
        for prompt in ("", ["a", ""], None):
            response = client.complete(prompt=prompt)
            assert (response.status_code, error_of(response)["param"]) == (422, "prompt")
