"""`python -m bench.table FILE ...`: what a bench wrote with `--json`, as the tables of
docs/benchmarks.md.

Which bench wrote a file is told by what it holds; `WRITE` names those that are known.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence

from bench.report import Record, named_records
from bench.side import HEADER, line


def decode(record: Record) -> str:
    """By domain, temperature, rows, draft length and how likely drafts must be; then what rounds
    take, in milliseconds."""
    several = len({result["batch"] for result in record["results"]}) > 1
    choosy = any(result.get("p_min") for result in record["results"])
    titles = ["domain", "T", *(["rows"] if several else []), "γ", *(["p_min"] if choosy else [])]
    titles += ["base, bytes/s"]
    titles += ["speculative, bytes/s", "ratio, median [quartiles]", "bytes per round"]
    rows = []
    for r in record["results"]:
        low, middle, high = r["ratio"]
        rows.append(
            [
                r["domain"],
                f"{r['temperature']:g}",
                *([r["batch"]] if several else []),
                r["draft_length"],
                *([f"{r['p_min']:g}"] if choosy else []),
                f"{r['base_bytes_per_second']:,.0f}",
                f"{r['speculative_bytes_per_second']:,.0f}",
                f"{middle:.2f} [{low:.2f}, {high:.2f}]",
                f"{r['mean_bytes_per_round']:.2f}",
            ]
        )
    parts = ("base_round", "speculative_round", "verify", "draft_and_accept")
    times = [
        [gamma, *(f"{ms[part]:.2f}" for part in parts)]
        for gamma, ms in record["milliseconds"].items()
    ]
    of_rounds = ["γ", "base round, ms", "speculative round", "verifying pass", "draft and accept"]
    return _table(titles, rows) + "\n" + _table(of_rounds, times)


def auto(record: Record) -> str:
    titles = ["domain", "T", "rows", "base, bytes/s", "auto, bytes/s", "ratio, median", "lower"]
    waits = "latency_ratio" in record["results"][0]
    titles += ["until its own end"] if waits else []
    titles += ["prophet alone", "lookup alone", "best fixed γ", "against that"]
    titles += ["base to no prophet", "lower"]
    rows = []
    for r in record["results"]:
        rate = r["bytes_per_second"]
        rows.append(
            [
                r["domain"],
                f"{r['temperature']:g}",
                r["batch"],
                f"{r['base_bytes_per_second']:,}",
                f"{r['auto_bytes_per_second']:,}",
                *(_ratio(r[name]) for name in ("ratio", "lower_95")),
                *([_ratio(r["latency_ratio"])] if waits else []),
                *(
                    _ratio(rate[alone] / rate["base"] if alone in rate else None)
                    for alone in ("prophet alone", "lookup alone")
                ),
                r["best_fixed"],
                _ratio(r["auto_to_best_fixed"]),
                *(_ratio(r[f"base_to_no_prophet{end}"]) for end in ("", "_lower_95")),
            ]
        )
    return _table(titles, rows)


def limit(record: Record) -> str:
    said = (
        f"{record['weights_mb']} MB of weights stream in {record['stream_ms']} ms "
        f"({record['stream_gb_per_second']} GB/s), a plain round takes "
        f"{record['plain_round_ms']:.2f} ms, {record['share_of_limit']:.0%} of the limit.\n\n"
    )
    rows = [
        [each["rows"], f"{each['apart_ms']:.2f}", f"{each['together_ms']:.2f}"]
        for each in record["passes"]
    ]
    return said + _table(["rows", "a slot each, ms", "one slot, ms"], rows)


def load(record: Record) -> str:
    """By clients, or by requests a second where they arrive whatever the server does."""
    levels = record["levels"]
    first = "clients" if "clients" in levels[0] else "rate"
    titles = ["clients" if first == "clients" else "requests/s", "requests", "bytes/s"]
    titles += ["first byte, ms: p50, p95, p99", "per byte, ms"]
    titles += ["errors", "differing", "slots free again"]
    rows = [
        [
            f"{level[first]:g}",
            level["requests"],
            f"{level['bytes_per_second']:,.0f}",
            *(_each(level[name]) for name in ("first_byte_ms", "per_byte_ms")),
            sum(level["errors"].values()),
            level["differing"],
            "yes" if level["slots_free_again"] else "no",
        ]
        for level in levels
    ]
    return _table(titles, rows)


def event_loop(record: Record) -> str:
    titles = ["streams", "rounds/s, engine alone", "over HTTP", "lost"]
    titles += ["event loop, share of a core", "client"]
    rows = [
        [
            name.removesuffix(" streams"),
            f"{each['engine_rounds_per_second']:,.0f}",
            f"{each['http_rounds_per_second']:,.0f}",
            f"{each['lost']:.0%}",
            f"{each['event_loop_cpu']:.2f}",
            f"{each['client_cpu']:.2f}",
        ]
        for name, each in record.items()
        if name.endswith(" streams")
    ]
    return _table(titles, rows)


def peers(record: Record) -> str:
    rows = (line(r["domain"], r["batch"], r) + "\n" for r in record["results"])
    return HEADER + "\n" + "".join(rows)


def throughput(record: Record) -> str:
    rows = [
        [
            name.removesuffix(" clients"),
            f"{each['server_bytes_per_second']:,.0f}",
            f"{each['transformers_bytes_per_second']:,.0f}",
        ]
        for name, each in record.items()
        if name.endswith(" clients")
    ]
    return _table(["clients", "server, bytes/s", "transformers, bytes/s"], rows)


def bits(record: Record) -> str:
    """By file and number format."""
    files: dict[str, dict[str, float]] = record["bits"]
    formats = list(next(iter(files.values())))
    rows = [
        [name.removesuffix(".valid.bin"), *(f"{of[each]:.4f}" for each in formats)]
        for name, of in files.items()
    ]
    return _table(["file", *formats], rows)


def host(record: Record) -> str:
    titles = ["rows", "rounds a call", "decoder, µs a round", "engine, bytes/s"]
    rows = [
        [
            each["rows"],
            each["rounds_a_call"],
            f"{each['decoder_us']:,.0f}",
            f"{each['engine_bytes_per_second']:,}",
        ]
        for each in record["host"]
    ]
    return _table(titles, rows)


WRITE: dict[str, Callable[[Record], str]] = {
    "decode": decode,
    "auto": auto,
    "limit": limit,
    "load": load,
    "event_loop": event_loop,
    "peers": peers,
    "throughput": throughput,
    "bits": bits,
    "host": host,
}


def _each(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = (" | ".join(str(cell) for cell in row) for row in (titles, *rows))
    head, *body = (f"| {line} |\n" for line in lines)
    return "".join([head, "|" + "---|" * len(titles) + "\n", *body])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__)
    for _, name, record in named_records(parser, arguments, WRITE):
        print(WRITE[name](record))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
