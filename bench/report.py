"""Where a measurement ran, medians with their spread, and files of figures."""

import argparse
import json
import platform
import statistics
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

Record = dict[str, Any]
"""What a bench writes with `--json`."""


def machine(device: torch.device) -> dict[str, object]:
    """What a reader needs to place absolute figures."""
    facts: dict[str, object] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
    return facts


def _processor() -> str:
    """Name, generation and number: several generations may share a name."""
    try:
        processors = Path("/proc/cpuinfo").read_text().strip().split("\n\n")
    except OSError:
        return platform.processor()
    lines = (line.partition(":") for line in processors[0].splitlines())
    facts = {name.strip(): value.strip() for name, _, value in lines}
    if "model name" not in facts:
        return platform.processor()
    generation = f"family {facts.get('cpu family', '?')}, model {facts.get('model', '?')}"
    return f"{facts['model name']} ({generation}, {len(processors)} cores)"


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def write_json(path: Path, record: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(record, indent=2) + "\n")
    temporary.replace(path)


def read_record(path: Path, known: Collection[str]) -> tuple[str, Record]:
    """The bench that wrote a file, told by what the file holds, and its figures.

    OSError or ValueError where the file cannot be read or is of none that is `known`.
    """
    record = json.loads(path.read_text())
    if isinstance(record, dict):
        results = record.get("results")
        first = results[0] if isinstance(results, list) and results else {}
        first = first if isinstance(first, dict) else {}
        signs = {
            "decode": "accepted_per_position" in first,
            "auto": "lower_95" in first,
            "limit": "passes" in record,
            "load": "levels" in record,
            "event_loop": any(name.endswith(" streams") for name in record),
            "peers": "ratio_to_base" in first,
            "throughput": any(name.endswith(" clients") for name in record),
            "bits": "bits" in record,
            "host": "host" in record,
        }
        for name, holds in signs.items():
            if holds and name in known:
                return name, record
    raise ValueError(f"no figures of {', '.join(f'bench.{name}' for name in known)}")


def named_records(
    parser: argparse.ArgumentParser, arguments: list[str], known: Collection[str]
) -> Iterator[tuple[Path, str, Record]]:
    """The files that a command line names, each with what `read_record` says of it; a file that it
    refuses ends the process by name."""
    parser.add_argument("file", type=Path, nargs="+")
    for path in parser.parse_args(arguments).file:
        try:
            name, record = read_record(path, known)
        except (OSError, ValueError) as error:
            parser.error(f"{path}: {error}")
        yield path, name, record
