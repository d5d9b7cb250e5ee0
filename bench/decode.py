"""`python -m bench.decode`: base against speculative decoding, in one process.

Same weights, prompts, seeds and lengths on both sides; the two are interleaved, pair by pair, and
their outputs compared in the same run.  Ratios are medians over pairs.  Prompts come from
documents that the shipped model was not trained on, prose and code apart.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch

from bench.report import Record, machine, quartiles, write_json
from specdec.build import Model, build_decoder
from specdec.checkpoint import load_model, load_prophet
from specdec.decoder import Decoder, Job, Output, generate
from specdec.graph_round import GraphRounds
from specdec.invariance import measure_invariance
from specdec.native_stack import NativeModel
from specdec.sampling import SamplingParams

PROMPTS = Path(__file__).parent / "prompts"


@dataclass
class Timed:
    """One side of a pair."""

    seconds: float
    outputs: list[Output]


def load_prompts(domain: str) -> list[bytes]:
    record = json.loads((PROMPTS / f"{domain}.json").read_text(encoding="utf-8"))
    return [text.encode() for text in record["prompts"]]


def _timed(decoder: Decoder[Model], jobs: list[Job], p_min: float) -> Timed:
    if decoder.device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    outputs = generate(decoder, jobs, p_min=p_min)
    if decoder.device.type == "cuda":
        torch.cuda.synchronize()
    return Timed(time.perf_counter() - began, outputs)


def measure(
    decoder: Decoder[Model],
    prompts: list[bytes],
    *,
    batch: int,
    tokens: int,
    temperature: float,
    draft_length: int,
    p_min: float,
    repeats: int,
) -> dict[str, object]:
    """Interleaved pairs of base and speculative runs over batches of prompts."""
    params = SamplingParams(temperature=temperature)
    ratios, base_speed, fast_speed = [], [], []
    rounds = drafted = accepted = emitted = differing = 0
    per_position = [0] * draft_length
    for repeat in range(repeats):
        chosen = [prompts[(repeat * batch + i) % len(prompts)] for i in range(batch)]
        base = [Job(p, tokens, params, seed=repeat * batch + i) for i, p in enumerate(chosen)]
        fast = [replace(job, draft_length=draft_length) for job in base]
        # who goes first alternates, so that neither always meets the warmer machine
        if repeat % 2:
            speculative, plain = _timed(decoder, fast, p_min), _timed(decoder, base, p_min)
        else:
            plain, speculative = _timed(decoder, base, p_min), _timed(decoder, fast, p_min)
        ratios.append(plain.seconds / speculative.seconds)
        base_speed.append(batch * tokens / plain.seconds)
        fast_speed.append(batch * tokens / speculative.seconds)
        for a, b in zip(plain.outputs, speculative.outputs, strict=True):
            differing += a.output != b.output
            rounds += b.rounds
            drafted += b.drafted
            accepted += b.accepted
            emitted += len(b.output)
            for tried in (each for result in b.results for each in result.rounds):
                for position in range(tried.accepted):
                    per_position[position] += 1
    return {
        "batch": batch,
        "temperature": temperature,
        "draft_length": draft_length,
        "p_min": p_min,
        "pairs": repeats,
        "tokens": tokens,
        "differing_outputs": differing,
        "ratio": [round(x, 3) for x in quartiles(ratios)],
        "base_bytes_per_second": round(quartiles(base_speed)[1], 1),
        "speculative_bytes_per_second": round(quartiles(fast_speed)[1], 1),
        "mean_bytes_per_round": round(emitted / rounds, 3),
        "acceptance": round(accepted / max(1, drafted), 3),
        "accepted_per_position": [round(count / rounds, 3) for count in per_position],
    }


def costs(decoder: Decoder[Model], draft_length: int, repeats: int = 60) -> dict[str, float]:
    """Milliseconds of a base round, a speculative round and the verifying pass alone, batch 1."""
    model = decoder.model
    place = torch.arange(200, 201 + draft_length, device=decoder.device)
    tokens, slot = torch.full_like(place, 101), torch.zeros_like(place)
    samples: dict[str, list[float]] = {"base_round": [], "speculative_round": [], "verify": []}
    job = Job(b"x" * 100, decoder.context - 100, SamplingParams(), 1)
    for index, drafts in enumerate((0, draft_length)):
        decoder.open(index, replace(job, draft_length=drafts))
    decoder.step({}, {0: 99, 1: 99})
    for _ in range(repeats):
        for index, name in enumerate(("base_round", "speculative_round")):
            began = time.perf_counter()
            decoder.step({index: index * draft_length})
            samples[name].append(time.perf_counter() - began)
        began = time.perf_counter()
        model.forward(tokens, slot, place, place, ((1, draft_length + 1),))
        if decoder.device.type == "cuda":
            torch.cuda.synchronize()
        samples["verify"].append(time.perf_counter() - began)
    decoder.close(0)
    decoder.close(1)
    result = {name: round(quartiles(values)[1] * 1e3, 3) for name, values in samples.items()}
    result["draft_and_accept"] = round(result["speculative_round"] - result["verify"], 3)
    return result


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.decode", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/default"))
    parser.add_argument("--prophet", type=Path, help="a directory with another prophet")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32", "float64"])
    parser.add_argument("--kernels", default="auto", choices=["auto", "native", "cuda", "torch"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--domain", nargs="+", default=["code", "prose"])
    parser.add_argument("--draft-length", type=int, nargs="+", default=[5])
    parser.add_argument(
        "--p-min",
        type=float,
        nargs="+",
        default=[0.0],
        help="omit drafts that, with all before them, are less likely to be kept",
    )
    parser.add_argument("--tokens", type=int, default=256, help="bytes generated per prompt")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)

    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    model, directory = load_model(options.checkpoint), options.prophet or options.checkpoint
    prophet = load_prophet(directory, model_directory=options.checkpoint)
    if prophet is None:
        print(f"error: {directory} has no prophet", file=sys.stderr)
        return 1
    decoder = build_decoder(
        model,
        prophet,
        slots=max(2, *options.batch),  # `costs` takes two
        device=device,
        dtype=dtype,
        kernels=options.kernels,
        draft_lengths=options.draft_length,
    )
    if isinstance(decoder.model, NativeModel):
        torch.set_num_threads(1)  # as the server does: the core has threads of its own
    if isinstance(decoder.run_round, GraphRounds):
        decoder.run_round.prepare()
    exact = measure_invariance(decoder.model).exact
    header = {
        **machine(device),
        "checkpoint": options.checkpoint.name,
        "prophet": prophet.config.kind,
        "dtype": options.dtype,
        "kernels": type(decoder.model).__name__,
        "exactness": "exact" if exact else "fast",
        "milliseconds": {n: costs(decoder, n) for n in options.draft_length},
    }
    print(json.dumps(header))
    print("domain  batch  temp  γ p_min  base B/s  spec B/s  ratio [quartiles]  bytes/round differ")
    results, differing = [], 0
    for domain in options.domain:
        prompts = load_prompts(domain)
        for batch in options.batch:
            for temperature in options.temperature:
                for draft_length, p_min in product(options.draft_length, options.p_min):
                    row = measure(
                        decoder,
                        prompts,
                        batch=batch,
                        tokens=options.tokens,
                        temperature=temperature,
                        draft_length=draft_length,
                        p_min=p_min,
                        repeats=options.pairs,
                    )
                    results.append({"domain": domain, **row})
                    differing += int(str(row["differing_outputs"]))
                    print(_line(domain, row))
    if options.json:
        write_json(options.json, {**header, "results": results})
    if exact and differing:
        print(f"error: {differing} outputs differ in the exact grade", file=sys.stderr)
        return 1
    return 0


def _line(domain: str, row: Record) -> str:
    low, middle, high = row["ratio"]
    return (
        f"{domain:6} {row['batch']:6} {row['temperature']:5} {row['draft_length']:2} "
        f"{row['p_min']:5} {row['base_bytes_per_second']:10} "
        f"{row['speculative_bytes_per_second']:9} {middle:7.2f} [{low:.2f}, {high:.2f}] "
        f"{row['mean_bytes_per_round']:12} "
        f"{row['differing_outputs']:9}   accepted by position {row['accepted_per_position']}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
