"""`python tests/paced.py FLAGS`: the server as it is, but for rounds that take a set time at least.

So how long requests are in flight does not hang on the machine, nor what pays to draft.  ROUND_MS
in the environment says how many milliseconds a round takes, 20 if it does not.
"""

import os
import sys
import time
from typing import Any
from unittest.mock import patch

from server.engine import Engine
from server.engine_process import EngineProcess
from server.loading import load_engine
from server.logs import configure
from server.process import serve
from server.round_costs import RoundCosts
from server.settings import Settings, read_settings
from specdec.decoder import Begun, Decoder

ROUND_S = float(os.environ.get("ROUND_MS", "20")) / 1000


def paced_engine(decoder: Decoder[Any], *arguments: Any) -> Engine:
    whole = decoder.begin

    def begin(*work: Any) -> Begun:
        begun = whole(*work)
        time.sleep(ROUND_S * begun.rounds)
        return begun

    decoder.begin = begin  # type: ignore[method-assign]
    return Engine(decoder, *arguments)


def costs(*measured: Any) -> RoundCosts:
    return RoundCosts({(rows, drafts): ROUND_S for rows in (1, 4) for drafts in (0, 4)})


def load(settings: Settings) -> Engine:
    with (
        patch("server.loading.Engine", paced_engine),
        patch("server.loading.measure_costs", costs),
    ):
        return load_engine(settings)


if __name__ == "__main__":
    settings = read_settings()
    configure(settings)
    sys.exit(serve(settings, lambda settings: EngineProcess(settings, load)))
