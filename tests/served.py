"""`python tests/served.py FLAGS`: the server with an engine that takes as long as it is told.

A prompt is the number of seconds between its output and its end; of "die" the engine dies.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import replace

from fake_engine import FakeEngine, finished

from server.logs import configure
from server.messages import Event, Failed, Progress, Submission
from server.process import serve
from server.settings import read_settings


def script(submission: Submission) -> Iterator[Event]:
    yield Progress(b"begun")
    if submission.prompt == b"die":
        engine.now = replace(engine.now, alive=False)
        yield Failed("the engine has died")
        return
    time.sleep(float(submission.prompt))
    yield finished(5)


engine = FakeEngine(script)

if __name__ == "__main__":
    settings = read_settings()
    configure(settings)
    sys.exit(serve(settings, lambda _: engine))
