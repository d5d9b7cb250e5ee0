"""Times that a test sets: of a decoder's rounds on the engine's clock, and of an event loop."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from specdec.decoder import Decoder
from specdec.round import Seconds

Value = TypeVar("Value")


def set_times(
    patch: pytest.MonkeyPatch, decoder: Decoder[Any], seconds: Callable[[int], float]
) -> None:
    """By the engine's clock a round of so many drafts takes `seconds` of them, and nothing else
    takes any time."""
    now = 1000.0
    whole = decoder.begin

    def begin(*arguments: Any) -> Any:
        begun = whole(*arguments)

        def read() -> Any:
            nonlocal now
            results = begun.read()
            tries = [result.rounds for result in results.values()]
            widest = [0] * begun.rounds
            for row in tries:
                for index, tried in enumerate(row):
                    widest[index] = max(widest[index], tried.wanted)
            elapsed = tuple(seconds(drafts) for drafts in widest[: max(map(len, tries), default=1)])
            if decoder.elapsed:
                decoder.elapsed = elapsed
            decoder.seconds = Seconds(verify=sum(elapsed))
            now += sum(elapsed)
            return results

        return replace(begun, read=read)

    decoder.begin = begin  # type: ignore[method-assign]
    patch.setattr("server.engine.time", SimpleNamespace(monotonic=lambda: now))


class EagerLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock goes on to the next timer once nothing else is to be done.

    Not for what other threads do: it does not wait for them.
    """

    def __init__(self) -> None:
        self._now = 0.0
        selector = selectors.DefaultSelector()
        look = selector.select

        def select(timeout: float | None = None) -> Any:
            assert timeout is not None, "nothing will ever happen"
            self._now += max(0.0, timeout)
            return look(0)

        selector.select = select  # type: ignore[method-assign]
        super().__init__(selector)

    def time(self) -> float:
        return self._now


def run_eagerly(work: Coroutine[Any, Any, Value]) -> Value:
    with asyncio.Runner(loop_factory=EagerLoop) as runner:
        return runner.run(work)
