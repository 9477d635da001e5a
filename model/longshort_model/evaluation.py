"""Scores of predictions as they are served.

Owns the arithmetic only, wherever the predictions came from: a file run here, or answers over gRPC. What is
predicted after value t stands at t and is for t + 1; a missing target is not scored. Imports no torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from longshort_model.baselines import all_baselines

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longshort_model.dataset import Dataset


@dataclass(frozen=True, slots=True)
class Errors:
    """Errors of a point forecast, in the unit of the data except for `mase`.

    `mase` is the mean over the series of the mean absolute error divided by that of persistence over the
    training part (Hyndman & Koehler 2006): below 1 is better than repeating the last value; NaN where no
    series ever changed there.
    """

    mae: float
    rmse: float
    mase: float
    num_scored: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """The share of targets within the band, bounds included; 0.8 is meant."""

    overall: float
    by_hour: dict[int, float]  # by the target's hour of the day; empty where there are no times
    below: float  # the share under the lower bound; 0.1 is meant
    above: float


def point_errors(dataset: Dataset, predictions: NDArray[np.floating], start: int) -> Errors:
    """Score predictions [series, time] for the targets from row `start` to the end.

    Each target needs a prediction: a NaN where there is a target makes the scores NaN.
    """
    residuals = _targets(dataset, start) - predictions[:, start - 1 : dataset.values.shape[1] - 1]
    scored = residuals[~np.isnan(_targets(dataset, start))]
    per_series = _mean_of_known(np.abs(residuals), _targets(dataset, start))
    train = dataset.values[:, : dataset.train_end].astype(np.float64)
    changes = np.abs(np.diff(train, axis=1))
    naive = _mean_of_known(changes, changes)
    comparable = naive > 0  # a series that never changed in the training part has no such scale
    return Errors(
        mae=float(np.abs(scored).mean()),
        rmse=float(np.sqrt(np.square(scored).mean())),
        mase=float(np.mean(per_series[comparable] / naive[comparable])) if comparable.any() else float("nan"),
        num_scored=int(scored.size),
    )


def coverage(dataset: Dataset, low: NDArray[np.floating], high: NDArray[np.floating], start: int) -> Coverage:
    """Return how often the targets from row `start` on lie within [low, high], each [series, time]."""
    targets = _targets(dataset, start)
    known = ~np.isnan(targets)
    part = slice(start - 1, dataset.values.shape[1] - 1)
    below, above = targets < low[:, part], targets > high[:, part]
    inside = ~below & ~above
    by_hour: dict[int, float] = {}
    hours = dataset.hours()
    if hours is not None:
        hour_of = np.broadcast_to(hours[start:], targets.shape)
        for hour in np.unique(hours):
            chosen = known & (hour_of == hour)
            if chosen.any():
                by_hour[int(hour)] = float(inside[chosen].mean())
    return Coverage(
        float(inside[known].mean()), by_hour, float(below[known].mean()), float(above[known].mean())
    )


def error_by_age(targets: NDArray[np.floating], predictions: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the mean absolute error [ages] of runs from zero state, both [runs, ages].

    Column k holds the prediction made after k + 1 values and its target; NaN targets are not scored.
    """
    return _mean_of_known(np.abs(targets - predictions).T, targets.T)


def summary(dataset: Dataset, predictions: NDArray[np.floating], start: int) -> dict[str, Any]:
    """Return the scores of predictions [series, time, (median, low, high)] beside the baselines', for JSON.

    Targets are the rows from `start` on. The keys `mae`, `weekly_naive_mae` and `coverage` are what
    `build/train.json` and `build/demo.json` are read for.
    """
    ours = point_errors(dataset, predictions[..., 0], start)
    band = coverage(dataset, predictions[..., 1], predictions[..., 2], start)
    baselines = all_baselines(dataset)
    found: dict[str, Any] = {
        **asdict(ours),
        "coverage": band.overall,
        "coverage_below": band.below,
        "coverage_above": band.above,
        "coverage_by_hour": band.by_hour,
        "num_series": len(dataset.values),
        "baselines": {},
        "num_series_better_than": {},
    }
    for name, made in baselines.items():
        errors = point_errors(dataset, made, start)
        found[f"{name}_mae"] = errors.mae
        found["baselines"][name] = asdict(errors)
        found["num_series_better_than"][name] = series_better_than(dataset, predictions[..., 0], made, start)
    return found


def series_better_than(
    dataset: Dataset, predictions: NDArray[np.floating], rival: NDArray[np.floating], start: int
) -> int:
    """Return in how many series the mean absolute error is below the rival's."""
    targets = _targets(dataset, start)
    part = slice(start - 1, dataset.values.shape[1] - 1)
    ours = _mean_of_known(np.abs(targets - predictions[:, part]), targets)
    theirs = _mean_of_known(np.abs(targets - rival[:, part]), targets)
    return int((ours < theirs).sum())


def _targets(dataset: Dataset, start: int) -> NDArray[np.float64]:
    return dataset.values[:, start:].astype(np.float64)


def _mean_of_known(errors: NDArray[np.floating], targets: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the mean over the last axis where there is a target, NaN where there is none at all."""
    known = ~np.isnan(targets)
    total = np.where(known, errors, 0.0).sum(axis=-1, dtype=np.float64)
    means: NDArray[np.float64] = np.where(known.any(-1), total / np.maximum(known.sum(-1), 1), np.nan)
    return means
