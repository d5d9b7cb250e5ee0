"""The way back: events from the engine's thread to the event loop, and from there to a client.

A `Flight` is one request between its submission and its last event.  Text goes out through an
incremental decoder, which holds back at most the 3 bytes of a character that is not complete.
"""

import asyncio
import base64
import codecs
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from server.answers import answer_to
from server.errors import EngineError
from server.messages import EngineInfo, Event, Failed, Progress, Submission


class Flight:
    """`deliver` belongs to the engine's thread, all else to the event loop that made the flight.

    `observe` sees every event, whether or not a client is left to read it.
    """

    def __init__(self, cancel: Callable[[], None], observe: Callable[[Event], None]) -> None:
        self._cancel = cancel
        self._observe = observe
        self._landed = False
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event] = asyncio.Queue()

    def deliver(self, event: Event) -> None:
        # a closed loop raises RuntimeError: nobody is left to tell
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._arrive, event)

    def _arrive(self, event: Event) -> None:
        self._landed = not isinstance(event, Progress)
        self._queue.put_nowait(event)
        self._observe(event)

    async def next_event(self) -> Event:
        """Any number of `Progress`, then one `Finished` or `Failed`, then nothing ever."""
        return await self._queue.get()

    def cancel(self) -> None:
        """Ends the request, unless it has ended: its id may be another's by now."""
        if not self._landed:
            self._cancel()

    @asynccontextmanager
    async def cancelled_without_client(self, receive: Receive) -> AsyncIterator[None]:
        """Within, the client's going away cancels; leaving early, for whatever reason, does too."""

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.cancel()

        watcher = asyncio.create_task(watch())
        try:
            yield
        finally:
            watcher.cancel()
            self.cancel()


class OutputEncoder:
    """Pieces of output as `text` and `bytes` that add up to the whole of each."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def encode(self, output: bytes, final: bool = False) -> dict[str, object]:
        return {
            "text": self._decoder.decode(output, final),
            "bytes": base64.b64encode(output).decode(),
        }


def server_sent_event(data: dict[str, object]) -> bytes:
    """One event on the wire; JSON in ASCII has no line ends that could break it."""
    return f"data: {json.dumps(data)}\n\n".encode("ascii")


class EventStream(StreamingResponse):
    """An event for each `Progress`; the last is the answer, with what output was left to send."""

    media_type = "text/event-stream"

    def __init__(
        self, flight: Flight, submission: Submission, info: EngineInfo, headers: dict[str, str]
    ) -> None:
        self._flight = flight
        self._submission = submission
        self._info = info
        # proxies that collect a response before they pass it on would undo the streaming
        unbuffered = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self._pieces(), headers={**headers, **unbuffered})

    async def _pieces(self) -> AsyncIterator[bytes]:
        encoder = OutputEncoder()
        output = bytearray()
        while isinstance(event := await self._flight.next_event(), Progress):
            output += event.output
            yield server_sent_event(encoder.encode(event.output))
        if isinstance(event, Failed):
            yield server_sent_event(EngineError(event.message).envelope)
            return
        answer = answer_to(self._submission, self._info, event, bytes(output) + event.output)
        rest = encoder.encode(event.output, final=True)
        yield server_sent_event({**answer.model_dump(mode="json"), **rest})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # starlette's own watch depends on the server's ASGI version, and may see a client go only
        # when there is something to send
        async with self._flight.cancelled_without_client(receive):
            await self.stream_response(send)
