"""What a request to /v1/completions may say, without an app."""

import json
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
        [1.0],
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
    assert properties["top_k"]["anyOf"][0] == {"type": "integer", "minimum": 0, "maximum": 256}


@pytest.mark.parametrize(
    ("field", "neutral", "others"),
    [
        ("best_of", [1], [2, 5]),
        ("suffix", [], ["", "x"]),
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
    for options in (5, {"include_usage": 1}, {"unknown": 1}, {"include_obfuscation": True}):
        assert refused(stream=True, stream_options=options).param == "stream_options"
    assert refused(stream_options={}).param == "stream_options"


def test_other_fields_are_as_strict_as_on_generate() -> None:
    for field, value in (("temperature", "1"), ("seed", 1.0), ("max_tokens", 0), ("model", 5)):
        assert refused(**{field: value}).param == field
    assert refused(mode="base", draft_length=3).param == "draft_length"
    assert refused(stop=["x"] * 17).param == "stop"


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
