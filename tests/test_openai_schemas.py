"""What a request to /v1/completions may say, without an app."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from server.errors import ApiError, from_validation
from server.fields import MAX_PROMPTS
from server.openai_schemas import CompletionRequest
from server.schemas import GenerateRequest
from specdec.sampling import SamplingParams


def parse(**values: Any) -> CompletionRequest:
    return CompletionRequest.model_validate_json(json.dumps(values))


def refused(**values: Any) -> ApiError:
    body = json.dumps(values).encode()
    with pytest.raises(ValidationError) as caught:
        CompletionRequest.model_validate_json(body)
    return from_validation(caught.value, body)


def test_it_takes_what_generate_takes() -> None:
    """Another name for the prompt's bytes is all that differs."""
    only_there = GenerateRequest.model_fields.keys() - CompletionRequest.model_fields.keys()
    assert only_there == {"prompt_bytes"}
    assert parse().sampling == SamplingParams()
    request = parse(stop=["a"], stop_bytes=["AA=="], top_k=3, min_tokens=1, logit_bias={"0": -1})
    assert request.stops == (b"a", b"\0")
    assert request.sampling == SamplingParams(top_k=3, min_tokens=1, logit_bias=((0, -1.0),))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("é", ["é".encode()]),
        ("", [b""]),
        (["a", ""], [b"a", b""]),
        ([0, 255], [b"\x00\xff"]),
        ([[1, 2], []], [b"\x01\x02", b""]),
        ([104.0, 105], [b"hi"]),
        (None, [b""]),
    ],
)
def test_prompts(prompt: Any, expected: list[bytes]) -> None:
    assert list(parse(prompt=prompt).prompts) == expected


@pytest.mark.parametrize(
    "prompt",
    [
        [],
        5,
        True,
        {},
        [256],
        [-1],
        [2**70],
        [1.5],
        [256.0],
        [1e999],
        [True],
        ["a", 1],
        [1, "a"],
        ["a", [1]],
        [[1], "a"],
        [[1], [256]],
        [[[1]]],
        ["a", None],
        ["a"] * (MAX_PROMPTS + 1),
        [[1]] * (MAX_PROMPTS + 1),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_prompt(prompt: Any) -> None:
    error = refused(prompt=prompt)
    assert (error.status, error.param) == (422, "prompt")


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5))
def test_every_byte_string_can_be_a_prompt(prompts: list[bytes]) -> None:
    assert parse(prompt=[list(prompt) for prompt in prompts]).prompts == tuple(prompts)


def test_null_is_leaving_out() -> None:
    for field in CompletionRequest.model_fields:
        assert parse(**{field: None}) == parse()
    assert refused(unknown=None).param == "unknown"


def test_every_field_is_nullable_in_the_schema_and_keeps_its_bounds() -> None:
    properties = CompletionRequest.model_json_schema()["properties"]
    assert properties.keys() == CompletionRequest.model_fields.keys()
    for field in properties.values():
        assert field["anyOf"].count({"type": "null"}) == 1
        assert "description" in field or "default" in field
    assert properties["top_k"]["anyOf"][0] == {"type": "integer", "minimum": -1, "maximum": 256}


@pytest.mark.parametrize(
    ("field", "neutral", "others"),
    [
        ("best_of", [1], [2, 5]),
        ("suffix", [""], ["x", 0]),
        ("use_beam_search", [False], [True, 0]),
        ("length_penalty", [1, 1.0], [0.5, True]),
        ("priority", [0], [1, -1, False]),
        ("truncate_prompt_tokens", [], [5, -1]),
        ("detokenize", [True], [False, 1]),
        ("return_tokens_as_token_ids", [False], [True]),
        ("bad_words", [[]], [["a"], ""]),
        ("response_format", [{"type": "text"}], [{"type": "json_object"}, {}, "text"]),
    ],
)
def test_what_is_not_supported_yet(field: str, neutral: list[Any], others: list[Any]) -> None:
    for value in neutral:
        parse(**{field: value})
    for value in others:
        error = refused(**{field: value})
        assert (error.status, error.param, error.code) == (422, field, "not_supported")


def test_best_of_n_is_all_of_them() -> None:
    assert parse(n=3, best_of=3).n == 3
    assert parse(n=3, best_of=1).n == 3
    assert refused(n=3, best_of=5).message == "best_of: best_of other than n is not supported"


def test_outputs_are_bounded_over_all_prompts() -> None:
    assert parse(n=8, prompt=["a"] * 128).n == 8
    assert refused(n=9, prompt=["a"] * 128).param == "n"


def test_stream_options() -> None:
    assert parse(stream=True, stream_options={"include_usage": True}).include_usage
    assert not parse(stream=True, stream_options={"include_usage": None}).include_usage
    assert not parse(stream=True, stream_options={}).include_usage
    assert not parse(stream=True).include_usage
    parse(stream=True, stream_options={"include_obfuscation": False})
    assert refused(stream=True, stream_options=5).param == "stream_options"
    for name, value in (("include_usage", 1), ("unknown", 1), ("include_obfuscation", True)):
        error = refused(stream=True, stream_options={name: value})
        assert error.param == f"stream_options.{name}"
        assert error.message.startswith(f"stream_options.{name}: ")
    assert refused(stream_options={}).param == "stream_options"


def test_usage_in_every_chunk_goes_with_usage() -> None:
    def asked(**options: Any) -> bool:
        return parse(stream=True, stream_options=options).continuous_usage

    assert asked(include_usage=True, continuous_usage_stats=True)
    assert not asked(include_usage=True)
    assert not asked(continuous_usage_stats=True)
    assert not parse().continuous_usage


def test_parameters_of_vllm_that_mean_nothing_for_bytes() -> None:
    for field in ("skip_special_tokens", "spaces_between_special_tokens", "add_special_tokens"):
        for value in (False, True):
            parse(**{field: value})
        assert refused(**{field: 1}).param == field


def test_top_k_of_minus_one_is_all() -> None:
    assert parse(top_k=-1).sampling == SamplingParams()
    assert refused(top_k=-2).param == "top_k"


def test_bytes_that_stop() -> None:
    request = parse(stop="ab", stop_token_ids=[10, 0, 255.0])
    assert request.stops == (b"ab", b"\n", b"\0", b"\xff")
    assert not request.includes_stop
    assert parse(include_stop_str_in_output=True).includes_stop
    # of one byte each, so they do not count among the stop strings
    assert len(parse(stop=["x"] * 64, stop_token_ids=[*range(256)]).stops) == 320
    for wrong in (5, [256], [-1], ["a"], [True], [0.5], [0] * 257):
        assert refused(stop_token_ids=wrong).param == "stop_token_ids"


def test_bytes_that_are_allowed() -> None:
    bias = dict(
        parse(allowed_token_ids=[65, 67], logit_bias={"65": 2, "66": 3}).sampling.logit_bias
    )
    assert bias.pop(65) == 2
    assert bias == {byte: -math.inf for byte in range(256) if byte not in (65, 67)}
    assert parse(allowed_token_ids=None).sampling == SamplingParams()
    for wrong in ([], [256], "AC"):
        assert refused(allowed_token_ids=wrong).param == "allowed_token_ids"


def test_scores_of_the_prompt() -> None:
    request = parse(prompt_logprobs=3, max_tokens=0)
    assert (request.tells_prompt, request.alternatives) == (True, 3)
    request = parse(prompt_logprobs=0, logprobs=2)
    assert (request.tells_prompt, request.alternatives) == (True, 2)
    request = parse(logprobs=None)
    assert (request.tells_prompt, request.alternatives) == (False, None)
    for wrong in (-1, 21, True):
        assert refused(prompt_logprobs=wrong).param == "prompt_logprobs"
    assert refused(prompt_logprobs=1, stream=True).param == "prompt_logprobs"


def test_other_fields_are_as_strict_as_on_generate() -> None:
    for field, value in (("temperature", "1"), ("seed", 1.5), ("max_tokens", 0), ("model", 5)):
        assert refused(**{field: value}).param == field
    assert refused(mode="base", draft_length=3).param == "draft_length"
    assert refused(stop=["x"] * 65).param == "stop"


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_any_value_in_any_field_is_parsed_or_refused(value: object) -> None:
    for field in CompletionRequest.model_fields:
        body = json.dumps({field: value}).encode("utf-8", "surrogatepass")
        try:
            request = CompletionRequest.model_validate_json(body)
        except ValidationError as error:
            refusal = from_validation(error, body)
            assert refusal.status == 422
        else:
            assert request.prompts
