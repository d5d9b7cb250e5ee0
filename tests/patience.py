"""How tests wait for what is sure to come: however long a slow or busy machine takes for it.

Nothing here takes longer than it must.  A test that has to wait for what must not come has no use
for these; it makes sure by a gate, or a clock of its own, that it would have come.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

PATIENCE_S = 900.0
"""Nothing takes so long but a fault, were a processor shared by twenty."""


def eventually(condition: Callable[[], Value]) -> Value:
    """What the condition gives once that is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, "what was waited for has not come"
        time.sleep(0.005)
    return value


async def until(condition: Callable[[], object]) -> None:
    """The same on an event loop, which goes on meanwhile."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


def wait_until_set(event: threading.Event) -> None:
    assert event.wait(PATIENCE_S), "what was waited for has not come"
