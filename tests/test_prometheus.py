"""A real Prometheus scrapes a real server under load, and the dashboard has something to show."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from dashboards import NEEDS_GPU, PROMETHEUS, all_series, queries, rules
from live import free_port, wait_for
from ops import ROOT, tool
from patience import PATIENCE_S, eventually

pytestmark = pytest.mark.slow

WINDOW = "20s"
JOB = "byte-models"
CONSTANT = {
    "specdec_num_slots",
    "specdec_num_requests_waiting_max",
    "specdec_kv_cache_tokens_max",
    "specdec_engine_up",
    "specdec_model_info",
    "specdec_build_info",
    "specdec_exactness",
    "specdec_parity_mismatches_total",
}
"""Series that stay as they are while a server is well."""


@dataclass
class Watched:
    """A server that has had some load, and the Prometheus that watched."""

    server: subprocess.Popen[bytes]
    url: str
    prometheus: str

    def ask(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"{self.prometheus}/api/v1/{path}", params=parameters)
        body = answer.json()
        assert body["status"] == "success", body
        return body["data"]

    def values(self, expression: str) -> list[float]:
        """Of an instant query; numbers that are none (0/0) are no data."""
        result = self.ask("query", query=expression)["result"]
        values = [float(item["value"][1]) for item in result]
        return [value for value in values if value == value]


@contextmanager
def process(command: list[str], **arguments: Any) -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(command, **arguments)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def configured(directory: Path, server_port: int) -> Path:
    """The configuration that ships, for this server, with less patience and another job's name."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(PROMETHEUS / name) for name in config["rule_files"]]
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    jobs["specdec"]["static_configs"] = [{"targets": [f"127.0.0.1:{server_port}"]}]
    config["scrape_configs"] = [{**jobs["specdec"], "job_name": JOB}]
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def load(url: str, until: float) -> None:
    """Three clients in closed loop, a mode each; now and then more than the queue takes."""

    def client(mode: str) -> None:
        seed = 0
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as http:
            while time.monotonic() < until:
                seed += 1
                prompt = "def read(path):\n    " * (1 + seed % 20)
                body = {"prompt": prompt, "max_tokens": 200, "seed": seed, "mode": mode}
                burst = range(8 if seed % 4 == 0 else 1)
                threads = [
                    threading.Thread(target=http.post, args=("/generate",), kwargs={"json": body})
                    for _ in burst
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()

    clients = [threading.Thread(target=client, args=(m,)) for m in ("base", "speculative", "auto")]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()


def compared(url: str) -> None:
    """One request after another, so that slots are free, until one was decoded again."""
    checks = re.compile(r"^specdec_parity_checks_total{.*} [1-9]", re.MULTILINE)
    with httpx.Client(base_url=url, timeout=60) as http:
        for seed in range(100):
            if checks.search(http.get("/metrics").text):
                return
            body = {"prompt": "def read(path):\n    ", "seed": seed, "mode": "speculative"}
            http.post("/generate", json=body)
    pytest.fail("of 100 requests none was decoded again")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    directory = tmp_path_factory.mktemp("prometheus")
    port, own = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    flags = ["--port", str(port), "--device", "cpu", "--max-batch", "3", "--max-waiting", "2"]
    flags += ["--parity-every", "5"]
    clean = {name: v for name, v in os.environ.items() if not name.startswith("SPECDEC_M")}
    prometheus = [
        tool("prometheus"),
        f"--config.file={configured(directory, port)}",
        f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address=127.0.0.1:{own}",
        "--log.level=warn",
    ]
    with (
        process([sys.executable, "-m", "server", *flags], env=clean, cwd=ROOT) as server,
        process(prometheus, cwd=directory),
    ):
        wait_for(url, alive=lambda: server.poll() is None)
        load(url, time.monotonic() + 20)
        compared(url)
        yield Watched(server, url, f"http://127.0.0.1:{own}")


def test_promtool_has_nothing_to_say(watched: Watched) -> None:
    scrape = httpx.get(f"{watched.url}/metrics").content
    command = [tool("promtool"), "check", "metrics"]
    checked = subprocess.run(command, input=scrape, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr + checked.stdout) == (0, b"")


def test_every_series_exists_and_moves(watched: Watched) -> None:
    def still() -> list[str]:
        return [
            name
            for name in sorted(all_series() - {NEEDS_GPU})
            if not (
                watched.values(name)
                if name in CONSTANT
                else any(watched.values(f"changes({name}[1h])"))
            )
        ]

    eventually(lambda: not still(), 60)  # the last scrape may be to come
    assert still() == []


def test_every_panel_has_data(watched: Watched) -> None:
    load(watched.url, time.monotonic() + 10)
    empty = [
        (title, legend)
        for title, legend, expression in queries(WINDOW, JOB)
        if NEEDS_GPU not in expression and not watched.values(expression)
    ]
    assert empty == []


def test_rules_are_evaluated(watched: Watched) -> None:
    found = {
        rule["name"]: rule["health"]
        for group in watched.ask("rules")["groups"]
        for rule in group["rules"]
    }
    assert found == {rule.get("alert", rule.get("record")): "ok" for rule in rules()}
    assert all(watched.values(rule["record"]) for rule in rules() if "record" in rule)


def test_a_server_that_is_gone_is_noticed(watched: Watched) -> None:
    """The last test: it ends the server."""

    def alerts() -> set[tuple[str, str]]:
        told = [alert["labels"] for alert in watched.ask("alerts")["alerts"]]
        return {(labels["alertname"], labels.get("job", "")) for labels in told}

    down = ("SpecdecDown", JOB)
    assert down not in alerts()
    watched.server.terminate()
    assert watched.server.wait(PATIENCE_S) == 0
    eventually(lambda: down in alerts())


def test_alerts_fire_when_they_should() -> None:
    command = [tool("promtool"), "test", "rules", str(PROMETHEUS / "rules_test.yml")]
    tested = subprocess.run(command, capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_the_configuration_is_valid() -> None:
    command = [tool("promtool"), "check", "config", str(PROMETHEUS / "prometheus.yml")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
