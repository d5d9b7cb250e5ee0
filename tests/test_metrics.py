"""What Prometheus sees."""

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
from fake_engine import STATUS, TIMING, Client, FakeEngine, finished, say
from patience import PATIENCE_S
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from server.ledger import BOUNDS, PHASES, Figures
from server.memory import GpuMemory
from server.messages import Event, Failed, FinishReason, Mode, Progress
from server.tally import Tally, per_byte_tallies

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(client: Client) -> Samples:
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    return samples_in(response.text)


def samples_in(text: str) -> Samples:
    """Without the prefix and the model's name, which every series bears once it is loaded."""
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("specdec_") and "_process_" not in sample.name:
                assert sample.labels.pop("model_name")
            labels = frozenset(sample.labels.items())
            samples[sample.name.removeprefix("specdec_"), labels] = sample.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_names_are_those_that_dashboards_know() -> None:
    with Client(FakeEngine(say())) as client:
        text = client.get("/metrics").text
    kinds = dict(line.split()[2:] for line in text.splitlines() if line.startswith("# TYPE"))
    process = {name for name in kinds if "process_" in name}
    assert {name: kind for name, kind in kinds.items() if name not in process} == {
        "specdec_request_success_total": "counter",
        "specdec_request_rejected_total": "counter",
        "specdec_request_rounds_total": "counter",
        "specdec_request_generation_tokens_total": "counter",
        "specdec_prompt_tokens_total": "counter",
        "specdec_generation_tokens_total": "counter",
        "specdec_spec_decode_num_drafts_total": "counter",
        "specdec_spec_decode_num_draft_tokens_total": "counter",
        "specdec_spec_decode_num_accepted_tokens_total": "counter",
        "specdec_spec_decode_num_accepted_tokens_per_pos_total": "counter",
        "specdec_lookup_draft_tokens_total": "counter",
        "specdec_lookup_accepted_tokens_total": "counter",
        "specdec_parity_checks_total": "counter",
        "specdec_parity_mismatches_total": "counter",
        "specdec_parity_skipped_total": "counter",
        "specdec_rounds_total": "counter",
        "specdec_decode_round_seconds_total": "counter",
        "specdec_decode_base_seconds_total": "counter",
        "specdec_auto_draft_length_total": "counter",
        "specdec_time_to_first_token_seconds": "histogram",
        "specdec_inter_token_latency_seconds": "histogram",
        "specdec_e2e_request_latency_seconds": "histogram",
        "specdec_request_queue_time_seconds": "histogram",
        "specdec_request_prefill_time_seconds": "histogram",
        "specdec_request_decode_time_seconds": "histogram",
        "specdec_round_phase_seconds": "histogram",
        "specdec_num_requests_running": "gauge",
        "specdec_num_requests_waiting": "gauge",
        "specdec_num_requests_waiting_max": "gauge",
        "specdec_num_slots": "gauge",
        "specdec_kv_cache_usage_perc": "gauge",
        "specdec_kv_cache_tokens": "gauge",
        "specdec_kv_cache_tokens_max": "gauge",
        "specdec_kv_cache_bytes": "gauge",
        "specdec_engine_up": "gauge",
        "specdec_engine_seconds_since_progress": "gauge",
        "specdec_model_info": "gauge",
        "specdec_build_info": "gauge",
        "specdec_exactness": "gauge",
    }


SCRAPER = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
"""What Prometheus 3 accepts."""


def told(engine: FakeEngine, accept: str) -> tuple[str, str]:
    """Content type and text of a scrape after a request."""
    engine.told = Figures(gpu=GpuMemory(1, 2, 3, 4), pid=os.getppid())
    with Client(engine) as client:
        client.generate(prompt="xy", mode="speculative")
        response = client.get("/metrics", accept=accept)
    assert response.status_code == 200
    return response.headers["content-type"], response.text


@pytest.mark.parametrize("accept", ["application/openmetrics-text", SCRAPER])
def test_openmetrics_for_whom_asks_for_it(accept: str) -> None:
    engine = FakeEngine(say(b"abc", b"d", rest=b"e"))
    kind, text = told(engine, accept)
    assert kind.startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert text.endswith("# EOF\n")
    families = {family.name: family for family in openmetrics_families(text)}
    plain = list(text_string_to_metric_families(told(engine, "text/plain")[1]))
    assert families.keys() == {family.name for family in plain}
    for family in plain:
        assert families[family.name].type == family.type
        samples = {(s.name, *sorted(s.labels.items())) for s in family.samples}
        found = families[family.name].samples
        assert {(s.name, *sorted(s.labels.items())) for s in found} == samples
        assert not any(s.exemplar for s in found)
    assert families["specdec_generation_tokens"].type == "counter"
    assert families["specdec_gpu_memory_bytes"].samples
    assert families["specdec_engine_process_resident_memory_bytes"].samples


@pytest.mark.parametrize(
    "accept", ["", "*/*", "text/html, text/plain", "application/openmetrics-text;version=later"]
)
def test_prometheus_text_for_all_others(accept: str) -> None:
    kind, text = told(FakeEngine(say(b"abc")), accept)
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    assert "# EOF" not in text
    assert "# TYPE specdec_generation_tokens_total counter" in text


def test_a_speculative_request() -> None:
    with Client(FakeEngine(say(b"abc", b"d", rest=b"e"))) as client:
        client.generate(prompt="xy", mode="speculative")
        samples = scrape(client)
    mode = {"mode": "speculative"}
    assert value(samples, "request_success_total", finished_reason="stop", **mode) == 1
    assert value(samples, "prompt_tokens_total") == 2
    assert value(samples, "generation_tokens_total", **mode) == 5
    assert value(samples, "spec_decode_num_drafts_total", **mode) == 2
    assert value(samples, "spec_decode_num_draft_tokens_total", **mode) == 8
    assert value(samples, "spec_decode_num_accepted_tokens_total", **mode) == 3
    per_position = [
        value(samples, "spec_decode_num_accepted_tokens_per_pos_total", position=str(i), **mode)
        for i in range(4)
    ]
    assert per_position == [2, 1, 0, 0]
    for name, seconds in (
        ("request_queue_time_seconds", TIMING.queue_s),
        ("request_prefill_time_seconds", TIMING.prefill_s),
        ("request_decode_time_seconds", TIMING.decode_s),
    ):
        assert value(samples, f"{name}_count", **mode) == 1
        assert value(samples, f"{name}_sum", **mode) == seconds
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds"):
        assert value(samples, f"{name}_count", **mode) == 1
        assert 0 < value(samples, f"{name}_sum", **mode) < PATIENCE_S


def test_a_base_request_drafts_nothing() -> None:
    with Client(FakeEngine(say(b"abc", reason=FinishReason.LENGTH))) as client:
        client.generate(prompt="xy", mode="base")
        samples = scrape(client)
    assert value(samples, "request_success_total", finished_reason="length", mode="base") == 1
    assert value(samples, "generation_tokens_total", mode="base") == 3
    assert value(samples, "generation_tokens_total", mode="speculative") == 0
    assert value(samples, "request_rounds_total", mode="base") == 2
    assert value(samples, "request_generation_tokens_total", mode="base") == 3
    assert value(samples, "spec_decode_num_drafts_total", mode="speculative") == 0


def test_an_output_that_comes_at_once_has_a_first_byte() -> None:
    with Client(FakeEngine(say(rest=b"abc"))) as client:
        client.generate(prompt="x", mode="base")
        samples = scrape(client)
    assert value(samples, "time_to_first_token_seconds_count", mode="base") == 1


def test_of_an_output_that_comes_whole_the_engine_has_seen_the_first_byte() -> None:
    with Client(FakeEngine(say(b"a", b"bc"))) as client:
        client.generate(prompt="x", mode="base")
        samples = scrape(client)
    count = value(samples, "time_to_first_token_seconds_count", mode="base")
    assert (count, value(samples, "time_to_first_token_seconds_sum", mode="base")) == (
        1,
        TIMING.first_byte_s,
    )


def test_what_never_began_took_no_time() -> None:
    end = replace(finished(0, reason=FinishReason.TIMEOUT), begun=False)
    with Client(FakeEngine(lambda _: [end])) as client:
        client.generate(prompt="x", mode="base")
        samples = scrape(client)
    assert value(samples, "prompt_tokens_total") == 0
    assert value(samples, "request_queue_time_seconds_count", mode="base") == 1
    for name in ("prefill", "decode"):
        assert value(samples, f"request_{name}_time_seconds_count", mode="base") == 0


def test_no_output_has_none() -> None:
    with Client(FakeEngine(say())) as client:
        client.generate(prompt="x", mode="base")
        samples = scrape(client)
    assert value(samples, "time_to_first_token_seconds_count", mode="base") == 0
    assert value(samples, "e2e_request_latency_seconds_count", mode="base") == 1


def test_failures_and_cancellations() -> None:
    events: Iterator[Event] = iter([Failed("no"), finished(0, reason=FinishReason.CANCELLED)])
    with Client(FakeEngine(lambda _: [next(events)])) as client:
        client.generate(prompt="x", mode="base")
        client.generate(prompt="x", mode="base")
        samples = scrape(client)
    assert value(samples, "request_success_total", finished_reason="error", mode="base") == 1
    assert value(samples, "request_success_total", finished_reason="cancelled", mode="base") == 1
    assert value(samples, "e2e_request_latency_seconds_count", mode="base") == 0


def test_rejections_by_reason() -> None:
    with Client(FakeEngine(say())) as client:
        client.generate(prompt="x", temperature=-1)
        client.generate(prompt="x", unknown=1)
        client.generate(prompt="x", other=1)
        client.generate(prompt="x" * 100)
        client.post_raw(b"{")
        samples = scrape(client)
    counts = {
        "greater_than_equal": 1,
        "extra_forbidden": 2,
        "context_length_exceeded": 1,
        "invalid_json": 1,
    }
    for reason, count in counts.items():
        assert value(samples, "request_rejected_total", reason=reason) == count


def test_the_engine_is_looked_at_for_each_scrape() -> None:
    engine = FakeEngine(say())
    with Client(engine) as client:
        assert value(scrape(client), "num_requests_running") == 0
        engine.now = replace(STATUS, running=3, waiting=7, rounds=11)
        samples = scrape(client)
        engine.now = replace(STATUS, running=1, idle=False, seconds_since_progress=40.0)
        assert value(scrape(client), "engine_seconds_since_progress") == 40
    assert value(samples, "num_requests_running") == 3
    assert value(samples, "rounds_total") == 11
    assert value(samples, "num_requests_waiting") == 7
    assert value(samples, "kv_cache_usage_perc") == 0.75
    assert value(samples, "exactness", grade="exact") == 1
    assert value(samples, "kv_cache_tokens_max") == 4 * 64
    assert value(samples, "engine_up") == 1
    assert value(samples, "engine_seconds_since_progress") == 0
    (labels,) = (dict(labels) for name, labels in samples if name == "model_info")
    assert (labels["device"], labels["dtype"]) == ("cpu", "float32")


def test_bytes_are_counted_as_they_come() -> None:
    engine = FakeEngine(lambda _: [Progress(b"ab"), finished(2)])
    with Client(engine) as client:
        client.generate(prompt="x", stream=True, mode="base")
        samples = scrape(client)
    assert value(samples, "generation_tokens_total", mode="base") == 2


def test_what_rounds_took_and_gave() -> None:
    phases = {phase: Tally(BOUNDS) for phase in PHASES}
    phases["verify"].observe(0.0004, 2)
    phases["draft"].observe(7.0)
    per_byte = per_byte_tallies()
    per_byte[Mode.AUTO].observe(0.001, 4)
    engine = FakeEngine(say())
    engine.told = Figures(
        phases, per_byte, (5, 0, 2) + (0,) * 14, 2.0, 3.0, 17, GpuMemory(1, 2, 3, 4), os.getpid()
    )
    with Client(engine) as client:
        samples = scrape(client)
    assert value(samples, "decode_round_seconds_total") == 2
    assert value(samples, "decode_base_seconds_total") == 3
    assert value(samples, "kv_cache_tokens") == 17
    assert value(samples, "auto_draft_length_total", length="2") == 2
    kinds = {kind: value(samples, "gpu_memory_bytes", kind=kind) for kind in ("used", "total")}
    assert kinds == {"used": 3, "total": 4}
    name = "inter_token_latency_seconds"
    assert value(samples, f"{name}_count", mode="auto") == 4
    assert value(samples, f"{name}_sum", mode="auto") == pytest.approx(0.004)
    assert value(samples, f"{name}_bucket", mode="auto", le="0.0005") == 0
    assert value(samples, f"{name}_bucket", mode="auto", le="0.001") == 4
    assert value(samples, f"{name}_count", mode="base") == 0
    name = "round_phase_seconds"
    assert value(samples, f"{name}_bucket", phase="verify", le="0.0002") == 0
    assert value(samples, f"{name}_bucket", phase="verify", le="0.0005") == 2
    assert value(samples, f"{name}_count", phase="verify") == 2
    assert value(samples, f"{name}_sum", phase="verify") == pytest.approx(0.0008)
    assert value(samples, f"{name}_bucket", phase="draft", le="1.0") == 0
    assert value(samples, f"{name}_bucket", phase="draft", le="+Inf") == 1


def test_memory_of_both_processes() -> None:
    engine = FakeEngine(say())
    own, its = "process_resident_memory_bytes", "engine_process_resident_memory_bytes"
    with Client(engine) as client:
        engine.told = Figures(pid=os.getpid())
        samples = scrape(client)
        assert value(samples, own) > 1e6
        assert (its, frozenset()) not in samples  # a thread of this one
        engine.told = Figures(pid=os.getppid())
        assert value(scrape(client), its) > 0
