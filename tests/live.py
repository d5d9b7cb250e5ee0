"""Servers on sockets of this machine, for clients that want one."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import httpx
import uvicorn
from fastapi import FastAPI
from patience import PATIENCE_S, eventually


@contextmanager
def live(app: FastAPI) -> Iterator[str]:
    """The address of the app while it runs, ready, on a thread of its own."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url)
        yield url
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
    assert not thread.is_alive()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(
    url: str,
    trust: ssl.SSLContext | bool = True,
    alive: Callable[[], bool] = lambda: True,
) -> None:
    """Until the server is ready."""

    def ready() -> bool:
        assert alive(), f"{url} has ended before it was ready"
        with suppress(httpx.TransportError):
            return httpx.get(f"{url}/ready", verify=trust).status_code == 200
        return False

    eventually(ready)
