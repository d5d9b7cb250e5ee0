"""The application: routes, error handlers and a service, for as long as the server runs."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from server import openai_routes, tokenizer_routes
from server.access import KeyGuard
from server.cors import OtherOrigins
from server.deadline import ReadDeadline
from server.engine_like import EngineLike
from server.errors import install_handlers
from server.head import HeadAsGet
from server.last_resort import LastResort
from server.openapi import complete
from server.request_id import RequestIds
from server.routes import router
from server.service import Service
from server.settings import Settings

_DOCS = "/docs"
_OPEN = {"/health", "/ready", _DOCS, "/openapi.json"}
"""Paths that want no key: a browser cannot send one for a page, and what they say is no secret."""


def create_app(settings: Settings, load: Callable[[Settings], EngineLike]) -> FastAPI:
    """An app that answers at once and is ready when `load`, on a thread, has returned."""
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(service.start(load))
        yield
        await starting
        await service.stop()

    app = FastAPIOffline(
        # not ReDoc: its footer comes from elsewhere
        docs_url=_DOCS,
        redoc_url=None,
        static_url=f"{_DOCS}/files",
        # Swagger's own would be asked whether the document is valid
        swagger_ui_parameters={"validatorUrl": None},
        title="specdec",
        description="Byte-level language models, with lossless speculative decoding.",
        version=version("specdec"),
        lifespan=lifespan,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name.strip("_"),
    )
    app.state.service = service
    app.include_router(router)
    app.include_router(openai_routes.router)
    app.include_router(tokenizer_routes.router)
    install_handlers(app)
    # each is around those above it
    app.add_middleware(ReadDeadline, seconds=settings.client_seconds)
    app.add_middleware(LastResort)
    app.add_middleware(HeadAsGet)
    keys = settings.all_keys
    open_paths = _OPEN | ({"/metrics"} if settings.open_metrics else set())

    def is_open(path: str) -> bool:
        return path in open_paths or path.startswith(f"{_DOCS}/")

    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = complete(describe(), bool(keys), is_open)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    if keys:
        app.add_middleware(KeyGuard, keys=keys, is_open=is_open, refused=service.refused)
    if settings.cors_origins:
        # around the guard: a browser asks without a key whether it may ask with one
        app.add_middleware(OtherOrigins, origins=settings.cors_origins)
    app.add_middleware(RequestIds)
    return app
