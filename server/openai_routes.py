"""The endpoints that OpenAI's clients know: /v1/completions and /v1/models."""

import asyncio

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.errors import NoSuchModel
from server.intake import accept
from server.openai_answers import Completion, Model, ModelList
from server.openai_form import CompletionForm
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
        **documented_errors(400, 401, 404, 408, 409, 413, 415, 429, 500, 503),
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
    form = CompletionForm(accepted.submissions, asked, accepted.info)
    if asked.stream:
        return EventStream(flight, form, asked.stream_interval)
    async with flight.cancelled_without_client(request.receive):
        outcome = await flight.outcome()

    # log-probabilities of a long output take a while to write down
    dear = asked.alternatives is not None
    content = await asyncio.to_thread(form.whole, outcome) if dear else form.whole(outcome)
    return Response(content, media_type="application/json")


@router.get("/models", responses=documented_errors(401, 503))
async def models(service: ServiceOf) -> ModelList:
    """The model that is served, under each of its names."""
    return ModelList(data=_models(service))


@router.get("/models/{model:path}", responses=documented_errors(401, 404, 422, 503))
async def model_(model: str, service: ServiceOf) -> Model:
    """The model that is served, by its name."""
    served = {each.id: each for each in _models(service)}
    if model not in served:
        raise NoSuchModel(f"model: the model served here is {next(iter(served))}", "model")
    return served[model]


def _models(service: Service) -> list[Model]:
    info = service.engine.info
    names = service.settings.names_of(info.model_name)
    return [
        Model(id=name, created=service.loaded_at, root=names[0], max_model_len=info.context)
        for name in names
    ]
