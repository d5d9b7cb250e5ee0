"""`python -m bench.plot FILE ...`: draws what a bench wrote with `--json`, a PNG beside each file.

What is drawn goes by what the file holds: `bench.decode` (ratios and bytes per round by draft
length, or ratios by rows), `bench.auto` (ratios and their lower bounds by rows), `bench.limit`
(passes by rows against the stream of weights), `bench.load` (throughput and first byte by clients).
"""

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.report import Record, named_records
from specdec.checkpoint_file import write_atomically


def decode(record: Record) -> Figure:
    results = record["results"]
    by = "batch" if len({r["batch"] for r in results}) > 1 else "draft_length"
    other = "draft_length" if by == "batch" else "batch"
    figure, axes = _panels(1 if by == "batch" else 2, _temperatures(results))
    for column, temperature in enumerate(_temperatures(results)):
        top, bottom = axes[0][column], axes[-1][column]
        top.set_title(f"temperature {temperature:g}")
        top.axhline(1, color="black", linewidth=0.8)
        for domain in _domains(results):
            for value, p_min in sorted({(r[other], r.get("p_min", 0)) for r in results}):
                kind = domain, temperature, value, p_min
                rows = [
                    r
                    for r in results
                    if (r["domain"], r["temperature"], r[other], r.get("p_min", 0)) == kind
                ]
                xs = [r[by] for r in rows]
                label = domain if by == "draft_length" else f"{domain}, γ = {value}"
                label += f", p_min {p_min:g}" if p_min else ""
                _spread(top, xs, [r["ratio"] for r in rows], label)
                if by == "draft_length":
                    bottom.plot(xs, [r["mean_bytes_per_round"] for r in rows], "o-", label=domain)
        bottom.set_xlabel("rows" if by == "batch" else "draft length γ")
        if by == "batch":
            _by_rows(bottom, [r["batch"] for r in results])
    axes[0][0].set_ylabel("speculative to base, bytes/s")
    if by == "draft_length":
        axes[1][0].set_ylabel("bytes per round")
    return figure


def auto(record: Record) -> Figure:
    """Lines are medians, shades reach down to the lower bounds."""
    results = record["results"]
    figure, axes = _panels(1, _temperatures(results))
    kinds = (
        ("auto to base", "ratio", "lower_95", "o-"),
        (
            "base to itself without a prophet",
            "base_to_no_prophet",
            "base_to_no_prophet_lower_95",
            ":",
        ),
    )
    for column, temperature in enumerate(_temperatures(results)):
        axis = axes[0][column]
        axis.set_title(f"temperature {temperature:g}")
        axis.axhline(1, color="black", linewidth=0.8)
        axis.axhline(0.97, color="black", linewidth=0.8, linestyle="--")
        for index, domain in enumerate(_domains(results)):
            rows = [r for r in results if (r["domain"], r["temperature"]) == (domain, temperature)]
            xs = [r["batch"] for r in rows]
            for name, median, lower, style in kinds:
                medians = [r[median] for r in rows]
                bounds = [r[median] if r[lower] is None else r[lower] for r in rows]
                axis.plot(xs, medians, style, color=f"C{index}", label=f"{domain}: {name}")
                if style == "o-":
                    axis.fill_between(xs, bounds, medians, color=f"C{index}", alpha=0.2)
        axis.set_xlabel("rows")
        _by_rows(axis, [r["batch"] for r in results])
    axes[0][0].set_ylabel("bytes/s, median of paired ratios")
    return figure


def limit(record: Record) -> Figure:
    figure, axes = _panels(1, [0])
    axis = axes[0][0]
    passes = record["passes"]
    rows = [each["rows"] for each in passes]
    axis.plot(rows, [each["apart_ms"] for each in passes], "o-", label="a slot each")
    axis.plot(rows, [each["together_ms"] for each in passes], "o-", label="places of one slot")
    axis.axhline(record["stream_ms"], color="black", linestyle="--", label="the weights' stream")
    axis.plot([1], [record["plain_round_ms"]], "kx", label="a plain round")
    _doubling(axis)
    axis.set_ylabel("milliseconds of a pass")
    axis.set_xlabel("rows")
    _by_rows(axis, rows)
    return figure


def load(record: Record) -> Figure:
    figure, axes = _panels(2, [0])
    above, below = axes[0][0], axes[1][0]
    levels = record["levels"]
    by = "clients" if "clients" in levels[0] else "rate"
    xs = [level[by] for level in levels]
    above.plot(xs, [level["bytes_per_second"] for level in levels], "o-", label="output")
    above.set_ylabel("bytes/s")
    above.set_ylim(bottom=0)
    for index, name in enumerate(("median", "95 %", "99 %")):
        below.plot(xs, [level["first_byte_ms"][index] for level in levels], "o-", label=name)
    _doubling(below)
    below.set_ylabel("first byte, ms")
    below.set_xlabel("clients" if by == "clients" else "requests/s")
    _by_rows(below, xs)
    return figure


DRAW: dict[str, Callable[[Record], Figure]] = {
    "decode": decode,
    "auto": auto,
    "limit": limit,
    "load": load,
}


def draw(name: str, record: Record) -> bytes:
    """The PNG of a bench's record."""
    figure = DRAW[name](record)
    for axis in figure.axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.suptitle(record["processor"], fontsize="small")
    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    return png.getvalue()


def _panels(rows: int, columns: Sequence[float]) -> tuple[Figure, Any]:
    """A figure, and its axes [rows, columns]."""
    figure = Figure(figsize=(5.5 * len(columns), 3.5 * rows), layout="constrained")
    return figure, figure.subplots(rows, len(columns), squeeze=False, sharex=True, sharey="row")


def _temperatures(results: Sequence[Record]) -> list[float]:
    return sorted({result["temperature"] for result in results})


def _domains(results: Sequence[Record]) -> list[str]:
    return sorted({result["domain"] for result in results})


def _spread(
    axis: Axes, xs: Sequence[float], quartiles: Sequence[Sequence[float]], label: str
) -> None:
    """Medians, with lower and upper quartiles as bars."""
    low, middle, high = zip(*quartiles, strict=True)
    below = [m - q for m, q in zip(middle, low, strict=True)]
    above = [q - m for m, q in zip(middle, high, strict=True)]
    axis.errorbar(xs, middle, (below, above), fmt="o-", capsize=3, label=label)


def _by_rows(axis: Axes, rows: Sequence[float]) -> None:
    """Doubling rows stand at equal distances."""
    known = sorted(set(rows))
    axis.set_xscale("log", base=2)
    axis.set_xticks(known, [f"{count:g}" for count in known])
    axis.minorticks_off()


def _doubling(axis: Axes) -> None:
    """Doubling heights likewise."""
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter("{x:g}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__)
    for path, name, record in named_records(parser, arguments, DRAW):
        write_atomically(path.with_suffix(".png"), draw(name, record))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
