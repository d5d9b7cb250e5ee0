"""A client of the server that costs little: HTTP/1.1 over asyncio's own streams.

One connection per request, as an independent user would have.  Knows just what this server sends:
JSON with a length, or chunks of server-sent events.
"""

import asyncio
import json
import time
from base64 import b64decode
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Reply:
    """What came back; times are seconds since the request was sent.

    `output` holds the bytes that arrived, `arrivals` when each piece did and how long it was;
    `answer` the answer or its last event.  `dropped`: this client hung up on purpose.
    """

    status: int = 0
    output: bytes = b""
    answer: dict[str, Any] = field(default_factory=dict)
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    seconds: float = 0.0
    dropped: bool = False


async def ask(url: str, request: dict[str, Any], drop_after: int | None = None) -> Reply:
    """Posts to /generate; hangs up after so many events of a stream, if told to."""
    parts = urlsplit(url)
    body = json.dumps(request).encode()
    head = (
        f"POST /generate HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    reply = Reply()
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    began = time.perf_counter()
    try:
        writer.write(head.encode() + body)
        status, headers = await _head(reader)
        reply.status = status
        if headers.get("content-type", "").startswith("text/event-stream"):
            await _events(reader, reply, began, drop_after)
        else:
            reply.answer = json.loads(await reader.readexactly(int(headers["content-length"])))
            if status == 200:
                reply.output = b64decode(reply.answer["bytes"])
                reply.arrivals.append((time.perf_counter() - began, len(reply.output)))
    finally:
        reply.seconds = time.perf_counter() - began
        writer.close()
    return reply


async def get(url: str, path: str) -> bytes:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode()
        )
        _, headers = await _head(reader)
        return await reader.readexactly(int(headers["content-length"]))
    finally:
        writer.close()


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
    return int(lines[0].split()[1]), headers


async def _events(
    reader: asyncio.StreamReader, reply: Reply, began: float, drop_after: int | None
) -> None:
    seen = 0
    while size := int(await reader.readline(), 16):
        chunk = (await reader.readexactly(size + 2))[:-2]
        for line in chunk.split(b"\n\n"):
            if not line.startswith(b"data: "):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise ConnectionError(event["error"]["message"])
            piece = b64decode(event["bytes"])
            reply.output += piece
            if piece:
                reply.arrivals.append((time.perf_counter() - began, len(piece)))
            if "finish_reason" in event:
                reply.answer = event
            seen += 1
            if seen == drop_after and "finish_reason" not in event:
                reply.dropped = True
                return
