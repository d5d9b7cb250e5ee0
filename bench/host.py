"""`python -m bench.host`: what the host does about rounds of CUDA graphs, on a device that takes no
time.

Plain rows whose results are there as soon as they are begun, so that all that is measured is
Python: of the decoder by itself, and of the engine on its thread with requests that come and go.
By how many rounds a call begins; what the host takes is what a device must take for that it waits
for nobody.  Needs no GPU; says nothing of HTTP, nor of what launches cost.
"""

import argparse
import sys
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from bench.report import machine, quartiles, write_json
from server.engine import Engine
from server.messages import EngineInfo, Event, Exactness, Finished, Mode, Progress, Submission
from specdec.bursts import Bursts
from specdec.config import VOCAB_SIZE
from specdec.decoder import Decoder, Job, run_rounds
from specdec.graph_round import IDLE_SLOTS, GraphRounds, Work
from specdec.sampling import SamplingParams
from specdec.state import SlotState
from specdec.static_round import Decoded, TorchStaticRule

CPU = torch.device("cpu")
PROMPT, OUTPUT = 64, 128
"""Bytes of a request."""
ROUNDS, TURNS = 160, 5


class NoModel:
    """Whose passes are none."""

    def forward(self, tokens: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(tokens), 1), torch.zeros(len(tokens), VOCAB_SIZE)

    def copy(self, source: int, target: int, places: int) -> None:
        pass


class Instant:
    """A capture that is done at once: every row gets a byte."""

    def __call__(self, work: Work) -> Work:
        decoded = work()
        result = torch.zeros_like(decoded.result)
        result[:, -3] = 1
        given = Decoded(result, decoded.logits, decoded.chosen)
        return lambda: given

    def bytes_held(self) -> int:
        return 0


class Fixed(Bursts):
    """So many rounds a call, whatever they take."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def rounds(self, seconds: float | None, span_s: float) -> int:
        return self._count


def build(rows: int, burst: int) -> Decoder[Any]:
    state = SlotState(rows + IDLE_SLOTS, CPU, keeps_noise=False)
    model = NoModel()
    rounds = GraphRounds(
        model, None, state, TorchStaticRule, (), Instant(), bursts=lambda: Fixed(burst)
    )
    rounds.prepare()
    return Decoder(
        model,
        None,
        slots=rows,
        context=max(PROMPT + OUTPUT, (TURNS + 1) * ROUNDS),
        device=CPU,
        run_round=rounds,
        state=state,
        ahead=True,
    )


def decoder_seconds(rows: int, burst: int) -> float:
    """Of a round, in one call after another; the median."""
    decoder = build(rows, burst)
    for slot in range(rows):
        decoder.open(slot, Job(b"\n", (TURNS + 1) * ROUNDS - 1, SamplingParams(), slot))
    plain = dict.fromkeys(range(rows), 0)
    seconds = []
    for _ in range(TURNS):
        began = time.perf_counter()
        list(run_rounds(decoder, plain, ROUNDS))
        seconds.append((time.perf_counter() - began) / ROUNDS)
    return quartiles(seconds)[1]


def engine_speed(decoder: Decoder[Any], turns: int = TURNS) -> float:
    """Bytes a second of plain requests in an engine, twice as many as it has slots at a time, their
    prompts included; the median."""
    slots, ends = decoder.slots, SimpleQueue[Event]()
    info = EngineInfo("", "", "", Exactness.EXACT, decoder.context, slots, None, 0, 0, 0, 0, 0)
    engine = Engine(decoder, info)
    engine.start()
    speeds = []
    for turn in range(turns):
        began = time.perf_counter()
        for index in range(2 * slots):
            prompt = f"{turn} {index}".encode().ljust(PROMPT, b"\n")  # nobody's else
            params = SamplingParams(temperature=1.0)
            engine.submit(
                Submission(f"{index}", prompt, OUTPUT, params, index, Mode.BASE, 0, eos=None),
                lambda event: None if isinstance(event, Progress) else ends.put(event),
            )
        for _ in range(2 * slots):
            end = ends.get()
            if not isinstance(end, Finished) or end.completion_tokens != OUTPUT:
                raise RuntimeError(f"a request ended with {end}")
        speeds.append(2 * slots * OUTPUT / (time.perf_counter() - began))
    engine.stop()
    for slot in range(slots):
        decoder.close(slot)
    return quartiles(speeds)[1]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.host", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 2, 4, 8], help="of a call")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    record: dict[str, Any] = {**machine(CPU), "host": []}
    for rows in options.rows:
        for burst in options.rounds:
            each = {
                "rows": rows,
                "rounds_a_call": burst,
                "decoder_us": round(1e6 * decoder_seconds(rows, burst), 1),
                "engine_bytes_per_second": round(engine_speed(build(rows, burst))),
            }
            record["host"].append(each)
            print(each, flush=True)
    if options.json:
        write_json(options.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
