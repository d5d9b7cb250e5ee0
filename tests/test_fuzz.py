"""Every endpoint, with data that fits its documentation and data that does not."""

import json
from collections.abc import Iterator

import pytest
import schemathesis
from fake_engine import FakeEngine, app_of, say
from hypothesis import settings
from jsonschema import Draft202012Validator
from live import live
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

app = app_of(FakeEngine(say(b"h\xc3", b"\xa9", rest=b"\xff"), context=100_000))
DOCUMENT = app.openapi()
schema = schemathesis.openapi.from_dict(DOCUMENT)
schema.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])

load_all_checks()
# a schema cannot say which fields go together; what it lets pass is looked at below
MAY_BE_REFUSED = CHECKS.get_one("positive_data_acceptance")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with live(app) as address:
        yield address


@schema.parametrize()
@settings(max_examples=10)
def test_answers_are_as_documented(case: schemathesis.Case, url: str) -> None:
    response = case.call_and_validate(base_url=url, excluded_checks=[MAY_BE_REFUSED])
    assert case.meta is not None
    if case.meta.generation.mode is GenerationMode.NEGATIVE or not isinstance(case.body, dict):
        return
    # without the fields that refusals name, what fits the schema is answered
    while (field := refused_field(response)) in case.body:
        del case.body[field]
        response = case.call(base_url=url)
    assert response.status_code == 200 or field == "prompt"
    check_events(case, response)


def check_events(case: schemathesis.Case, response: schemathesis.Response) -> None:
    """Each event of a stream is one of those that the document tells."""
    if not response.headers["content-type"][0].startswith("text/event-stream"):
        return
    media = DOCUMENT["paths"][case.path]["post"]["responses"]["200"]["content"]
    data_of = media["text/event-stream"]["schema"]["properties"]["data"]
    told = {"components": DOCUMENT["components"], **data_of["anyOf"][0]["contentSchema"]}
    events = Draft202012Validator(told)
    text = response.content.decode("ascii")
    for event in text.removesuffix("\n\n").split("\n\n"):
        data = event.removeprefix("data: ")
        if {"const": data} not in data_of["anyOf"]:
            events.validate(json.loads(data))


def refused_field(response: schemathesis.Response) -> str | None:
    if response.status_code not in (400, 404, 422):
        return None
    param: str = response.json()["error"]["param"]
    return param
