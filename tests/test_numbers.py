"""Numbers that JSON does not have: an error of the server's, and never in an answer."""

import math

import pytest
from fake_engine import Client, FakeEngine, error_of, finished
from test_streaming import events_of

from server.messages import Event, Progress
from specdec.logprobs import ByteLogprob

ODD = [math.nan, math.inf, -math.inf]


def engine_of(logprob: float, at_top: bool) -> FakeEngine:
    item = ByteLogprob(97, -1.0, ((98, logprob),)) if at_top else ByteLogprob(97, logprob)
    events: list[Event] = [Progress(b"a", logprobs=(item,)), finished(1)]
    return FakeEngine(lambda _: events)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("at_top", [False, True])
def test_an_answer_is_json_or_an_error(odd: float, at_top: bool) -> None:
    with Client(engine_of(odd, at_top)) as client:
        for response in (
            client.generate(prompt="a", logprobs=1),
            client.complete(prompt="a", logprobs=1),
        ):
            assert response.status_code == 500
            assert error_of(response)["code"] == "internal_error"
            assert response.headers["X-Request-ID"]


@pytest.mark.parametrize("odd", ODD)
def test_a_stream_ends_with_the_error(odd: float) -> None:
    with Client(engine_of(odd, False)) as client:
        own = client.generate(prompt="a", logprobs=1, stream=True).content
        (event,) = events_of(own)
        openai = client.complete(prompt="a", logprobs=1, stream=True).content
        assert openai.endswith(b"\n\ndata: [DONE]\n\n")
        assert events_of(openai.removesuffix(b"data: [DONE]\n\n")) == [event]
    assert event["error"]["code"] == "internal_error"
