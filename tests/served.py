"""`python tests/served.py FLAGS`: the server with an engine that takes as long as it is told.

A prompt is the number of seconds between its output and its end.
"""

import sys
import time
from collections.abc import Iterator

from fake_engine import FakeEngine, finished

from server.logs import configure
from server.messages import Event, Progress, Submission
from server.process import serve
from server.settings import read_settings


def script(submission: Submission) -> Iterator[Event]:
    yield Progress(b"begun")
    time.sleep(float(submission.prompt))
    yield finished(5)


if __name__ == "__main__":
    settings = read_settings()
    configure(settings)
    sys.exit(serve(settings, lambda _: FakeEngine(script)))
