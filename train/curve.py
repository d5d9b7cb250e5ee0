"""A run to look at: curve.csv and curve.png in its directory, TensorBoard on request.

Losses in bits per byte, acceptance by drafted place; one row a validation.  Where no prophet is
trained there is only the model's loss.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specdec.checkpoint_file import write_atomically

Row = dict[str, Any]
PARTS = ("model", "prophet")


def flat(row: Row) -> dict[str, float]:
    """One row with names like `code.valid.bin/model` and `code.valid.bin/acceptance_1`."""
    result: dict[str, float] = {"step": row["step"], "seconds": row["seconds"]}
    for name, figures in row.items():
        if isinstance(figures, dict):
            for part in PARTS:
                if part in figures:
                    result[f"{name}/{part}"] = figures[part]
            for place, value in enumerate(figures.get("acceptance", ()), 1):
                result[f"{name}/acceptance_{place}"] = value
    return result


def write_curve(directory: Path, curve: Sequence[Row]) -> None:
    """Both files, each whole or as it was."""
    rows = [flat(row) for row in curve]
    text = io.StringIO()
    # a column is one that the newest row has
    writer = csv.DictWriter(text, list(rows[-1]), extrasaction="ignore")
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
    places = len(curve[-1][names[0]].get("acceptance", ()))
    panels = 2 if places else 1
    figure = Figure(figsize=(5.5 * len(names), 3.5 * panels), layout="constrained")
    axes = figure.subplots(panels, len(names), squeeze=False, sharex=True)
    for column, name in enumerate(names):
        above, below = axes[0][column], axes[-1][column]
        rows = [row for row in curve if name in row]  # a sample may have had another name before
        steps = [row["step"] for row in rows]
        for part in PARTS:
            if part in curve[-1][name]:
                above.plot(steps, [row[name][part] for row in rows], label=part)
        above.set_title(name)
        above.set_ylabel("bits per byte")
        above.legend()
        below.set_xlabel("step")
        for axis in axes[:, column]:
            axis.grid(alpha=0.3)
        if not places:
            continue
        for place in range(places):
            values = [row[name]["acceptance"][place] for row in rows]
            below.plot(steps, values, label=f"draft {place + 1}")
        below.set_ylim(0, 1)
        below.set_ylabel("acceptance, given all before")
        below.legend(fontsize="small", ncols=2)
    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    return png.getvalue()
