"""One request's choices in the engine, from the event loop's side: what arrives, who reads it.

The engine's thread hands over events; the event loop collects or streams them.  Knows nothing of
what they look like on the wire.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import chain

from starlette.types import Receive

from server.errors import ApiError, EngineError, Unavailable
from server.mailbox import Mailbox
from server.messages import Event, Failed, Finished, Progress, joined

MOST_QUEUED = 256
"""Events of a choice that wait for a slow reader one by one."""

ChoiceEvent = tuple[int, Event]
"""A choice's index and an event of it."""


class Flight:
    """A request between its submission and the last event of its last choice.

    A reader that is slower than the engine finds its output in larger pieces: once more than
    `MOST_QUEUED` events a choice wait, their bytes are joined, and what waits then is at most that
    many records and the output itself, which the request's own max_tokens bounds.  The engine is
    never held up.  `observe` sees every event as it was, whether or not a client is left to read.
    """

    def __init__(
        self,
        choices: int,
        cancel: Callable[[int], None],
        observe: Callable[[int, Event], None],
        mailbox: Mailbox | None = None,
    ) -> None:
        self.choices = choices
        self._cancel = cancel
        self._observe = observe
        self._aloft = set(range(choices))
        self._urgent = asyncio.Event()
        """Nothing more will come, or nothing good."""
        self._mailbox = mailbox or Mailbox(asyncio.get_running_loop())
        self._queue: list[ChoiceEvent] = []
        self._most_queued = MOST_QUEUED * choices
        self._arrived = asyncio.Event()

    @property
    def landed(self) -> bool:
        """Nothing more will come."""
        return not self._aloft

    def receiver(self, choice: int) -> Callable[[Event], None]:
        """What the engine calls, on its own thread, with the events of one choice."""

        arrive = partial(self._arrive, choice)
        return partial(self._mailbox.post, arrive)

    def _arrive(self, choice: int, event: Event) -> None:
        if choice not in self._aloft:
            return  # it has been failed from this side
        if not isinstance(event, Progress):
            self._aloft.discard(choice)
            if not self._aloft or isinstance(event, Failed):
                self._urgent.set()
        self._queue.append((choice, event))
        if len(self._queue) > self._most_queued:
            self._queue = joined(self._queue)
        self._arrived.set()
        self._observe(choice, event)

    async def next_events(self, not_before: float | None = None) -> list[ChoiceEvent]:
        """What has arrived since the last call; waits until there is something.

        Of each choice any number of `Progress`, then one `Finished` or `Failed`, then nothing
        ever.  With `not_before`, a time of the loop's clock, output piles up until then, or until
        all choices have ended or one has failed, and comes as one `Progress` a choice.
        """
        await self._arrived.wait()
        if not_before is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(not_before):
                    await self._urgent.wait()
            self._queue = joined(self._queue)
        events, self._queue = self._queue, []
        self._arrived.clear()
        return events

    async def outcome(self) -> list[Finished]:
        """The end of each choice, with its whole output.  An error as soon as one has failed."""
        pieces: list[list[Progress]] = [[] for _ in range(self.choices)]
        ends: dict[int, Finished] = {}
        while len(ends) < self.choices:
            for choice, event in await self.next_events():
                if isinstance(event, Failed):
                    raise error_of(event)
                if isinstance(event, Finished):
                    ends[choice] = event
                else:
                    pieces[choice].append(event)
        return [_whole(parts, ends[choice]) for choice, parts in enumerate(pieces)]

    def cancel(self) -> None:
        """Ends the choices that have not ended: of the others, the id may be another's by now."""
        for choice in sorted(self._aloft):
            self._cancel(choice)

    def fail(self, message: str) -> None:
        """Ends the choices that have not ended with an error, whatever the engine does."""
        for choice in sorted(self._aloft):
            self._arrive(choice, Failed(message))

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


def error_of(failed: Failed) -> ApiError:
    if failed.cut_off:
        return Unavailable(failed.message, code="draining")
    return EngineError(failed.message)


def _whole(parts: list[Progress], end: Finished) -> Finished:
    """The end with what came before it."""
    every: list[Progress | Finished] = [*parts, end]
    return replace(
        end,
        output=b"".join(part.output for part in every),
        logprobs=tuple(chain.from_iterable(part.logprobs for part in every)),
    )
