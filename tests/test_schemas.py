"""What a request may say, without an app."""

import base64
import json
import math
from dataclasses import fields
from typing import Any

import pytest
from fake_engine import encode
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from server.errors import ApiError, from_validation
from server.messages import Mode
from server.schemas import GenerateRequest
from specdec.sampling import SamplingParams


def parse(**values: Any) -> GenerateRequest:
    return GenerateRequest.model_validate_json(json.dumps({"prompt": "a", **values}))


def refusal(body: bytes) -> ApiError:
    with pytest.raises(ValidationError) as caught:
        GenerateRequest.model_validate_json(body)
    return from_validation(caught.value, body)


def refused(**values: Any) -> ApiError:
    """The refusal of {"prompt": "a"} with some fields more."""
    return refusal(json.dumps({"prompt": "a", **values}).encode())


def test_defaults_are_neutral() -> None:
    assert parse().sampling == SamplingParams()
    assert parse().stops == ()


def test_every_sampling_parameter_arrives() -> None:
    values: dict[str, Any] = {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.25,
        "min_p": 0.125,
        "presence_penalty": 1,
        "frequency_penalty": -1.5,
        "repetition_penalty": 1.25,
        "min_tokens": 2,
    }
    bias = {"0": -100, "255": 1.5}
    expected = SamplingParams(**values, logit_bias=((0, -100.0), (255, 1.5)))
    assert parse(**values, logit_bias=bias).sampling == expected
    assert {*values, "logit_bias"} == {field.name for field in fields(SamplingParams)}


@pytest.mark.parametrize(
    ("field", "low", "high"),
    [
        ("temperature", 0, 1e6),
        ("top_k", 0, 256),
        ("top_p", math.ulp(0), 1),
        ("min_p", 0, 1),
        ("presence_penalty", -100, 100),
        ("frequency_penalty", -100, 100),
        ("repetition_penalty", 1e-3, 1e3),
        ("min_tokens", 0, 100),
        ("seed", -(2**63), 2**63 - 1),
        ("max_tokens", 1, 2**70),
        ("draft_length", 1, 16),
    ],
)
def test_bounds_are_those_of_sampling(field: str, low: float, high: float) -> None:
    for bound in (low, high):
        value = getattr(parse(**{field: bound}), field)
        assert value == bound
        # no error of the record's own: it would not name the field to the client
        assert parse(**{field: bound}).sampling
    below = low - 1 if isinstance(low, int) else low - abs(low)
    assert refused(**{field: below}).param == field
    if field not in ("min_tokens", "max_tokens"):
        assert refused(**{field: high * 2 + 2}).param == field


@given(
    st.builds(
        dict,
        temperature=st.floats(0, 1e6),
        top_k=st.integers(0, 256),
        top_p=st.floats(0, 1, exclude_min=True),
        min_p=st.floats(0, 1),
        presence_penalty=st.floats(-100, 100),
        frequency_penalty=st.floats(-100, 100),
        repetition_penalty=st.floats(1e-3, 1e3),
        min_tokens=st.integers(0, 1 << 40),
        logit_bias=st.dictionaries(st.integers(0, 255).map(str), st.floats(-100, 100)),
    )
)
def test_whatever_passes_is_accepted_by_sampling(values: dict[str, Any]) -> None:
    params = parse(**values).sampling
    assert {str(byte): bias for byte, bias in params.logit_bias} == values.pop("logit_bias")
    assert all(getattr(params, name) == value for name, value in values.items())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "1"),
        ("temperature", True),
        ("temperature", None),
        ("temperature", []),
        ("top_k", 1.5),
        ("top_k", "1"),
        ("top_k", True),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("seed", 0.5),
        ("seed", 2.0**63),
        ("seed", "7"),
        ("stream", 1),
        ("stream", "true"),
        ("ignore_eos", 0),
        ("mode", "fast"),
        ("mode", 0),
        ("mode", "BASE"),
        ("prompt", 5),
        ("prompt", ["a"]),
        ("stop", 5),
        ("stop", ["a", 5]),
        ("stop", [["a"]]),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", "x" * 257),
        ("stop", "é" * 129),
        ("stop", ["x"] * 65),
        ("stop_bytes", "not base64"),
        ("stop_bytes", ["YQ==", "YQ"]),
        ("stop_bytes", ""),
        ("logit_bias", {"256": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"01": 1}),
        ("logit_bias", {"1 ": 1}),
        ("logit_bias", {"1\n": 1}),
        ("logit_bias", {"١": 1}),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"1": 100.5}),
        ("logit_bias", {"1": "1"}),
        ("logit_bias", {"1": None}),
        ("logit_bias", [1]),
        ("request_id", ""),
        ("request_id", "a b"),
        ("request_id", "a\n"),
        ("request_id", "x" * 129),
        ("request_id", 5),
        ("min_tokens", -1),
        ("min_tokens", 2**41),
        ("timeout_s", 0),
        ("timeout_s", -1),
        ("timeout_s", "1"),
        ("timeout_s", True),
        ("stream_interval", -0.5),
        ("stream_interval", 3601),
        ("stream_interval", None),
        ("stream_interval", False),
    ],
)
def test_wrong_values_name_their_field(field: str, value: object) -> None:
    error = refused(**{field: value})
    assert (error.status, error.param) == (422, field)
    assert error.message.startswith(f"{field}: ")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize("field", ["temperature", "presence_penalty", "timeout_s"])
def test_numbers_are_finite(field: str, number: str) -> None:
    assert refusal(f'{{"prompt": "a", "{field}": {number}}}'.encode()).param == field


@pytest.mark.parametrize(
    "text", ["YQ", "YQ=", "YQ===", "YR==", "Y Q==", "YQ==\n", "_-8=", "é", "=", "YQ==YQ==", "a"]
)
def test_base64_is_strict(text: str) -> None:
    error = refusal(json.dumps({"prompt_bytes": text}).encode())
    assert (error.status, error.param, error.code) == (422, "prompt_bytes", "base64")


@given(st.binary(max_size=50))
def test_every_byte_string_can_be_a_prompt(prompt: bytes) -> None:
    request = GenerateRequest.model_validate_json(json.dumps({"prompt_bytes": encode(prompt)}))
    assert (request.prompts, request.prompt_field) == ((prompt,), "prompt_bytes")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_every_text_can_be_a_prompt(text: str) -> None:
    assert parse(prompt=text).prompts == (text.encode(),)


@given(st.text(max_size=8))
def test_base64_agrees_with_the_encoder(text: str) -> None:
    try:
        expected = base64.b64decode(text, validate=True)
    except ValueError:
        expected = None
    try:
        request = GenerateRequest.model_validate({"prompt_bytes": text})
    except ValidationError:
        assert expected is None or encode(expected) != text
    else:
        assert request.prompt_bytes == expected


def test_exactly_one_prompt() -> None:
    for body in (b"{}", b'{"prompt": "a", "prompt_bytes": "YQ=="}', b'{"prompt": null}'):
        assert refusal(body).param == "prompt"
    assert refused(prompt="", prompt_bytes="").param == "prompt"
    assert parse(prompt_bytes=None).prompts == (b"a",)


def test_stops_of_both_kinds() -> None:
    request = parse(stop=["é", "b"], stop_bytes=encode(b"\x00\xff"))
    assert request.stops == ("é".encode(), b"b", b"\x00\xff")
    assert parse(stop="one").stops == (b"one",)
    assert parse(stop=None, stop_bytes=None).stops == ()
    assert len(parse(stop=["x"] * 32, stop_bytes=["YQ=="] * 32).stops) == 64
    error = refused(stop=["x"] * 32, stop_bytes=["YQ=="] * 33)
    assert (error.param, "64" in error.message) == ("stop_bytes", True)


def test_fields_that_exclude_each_other() -> None:
    assert refused(mode="base", draft_length=3).param == "draft_length"
    assert parse(mode="auto", draft_length=3).mode is Mode.AUTO
    assert refused(min_tokens=5, max_tokens=4).param == "min_tokens"
    assert parse(min_tokens=5, max_tokens=5).min_tokens == 5
    assert refused(stream_interval=0.5).param == "stream_interval"
    assert parse(stream_interval=0.5, stream=True).stream_interval == 0.5
    assert parse(stream_interval=0).stream_interval == 0


def test_several_outputs_and_scores() -> None:
    assert parse(n=128, logprobs=20, echo=True).n == 128
    assert parse(logprobs=0).logprobs == 0
    assert parse().logprobs is None
    for field, value in (
        *(("n", value) for value in (0, 129, True, 1.5, "1", None)),
        *(("echo", value) for value in (0, None, "true")),
        *(("logprobs", value) for value in (-1, 21, False, 1.5)),
    ):
        error = refused(**{field: value})
        assert (error.status, error.param) == (422, field)


def test_an_integral_float_is_an_integer() -> None:
    """JSON Schema has one kind of number, and some clients write every number with a point."""
    integers = {"max_tokens": 16, "min_tokens": 2, "top_k": 5, "seed": -7, "n": 2, "logprobs": 3}
    floats = {field: float(value) for field, value in integers.items()}
    assert parse(**floats) == parse(**integers)
    assert type(parse(seed=16.0).seed) is int
    assert parse(seed=-0.0).seed == 0


def test_no_output_at_all_goes_with_echo_only() -> None:
    assert parse(max_tokens=0, echo=True).max_tokens == 0
    assert refused(max_tokens=0).message == "max_tokens: 0 goes with echo only"
    assert refused(max_tokens=0, echo=True, min_tokens=1).param == "min_tokens"


def test_unknown_fields_are_refused_by_name() -> None:
    error = refused(temprature=0.5)
    assert (error.status, error.param, error.code) == (422, "temprature", "extra_forbidden")
    assert error.message == "temprature: no such field"
    assert len(refused(**{"x" * 10000: 1}).message) < 100
    assert refused(**{"é\n\u2028": 1}).param == "\\xe9\n\\u2028"


def test_several_mistakes_are_told_together_and_none_is_repeated() -> None:
    error = refused(temperature=-1, top_p="secret", **{f"unknown{i}": "secret" for i in range(5)})
    assert error.message.count(";") == 4
    assert error.message.endswith("and 3 more")
    assert "secret" not in error.message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b'{"prompt": "a"} x',
        b"{'prompt': 'a'}",
        b'{"prompt": "\xff"}',
        b'\xef\xbb\xbf{"prompt": "a"}',
        b"[" * 100_000,
        b'{"prompt": ' + b"[" * 100_000,
        b'{"prompt": ' + b'{"a":' * 100_000,
        b'{"seed": ' + b"9" * 10_000 + b"}",
        b'{"prompt": "\\ud800", "seed": ' + b"[" * 100_000,
        b'["\\ud800"]',
    ],
)
def test_bodies_that_are_not_json(body: bytes) -> None:
    error = refusal(body)
    assert (error.status, error.code, error.param) == (400, "invalid_json", None)


@pytest.mark.parametrize("body", [b"[]", b"null", b'"text"', b"5", b"true"])
def test_bodies_that_are_not_objects(body: bytes) -> None:
    error = refusal(body)
    assert (error.status, error.param) == (422, None)
    assert "object" in error.message


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (rb'{"prompt": "a\ud800"}', "prompt"),
        (rb'{"prompt": "\udc00\ud800x"}', "prompt"),
        (b'{"prompt": "\xed\xa0\x80"}', "prompt"),
        (rb'{"prompt": "a", "stop": ["ok", "\ud83d"]}', "stop"),
        (rb'{"prompt": "a", "logit_bias": {"\udfff": 1}}', "logit_bias"),
        (rb'{"prompt": "a", "\ud800": 1}', "\\ud800"),
    ],
)
def test_lone_surrogates_name_their_field(body: bytes, field: str) -> None:
    error = refusal(body)
    assert (error.status, error.param) == (422, field)
    json.dumps(error.envelope, ensure_ascii=False).encode()


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_any_value_in_any_field_is_parsed_or_refused(value: object) -> None:
    for field in GenerateRequest.model_fields:
        body = json.dumps({"prompt_bytes": "", field: value}).encode("utf-8", "surrogatepass")
        try:
            request = GenerateRequest.model_validate_json(body)
        except ValidationError as error:
            refused = from_validation(error, body)
            assert refused.status == 422
            json.dumps(refused.envelope, ensure_ascii=False).encode()
        else:
            assert request.sampling
