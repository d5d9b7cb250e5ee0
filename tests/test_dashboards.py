"""The dashboard, the rules and their documentation fit the metrics that there are."""

import re

import yaml
from dashboards import DASHBOARD, NEEDS_GPU, PROMETHEUS, all_series, panels, rules, variables
from fake_engine import Client, FakeEngine, say
from ops import ROOT

from server.ledger import Figures
from server.memory import GpuMemory


def test_every_series_exists() -> None:
    engine = FakeEngine(say(b"abc"))
    engine.told = Figures(gpu=GpuMemory(1, 2, 3, 4), pid=1)
    with Client(engine) as client:
        client.generate(prompt="x", mode="speculative")
        text = client.get("/metrics").text
    exposed = {line.split("{")[0].split(" ")[0] for line in text.splitlines()}
    wanted = all_series()
    assert wanted <= exposed
    assert {NEEDS_GPU, "specdec_round_phase_seconds_sum"} <= wanted


def test_panels_are_complete_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        assert panel["title"]
        assert panel["targets"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert all(x < 24 for x, _ in cells)
        taken |= cells


def test_whoever_imports_the_dashboard_chooses_source_job_and_server() -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    source, job, instance = variables()
    assert (source["name"], source["type"], source["query"]) == (
        "datasource",
        "datasource",
        "prometheus",
    )
    assert [job["name"], instance["name"]] == ["job", "instance"]
    assert 'job=~"$job"' in instance["query"]["query"]
    for variable in (job, instance):
        assert variable["datasource"] == chosen
        assert variable["includeAll"]
    for panel in panels():
        assert panel["datasource"] == chosen
        for target in panel["targets"]:
            assert target["datasource"] == chosen
            # whatever is selected is selected among the chosen servers
            names = re.findall(r"\b(?:up|(?:specdec|process)_\w+)\b", target["expr"])
            selected = re.findall(r'\w+{job=~"\$job", instance=~"\$instance"', target["expr"])
            assert len(selected) == len(names) > 0, target["expr"]


def test_no_query_and_no_rule_names_a_job() -> None:
    named = re.compile(r'job\s*=~?\s*"(?!\$job")')
    asked = [target["expr"] for panel in panels() for target in panel["targets"]]
    asked += [variable["query"]["query"] for variable in variables()[1:]]
    asked += [rule["expr"] for rule in rules()]
    assert [expression for expression in asked if named.search(expression)] == []
    assert named.search('up{job="specdec"}')


def test_every_alert_is_tested_and_documented() -> None:
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    tests = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"]
    fired = {
        case["alertname"]
        for test in tests
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    assert fired == alerts
    guide = (ROOT / "docs/operations.md").read_text()
    assert [name for name in sorted(alerts) if f"`{name}`" not in guide] == []


def test_grafana_finds_what_it_is_given() -> None:
    provisioning = ROOT / "docker/grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    # what "default" stands for, which is what the dashboard opens with
    assert source["isDefault"]
    assert source["type"] == variables()[0]["query"]
    assert variables()[0]["current"]["value"] == "default"
    (provider,) = yaml.safe_load((provisioning / "dashboards/specdec.yaml").read_text())[
        "providers"
    ]
    services = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]
    mounts = dict(entry.split(":")[:2] for entry in services["grafana"]["volumes"])
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    assert source["url"] == "http://prometheus:9090"
    assert DASHBOARD.parent.name == "dashboards"
