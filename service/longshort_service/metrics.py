"""What the service counts for Prometheus, told in the service's own words.

Owns names, labels and exposition of every `longshort_` metric. Callers say what happened
(`metrics.replay(model)`) and never meet prometheus_client. Session ids are never labels.
docs/monitoring.md says what each one means.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, TypeVar

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from longshort_service.instruments import (
    LATENCY_BOUNDS_S,
    ROWS_BOUNDS,
    Counter,
    Histogram,
    StageHistograms,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

T = TypeVar("T")
Number = int | float
Labels = tuple[str, ...]

CONFLICT_REASONS: Final = ("STEP_CONFLICT", "STEP_GAP", "STEP_REQUIRED", "VALUES_DIFFER")
EVICTION_CAUSES: Final = ("capacity", "drain", "expired", "idle")

# name: (label names, help). The names as /metrics shows them, `_total` included for counters.
COUNTERS: Final[dict[str, tuple[Labels, str]]] = {
    "longshort_steps_total": (("model", "version"), "Time steps applied to sessions."),
    "longshort_replays_total": (("model",), "Messages answered from the stored answer; nothing moved."),
    "longshort_conflicts_total": (("reason",), "Messages refused by their step number, by reason."),
    "longshort_moves_total": ((), "Sessions taken over by another stream or server."),
    "longshort_errors_total": (("reason",), "Errors given to callers, in band or ending a call, by reason."),
    "longshort_evictions_total": (("cause",), "Sessions that left memory, by cause."),
}
HISTOGRAMS: Final[dict[str, tuple[Labels, str]]] = {
    "longshort_step_seconds": (("model", "stage"), "Latency by stage, from arrival to answer."),
    "longshort_batch_rows": (("model",), "Sessions that shared one engine run."),
    "longshort_store_seconds": (("operation",), "Latency of the session store, by operation."),
}
GAUGES: Final[dict[str, tuple[Labels, str]]] = {
    "longshort_sessions": (
        ("state",),
        "Sessions: live (open stream), idle (in memory), spilled (stored only).",
    ),
    "longshort_streams": ((), "Open streams."),
    "longshort_queue_depth_steps": (("model",), "Time steps that wait for the engine."),
    "longshort_state_bytes": (("model",), "Memory that holds the states of sessions."),
    "longshort_checkpoint_lag_seconds": ((), "Age of the oldest applied step that is not stored yet."),
    "longshort_store_up": ((), "1 while the session store answers, 0 while it is away."),
    "longshort_serving": ((), "1 while health says SERVING, 0 while it does not."),
    "longshort_model_info": (
        ("model", "version", "fingerprint", "provider"),
        "1 for each loaded model version.",
    ),
}


class Metrics(Collector):
    """All metrics of one service, on a registry of its own.

    Gauges are read by callbacks that the composition root registers with the `watch_` methods; they are
    called from the scraping thread and must return at once. What is not watched is not exported.

    Counters of known labels start at zero, since a series that begins at 1 shows no increase to Prometheus:
    the first error of its kind would raise no alert. `error_reasons` are those that callers may be given.
    """

    def __init__(self, error_reasons: Iterable[str] = ()) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._counters = {name: Counter() for name in COUNTERS}
        self._histograms: dict[str, dict[Labels, Histogram]] = {name: {} for name in HISTOGRAMS}
        self._gauges: dict[str, dict[Labels, Callable[[], Number]]] = {name: {} for name in GAUGES}
        self._stages: dict[str, StageHistograms] = {}
        self._lock = threading.Lock()  # over the shape of the dictionaries above
        self._counters["longshort_moves_total"].add((), 0)
        for name, labels in (
            ("longshort_conflicts_total", CONFLICT_REASONS),
            ("longshort_errors_total", error_reasons),
            ("longshort_evictions_total", EVICTION_CAUSES),
        ):
            for label in labels:
                self._counters[name].add((label,), 0)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    # What happened

    def step_stages(self, model: str) -> StageHistograms:
        """Return the stage histograms of a model, made on first use."""
        stages = self._stages.get(model)
        if stages is None:
            with self._lock:
                stages = self._stages.setdefault(model, StageHistograms())
                for stage, histogram in stages:
                    self._histograms["longshort_step_seconds"][(model, stage)] = histogram
        return stages

    def steps(self, model: str, version: int, count: int) -> None:
        """Count time steps applied to a session."""
        self._counters["longshort_steps_total"].add((model, str(version)), count)

    def batch_rows(self, model: str, num_rows: int) -> None:
        """Count an engine run shared by so many sessions. Called from the event loop's thread only."""
        self._histogram("longshort_batch_rows", model, ROWS_BOUNDS).observe(num_rows)

    def replay(self, model: str, num_messages: int = 1) -> None:
        """Count messages answered from the stored answer."""
        self._counters["longshort_replays_total"].add((model,), num_messages)

    def conflict(self, reason: str) -> None:
        """Count a message refused by its step number, by one of CONFLICT_REASONS."""
        self._counters["longshort_conflicts_total"].add((reason,))

    def move(self) -> None:
        """Count a session taken over by another stream or server."""
        self._counters["longshort_moves_total"].add(())

    def error(self, reason: str) -> None:
        """Count an error given to a caller, in band or as the end of its call."""
        self._counters["longshort_errors_total"].add((reason,))

    def eviction(self, cause: str) -> None:
        """Count a session that left memory, by one of EVICTION_CAUSES."""
        self._counters["longshort_evictions_total"].add((cause,))

    def store_seconds(self, operation: str, seconds: float) -> None:
        """Count an operation of the session store that ended. Called from the event loop's thread only."""
        self._histogram("longshort_store_seconds", operation, LATENCY_BOUNDS_S).observe(seconds)

    # What is

    def watch_sessions(
        self, *, live: Callable[[], int], idle: Callable[[], int], spilled: Callable[[], int]
    ) -> None:
        """Count sessions in disjoint states: with a stream, in memory without one, in the store only."""
        for state, read in (("live", live), ("idle", idle), ("spilled", spilled)):
            self._watch("longshort_sessions", (state,), read)

    def watch_streams(self, read: Callable[[], int]) -> None:
        """Count open streams."""
        self._watch("longshort_streams", (), read)

    def watch_queue(self, model: str, read: Callable[[], int]) -> None:
        """Count the time steps of a model that wait for the engine."""
        self._watch("longshort_queue_depth_steps", (model,), read)

    def watch_state_bytes(self, model: str, read: Callable[[], int]) -> None:
        """Measure the memory that holds a model's session states."""
        self._watch("longshort_state_bytes", (model,), read)

    def watch_checkpoint_lag(self, read: Callable[[], float]) -> None:
        """Measure the age in seconds of the oldest applied step that is not stored yet."""
        self._watch("longshort_checkpoint_lag_seconds", (), read)

    def watch_store(self, read: Callable[[], bool]) -> None:
        """Say whether the session store answers."""
        self._watch("longshort_store_up", (), read)

    def watch_serving(self, read: Callable[[], bool]) -> None:
        """Say whether health is SERVING."""
        self._watch("longshort_serving", (), read)

    def model_loaded(self, model: str, version: int, fingerprint: str, provider: str) -> None:
        """Tell of a model version that is ready to serve; its counters start at zero."""
        self._counters["longshort_steps_total"].add((model, str(version)), 0)
        self._counters["longshort_replays_total"].add((model,), 0)
        self._watch("longshort_model_info", (model, str(version), fingerprint, provider), lambda: 1)

    def model_unloaded(self, model: str, version: int) -> None:
        """Tell of a model version that is gone; with a model's last one its queue and state gauges go."""
        with self._lock:
            info = self._gauges["longshort_model_info"]
            for labels in [labels for labels in info if labels[:2] == (model, str(version))]:
                del info[labels]
            if not any(labels[0] == model for labels in info):
                for name in ("longshort_queue_depth_steps", "longshort_state_bytes"):
                    self._gauges[name].pop((model,), None)

    # What a scrape reads

    def collect(self) -> Iterator[Metric]:
        """Yield every family for prometheus_client; no `_created` series are made."""
        for name, (label_names, meaning) in COUNTERS.items():
            counter = CounterMetricFamily(name, meaning, labels=label_names)
            for labels, total in self._counters[name].totals():
                counter.add_metric(labels, total)
            yield counter
        for name, (label_names, meaning) in HISTOGRAMS.items():
            histogram = HistogramMetricFamily(name, meaning, labels=label_names)
            for labels, counted in self._snapshot(self._histograms[name]):
                buckets, total_sum = counted.buckets()
                histogram.add_metric(labels, buckets, total_sum)
            yield histogram
        for name, (label_names, meaning) in GAUGES.items():
            gauge = GaugeMetricFamily(name, meaning, labels=label_names)
            for labels, read in self._snapshot(self._gauges[name]):
                gauge.add_metric(labels, float(read()))
            yield gauge

    def _histogram(self, name: str, label: str, bounds: Sequence[float]) -> Histogram:
        children = self._histograms[name]
        found = children.get((label,))
        if found is None:
            with self._lock:
                found = children.setdefault((label,), Histogram(bounds))
        return found

    def _watch(self, name: str, labels: Labels, read: Callable[[], Number]) -> None:
        with self._lock:
            self._gauges[name][labels] = read

    def _snapshot(self, children: dict[Labels, T]) -> list[tuple[Labels, T]]:
        with self._lock:
            return list(children.items())
