"""What a request is decided to mean, without an app."""

import doctest
import math

import pytest
from fake_engine import INFO
from hypothesis import given
from hypothesis import strategies as st

import server.resolution
from server.errors import ApiError
from server.messages import Submission
from server.openai_schemas import CompletionRequest
from server.resolution import resolve, shifted_seed
from server.settings import Settings

SETTINGS = Settings.model_validate({})


def submissions(**fields: object) -> list[Submission]:
    request = CompletionRequest.model_validate({"prompt": ["a", "b", "c"], **fields})
    return resolve(request, "r", INFO, SETTINGS)


def test_the_worked_examples() -> None:
    result = doctest.testmod(server.resolution)
    assert result.attempted > 0
    assert result.failed == 0


def test_each_choice_is_a_request_of_its_own_to_the_engine() -> None:
    first, second, third = submissions(seed=5, max_tokens=3)
    assert [s.request_id for s in (first, second, third)] == ["r", "r#1", "r#2"]
    assert [s.prompt for s in (first, second, third)] == [b"a", b"b", b"c"]
    assert [s.seed for s in (first, second, third)] == [5, 6, 7]


def test_output_is_wanted_as_it_comes_every_so_often_or_at_the_end() -> None:
    asked: list[dict[str, object]] = [{}, {"stream": True}, {"stream": True, "stream_interval": 2}]
    wanted = [submissions(**fields)[0].interval_s for fields in asked]
    assert wanted == [math.inf, 0.0, 2.0]


def test_drawn_seeds_stay_in_what_json_clients_keep() -> None:
    seeds = [submission.seed for submission in submissions()]
    assert seeds == [seeds[0], seeds[0] + 1, seeds[0] + 2]
    assert 0 <= seeds[0] < seeds[-1] < 2**53


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**12))
def test_shifted_seeds_are_signed_64_bit_numbers(seed: int, choice: int) -> None:
    shifted = shifted_seed(seed, choice)
    assert -(2**63) <= shifted < 2**63
    assert (shifted - seed - choice) % 2**64 == 0


def test_every_prompt_needs_room() -> None:
    with pytest.raises(ApiError) as refusal:
        submissions(prompt=["a", "b" * INFO.context])
    assert (refusal.value.status, refusal.value.param) == (400, "prompt")
    with pytest.raises(ApiError) as refusal:
        submissions(prompt=["a", "b" * (INFO.context - 1)], max_tokens=2)
    assert refusal.value.param == "max_tokens"
