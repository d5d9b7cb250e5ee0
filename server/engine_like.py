"""What HTTP's side needs of an engine, wherever that runs."""

from typing import Protocol

from server.ledger import Figures
from server.messages import Deliver, EngineInfo, EngineStatus, Submission


class EngineLike(Protocol):
    """All but `info` may be called from any thread."""

    @property
    def info(self) -> EngineInfo: ...

    def submit(self, submission: Submission, deliver: Deliver) -> None:
        """Queues a request; its events are delivered on the engine's thread."""

    def cancel(self, request_id: str) -> None:
        """Ends a request; nothing happens if it is not in flight."""

    def status(self) -> EngineStatus: ...

    def figures(self) -> Figures:
        """What rounds took and gave; always from the same thread."""

    def stop(self) -> None:
        """Ends whatever is in flight and the engine's thread."""
