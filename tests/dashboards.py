"""What docker/ asks of Prometheus: the queries of the dashboard and of the rules."""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml
from ops import ROOT

PROMETHEUS = ROOT / "docker/prometheus"
DASHBOARD = ROOT / "docker/grafana/dashboards/specdec.json"

NEEDS_GPU = "specdec_gpu_memory_bytes"


def panels() -> list[dict[str, Any]]:
    """Those of the dashboard that show something."""
    board = json.loads(DASHBOARD.read_text())
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def variables() -> list[dict[str, Any]]:
    """What the dashboard asks its reader to choose."""
    listed: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["templating"]["list"]
    return listed


def queries(window: str, job: str = ".*") -> Iterator[tuple[str, str, str]]:
    """(panel's title, legend, expression) with the dashboard's variables filled in."""
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", window)
            expression = expression.replace("$job", job).replace("$instance", ".*")
            yield panel["title"], target["legendFormat"], expression


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def series(expression: str) -> set[str]:
    """The names of this server's series in an expression."""
    return set(re.findall(r"\b(?:specdec|process)_\w+", expression))


def all_series() -> set[str]:
    asked = [expression for *_, expression in queries("1m")]
    return set().union(*map(series, asked), *(series(rule["expr"]) for rule in rules()))
