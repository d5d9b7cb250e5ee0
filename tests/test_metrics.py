"""What Prometheus sees."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from fake_engine import STATUS, TIMING, Client, FakeEngine, finished, say
from prometheus_client.parser import text_string_to_metric_families

from server.messages import Event, Failed, FinishReason, Progress

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(client: Client) -> Samples:
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name.removeprefix("specdec_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_names_are_those_that_dashboards_know() -> None:
    with Client(FakeEngine(say())) as client:
        text = client.get("/metrics").text
    kinds = dict(line.split()[2:] for line in text.splitlines() if line.startswith("# TYPE"))
    created = {name for name in kinds if name.endswith("_created")}
    assert {name: kind for name, kind in kinds.items() if name not in created} == {
        "specdec_request_success_total": "counter",
        "specdec_request_rejected_total": "counter",
        "specdec_prompt_tokens_total": "counter",
        "specdec_generation_tokens_total": "counter",
        "specdec_spec_decode_num_drafts_total": "counter",
        "specdec_spec_decode_num_draft_tokens_total": "counter",
        "specdec_spec_decode_num_accepted_tokens_total": "counter",
        "specdec_spec_decode_num_accepted_tokens_per_pos_total": "counter",
        "specdec_time_to_first_token_seconds": "histogram",
        "specdec_inter_token_latency_seconds": "histogram",
        "specdec_e2e_request_latency_seconds": "histogram",
        "specdec_request_queue_time_seconds": "histogram",
        "specdec_request_prefill_time_seconds": "histogram",
        "specdec_request_decode_time_seconds": "histogram",
        "specdec_num_requests_running": "gauge",
        "specdec_num_requests_waiting": "gauge",
        "specdec_kv_cache_usage_perc": "gauge",
        "specdec_model_info": "gauge",
        "specdec_exactness": "gauge",
    }


def test_a_speculative_request() -> None:
    with Client(FakeEngine(say(b"abc", b"d", rest=b"e"))) as client:
        client.generate(prompt="xy", mode="speculative")
        samples = scrape(client)
    mode = {"mode": "speculative"}
    assert value(samples, "request_success_total", finished_reason="stop", **mode) == 1
    assert value(samples, "prompt_tokens_total") == 2
    assert value(samples, "generation_tokens_total", **mode) == 5
    assert value(samples, "spec_decode_num_drafts_total") == 2
    assert value(samples, "spec_decode_num_draft_tokens_total") == 8
    assert value(samples, "spec_decode_num_accepted_tokens_total") == 3
    per_position = [
        value(samples, "spec_decode_num_accepted_tokens_per_pos_total", position=str(i))
        for i in range(4)
    ]
    assert per_position == [2, 1, 0, 0]
    # a sample per byte that came in a round, each of 1 ms
    assert value(samples, "inter_token_latency_seconds_count", **mode) == 4
    assert value(samples, "inter_token_latency_seconds_sum", **mode) == pytest.approx(0.004)
    assert value(samples, "inter_token_latency_seconds_bucket", le="5e-05", **mode) == 0
    assert value(samples, "inter_token_latency_seconds_bucket", le="0.001", **mode) == 4
    for name, seconds in (
        ("request_queue_time_seconds", TIMING.queue_s),
        ("request_prefill_time_seconds", TIMING.prefill_s),
        ("request_decode_time_seconds", TIMING.decode_s),
    ):
        assert value(samples, f"{name}_count", **mode) == 1
        assert value(samples, f"{name}_sum", **mode) == seconds
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds"):
        assert value(samples, f"{name}_count", **mode) == 1
        assert 0 < value(samples, f"{name}_sum", **mode) < 60


def test_a_base_request_drafts_nothing() -> None:
    with Client(FakeEngine(say(b"abc", reason=FinishReason.LENGTH))) as client:
        client.generate(prompt="xy", mode="base")
        samples = scrape(client)
    assert value(samples, "request_success_total", finished_reason="length", mode="base") == 1
    assert value(samples, "generation_tokens_total", mode="base") == 3
    assert value(samples, "generation_tokens_total", mode="speculative") == 0
    assert value(samples, "spec_decode_num_drafts_total") == 0


def test_an_output_that_comes_at_once_has_a_first_byte() -> None:
    with Client(FakeEngine(say(rest=b"abc"))) as client:
        client.generate(prompt="x", mode="base")
        samples = scrape(client)
    assert value(samples, "time_to_first_token_seconds_count", mode="base") == 1


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
        engine.now = replace(STATUS, running=3, waiting=7)
        samples = scrape(client)
    assert value(samples, "num_requests_running") == 3
    assert value(samples, "num_requests_waiting") == 7
    assert value(samples, "kv_cache_usage_perc") == 0.75
    assert value(samples, "exactness", grade="exact") == 1
    (labels,) = (dict(labels) for name, labels in samples if name == "model_info")
    assert labels["model_name"] == "fake"
    assert (labels["device"], labels["dtype"]) == ("cpu", "float32")


def test_bytes_are_counted_as_they_come() -> None:
    engine = FakeEngine(lambda _: [Progress(b"ab", 2e-5), finished(2)])
    with Client(engine) as client:
        client.generate(prompt="x", stream=True, mode="base")
        samples = scrape(client)
    bucket = value(samples, "inter_token_latency_seconds_bucket", le="5e-05", mode="base")
    assert (bucket, value(samples, "generation_tokens_total", mode="base")) == (2, 2)
