"""Prometheus metrics: what each request's events add up to, and a glance at the engine per scrape.

Names are vLLM's with another prefix, so that its panels need a rename only.  Latency per byte is
amortised over the bytes of a round, with a sample for each byte.  Knows no HTTP.
"""

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from server.messages import (
    EngineInfo,
    EngineStatus,
    Event,
    Failed,
    Finished,
    FinishReason,
    Mode,
    Progress,
    Submission,
)

_PATHS = tuple(Mode)
_ERROR = "error"


def _buckets(low: float, high: float) -> tuple[float, ...]:
    """1, 2, 5, 10, ... between two bounds in seconds, both included."""
    steps = (float(f"{digit}e{power}") for power in range(-5, 4) for digit in (1, 2, 5))
    return tuple(step for step in steps if low <= step <= high)


class Metrics:
    """All metrics of one app, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.finished = self._counter(
            "request_success", "Requests that ended, by reason.", "finished_reason", "mode"
        )
        self.rejections = self._counter(
            "request_rejected", "Requests refused before any work, by reason.", "reason"
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Bytes of prompts.")
        self.generation_tokens = self._counter("generation_tokens", "Bytes of output.", "mode")
        self.drafts = self._counter("spec_decode_num_drafts", "Rounds with a draft.")
        self.drafted = self._counter("spec_decode_num_draft_tokens", "Bytes drafted.")
        self.accepted = self._counter("spec_decode_num_accepted_tokens", "Drafted bytes accepted.")
        self.accepted_at = self._counter(
            "spec_decode_num_accepted_tokens_per_pos",
            "Drafted bytes accepted, by place in the draft.",
            "position",
        )
        self.per_byte = self._histogram(
            "inter_token_latency_seconds", "Time per byte of output, amortised.", 50e-6, 5.0
        )
        self.first_byte = self._histogram(
            "time_to_first_token_seconds", "Time from a request's arrival to its first output."
        )
        self.whole = self._histogram(
            "e2e_request_latency_seconds", "Time from a request's arrival to its end."
        )
        self.queue = self._histogram("request_queue_time_seconds", "Time spent waiting for a slot.")
        self.prefill = self._histogram(
            "request_prefill_time_seconds", "Time spent consuming the prompt."
        )
        self.decode = self._histogram("request_decode_time_seconds", "Time spent writing output.")
        # series that a request may touch exist from the start, so that rates begin at 0
        for mode in _PATHS:
            for reason in (*FinishReason, _ERROR):
                self.finished.labels(reason, mode)
            self.generation_tokens.labels(mode)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace="specdec", registry=self._registry)

    def _histogram(
        self, name: str, text: str, low: float = 100e-6, high: float = 500.0
    ) -> Histogram:
        histogram = Histogram(
            name,
            text,
            ("mode",),
            namespace="specdec",
            registry=self._registry,
            buckets=_buckets(low, high),
        )
        for mode in _PATHS:
            histogram.labels(mode)
        return histogram

    def watch(self, info: EngineInfo, status: Callable[[], EngineStatus]) -> None:
        """From now on every scrape looks at this engine."""
        self._registry.register(_EngineCollector(info, status))

    def rejected(self, reason: str) -> None:
        self.rejections.labels(reason).inc()

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)


class RequestMeter:
    """Turns the events of one request, from its arrival on, into samples."""

    def __init__(self, metrics: Metrics, submission: Submission) -> None:
        self._metrics = metrics
        self._submission = submission
        self._arrival = time.perf_counter()
        self._silent = True
        mode = submission.mode
        self._generation_tokens = metrics.generation_tokens.labels(mode)
        self._per_byte = metrics.per_byte.labels(mode)

    def observe(self, event: Event) -> None:
        if isinstance(event, Failed):
            self._metrics.finished.labels(_ERROR, self._submission.mode).inc()
            return
        if isinstance(event, Progress) and event.echo:
            return
        self._generation_tokens.inc(len(event.output))
        if event.output and self._silent:
            self._silent = False
            elapsed = time.perf_counter() - self._arrival
            self._metrics.first_byte.labels(self._submission.mode).observe(elapsed)
        if isinstance(event, Progress):
            for _ in event.output:
                self._per_byte.observe(event.seconds_per_byte)
        else:
            self._finish(event)

    def _finish(self, finished: Finished) -> None:
        metrics, mode = self._metrics, self._submission.mode
        metrics.finished.labels(finished.reason, mode).inc()
        metrics.prompt_tokens.inc(len(self._submission.prompt))
        speculation = finished.speculation
        if mode is not Mode.BASE:
            metrics.drafts.inc(speculation.drafts)
            metrics.drafted.inc(speculation.drafted)
            metrics.accepted.inc(speculation.accepted)
            for position, accepted in enumerate(speculation.accepted_per_position):
                metrics.accepted_at.labels(str(position)).inc(accepted)
        # how long a client stayed before it left says nothing of the server
        if finished.reason is not FinishReason.CANCELLED:
            metrics.whole.labels(mode).observe(time.perf_counter() - self._arrival)
            metrics.queue.labels(mode).observe(finished.timing.queue_s)
            metrics.prefill.labels(mode).observe(finished.timing.prefill_s)
            metrics.decode.labels(mode).observe(finished.timing.decode_s)


class _EngineCollector(Collector):
    """Gauges read from the engine at each scrape, all from the same glance."""

    def __init__(self, info: EngineInfo, status: Callable[[], EngineStatus]) -> None:
        self._info = info
        self._status = status

    def collect(self) -> Iterator[GaugeMetricFamily]:
        info, status = self._info, self._status()
        for name, text, value in (
            ("num_requests_running", "Requests that hold a slot.", status.running),
            ("num_requests_waiting", "Requests that wait for a slot.", status.waiting),
            (
                "kv_cache_usage_perc",
                "Share of the slots in use; 1 is all.",
                status.running / info.max_batch,
            ),
        ):
            yield GaugeMetricFamily(f"specdec_{name}", text, value=value)
        model = GaugeMetricFamily(
            "specdec_model_info",
            "What is loaded; always 1.",
            labels=("model_name", "device", "dtype", "context", "max_batch", "parameters"),
        )
        labels = (info.model_name, info.device, info.dtype)
        counts = (info.context, info.max_batch, info.parameters)
        model.add_metric([*labels, *map(str, counts)], 1)
        yield model
        exactness = GaugeMetricFamily(
            "specdec_exactness", "Grade of exactness in force; always 1.", labels=("grade",)
        )
        exactness.add_metric([info.exactness], 1)
        yield exactness
