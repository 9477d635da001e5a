"""The report of an exported model: its scores as JSON and one picture.

Owns what a report holds and how it is drawn. Runs the file as served; imports no torch.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from longshort_model.evaluation import error_by_age, summary

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from longshort_model.dataset import Dataset
    from longshort_model.replay import Replay

DRAWN_ROWS: Final = 240  # of the test part's end: legible on one picture
DAYS_OF_AGE: Final = 3
HORIZON: Final = 24  # steps of the forecasts that are scored
MOST_AGES: Final = 5000  # three days of minutes, and enough runs for a mean at each


def evaluate(dataset: Dataset, replay: Replay) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Return the report, ready for JSON, and the predictions [series, time, 3] that it was made from.

    Zero state once at the first of all values, carried to the end; scored on the test part alone.
    """
    start = dataset.validation_end
    predictions = replay.as_served(dataset)
    num_ages = min(DAYS_OF_AGE * (dataset.day or 24), MOST_AGES, (dataset.values.shape[1] - start) // 2)
    by_age = error_by_age(*replay.from_zero(dataset, start, num_ages))
    targets, ahead = replay.forecasts(dataset, start, min(HORIZON, (dataset.values.shape[1] - start) // 2))
    report = {
        "model": replay.signature.name,
        "fingerprint": replay.signature.fingerprint,
        "data": dataset.source,
        "unit": dataset.unit,
        "test_rows": dataset.values.shape[1] - start,
        **summary(dataset, predictions, start),
        "error_by_age": by_age.tolist(),
        "error_by_horizon": error_by_age(targets, ahead).tolist(),
    }
    return _without_nan(report), predictions


def _without_nan(report: Any) -> Any:
    """Return the report with None for NaN, which JSON does not have."""
    if isinstance(report, dict):
        return {key: _without_nan(value) for key, value in report.items()}
    if isinstance(report, list):
        return [_without_nan(value) for value in report]
    return None if isinstance(report, float) and not math.isfinite(report) else report


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Write a report; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def draw(
    path: Path,
    dataset: Dataset,
    predictions: NDArray[np.floating],
    report: dict[str, Any],
    *,
    series: int = 0,
) -> None:
    """Draw actual against predicted values with the band, and the error by age of the state where reported.

    `predictions` is [series, time, (median, low, high)]; the last rows of one series are drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  (the demo extra)
    from matplotlib.figure import Figure  # noqa: PLC0415

    ages = report.get("error_by_age")
    horizons = report.get("error_by_horizon")
    num_panels = 1 + bool(ages) + bool(horizons)
    figure = Figure(figsize=(11, 1 + 3 * num_panels), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(num_panels, 1, squeeze=False)[:, 0])
    _draw_series(axes.pop(0), dataset, predictions[series], series, report)
    if ages:
        _draw_ages(axes.pop(0), dataset, report)
    if horizons:
        _draw_horizons(axes.pop(0), [report])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def draw_horizons(path: Path, reports: list[dict[str, Any]]) -> None:
    """Draw the error of forecasts by how many steps they look ahead, of several models of one quantity."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  (the demo extra)
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    _draw_horizons(figure.subplots(), reports)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_series(
    axes: Any, dataset: Dataset, predictions: NDArray[np.floating], series: int, report: dict[str, Any]
) -> None:
    rows = dataset.values.shape[1]
    first = max(dataset.validation_end, rows - DRAWN_ROWS)
    part, made = slice(first, rows), predictions[first - 1 : rows - 1]  # [drawn, 3]
    at = np.arange(first, rows)
    axes.fill_between(at, made[:, 1], made[:, 2], color="#9ecae1", label="10 % to 90 % quantile", linewidth=0)
    axes.plot(at, dataset.values[series, part], color="black", linewidth=1.2, label="actual")
    axes.plot(at, made[:, 0], color="#d62728", linewidth=1.0, label="predicted one step before")
    if dataset.times:
        ticks = [t for t in at if dataset.times[t].date() != dataset.times[t - 1].date()]
        axes.set_xticks(ticks, [f"{dataset.times[t]:%d %b}" for t in ticks], fontsize=8)
    axes.set_ylabel(dataset.unit)
    axes.set_title(
        f"{dataset.name}, {dataset.series[series]}: mean absolute error {report['mae']:.4g}, "
        f"{report['coverage']:.0%} within the band (all of the test part)",
        fontsize=10,
    )
    axes.legend(loc="lower center", ncols=3, fontsize=8, bbox_to_anchor=(0.5, 1.06), frameon=False)


def _draw_ages(axes: Any, dataset: Dataset, report: dict[str, Any]) -> None:
    by_age = np.array(report["error_by_age"], float)
    axes.plot(
        np.arange(1, len(by_age) + 1), by_age, color="#d62728", label="a session that began with zero state"
    )
    axes.axhline(
        report["mae"], color="black", linewidth=1, linestyle="--", label="carried from the first value"
    )
    for name, colour in (("weekly_naive", "#7f7f7f"), ("linear_ar", "#1f77b4")):
        if name in report["baselines"]:
            axes.axhline(
                report["baselines"][name]["mae"], color=colour, linewidth=1, label=name.replace("_", " ")
            )
    axes.set_ylim(bottom=0)
    axes.set_xlabel("age of the state: values seen since the session began")
    axes.set_ylabel("mean absolute error" + (f", {dataset.unit}" if dataset.unit else ""))
    axes.legend(loc="upper right", fontsize=8)


def _draw_horizons(axes: Any, reports: list[dict[str, Any]]) -> None:
    for report, colour in zip(reports, ("#d62728", "#1f77b4", "#2ca02c", "#9467bd"), strict=False):
        errors = np.array(report["error_by_horizon"], float)
        axes.plot(
            np.arange(1, len(errors) + 1),
            errors,
            color=colour,
            marker=".",
            label=f"{report['model']}, carried",
        )
    naive = reports[0]["baselines"].get("weekly_naive")
    if naive is not None:
        axes.axhline(naive["mae"], color="#7f7f7f", linewidth=1, label="weekly naive, at any distance")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("steps ahead, each prediction fed back as the next value")
    axes.set_ylabel("mean absolute error" + (f", {reports[0]['unit']}" if reports[0]["unit"] else ""))
    axes.legend(loc="lower right", fontsize=8)
