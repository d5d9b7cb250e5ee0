"""/tokenize, /detokenize and /tokenizer_info as vLLM has them: a token is a byte, its id the value.

Knows no model but for its context and its end-of-document byte.
"""

import asyncio
from typing import Any, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from server.answers import token_text
from server.fields import ByteArray
from server.intake import check_id, noting_refusals, read
from server.openapi import documented_body, documented_errors
from server.resolution import check_model
from server.routes import ServiceOf
from server.service import Service
from specdec.tokenizer_files import tokenizer_config

router = APIRouter()


class TokenizerRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str | None = Field(None, description="A name of the model served, or left out.")


class TokenizeRequest(TokenizerRequest):
    prompt: str = Field(description="Text, whose UTF-8 bytes are its tokens.")
    add_special_tokens: bool | None = Field(
        True, description="Accepted, and without any effect: no byte is a special token."
    )
    return_token_strs: bool | None = Field(False, description="Tell each token as a text too.")


class Tokens(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(TokenizerRequest):
    tokens: ByteArray = Field(description="Bytes as numbers.")


class Text(BaseModel):
    """Bytes that are no UTF-8 are replaced."""

    prompt: str


Asked = TypeVar("Asked", bound=TokenizerRequest)


@router.post(
    "/tokenize",
    response_model=Tokens,
    responses=documented_errors(400, 401, 404, 408, 413, 415, 422, 503),
    openapi_extra=documented_body(TokenizeRequest, text={"prompt": "é"}),
)
async def tokenize(request: Request, service: ServiceOf) -> Response:
    """The bytes of a text."""
    asked = await _accept(request, service, TokenizeRequest)
    context = service.engine.info.context

    def tokens() -> Tokens:
        content = asked.prompt.encode()
        strings = [token_text(byte) for byte in content] if asked.return_token_strs else None
        return Tokens(
            count=len(content), max_model_len=context, tokens=list(content), token_strs=strings
        )

    # of megabytes on a thread, so that nobody else waits for it
    content = await asyncio.to_thread(lambda: tokens().model_dump_json())
    return Response(content, media_type="application/json")


@router.post(
    "/detokenize",
    response_model=Text,
    responses=documented_errors(400, 401, 404, 408, 413, 415, 422, 503),
    openapi_extra=documented_body(DetokenizeRequest, bytes={"tokens": [195, 169]}),
)
async def detokenize(request: Request, service: ServiceOf) -> Text:
    """The text of bytes."""
    asked = await _accept(request, service, DetokenizeRequest)
    return Text(prompt=asked.tokens.decode(errors="replace"))


@router.get("/tokenizer_info", responses=documented_errors(401, 503))
async def tokenizer_info(service: ServiceOf) -> dict[str, Any]:
    """What a checkpoint's tokenizer_config.json says of this tokenizer."""
    info = service.engine.info
    return tokenizer_config(info.eos, info.context)


async def _accept(request: Request, service: Service, schema: type[Asked]) -> Asked:
    with noting_refusals(request, service):
        asked = await read(request, service.settings, schema)
        check_id(request)
        check_model(asked.model, service.engine.info, service.settings)
    return asked
