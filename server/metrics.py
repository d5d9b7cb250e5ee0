"""Prometheus metrics: what each request's events add up to, and a glance at the engine per scrape.

Names are vLLM's with another prefix, so that its panels need a rename only.  Latency per byte is
amortised over the bytes of a round, with a sample for each byte.  Knows no HTTP.
"""

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from server.ledger import Figures
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
from server.tally import buckets, histogram

_PATHS = tuple(Mode)
_DRAFTING = (Mode.SPECULATIVE, Mode.AUTO)
_ERROR = "error"
_FORESEEN = ("overloaded", "draining", "loading", "engine_stopped", "invalid_api_key")
"""Reasons of refusal that an operator waits for: their series begin at 0."""


class Metrics:
    """All metrics of one app, in a registry of their own.

    Every series bears the model's name, as in vLLM, but those of the processes.
    """

    def __init__(self, max_waiting: int) -> None:
        self._registry = CollectorRegistry()
        self._named = _Named(self._registry)
        self._exposed = CollectorRegistry()
        self._exposed.register(self._named)
        ProcessCollector(registry=self._exposed)
        self._engine_pid: int | None = None
        self._max_waiting = max_waiting
        self.finished = self._counter(
            "request_success", "Requests that ended, by reason.", "finished_reason", "mode"
        )
        self.rejections = self._counter(
            "request_rejected", "Requests refused before any work, by reason.", "reason"
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Bytes of prompts that were consumed.")
        self.generation_tokens = self._counter("generation_tokens", "Bytes of output.", "mode")
        self.drafts = self._counter("spec_decode_num_drafts", "Rounds with a draft.", "mode")
        self.drafted = self._counter("spec_decode_num_draft_tokens", "Bytes drafted.", "mode")
        self.accepted = self._counter(
            "spec_decode_num_accepted_tokens", "Drafted bytes accepted.", "mode"
        )
        self.accepted_at = self._counter(
            "spec_decode_num_accepted_tokens_per_pos",
            "Drafted bytes accepted, by place in the draft.",
            "position",
            "mode",
        )
        self.looked_up = self._counter(
            "lookup_draft_tokens", "Bytes drafted that were looked up in the text, by mode auto."
        )
        self.lookups_accepted = self._counter(
            "lookup_accepted_tokens", "Bytes accepted of those that were looked up in the text."
        )
        self.parity_checks = self._counter(
            "parity_checks",
            "Requests that were decoded again by plain rounds, and compared.",
            "mode",
        )
        self.parity_mismatches = self._counter(
            "parity_mismatches", "Of these, those whose output was not the same.", "mode"
        )
        self.parity_skipped = self._counter(
            "parity_skipped",
            "Requests picked for that and not compared: cut short, failed, or no slot left.",
        )
        self.rounds = self._counter(
            "request_rounds", "Passes of the model that wrote bytes, a row each.", "mode"
        )
        self.written = self._counter(
            "request_generation_tokens",
            "Bytes of output, counted when the request ends, as its rounds are.",
            "mode",
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
            self.rounds.labels(mode)
            self.written.labels(mode)
        for mode in _DRAFTING:
            for counter in (
                self.drafts,
                self.drafted,
                self.accepted,
                self.parity_checks,
                self.parity_mismatches,
            ):
                counter.labels(mode)
        for reason in _FORESEEN:
            self.rejections.labels(reason)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace="specdec", registry=self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        histogram = Histogram(
            name,
            text,
            ("mode",),
            namespace="specdec",
            registry=self._registry,
            buckets=buckets(100e-6, 500.0),
        )
        for mode in _PATHS:
            histogram.labels(mode)
        return histogram

    def watch(
        self,
        info: EngineInfo,
        status: Callable[[], EngineStatus],
        figures: Callable[[], Figures],
    ) -> None:
        """From now on every scrape looks at this engine."""

        def tell() -> Figures:
            told = figures()
            # an engine on a thread is in the figures of this process already
            self._engine_pid = None if told.pid == os.getpid() else told.pid
            return told

        self._named.model_name = info.model_name
        self._registry.register(_EngineCollector(info, self._max_waiting, status, tell))
        # of a process that is not there the collector says nothing
        ProcessCollector(
            "specdec_engine", lambda: self._engine_pid or "none", "/proc", self._exposed
        )

    def rejected(self, reason: str) -> None:
        self.rejections.labels(reason).inc()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Everything, and what it is: OpenMetrics for whom accepts it, else Prometheus' text."""
        try:
            encode, media_type = choose_encoder(accept)
        except TypeError:  # a version that is no number
            encode, media_type = choose_encoder("")
        return encode(self._exposed), media_type


class RequestMeter:
    """Turns the events of one request, from its arrival on, into samples."""

    def __init__(self, metrics: Metrics, submission: Submission) -> None:
        self._metrics = metrics
        self._submission = submission
        self._arrival = time.perf_counter()
        self.first_byte_s: float | None = None
        mode = submission.mode
        self._generation_tokens = metrics.generation_tokens.labels(mode)

    def observe(self, event: Event) -> None:
        if isinstance(event, Failed):
            self._metrics.finished.labels(_ERROR, self._submission.mode).inc()
            return
        if isinstance(event, Progress) and event.echo:
            return
        self._generation_tokens.inc(len(event.output))
        if event.output and self._submission.awaited:
            self._see_first_byte(time.perf_counter() - self._arrival)
        if isinstance(event, Finished):
            if event.completion_tokens:  # who is given all at once sees no first byte
                self._see_first_byte(event.timing.first_byte_s)
            self._finish(event)

    def _see_first_byte(self, seconds: float | None) -> None:
        if self.first_byte_s is None and seconds is not None:
            self.first_byte_s = seconds
            self._metrics.first_byte.labels(self._submission.mode).observe(seconds)

    def _finish(self, finished: Finished) -> None:
        metrics, mode = self._metrics, self._submission.mode
        metrics.finished.labels(finished.reason, mode).inc()
        if finished.begun:
            metrics.prompt_tokens.inc(len(self._submission.prompt))
        speculation = finished.speculation
        metrics.rounds.labels(mode).inc(speculation.rounds)
        metrics.written.labels(mode).inc(finished.completion_tokens)
        if mode is not Mode.BASE:
            metrics.drafts.labels(mode).inc(speculation.drafts)
            metrics.drafted.labels(mode).inc(speculation.drafted)
            metrics.accepted.labels(mode).inc(speculation.accepted)
            metrics.looked_up.inc(speculation.lookup_drafted)
            metrics.lookups_accepted.inc(speculation.lookup_accepted)
            for position, accepted in enumerate(speculation.accepted_per_position):
                metrics.accepted_at.labels(str(position), mode).inc(accepted)
        # how long a client stayed before it left says nothing of the server
        if finished.reason is not FinishReason.CANCELLED:
            metrics.whole.labels(mode).observe(time.perf_counter() - self._arrival)
            metrics.queue.labels(mode).observe(finished.timing.queue_s)
            if finished.begun:
                metrics.prefill.labels(mode).observe(finished.timing.prefill_s)
                metrics.decode.labels(mode).observe(finished.timing.decode_s)


class _Named(Collector):
    """A registry's metrics with the model's name on each, and without the times of creation, which
    double the series and which Prometheus does not use."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.model_name = ""

    def collect(self) -> Iterator[Metric]:
        name = {"model_name": self.model_name} if self.model_name else {}
        for family in self._registry.collect():
            family.samples = [
                sample._replace(labels=name | sample.labels)
                for sample in family.samples
                if not sample.name.endswith("_created")
            ]
            yield family


class _EngineCollector(Collector):
    """What is read from the engine at each scrape, all from the same glance."""

    def __init__(
        self,
        info: EngineInfo,
        max_waiting: int,
        status: Callable[[], EngineStatus],
        figures: Callable[[], Figures],
    ) -> None:
        self._info, self._max_waiting = info, max_waiting
        self._status, self._figures = status, figures

    def collect(self) -> Iterator[Metric]:
        status, figures = self._status(), self._figures()
        yield from self._load(status, figures)
        yield from self._rounds(status, figures)
        yield from self._identity()
        if figures.gpu is not None:
            memory = GaugeMetricFamily(
                "specdec_gpu_memory_bytes",
                "The GPU's memory: allocated by tensors, reserved by torch, used by anyone, total.",
                labels=("kind",),
            )
            for kind, size in vars(figures.gpu).items():
                memory.add_metric((kind,), size)
            yield memory

    def _load(self, status: EngineStatus, figures: Figures) -> Iterable[Metric]:
        info = self._info
        for name, text, value in (
            ("num_requests_running", "Requests that hold a slot.", status.running),
            ("num_requests_waiting", "Requests that wait for a slot.", status.waiting),
            ("num_requests_waiting_max", "Requests that may wait.", self._max_waiting),
            ("num_slots", "Requests that may run at the same time.", info.max_batch),
            (
                "kv_cache_usage_perc",
                "Share of the slots in use; 1 is all.",
                status.running / info.max_batch,
            ),
            ("kv_cache_tokens", "Places of the cache that hold a byte.", figures.places_held),
            ("kv_cache_tokens_max", "Places of the cache.", info.max_batch * info.context),
            ("kv_cache_bytes", "Memory set aside for the cache.", info.cache_bytes),
            ("engine_up", "1 while the engine lives.", status.alive),
            (
                "engine_seconds_since_progress",
                "Time since a round ended, while there is work; else 0.",
                0.0 if status.idle else status.seconds_since_progress,
            ),
        ):
            yield GaugeMetricFamily(f"specdec_{name}", text, value=value)

    def _rounds(self, status: EngineStatus, figures: Figures) -> Iterable[Metric]:
        for name, text, value in (
            ("rounds", "Rounds of the engine.", status.rounds),
            (
                "decode_round_seconds",
                "Time of rounds that consumed no prompt; 0 without a prophet.",
                figures.decode_s,
            ),
            (
                "decode_base_seconds",
                "What the same bytes would have taken by plain rounds, estimated from measured "
                "costs; over decode_round_seconds it is the speed-up.",
                figures.base_s,
            ),
        ):
            yield CounterMetricFamily(f"specdec_{name}", text, value=value)
        lengths = CounterMetricFamily(
            "specdec_auto_draft_length", "Rounds by the length that auto chose.", labels=("length",)
        )
        for length, count in enumerate(figures.draft_lengths):
            lengths.add_metric((str(length),), count)
        yield lengths
        yield histogram(
            "specdec_round_phase_seconds", "Time of the parts of rounds.", "phase", figures.phases
        )
        yield histogram(
            "specdec_inter_token_latency_seconds",
            "Time per byte of output, amortised over its round.",
            "mode",
            {str(mode): tally for mode, tally in figures.per_byte.items()},
        )

    def _identity(self) -> Iterable[Metric]:
        info = self._info
        labels = {
            "device": info.device,
            "dtype": info.dtype,
            "context": str(info.context),
            "max_batch": str(info.max_batch),
            "parameters": str(info.parameters),
            "prophet_parameters": str(info.prophet_parameters),
            "longest_draft": str(info.longest_draft),
            "longest_lookup": str(info.longest_lookup),
        }
        build = {
            "version": version("specdec"),
            "torch": version("torch"),
            "python": platform.python_version(),
        }
        for name, text, facts in (
            ("model_info", "What is loaded; always 1.", labels),
            ("build_info", "The software; always 1.", build),
            ("exactness", "Grade of exactness in force; always 1.", {"grade": info.exactness}),
        ):
            family = GaugeMetricFamily(f"specdec_{name}", text, labels=tuple(facts))
            family.add_metric(tuple(facts.values()), 1)
            yield family
