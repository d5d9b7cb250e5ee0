"""The application: routes, error handlers and a service, for as long as the server runs."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from server import openai_routes
from server.access import KeyGuard
from server.deadline import ReadDeadline
from server.engine_like import EngineLike
from server.errors import REQUEST_ID, install_handlers
from server.head import HeadAsGet
from server.last_resort import LastResort
from server.openapi import document_keys
from server.request_id import RequestIds
from server.routes import router
from server.service import Service
from server.settings import Settings


def create_app(settings: Settings, load: Callable[[Settings], EngineLike]) -> FastAPI:
    """An app that answers at once and is ready when `load`, on a thread, has returned."""
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(service.start(load))
        yield
        await starting
        await service.stop()

    app = FastAPI(
        title="specdec",
        description="Byte-level language models, with lossless speculative decoding.",
        version=version("specdec"),
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.openapi_version = "3.2.0"  # the first that describes the events of a stream
    app.state.service = service
    app.include_router(router)
    app.include_router(openai_routes.router)
    install_handlers(app)
    # each is around those above it
    app.add_middleware(ReadDeadline, seconds=settings.client_seconds)
    app.add_middleware(LastResort)
    app.add_middleware(HeadAsGet)
    keys = settings.all_keys
    if keys:
        open_paths = ("/health", "/ready", *(("/metrics",) if settings.open_metrics else ()))
        app.add_middleware(KeyGuard, keys=keys, open_paths=open_paths, refused=service.refused)
        document_keys(app.openapi(), open_paths)
    if settings.cors_origins:
        # around the guard: a browser asks without a key whether it may ask with one
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("Authorization", "Content-Type", REQUEST_ID),
            expose_headers=(REQUEST_ID, "Retry-After"),
        )
    app.add_middleware(RequestIds)
    return app
