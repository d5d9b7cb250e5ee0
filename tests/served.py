"""`python tests/served.py FLAGS`: the server with an engine that ends requests when it is told.

The prompt "hold" has its output at once and its end when standard input is closed; of "die" the
engine dies; others end at once.
"""

import sys
import threading
from collections.abc import Iterator
from dataclasses import replace

from fake_engine import FakeEngine, finished

from server.logs import configure
from server.messages import Event, Failed, Progress, Submission
from server.process import serve
from server.settings import read_settings

released = threading.Event()


def script(submission: Submission) -> Iterator[Event]:
    yield Progress(b"begun")
    if submission.prompt == b"die":
        engine.now = replace(engine.now, alive=False)
        yield Failed("the engine has died")
        return
    if submission.prompt == b"hold":
        released.wait()
    yield finished(5)


def read_to_end() -> None:
    sys.stdin.read()
    released.set()


engine = FakeEngine(script)

if __name__ == "__main__":
    threading.Thread(target=read_to_end, daemon=True).start()
    settings = read_settings()
    configure(settings)
    sys.exit(serve(settings, lambda _: engine))
