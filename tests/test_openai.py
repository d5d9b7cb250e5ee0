"""/v1 as OpenAI's own client meets it, and what that client does not show."""

import asyncio
import base64
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import openai
import pytest
from fake_engine import INFO, Client, FakeEngine, app_of, encode, error_of, finished, say
from live import live
from patience import PATIENCE_S

from server.messages import Event, Failed, FinishReason, Progress, Submission
from specdec.logprobs import ByteLogprob


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


def test_usage_in_every_chunk(client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(
            model="fake",
            prompt=["a", "bc"],
            stream=True,
            extra_body={"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        )
    )
    usages = [chunk.usage for chunk in chunks]
    assert all(usage is not None for usage in usages)
    written = [usage.completion_tokens for usage in usages if usage is not None]
    assert written == sorted(written)
    assert (written[0], written[-2:]) == (1, [9, 9])
    assert {usage.prompt_tokens for usage in usages if usage is not None} == {3}


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
    assert (model.root, model.parent) == ("fake", None)  # type: ignore[attr-defined]
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
        with pytest.raises(openai.BadRequestError) as refused:
            create(model="fake", prompt="a", **{field: value})
        assert (refused.value.code, refused.value.param) == ("not_supported", field)
    with pytest.raises(openai.BadRequestError) as unknown:
        create(model="fake", prompt="a", extra_body={"max_length": 5})
    assert unknown.value.param == "max_length"
    with pytest.raises(openai.BadRequestError) as long:
        create(model="fake", prompt="a" * 100)
    assert long.value.code == "context_length_exceeded"
    # the words that clients look for to shorten a prompt
    assert re.search(r"maximum context length is (\d+)", str(long.value))[1] == "64"  # type: ignore[index]


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
        "finish_reason": "length",
        "logprobs": None,
    }
    assert last["specdec"]["choices"][0]["utf8_valid"] is False
    # OpenAI's clients know no other words than theirs
    assert last["specdec"]["choices"][0]["finish_reason"] == "timeout"


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


def test_a_model_of_several_names() -> None:
    names = ("mine", "org/mine:latest")
    with Client(FakeEngine(say(b"x"), model_name="mine"), served_model_names=names) as client:
        listed = client.get("/v1/models").json()["data"]
        assert [(model["id"], model["root"]) for model in listed] == [(n, "mine") for n in names]
        for name in names:
            assert client.get(f"/v1/models/{name}").json()["id"] == name
            answer = client.complete(prompt="a", model=name).json()
            assert answer["model"] == "mine"
        assert client.complete(prompt="a", model="fake").status_code == 404


def scored(output: bytes, alternatives: int) -> tuple[ByteLogprob, ...]:
    """The first of a text has no log-probability; the others come second of the likeliest."""
    top = ((10, -0.5), *((byte, -1.0 - byte) for byte in range(alternatives - 1)))
    return tuple(ByteLogprob(byte, -1.0, ((10, -0.5), (byte, -1.0), *top[2:])) for byte in output)


def reports(submission: Submission) -> list[Event]:
    """An engine that tells the prompt and writes "\\xc3\\xa9!", as far as it is asked to."""
    events: list[Event] = []
    prompt, alternatives = submission.prompt, submission.logprobs
    scores: tuple[ByteLogprob, ...] = ()
    if submission.echo:
        if alternatives is not None:
            scores = (ByteLogprob(prompt[0], None), *scored(prompt[1:], alternatives))
        events.append(Progress(prompt, echo=True, logprobs=scores))
    for output in (b"\xc3", b"\xa9!"):
        scores = () if alternatives is None else scored(output, alternatives)
        events.append(Progress(output, logprobs=scores))
    return [*events, replace(finished(3), cached_tokens=len(prompt) - 1)]


def test_bytes_as_numbers_and_scores_of_the_prompt() -> None:
    engine = FakeEngine(reports)
    with Client(engine) as client:
        fields = {"prompt": ["ab", "c"], "n": 2, "return_token_ids": True, "prompt_logprobs": 2}
        choices = client.complete(**fields).json()["choices"]
        assert [choice["text"] for choice in choices] == ["é!"] * 4
        assert [choice["token_ids"] for choice in choices] == [[0xC3, 0xA9, 0x21]] * 4
        assert [choice["prompt_token_ids"] for choice in choices] == [[97, 98]] * 2 + [[99]] * 2
        assert all(choice["logprobs"] is None for choice in choices)
        told = {"logprob": -1.0, "rank": 2, "decoded_token": "b"}
        best = {"logprob": -0.5, "rank": 1, "decoded_token": "\n"}
        assert choices[0]["prompt_logprobs"] == [None, {"98": told, "10": best}]
        assert choices[2]["prompt_logprobs"] == [None]
        # an echo is shown where it is asked for, and scores are of as many as each field asks
        fields = {"prompt": "ab", "prompt_logprobs": 0, "echo": True, "logprobs": 1}
        (choice,) = client.complete(**fields, return_token_ids=True).json()["choices"]
        assert (choice["text"], choice["token_ids"]) == ("abé!", [0xC3, 0xA9, 0x21])
        told["rank"] = 2
        assert choice["prompt_logprobs"] == [None, {"98": told}]
        scores = choice["logprobs"]
        assert [len(top) for top in scores["top_logprobs"][1:]] == [2, 2, 2, 2]
        assert scores["text_offset"] == [0, 1, 2, 2, 3]
        # nothing of it where nobody asks
        (choice,) = client.complete(prompt="ab").json()["choices"]
        assert choice.keys() == {"index", "text", "bytes", "finish_reason", "logprobs"}
    assert [s.echo for s in engine.submissions] == [True] * 5 + [False]
    assert [s.logprobs for s in engine.submissions] == [2] * 4 + [1, None]


def test_bytes_as_numbers_in_a_stream() -> None:
    with Client(FakeEngine(reports)) as client:
        fields = {"prompt": "ab", "return_token_ids": True, "stream": True}
        for echo in (False, True):
            text = client.complete(**fields, echo=echo).text
            chunks = [json.loads(line[6:]) for line in text.split("\n\n")[:-2]]
            choices = [chunk["choices"][0] for chunk in chunks]
            assert choices[0]["prompt_token_ids"] == [97, 98]
            assert all(choice["prompt_token_ids"] is None for choice in choices[1:])
            tokens = [byte for choice in choices for byte in choice["token_ids"]]
            assert tokens == [0xC3, 0xA9, 0x21]
            assert "".join(choice["text"] for choice in choices) == ("abé!" if echo else "é!")


def test_what_a_slot_held_already_is_told() -> None:
    with Client(FakeEngine(reports)) as client:
        usage = client.complete(prompt=["abc", "de"], n=2).json()["usage"]
        assert usage == {
            "prompt_tokens": 5,
            "completion_tokens": 12,
            "total_tokens": 17,
            "prompt_tokens_details": {"cached_tokens": 3},
        }
        assert client.generate(prompt="abc").json()["usage"]["cached_tokens"] == 2


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/embeddings", "/v1/responses", "/v1", "/v1/v1/completions"]
)
def test_what_is_not_here_says_what_is(path: str) -> None:
    with Client(FakeEngine(say(b"x"))) as client:
        response = client.request("POST", path, json={"model": "fake", "messages": []})
        assert response.status_code == 404
        assert "/v1/completions" in error_of(response)["message"]


def test_nothing_is_left_to_choose_from() -> None:
    engine = FakeEngine(say(b"x"))
    with Client(engine) as client:
        asked = {"prompt": "a", "allowed_token_ids": [0]}
        response = client.complete(**asked, min_tokens=1)
        assert (response.status_code, error_of(response)["param"]) == (400, "min_tokens")
        assert client.complete(**asked).status_code == 200
        assert client.complete(**asked, min_tokens=1, ignore_eos=True).status_code == 200
    assert len(engine.submissions) == 2


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
            assert (response.status_code, error_of(response)["param"]) == (400, "prompt")
