"""Metrics: what is counted comes out of a scrape, under the names that the docs give."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from longshort_service.instruments import LATENCY_BOUNDS_S, ROWS_BOUNDS, Counter, Histogram
from longshort_service.metrics import (
    CONFLICT_REASONS,
    COUNTERS,
    EVICTION_CAUSES,
    GAUGES,
    HISTOGRAMS,
    Metrics,
)
from longshort_service.observers import LaneMetrics
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

DOCS = Path(__file__).parent.parent / "docs" / "monitoring.md"


def scrape(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return every sample of a scrape by its name and labels."""
    text = generate_latest(metrics.registry).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return scrape(metrics)[name, frozenset(labels.items())]


def used() -> Metrics:
    """Return metrics to which everything has happened once."""
    metrics = Metrics(error_reasons=["NON_FINITE_RESULT"])
    metrics.model_loaded("metro", 3, "abc", "cpu")
    stages = metrics.step_stages("metro")
    for _, histogram in stages:
        histogram.observe(0.004)
    metrics.steps("metro", 3, 24)
    metrics.batch_rows("metro", 5)
    metrics.replay("metro")
    metrics.conflict("STEP_GAP")
    metrics.move()
    metrics.error("WRONG_SHAPE")
    metrics.eviction("idle")
    metrics.store_seconds("load", 0.2)
    metrics.watch_sessions(live=lambda: 4, idle=lambda: 5, spilled=lambda: 6)
    metrics.watch_streams(lambda: 7)
    metrics.watch_queue("metro", lambda: 8)
    metrics.watch_state_bytes("metro", lambda: 4096)
    metrics.watch_checkpoint_lag(lambda: 1.5)
    metrics.watch_serving(lambda: True)
    metrics.watch_store(lambda: True)
    return metrics


def test_everything_that_happened_is_in_the_scrape():
    metrics = used()
    assert value(metrics, "longshort_steps_total", model="metro", version="3") == 24
    assert value(metrics, "longshort_replays_total", model="metro") == 1
    assert value(metrics, "longshort_conflicts_total", reason="STEP_GAP") == 1
    assert value(metrics, "longshort_moves_total") == 1
    assert value(metrics, "longshort_errors_total", reason="WRONG_SHAPE") == 1
    assert value(metrics, "longshort_evictions_total", cause="idle") == 1
    assert value(metrics, "longshort_batch_rows_sum", model="metro") == 5
    assert value(metrics, "longshort_store_seconds_count", operation="load") == 1
    for stage in ("queue", "gather", "run", "scatter", "store", "total"):
        labels = {"model": "metro", "stage": stage}
        assert value(metrics, "longshort_step_seconds_bucket", le="0.003", **labels) == 0
        assert value(metrics, "longshort_step_seconds_bucket", le="0.005", **labels) == 1
        assert value(metrics, "longshort_step_seconds_bucket", le="+Inf", **labels) == 1
        assert value(metrics, "longshort_step_seconds_sum", **labels) == pytest.approx(0.004)
    assert [value(metrics, "longshort_sessions", state=s) for s in ("live", "idle", "spilled")] == [4, 5, 6]
    assert value(metrics, "longshort_streams") == 7
    assert value(metrics, "longshort_queue_depth_steps", model="metro") == 8
    assert value(metrics, "longshort_state_bytes", model="metro") == 4096
    assert value(metrics, "longshort_checkpoint_lag_seconds") == 1.5
    assert value(metrics, "longshort_serving") == 1
    info = {"model": "metro", "version": "3", "fingerprint": "abc", "provider": "cpu"}
    assert value(metrics, "longshort_model_info", **info) == 1
    assert value(metrics, "process_cpu_seconds_total") > 0


def test_a_scrape_has_every_metric_and_nothing_beside_process_and_python():
    names = {name for name, _ in scrape(used())}
    ours = {name for name in names if name.startswith("longshort_")}
    of_histograms = {f"{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "count", "sum")}
    assert ours == {*COUNTERS, *GAUGES, *of_histograms}
    assert {name.partition("_")[0] for name in names - ours} == {"process", "python"}
    assert not [name for name in names if name.endswith("_created")]


def test_the_openmetrics_form_parses_and_says_the_same():
    metrics = used()
    text = generate_openmetrics(metrics.registry).decode()
    ours = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_openmetrics(text)
        for sample in family.samples
        if sample.name.startswith("longshort_")
    }
    assert ours == {key: v for key, v in scrape(metrics).items() if key[0].startswith("longshort_")}


def test_counters_of_known_labels_begin_at_zero_so_that_the_first_event_is_an_increase():
    metrics = Metrics(error_reasons=["NON_FINITE_RESULT"])
    metrics.model_loaded("metro", 1, "abc", "cpu")
    assert value(metrics, "longshort_errors_total", reason="NON_FINITE_RESULT") == 0
    assert value(metrics, "longshort_moves_total") == 0
    assert value(metrics, "longshort_steps_total", model="metro", version="1") == 0
    assert value(metrics, "longshort_replays_total", model="metro") == 0
    for reason in CONFLICT_REASONS:
        assert value(metrics, "longshort_conflicts_total", reason=reason) == 0
    for cause in EVICTION_CAUSES:
        assert value(metrics, "longshort_evictions_total", cause=cause) == 0


def test_a_model_that_is_unloaded_leaves_the_gauges_with_its_last_version():
    metrics = used()
    metrics.model_loaded("metro", 4, "def", "cpu")
    metrics.model_unloaded("metro", 3)
    assert [
        dict(labels)["version"] for name, labels in scrape(metrics) if name == "longshort_model_info"
    ] == ["4"]
    assert value(metrics, "longshort_queue_depth_steps", model="metro") == 8
    metrics.model_unloaded("metro", 4)
    gone = {name for name, _ in scrape(metrics)} & {
        "longshort_model_info",
        "longshort_queue_depth_steps",
        "longshort_state_bytes",
    }
    assert not gone
    assert value(metrics, "longshort_steps_total", model="metro", version="3") == 24


def test_two_services_in_one_process_count_apart():
    one, other = Metrics(), Metrics()
    one.move()
    assert (value(one, "longshort_moves_total"), value(other, "longshort_moves_total")) == (1, 0)


def test_the_stages_of_a_model_are_the_same_object_each_time():
    metrics = Metrics()
    assert metrics.step_stages("metro") is metrics.step_stages("metro")
    assert metrics.step_stages("metro") is not metrics.step_stages("parking")


@given(
    seconds=st.lists(st.floats(0, 20) | st.sampled_from(LATENCY_BOUNDS_S), min_size=1, max_size=50),
    times=st.integers(1, 3),
)
def test_one_by_one_and_many_at_once_count_the_same_and_right(seconds: list[float], times: int):
    single, several, many = (Histogram(LATENCY_BOUNDS_S) for _ in range(3))
    for value_s in seconds:
        several.observe(value_s, times)
        for _ in range(times):
            single.observe(value_s)
    many.observe_many(np.array(seconds), times)
    by_hand = [(str(b), float(times * sum(s <= b for s in seconds))) for b in LATENCY_BOUNDS_S]
    for histogram in (single, several, many):
        buckets, total = histogram.buckets()
        assert buckets == [*by_hand, ("+Inf", float(times * len(seconds)))]
        assert total == pytest.approx(times * math.fsum(seconds), rel=1e-9)


def counts_by_stage(metrics: Metrics) -> dict[str, float]:
    return {
        stage: value(metrics, "longshort_step_seconds_count", model="metro", stage=stage)
        for stage, _ in Metrics().step_stages("metro")
    }


def test_batch_counts_once_in_its_parts_and_once_for_each_message_in_the_queue():
    metrics = Metrics()
    observer = LaneMetrics(metrics, "metro", 3)
    one_by_one, together = np.array([0.001, 0.002, 0.2]), np.array([0.1])
    observer.batch_formed(8, [(one_by_one, 1), (together, 5)])
    observer.answered(one_by_one)
    observer.batch_done(8, 0.1, 0.2, 0.3)
    observer.batch_done(0, 0.1, 0.2, 0.3)  # a piece of a long message
    assert counts_by_stage(metrics) == {
        "queue": 8, "gather": 2, "run": 2, "scatter": 2, "store": 0, "total": 3
    }  # fmt: skip
    queue = {"model": "metro", "stage": "queue"}
    assert value(metrics, "longshort_step_seconds_sum", **queue) == pytest.approx(0.203 + 5 * 0.1)
    assert value(metrics, "longshort_step_seconds_bucket", le="0.1", **queue) == 7
    assert value(metrics, "longshort_batch_rows_sum", model="metro") == 8
    assert value(metrics, "longshort_steps_total", model="metro", version="3") == 8


def test_few_messages_that_run_together_are_counted_as_a_batch_is():
    few, batch = Metrics(), Metrics()
    parts = {"gather_s": 0.1, "run_s": 0.2, "scatter_s": 0.3}
    for num_applied in (2, 0):
        waited_s, total_s = [0.4, 0.5], [1.5, 2.0]
        LaneMetrics(few, "metro", 3).few_done(
            num_applied=num_applied, waited_s=waited_s, total_s=total_s, **parts
        )
        observer = LaneMetrics(batch, "metro", 3)
        observer.batch_formed(2, [(np.array(waited_s), 1)])
        observer.answered(np.array(total_s))
        observer.batch_done(num_applied, **parts)
    ours = [
        {key: v for key, v in scrape(metrics).items() if key[0].startswith("longshort_")}
        for metrics in (few, batch)
    ]
    assert ours[0] == ours[1]
    assert value(few, "longshort_steps_total", model="metro", version="3") == 2


def test_latency_bounds_go_from_50_us_to_10_s_and_never_grow_by_more_than_a_factor_of_1_67():
    assert (LATENCY_BOUNDS_S[0], LATENCY_BOUNDS_S[-1]) == (50e-6, 10.0)
    growth = [b / a for a, b in itertools.pairwise(LATENCY_BOUNDS_S)]
    assert min(growth) > 1
    assert max(growth) < 1.67
    assert ROWS_BOUNDS[:3] == (1.0, 2.0, 4.0)


def test_no_increment_is_lost_between_threads():
    import threading

    counter = Counter()
    threads = [threading.Thread(target=lambda: [counter.add(("x",)) for _ in range(5000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.totals() == [(("x",), 20_000)]


@pytest.mark.parametrize(
    ("name", "labels"), [(n, ls) for d in (COUNTERS, HISTOGRAMS, GAUGES) for n, (ls, _) in d.items()]
)
def test_the_docs_have_every_metric_with_its_labels(name: str, labels: tuple[str, ...]):
    shown = ", ".join(f"`{label}`" for label in labels) or "none"
    assert f"| `{name}` | {shown} |" in DOCS.read_text(encoding="utf-8")


def test_the_docs_have_every_cause_of_an_eviction_and_every_stage():
    text = DOCS.read_text(encoding="utf-8")
    stages = [stage for stage, _ in Metrics().step_stages("metro")]
    assert [word for word in (*EVICTION_CAUSES, *stages, *CONFLICT_REASONS) if f"`{word}`" not in text] == []
