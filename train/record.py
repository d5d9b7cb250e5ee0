"""What a run did, as training.json tells it, and what went before in a checkpoint's.

Knows dictionaries and the files that hold them; how a model card shows them is `train.card`.
"""

import json
from pathlib import Path
from typing import Any

from train.config import TrainConfig

Record = dict[str, Any]
PHASE = ("config", "steps", "bytes_seen", "seconds", "dtype")
SETTINGS = ("frozen", "starts", "windows", "prophet_loss")
"""What a model card tells of the configuration."""


def phase(config: TrainConfig, steps: int, seconds: float, dtype: str) -> Record:
    """What a run did, in figures that its checkpoint can tell: files by name, not by path."""
    record: Record = json.loads(config.to_json())  # as it will be read again
    for name in ("data", "validation", "test"):
        record[name] = [Path(path).name for path in record[name]]
    for name in ("frozen", "start_from"):
        path = Path(record[name])
        record[name] = "/".join(path.parts[-2:]) if path.suffix == ".pt" else path.name
    windows = (config.window_at(step) for step in range(steps))
    return {
        "config": record,
        "steps": steps,
        "bytes_seen": sum(rows * length for rows, length in windows) * config.accumulate,
        "seconds": round(seconds),
        "dtype": dtype.removeprefix("torch."),
    }


def phases(record: Record) -> list[Record]:
    """Runs that the weights of a checkpoint went through, one that trained both once."""
    model = record["model"]
    before = [_phase_of(run) for run in ([*model["earlier"], model] if model else [])]
    own = [_phase_of(run) for run in [*record["earlier"], record]]
    return [*before, *(run for run in own if run not in before)]


def phases_of(checkpoint: Path, prophet_alone: bool) -> list[Record]:
    """Those of a checkpoint's model and prophet, or of the prophet alone; none where the directory
    does not tell."""
    record = _read(checkpoint)
    if record is None:
        return []
    return phases({**record, "model": None} if prophet_alone else record)


def record_of_model(checkpoint: str) -> Record | None:
    """How the frozen model was trained, as far as its directory tells."""
    record = _read(Path(checkpoint)) if checkpoint else None
    # of a checkpoint whose prophet was trained for its model the model's record is one further in
    return record["model"] if record and record["config"]["frozen"] else record


def _phase_of(record: Record) -> Record:
    return {name: record[name] for name in PHASE}


def _read(checkpoint: Path) -> Record | None:
    path = checkpoint / "training.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_bytes())
        told = all(name in run["config"] for run in phases(record) for name in SETTINGS)
    except (ValueError, TypeError, KeyError):
        return None  # there may be a file of somebody else's by that name
    return record if told else None
