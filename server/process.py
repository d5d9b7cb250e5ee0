"""The server as a process: uvicorn around the app, signals, an end in order.

Told to stop (SIGTERM, SIGINT), the service refuses new requests and finishes those it has, while
the socket stays open, so that /ready can say so; then uvicorn ends.  Told again, or while the
engine's process is loading, it ends at once.  It ends by itself where the engine has died: whoever
restarts processes sees that, who looks at /health or not.
"""

import asyncio
import logging
import math
import multiprocessing
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI

from server.app import create_app
from server.connection import MOST_HEAD_BYTES, Connection
from server.connections import Connections, most_connections
from server.engine_like import EngineLike
from server.listening import listen, shown
from server.memory import spare_collector
from server.service import Service
from server.settings import Settings

LAST_WORDS_S = 5
"""How long clients have to read what was answered before the server was told to stop."""

GLANCE_S = 0.5
"""How often it is looked whether the engine lives."""

logger = logging.getLogger(__name__)


def serve(settings: Settings, load: Callable[[Settings], EngineLike]) -> int:
    """Serves until told to stop; the process's exit status, 0 if all that was begun was finished.

    1 if requests were cut off, the engine died, or the model cannot be loaded, unless told to stop
    meanwhile; 2 for an address, a certificate or a number of connections that cannot be.
    """
    failed = False

    def load_or_end(settings: Settings) -> EngineLike:
        nonlocal failed
        try:
            engine = load(settings)
        except Exception:
            # the app logs the reason; a server without a model is of no use
            failed = not app.state.service.draining
            server.should_exit = True
            raise
        spare_collector()
        return engine

    app = create_app(settings, load_or_end)
    try:
        config = configured(app, settings)
    except ValueError as error:
        print(f"python -m server: error: {error}", file=sys.stderr)
        return 2
    server = DrainingServer(config, app.state.service)
    try:
        sockets = listen(settings.host, settings.port, config.backlog)
    except OSError as error:
        print(f"python -m server: error: --host, --port: {error}", file=sys.stderr)
        return 2
    scheme = "https" if settings.ssl_certfile else "http"
    for each in sockets:
        logger.info("listening on %s://%s", scheme, shown(each.getsockname()))
    try:
        server.run(sockets)
    finally:
        for each in sockets:
            each.close()
    return 1 if failed or server.bereft or not server.drained else 0


def configured(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """uvicorn's configuration, loaded.  ValueError that names the flag for what cannot be."""
    try:
        most = most_connections(settings.max_connections)
    except ValueError as error:
        raise ValueError(f"--max-connections: {error}") from None
    connection = partial(
        Connection, Connections(most), settings.client_seconds, app.state.service.refused
    )
    config = uvicorn.Config(
        app,
        http=cast(Any, connection),
        ws="none",
        h11_max_incomplete_event_size=MOST_HEAD_BYTES,
        backlog=max(16, min(1024, most // 2)),
        log_level=settings.log_level,
        log_config=None,  # the root logger's format for all
        access_log=False,  # the app tells what became of requests
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
        timeout_graceful_shutdown=LAST_WORDS_S,
    )
    try:
        config.load()
    except OSError as error:
        raise ValueError(f"--ssl-certfile, --ssl-keyfile: {error}") from None
    logger.info("at most %d connections", most)
    return config


class DrainingServer(uvicorn.Server):
    """uvicorn that lets a service drain before it stops listening, and ends with its engine."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.drained = True
        """Whether every request has ended by itself."""
        self.bereft = False
        """Whether the engine died."""
        self._service = service
        self._told = asyncio.Event()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(each) for each in (self._drain(), self._watch())]
        try:
            await super().serve(sockets)
        finally:
            for task in tasks:
                task.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn's own would close the socket at once and end the process by the signal."""
        if self._service.draining:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self._service.draining = True
        self._loop.call_soon_threadsafe(self._told.set)

    async def _watch(self) -> None:
        while not (self._service.draining or self.should_exit):
            if self._service.bereft:
                logger.error("the engine has died; the server ends")
                self.bereft = self.should_exit = True
            await asyncio.sleep(GLANCE_S)

    async def _drain(self) -> None:
        await self._told.wait()
        logger.info("told to stop; waiting for the requests in flight")
        while self._service.loading:
            for process in multiprocessing.active_children():  # the engine's, which has no request
                process.kill()
            await asyncio.sleep(0.1)  # it may not have been there yet
        began = self._loop.time()
        self.drained = await self._service.drain()
        left_s = self._service.settings.drain_seconds - (self._loop.time() - began)
        self.config.timeout_graceful_shutdown = max(LAST_WORDS_S, math.ceil(left_s))
        self.should_exit = True
