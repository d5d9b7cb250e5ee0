"""`python -m bench.cuda`: decoding on a GPU, against itself, its limits and transformers.

In one process: plain decoding at each batch size, and of an engine with requests of 64 bytes and
128 more that come and go; speculative decoding beside it, in interleaved
pairs with outputs compared; kernels and time of a round by torch's profiler, inside the graph; the
share that streaming the weights once would take; the same rounds on torch's operations; and
`generate` of transformers with a static cache, compiled, on the same weights, where transformers is
installed.  Needs torch, Triton and prometheus-client, nothing of HTTP.
"""

import argparse
import importlib
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench.decode import load_prompts, measure
from bench.host import engine_speed
from bench.report import machine, quartiles, write_json
from bench.served import add_checkpoint, asked_checkpoint
from specdec.build import Model, build_decoder
from specdec.checkpoint import load_model, load_prophet
from specdec.decoder import Decoder, Job, generate, run_rounds
from specdec.graph_round import GraphRounds
from specdec.invariance import measure_invariance
from specdec.sampling import SamplingParams

COPIES = 50
"""In a row, where the copy of a buffer is timed."""


def bandwidth(size: int, device: torch.device) -> float:
    """Bytes a second that a copy of `size` bytes moves, again and again, as decoding reads weights:
    what the last-level cache holds of them is read from there by both."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    times = []
    for turn in range(15):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(COPIES):  # one by itself takes as long to launch
            target.copy_(source)
        end.record()
        end.synchronize()
        if turn >= 5:
            times.append(begin.elapsed_time(end) / 1e3 / COPIES)
    return 2 * size / quartiles(times)[1]


def base_speed(decoder: Decoder[Model], prompts: list[bytes], batch: int, tokens: int) -> float:
    """Bytes a second of plain decoding, prompts consumed before; median of five."""
    speeds = []
    for repeat in range(5):
        params = SamplingParams(temperature=1.0)
        for slot in range(batch):
            prompt = prompts[(repeat + slot) % len(prompts)]
            decoder.open(slot, Job(prompt, tokens, params, seed=slot))
            while size := min(128, decoder.to_prefill(slot)):
                decoder.step({}, {slot: size})
        rows = dict.fromkeys(range(batch), 0)
        torch.cuda.synchronize()
        began = time.perf_counter()
        list(run_rounds(decoder, rows, tokens))
        speeds.append(batch * tokens / (time.perf_counter() - began))
        for slot in range(batch):
            decoder.close(slot)
    return quartiles(speeds)[1]


def profiled(decoder: Decoder[Model], batch: int, gamma: int, rounds: int = 20) -> dict[str, Any]:
    """Kernels of a round and microseconds: on the device busy, and as the host waits for it."""
    room = (rounds + 4) * (gamma + 1)
    for slot in range(batch):
        params = SamplingParams(temperature=1.0)
        prompt = b"\n" * min(100, decoder.context - room)
        decoder.open(slot, Job(prompt, room, params, slot, gamma))
        while size := min(128, decoder.to_prefill(slot)):
            decoder.step({}, {slot: size})
    rows = dict.fromkeys(range(batch), gamma)
    for _ in range(3):
        decoder.step(rows)
    torch.cuda.synchronize()
    began = time.perf_counter()
    list(run_rounds(decoder, rows, rounds // 2))
    wall = (time.perf_counter() - began) / (rounds // 2)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        list(run_rounds(decoder, rows, rounds // 2))
        torch.cuda.synchronize()
    for slot in range(batch):
        decoder.close(slot)
    events = [event for event in profiler.events() if event.device_type.name == "CUDA"]
    return {
        "kernels": round(len(events) / (rounds // 2), 1),
        "busy_us": round(sum(e.time_range.elapsed_us() for e in events) / (rounds // 2), 1),
        "round_us": round(wall * 1e6, 1),
    }


def transformers_speed(
    checkpoint: Path, device: torch.device, batch: int, tokens: int
) -> float | None:
    """Bytes a second of `generate`, greedy, with a static cache and its compiled forward."""
    if importlib.util.find_spec("transformers") is None:
        return None
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    model = model.to(device).eval()
    prompt = torch.full((batch, 64), 101, device=device)
    options = {
        "max_new_tokens": tokens,
        "min_new_tokens": tokens,
        "do_sample": False,
        "cache_implementation": "static",
        "attention_mask": torch.ones_like(prompt),
        "pad_token_id": 0,
    }
    speeds = []
    for turn in range(6):
        torch.cuda.synchronize()
        began = time.perf_counter()
        with torch.no_grad():
            model.generate(prompt, **options)
        torch.cuda.synchronize()
        if turn >= 3:  # compiled by then
            speeds.append(batch * tokens / (time.perf_counter() - began))
    return quartiles(speeds)[1]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cuda", description=__doc__)
    add_checkpoint(parser)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 256])
    parser.add_argument("--draft-length", type=int, nargs="+", default=[3, 5, 8])
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("error: this torch finds no CUDA device", file=sys.stderr)
        return 1
    device = torch.device("cuda")
    with asked_checkpoint(options) as checkpoint:
        record, differing = _measured(options, checkpoint, device)
        if not options.no_transformers:
            _beside(record, options, checkpoint, device)
    print(json.dumps(record, indent=2))
    _print_table(record)
    if record["exactness"] == "exact" and differing:
        print(f"error: {differing} outputs differ in the exact grade", file=sys.stderr)
        return 1
    return 0


def _measured(
    options: argparse.Namespace, checkpoint: Path, device: torch.device
) -> tuple[dict[str, Any], int]:
    model = load_model(checkpoint)
    prophet = load_prophet(checkpoint, model_directory=checkpoint)
    prompts = load_prompts("code")
    settings: dict[str, Any] = {
        "slots": max(options.batch),
        "device": device,
        "dtype": torch.bfloat16,
        "context": min(1024, model.config.max_position_embeddings),
    }
    prompts = [prompt[: settings["context"] - options.tokens - 1] for prompt in prompts]
    lengths = options.draft_length if prophet else []
    decoder = build_decoder(model, prophet, kernels="cuda", draft_lengths=lengths, **settings)
    assert isinstance(decoder.run_round, GraphRounds)
    decoder.run_round.prepare()  # rows that end apart pass through many shapes
    exact = measure_invariance(decoder.model).exact
    size = sum(p.numel() for n, p in model.named_parameters() if "embedding" not in n) * 2
    speed = bandwidth(size, device)
    record: dict[str, Any] = {
        **machine(device),
        "triton": importlib.import_module("triton").__version__,
        "checkpoint": "random" if options.random else checkpoint.name,
        "prophet": prophet.config.kind if prophet else None,
        "exactness": "exact" if exact else "fast",
        "weights_mb": round(size / 1e6, 2),
        "bandwidth_gb_per_second": round(speed / 1e9, 1),
        "stream_us": round(size / speed * 1e6, 2),
        "batches": [],
        "speculative": [],
    }
    record["engine_bytes_per_second"] = round(engine_speed(decoder, turns=3))
    _keep(record, options)
    eager = build_decoder(model, prophet, kernels="torch", **settings)
    differing = 0
    for batch in options.batch:
        rounds = {n: profiled(decoder, batch, n) for n in (0, *lengths)}
        base = base_speed(decoder, prompts, batch, options.tokens)
        row = {
            "batch": batch,
            "base_bytes_per_second": round(base),
            "torch_bytes_per_second": round(base_speed(eager, prompts, batch, options.tokens)),
            "share_of_limit": round(size / speed / (batch / base), 3),
            "rounds": rounds,
        }
        record["batches"].append(row)
        _keep(record, options)
        for gamma in lengths:
            for temperature in (0.0, 1.0):
                # graphs that are captured when they are wanted must not be timed
                params = SamplingParams(temperature=temperature)
                for drafts in (0, gamma):
                    job = Job(prompts[0], 40, params, draft_length=drafts)
                    generate(decoder, [job] * batch)
                pair = measure(
                    decoder,
                    prompts,
                    batch=batch,
                    tokens=options.tokens,
                    temperature=temperature,
                    draft_length=gamma,
                    p_min=0.0,  # a graph makes all drafts
                    repeats=options.pairs,
                )
                record["speculative"].append(pair)
                _keep(record, options)
                differing += int(str(pair["differing_outputs"]))
    return record, differing


def _beside(
    record: dict[str, Any], options: argparse.Namespace, checkpoint: Path, device: torch.device
) -> None:
    """What transformers does of the same; last, for it compiles for minutes."""
    for row in record["batches"]:
        try:
            theirs = transformers_speed(checkpoint, device, row["batch"], options.tokens)
        except Exception as error:  # ours are worth keeping all the same
            print(f"transformers: {error}", file=sys.stderr)
            continue
        row["transformers_bytes_per_second"] = theirs and round(theirs)
        _keep(record, options)


def _keep(record: dict[str, Any], options: argparse.Namespace) -> None:
    """What there is so far: the run may be cut short."""
    if options.json:
        write_json(options.json, record)


def _print_table(record: dict[str, Any]) -> None:
    print(
        f"{record['weights_mb']} MB of weights stream in {record['stream_us']} µs "
        f"({record['bandwidth_gb_per_second']} GB/s); {record['exactness']}"
    )
    print(
        f"an engine of {max(row['batch'] for row in record['batches'])} slots, prompts included: "
        f"{record['engine_bytes_per_second']} bytes/s"
    )
    print("| batch | base, bytes/s | torch eager | transformers | share of the limit |")
    print("|---|---|---|---|---|")
    for row in record["batches"]:
        print(
            f"| {row['batch']} | {row['base_bytes_per_second']} | {row['torch_bytes_per_second']} "
            f"| {row.get('transformers_bytes_per_second')} | {row['share_of_limit']:.0%} |"
        )
    print("| batch | γ | kernels a round | device busy, µs | round, µs |\n|---|---|---|---|---|")
    for row in record["batches"]:
        for gamma, figures in row["rounds"].items():
            print(
                f"| {row['batch']} | {gamma} | {figures['kernels']} | {figures['busy_us']} "
                f"| {figures['round_us']} |"
            )
    print("| batch | temperature | γ | ratio [quartiles] | bytes per round | differing |")
    print("|---|---|---|---|---|---|")
    for pair in record["speculative"]:
        low, middle, high = pair["ratio"]
        print(
            f"| {pair['batch']} | {pair['temperature']} | {pair['draft_length']} "
            f"| {middle:.2f} [{low:.2f}, {high:.2f}] | {pair['mean_bytes_per_round']} "
            f"| {pair['differing_outputs']} |"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
