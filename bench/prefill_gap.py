"""`python -m bench.prefill_gap`: how long a long prompt keeps running streams waiting.

Eight streams decode in an engine; a prompt of 2,000 bytes arrives among them.  The longest gap
between two bytes of a running stream while it is consumed, beside the median gap before and the
cost of the prompt's last chunk alone.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

import torch

from bench.report import machine, quartiles, write_json
from bench.served import random_checkpoint
from server.engine import Engine
from server.loading import load_engine
from server.messages import Event, Finished, Mode, Progress, Submission
from server.settings import Settings
from specdec.build import build_decoder
from specdec.checkpoint import load_model
from specdec.decoder import LONGEST_CHUNK, Job
from specdec.sampling import SamplingParams

STREAMS = 8
PROMPT = b"a long prompt, consumed in chunks. " * 58
CONTEXT = 4096


def submission(name: str, prompt: bytes, tokens: int) -> Submission:
    return Submission(name, prompt, tokens, SamplingParams(), 1, Mode.BASE, 0, None)


def gaps(engine: Engine, before: int, turns: int) -> tuple[list[float], list[float]]:
    """Seconds between bytes of the running streams: without the long prompt, and the longest of
    each turn with it."""
    times: list[float] = []
    first = threading.Event()

    def running(event: Event) -> None:
        if isinstance(event, Progress):
            times.append(time.perf_counter())
            first.set()

    for index in range(STREAMS):
        receiver = running if not index else lambda event: None
        engine.submit(submission(f"stream {index}", b"x", CONTEXT - 1), receiver)
    first.wait()
    while len(times) < before:
        time.sleep(0.01)
    quiet = [b - a for a, b in pairwise(times)]
    longest = []
    for turn in range(turns):
        done, start = threading.Event(), len(times)

        def arrived(event: Event, done: threading.Event = done) -> None:
            if isinstance(event, Finished):
                done.set()

        engine.submit(submission(f"long {turn}", PROMPT, 1), arrived)
        done.wait()
        seen = times[start - 1 :]
        longest.append(max(b - a for a, b in pairwise(seen)))
    engine.stop()
    return quiet, longest


def last_chunk(checkpoint: Path, turns: int) -> float:
    """Seconds of the round that consumes the prompt's last whole chunk, and nothing else."""
    decoder = build_decoder(
        load_model(checkpoint),
        None,
        slots=1,
        context=CONTEXT,
        device=torch.device("cpu"),
        dtype=torch.bfloat16,
    )
    seconds = []
    for _ in range(turns):
        decoder.open(0, Job(PROMPT, 1))
        while (left := decoder.to_prefill(0)) >= LONGEST_CHUNK:
            began = time.perf_counter()
            decoder.step({}, {0: min(LONGEST_CHUNK, left)})
            last = time.perf_counter() - began
        decoder.close(0)
        seconds.append(last)
    return quartiles(seconds)[1]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.prefill_gap", description=__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=10)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = random_checkpoint(Path(directory), options.width, options.depth, CONTEXT)
        engines: list[Engine] = []
        chosen = Settings(
            _cli_parse_args=False,  # type: ignore[call-arg]
            checkpoint=checkpoint,
            device="cpu",
            max_batch=STREAMS + 1,
        )
        # on a thread that ends, as the server loads
        loader = threading.Thread(target=lambda: engines.append(load_engine(chosen)))
        loader.start()
        loader.join()
        quiet, longest = gaps(engines[0], 60, options.turns)
        chunk = last_chunk(checkpoint, options.turns)
    record = {
        **machine(torch.device("cpu")),
        "prompt_bytes": len(PROMPT),
        "gap_without_ms": round(quartiles(quiet)[1] * 1e3, 2),
        "longest_gap_ms": [round(x * 1e3, 1) for x in longest],
        "last_chunk_alone_ms": round(chunk * 1e3, 1),
        "longest_gap_in_chunks": round(max(longest) / chunk, 2),
    }
    print(json.dumps(record))
    if options.json:
        write_json(options.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
