"""`python -m bench.dashboard --prometheus URL`: the dashboard's panels, drawn without Grafana.

Runs every query of docker/grafana/dashboards/specdec.json over the last minutes and plots what
comes back, panel by panel in the dashboard's order.
"""

import argparse
import json
import math
import re
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DASHBOARD = Path(__file__).parent.parent / "docker/grafana/dashboards/specdec.json"
SCALES = {
    "s": (1e3, "ms"),
    "bytes": (2**-20, "MiB"),
    "percentunit": (100, "%"),
    "Bps": (1, "bytes/s"),
}
UNITS = {"reqps": "1/s", "short": ""}


def panels(path: Path) -> list[dict[str, Any]]:
    """Those that show a course of time."""
    board = json.loads(path.read_text())
    return [panel for panel in board["panels"] if panel["type"] == "timeseries"]


def query(url: str, expression: str, begin: float, end: float) -> list[dict[str, Any]]:
    parameters = {
        "query": expression,
        "start": begin,
        "end": end,
        "step": max(1, (end - begin) / 300),
    }
    asked = f"{url}/api/v1/query_range?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(asked) as answer:
        result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    # numbers among the labels in their order
    return sorted(result, key=lambda one: [(len(v), v) for v in one["metric"].values()])


def legend(form: str, labels: dict[str, str]) -> str:
    return re.sub(r"{{\s*(\w+)\s*}}", lambda match: labels.get(match[1], ""), form).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="its address")
    parser.add_argument("--minutes", type=float, default=5.0, help="how far back")
    parser.add_argument("--until", type=float, help="Unix time of the end; now if left out")
    parser.add_argument("--window", default="15s", help="what rates are taken over")
    parser.add_argument("--job", default="specdec", help="the scrape job's name")
    parser.add_argument("--out", type=Path, default=Path("docs/dashboard.png"))
    asked = parser.parse_args()
    end = asked.until or time.time()
    begin = end - 60 * asked.minutes
    shown = panels(DASHBOARD)
    columns = 3
    rows = math.ceil(len(shown) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(17, 2.9 * rows), layout="constrained")
    for axis in axes.flat[len(shown) :]:
        axis.remove()
    for axis, panel in zip(axes.flat, shown, strict=False):
        unit = panel["fieldConfig"]["defaults"]["unit"]
        scale, name = SCALES.get(unit, (1, UNITS.get(unit, unit)))
        lines = 0
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", asked.window)
            expression = expression.replace("$job", asked.job).replace("$instance", ".*")
            for series in query(asked.prometheus, expression, begin, end):
                times = [(float(at) - begin) / 60 for at, _ in series["values"]]
                values = [float(value) * scale for _, value in series["values"]]
                axis.plot(
                    times,
                    values,
                    color=plt.cm.tab20(lines % 20),
                    linewidth=1.2,
                    label=legend(target["legendFormat"], series["metric"]),
                )
                lines += 1
        axis.set_title(panel["title"], fontsize=10, loc="left", weight="bold")
        axis.set_ylabel(name, fontsize=8)
        axis.set_ylim(bottom=0)
        axis.set_xlim(0, asked.minutes)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        if lines:
            axis.legend(fontsize=6, ncols=2 if lines > 4 else 1, loc="upper left", framealpha=0.7)
    figure.supxlabel("minutes", fontsize=8)
    figure.savefig(asked.out, dpi=75)


if __name__ == "__main__":
    main()
