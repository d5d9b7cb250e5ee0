"""The server as users meet it: a process, a socket, many clients at once, rubbish, a kill."""

import base64
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from patience import PATIENCE_S, eventually
from server_process import Server, serving, started
from tiny import agreeing_prophet, tiny_model

from specdec.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("tiny")
    model = tiny_model()
    save_checkpoint(directory, model, agreeing_prophet(model), torch.float32)
    flags = ("--dtype", "float64", "--max-batch", "4", "--parity-every", "2")
    with serving(directory, *flags) as server:
        yield server
    assert server.process.returncode == 0


@pytest.fixture
def url(server: Server) -> str:
    return server.url


def body(index: int) -> dict[str, Any]:
    """Requests of mixed modes, seeds, lengths, filters and prompts."""
    return {
        "prompt_bytes": base64.b64encode(bytes([index * 37 % 256]) * (1 + index * 7 % 50)).decode(),
        "max_tokens": 5 + index * 11 % 90,
        "temperature": [0.0, 0.7, 1.0, 1.5][index % 4],
        "top_k": [0, 40][index % 2],
        "top_p": [1.0, 0.95, 0.9][index % 3],
        "presence_penalty": [0.0, 0.0, 0.5][index % 3],
        "seed": index * 1_000_003,
        "ignore_eos": index % 5 == 0,
        "mode": ["base", "speculative", "auto"][index % 3],
        **({"draft_length": 1 + index % 8} if index % 3 else {}),
    }


def counts(answer: dict[str, Any]) -> dict[str, int]:
    """An answer's usage but for what its slot happened to hold."""
    return {name: n for name, n in answer["usage"].items() if name != "cached_tokens"}


def test_sixteen_clients_at_once_get_what_each_gets_alone(url: str) -> None:
    def ask(index: int) -> dict[str, Any]:
        response = httpx.post(f"{url}/generate", json=body(index))
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    with ThreadPoolExecutor(16) as clients:
        together = list(clients.map(ask, range(16)))
    for index, answer in enumerate(together):
        alone = ask(index)
        assert answer["bytes"] == alone["bytes"]
        assert answer["seed"] == body(index)["seed"]
        base = httpx.post(
            f"{url}/generate",
            json={k: v for k, v in body(index).items() if k != "draft_length"} | {"mode": "base"},
        ).json()
        assert base["bytes"] == answer["bytes"]
        assert base["speculation"]["drafted"] == 0
        output = base64.b64decode(answer["bytes"])
        assert answer["usage"]["completion_tokens"] == len(output)
        assert answer["text"] == output.decode(errors="replace")


def test_a_stream_carries_the_bytes_of_the_plain_answer(url: str) -> None:
    request = body(7) | {"max_tokens": 80, "ignore_eos": True}
    plain = httpx.post(f"{url}/generate", json=request).json()
    events = events_of(url, "/generate", request)
    assert len(events) > 1
    assert b"".join(base64.b64decode(e["bytes"]) for e in events) == base64.b64decode(
        plain["bytes"]
    )
    assert "".join(event["text"] for event in events) == plain["text"]
    assert events[-1]["finish_reason"] == "length"
    assert counts(events[-1]) == counts(plain)


def events_of(url: str, path: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    with httpx.stream("POST", f"{url}{path}", json=request | {"stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    texts = [line.removeprefix("data: ") for line in lines]
    return [json.loads(text) for text in texts if text != "[DONE]"]


def test_n_outputs_are_those_of_the_seeds_that_follow(url: str) -> None:
    request = {"prompt": "the same prompt for all of them", "max_tokens": 30, "seed": 7}
    alone = [
        httpx.post(f"{url}/generate", json=request | {"seed": 7 + i}).json()["bytes"]
        for i in range(6)
    ]
    assert len(set(alone)) == 6
    # more than the four slots
    together = httpx.post(f"{url}/generate", json=request | {"n": 6}).json()["choices"]
    assert [answer["bytes"] for answer in together] == alone
    assert [answer["seed"] for answer in together] == [7, 8, 9, 10, 11, 12]
    assert [answer["index"] for answer in together] == [0, 1, 2, 3, 4, 5]
    completion = httpx.post(f"{url}/v1/completions", json=request | {"n": 6}).json()
    assert [choice["bytes"] for choice in completion["choices"]] == alone
    streamed: dict[int, bytes] = {}
    for event in events_of(url, "/generate", request | {"n": 6}):
        streamed.setdefault(event["index"], b"")
        streamed[event["index"]] += base64.b64decode(event["bytes"])
    assert [base64.b64encode(streamed[i]).decode() for i in range(6)] == alone


def test_scores_are_the_same_in_every_mode_and_form(url: str) -> None:
    request = {
        "prompt": "what is it wor\u00f6h",
        "max_tokens": 20,
        "seed": 5,
        "echo": True,
        "logprobs": 3,
        "top_k": 4,
    }
    plain = httpx.post(f"{url}/generate", json=request | {"mode": "base"}).json()
    fast = httpx.post(f"{url}/generate", json=request | {"mode": "speculative"}).json()
    assert plain["logprobs"] == fast["logprobs"]
    output = base64.b64decode(plain["bytes"])
    assert bytes(item["byte"] for item in plain["logprobs"]) == output
    assert output.startswith(request["prompt"].encode())  # type: ignore[attr-defined]
    assert plain["usage"]["completion_tokens"] == 20
    assert plain["logprobs"][0] == {"byte": output[0], "logprob": None, "top": []}
    for item in plain["logprobs"][1:]:
        assert len(item["top"]) == 3
        assert item["logprob"] <= item["top"][0]["logprob"] < 0
    events = events_of(url, "/generate", request)
    assert [item for event in events for item in event["logprobs"]] == plain["logprobs"]
    assert "".join(event["text"] for event in events) == plain["text"]

    # the whole text scored afresh gives the scores of its decoding
    whole = {"prompt_bytes": plain["bytes"], "max_tokens": 0, "echo": True, "logprobs": 3}
    scored = httpx.post(f"{url}/generate", json=whole).json()
    assert scored["logprobs"] == plain["logprobs"]
    assert scored["bytes"] == plain["bytes"]
    assert (scored["finish_reason"], scored["usage"]["completion_tokens"]) == ("length", 0)

    openai = httpx.post(f"{url}/v1/completions", json=request).json()["choices"][0]
    logprobs = openai["logprobs"]
    assert logprobs["token_logprobs"] == [item["logprob"] for item in plain["logprobs"]]
    assert logprobs["top_logprobs"][0] is None
    for offset, token in zip(logprobs["text_offset"], logprobs["tokens"], strict=True):
        if not token.startswith("bytes:"):
            assert openai["text"][offset] == token
    assert logprobs["tokens"][14:16] == ["bytes:\\xc3", "bytes:\\xb6"]
    assert logprobs["text_offset"][13:17] == [13, 14, 14, 15]


def test_openais_client_gets_what_generate_says(url: str) -> None:
    request: dict[str, Any] = {"prompt": "import ", "max_tokens": 24, "seed": 3, "logprobs": 2}
    own = httpx.post(f"{url}/generate", json=request | {"n": 2, "echo": True}).json()["choices"]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        asked = {"model": "", "n": 2, "echo": True, **request}
        whole = client.completions.create(**asked)
        texts = ["", ""]
        usage = None
        for chunk in client.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}
        ):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    assert [choice.text for choice in whole.choices] == [answer["text"] for answer in own] == texts
    for choice, answer in zip(whole.choices, own, strict=True):
        assert choice.logprobs is not None
        scores = [item["logprob"] for item in answer["logprobs"]]
        assert choice.logprobs.token_logprobs == scores
    assert whole.usage is not None
    assert usage is not None
    assert whole.usage.total_tokens == usage.total_tokens
    assert usage.completion_tokens == sum(a["usage"]["completion_tokens"] for a in own)


def test_an_echo_without_scores_is_the_prompt_before_the_output(url: str) -> None:
    request = {"prompt": "abc", "max_tokens": 6, "seed": 1}
    plain = httpx.post(f"{url}/generate", json=request).json()
    echoed = httpx.post(f"{url}/generate", json=request | {"echo": True}).json()
    assert base64.b64decode(echoed["bytes"]) == b"abc" + base64.b64decode(plain["bytes"])
    assert (counts(echoed), echoed["logprobs"]) == (counts(plain), None)
    only = httpx.post(f"{url}/v1/completions", json=request | {"echo": True, "max_tokens": 0})
    assert only.json()["choices"][0]["text"] == "abc"


def test_a_drawn_seed_is_told_and_gives_the_same_bytes_again(url: str) -> None:
    first = httpx.post(f"{url}/generate", json={"prompt": "a", "max_tokens": 40}).json()
    again = {"prompt": "a", "max_tokens": 40, "seed": first["seed"], "mode": "base"}
    assert httpx.post(f"{url}/generate", json=again).json()["bytes"] == first["bytes"]
    other = again | {"seed": first["seed"] + 1}
    assert httpx.post(f"{url}/generate", json=other).json()["bytes"] != first["bytes"]


def test_a_thousand_connections_dropped_harm_nobody(server: Server) -> None:
    """Dropped at every stage: unused, in the head, in the body, before the answer."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    body = b'{"prompt": "x", "max_tokens": 159, "ignore_eos": true, "stream": true}'
    head = (
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n"
    )
    stages = (b"", b"POST /gen", head, head + body[:20], head + body)
    for index in range(1000):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(stages[index % len(stages)])
    eventually(lambda: server.busy() == 0)
    assert server.ask(prompt="x", max_tokens=5).status_code == 200


@pytest.mark.parametrize(
    ("mebibytes", "status", "code"),
    [(3, 400, "context_length_exceeded"), (10, 413, "body_too_large")],
)
def test_megabytes_are_refused(url: str, mebibytes: int, status: int, code: str) -> None:
    response = httpx.post(f"{url}/generate", json={"prompt": "a" * mebibytes * 2**20})
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert httpx.get(f"{url}/health").status_code == 200


def test_a_completion_has_the_bytes_of_each_prompt_alone(url: str) -> None:
    request = {"max_tokens": 30, "seed": 2**63 - 1, "temperature": 0.8}
    prompts = [[104, 105], [0], [255] * 40]
    completion = httpx.post(f"{url}/v1/completions", json=request | {"prompt": prompts}).json()
    assert [choice["index"] for choice in completion["choices"]] == [0, 1, 2]
    written = 0
    for prompt, choice, figures in zip(
        prompts, completion["choices"], completion["specdec"]["choices"], strict=True
    ):
        alone = request | {"seed": figures["seed"], "mode": "base"}
        alone["prompt_bytes"] = base64.b64encode(bytes(prompt)).decode()
        assert httpx.post(f"{url}/generate", json=alone).json()["bytes"] == choice["bytes"]
        written += len(base64.b64decode(choice["bytes"]))
    assert completion["usage"]["completion_tokens"] == written


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_ends_a_request_with_what_it_has(url: str, stream: bool) -> None:
    request = {"prompt": "x", "max_tokens": 159, "ignore_eos": True, "timeout_s": 0.001}
    response = httpx.post(f"{url}/generate", json=request | {"stream": stream})
    assert '"finish_reason": "timeout"' in response.text.replace('":"', '": "')
    assert httpx.post(f"{url}/generate", json={"prompt": "x"}).status_code == 200


def test_stop_strings_end_the_output_in_both_modes(url: str) -> None:
    whole = httpx.post(
        f"{url}/generate", json={"prompt": "a", "seed": 3, "max_tokens": 100, "ignore_eos": True}
    ).json()
    output = base64.b64decode(whole["bytes"])
    stop = output[50:53]
    for mode in ("base", "speculative"):
        request = {"prompt": "a", "seed": 3, "max_tokens": 100, "ignore_eos": True, "mode": mode}
        request["stop_bytes"] = base64.b64encode(stop).decode()
        answer = httpx.post(f"{url}/generate", json=request).json()
        assert answer["finish_reason"] == "stop"
        assert base64.b64decode(answer["bytes"]) == output[: output.index(stop)]
        assert answer["usage"]["completion_tokens"] == output.index(stop)


def test_what_a_slot_held_already_is_told(url: str) -> None:
    request = {"prompt": "held before", "max_tokens": 3, "mode": "base"}
    usages = [httpx.post(f"{url}/generate", json=request).json()["usage"] for _ in range(2)]
    assert [usage["cached_tokens"] for usage in usages] == [0, len("held befor")]


def test_bytes_that_stop_and_bytes_that_are_allowed_in_both_modes(url: str) -> None:
    def ask(**fields: Any) -> tuple[bytes, str]:
        request = {"prompt": "a", "seed": 3, "max_tokens": 60, "ignore_eos": True, **fields}
        answer = httpx.post(f"{url}/v1/completions", json=request).raise_for_status().json()
        (choice,) = answer["choices"]
        assert answer["usage"]["completion_tokens"] == len(base64.b64decode(choice["bytes"]))
        return base64.b64decode(choice["bytes"]), choice["finish_reason"]

    letters = {"allowed_token_ids": [*b"ACGT"], "logit_bias": {"65": 1}}
    whole, reason = ask(mode="base", **letters)
    assert (len(whole), reason, {*whole}) == (60, "length", {*b"ACGT"})
    end = whole.index(b"G")
    for mode in ("base", "speculative", "auto"):
        fields = {"mode": mode, **letters}
        assert ask(**fields) == (whole, "length")
        assert ask(stop_token_ids=[*b"G\n"], **fields) == (whole[:end], "stop")
        included = ask(stop_token_ids=[*b"G\n"], include_stop_str_in_output=True, **fields)
        assert included == (whole[: end + 1], "stop")


@pytest.mark.parametrize(
    ("content", "status", "named"),
    [
        (b'{"prompt": "a", "temprature": 1}', 422, "temprature"),
        (b'{"prompt": 5}', 422, "prompt"),
        (b'{"prompt": "a", "temperature": -1}', 422, "temperature"),
        (b'{"prompt": "a", "temperature": NaN}', 422, "temperature"),
        (b'{"prompt": "a", "temperature": 1e999}', 422, "temperature"),
        (b'{"prompt": "a", "max_tokens": "5"}', 422, "max_tokens"),
        (b'{"prompt": "a", "max_tokens": 500}', 400, "max_tokens"),
        (b'{"prompt": "' + b"a" * 200 + b'"}', 400, "prompt"),
        (b'{"prompt_bytes": "a"}', 422, "prompt_bytes"),
        (b'{"prompt": "a", "prompt_bytes": "YQ=="}', 422, "prompt"),
        (b'{"prompt": "\\ud800"}', 422, "prompt"),
        (b'{"prompt": "a", "n": 0}', 422, "n"),
        (b'{"prompt": "", "mode": "base"}', 422, "prompt"),
        (b'{"prompt": "a", "mode": "fast"}', 422, "mode"),
        (b'{"prompt": "a", "draft_length": 17}', 422, "draft_length"),
        (b"[" * 100_000, 400, "JSON"),
        (b'{"prompt": ' + b'{"a":' * 5000, 400, "JSON"),
        (b"", 400, "JSON"),
        (b"\xff\xfe", 400, "JSON"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_bad_input_is_refused_by_name_and_the_server_goes_on(
    url: str, content: bytes, status: int, named: str
) -> None:
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{url}/generate", content=content, headers=headers)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert named in error["message"]
    assert httpx.get(f"{url}/health").status_code == 200


@pytest.mark.parametrize("prompt", [b"\x00", b"\x00\x00a\x00", b"\xff\xfe\xc3", bytes(range(100))])
def test_nul_and_invalid_utf8_are_prompts_like_any_other(url: str, prompt: bytes) -> None:
    request = {"prompt_bytes": base64.b64encode(prompt).decode(), "max_tokens": 9, "seed": 1}
    answer = httpx.post(f"{url}/generate", json=request).json()
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    assert answer["exactness"] in ("exact", "fast")


def test_what_cannot_be_loaded_ends_the_server_with_the_file_in_its_last_line(
    tmp_path: Path,
) -> None:
    save_checkpoint(tmp_path, tiny_model(), None, torch.float32)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    process, _ = started(tmp_path)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert b"model.safetensors" in errors
    assert b"Traceback" not in errors


def test_requests_that_are_decoded_again_get_the_same_bytes(server: Server) -> None:
    """Those of all the tests before, too."""
    before = server.metric("parity_checks_total")
    for index in range(20):
        response = server.ask(**body(1 + 3 * index))
        assert response.json()["mode"] == "speculative"
        # a check gives way to who wants its slot, and only so many wait
        eventually(lambda: server.busy() == 0)
    eventually(lambda: server.metric("parity_checks_total") >= before + 10)
    assert server.metric("parity_mismatches_total") == 0
