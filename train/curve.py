"""A run to look at: curve.csv and curve.png in its directory, TensorBoard on request.

Losses in bits per byte, acceptance by drafted place; one row a validation.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specdec.checkpoint_file import write_atomically

Row = dict[str, Any]


def flat(row: Row) -> dict[str, float]:
    """One row with names like `code.valid.bin/model` and `code.valid.bin/acceptance_1`."""
    result: dict[str, float] = {"step": row["step"], "seconds": row["seconds"]}
    for name, figures in row.items():
        if isinstance(figures, dict):
            result[f"{name}/model"] = figures["model"]
            result[f"{name}/prophet"] = figures["prophet"]
            for place, value in enumerate(figures["acceptance"], 1):
                result[f"{name}/acceptance_{place}"] = value
    return result


def write_curve(directory: Path, curve: Sequence[Row]) -> None:
    """Both files, each whole or as it was."""
    rows = [flat(row) for row in curve]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[-1]))
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(directory / "curve.csv", text.getvalue().encode())
    write_atomically(directory / "curve.png", plot(curve))


def write_tensorboard(directory: Path, row: Row) -> None:
    """Adds a row to the event files below `directory`.  ValueError where the extra is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("tensorboard: install the extra of this name") from None
    with SummaryWriter(str(directory)) as writer:
        for name, value in flat(row).items():
            if name != "step":
                writer.add_scalar(name, value, row["step"])


def plot(curve: Sequence[Row]) -> bytes:
    """A PNG: bits per byte above, acceptance by drafted place below, a column for each sample."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name, value in curve[-1].items() if isinstance(value, dict)]
    steps = [row["step"] for row in curve]
    figure = Figure(figsize=(5.5 * len(names), 7), layout="constrained")
    axes = figure.subplots(2, len(names), squeeze=False, sharex=True)
    for column, name in enumerate(names):
        above, below = axes[0][column], axes[1][column]
        for part in ("model", "prophet"):
            above.plot(steps, [row[name][part] for row in curve], label=part)
        above.set_title(name)
        above.set_ylabel("bits per byte")
        above.legend()
        for place in range(len(curve[-1][name]["acceptance"])):
            values = [row[name]["acceptance"][place] for row in curve]
            below.plot(steps, values, label=f"draft {place + 1}")
        below.set_ylim(0, 1)
        below.set_xlabel("step")
        below.set_ylabel("acceptance, given all before")
        below.legend(fontsize="small", ncols=2)
        for axis in (above, below):
            axis.grid(alpha=0.3)
    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    return png.getvalue()
