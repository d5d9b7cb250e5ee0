"""The endpoints that OpenAI's clients know: /v1/completions and /v1/models."""

import asyncio

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.errors import NoSuchModel
from server.intake import accept
from server.openai_answers import Completion, CompletionForm, Model, ModelList
from server.openai_schemas import CompletionRequest
from server.openapi import documented_body, documented_errors, documented_events
from server.routes import ServiceOf
from server.service import Service
from server.streaming import EventStream

router = APIRouter(prefix="/v1")


@router.post(
    "/completions",
    response_model=Completion,
    responses={
        200: documented_events(Completion, also=["[DONE]"]),
        **documented_errors(400, 401, 404, 408, 409, 413, 415, 422, 429, 500, 503),
    },
    openapi_extra=documented_body(
        CompletionRequest,
        text={"prompt": "The ", "max_tokens": 64, "temperature": 0},
        texts={"prompt": ["def ", "class "], "seed": 1, "stop": ["\n\n"]},
        bytes={"prompt": [0, 1, 255], "logit_bias": {"10": -100}},
        several={"prompt": "import ", "n": 4, "seed": 1, "logprobs": 2},
        score={"prompt": "import os", "max_tokens": 0, "echo": True, "logprobs": 3},
        stream={"prompt": "a", "stream": True, "stream_options": {"include_usage": True}},
    ),
)
async def completions(request: Request, service: ServiceOf) -> Response:
    """Continue texts as OpenAI's clients ask it; a token is a byte.

    With `stream`, chunks of the same shape, then `[DONE]`.
    """
    accepted = await accept(request, service, CompletionRequest)
    asked, flight = accepted.asked, accepted.flight
    form = CompletionForm(accepted.submissions, asked.n, accepted.info, asked.include_usage)
    if asked.stream:
        return EventStream(flight, form, accepted.headers, asked.stream_interval)
    async with flight.cancelled_without_client(request.receive):
        outcome = await flight.outcome()

    def written() -> str:
        return form.whole(outcome).model_dump_json()

    # log-probabilities of a long output take a while to write down
    content = written() if asked.logprobs is None else await asyncio.to_thread(written)
    return Response(content, headers=accepted.headers, media_type="application/json")


@router.get("/models", responses=documented_errors(401, 503))
async def models(service: ServiceOf) -> ModelList:
    """The model that is served."""
    return ModelList(data=[_model(service)])


@router.get("/models/{model}", responses=documented_errors(401, 404, 422, 503))
async def model_(model: str, service: ServiceOf) -> Model:
    """The model that is served, by its name."""
    served = _model(service)
    if model != served.id:
        raise NoSuchModel(f"model: the model served here is {served.id}", "model")
    return served


def _model(service: Service) -> Model:
    info = service.engine.info
    return Model(id=info.model_name, created=service.loaded_at, max_model_len=info.context)
