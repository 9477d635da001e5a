"""Forecasts without a memory, to hold the model's errors against.

Each takes values [series, time] with NaN where missing, sees them as the model does (the last value repeated)
and returns predictions [series, time] f64: what is predicted after value t stands at t and is for t + 1, NaN
where there is too little history. Imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from longshort_model.dataset import repeat_last

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longshort_model.dataset import Dataset

NEAR_LAGS: Final = 12
ROWS_A_LAG: Final = 5  # to fit a weight; with fewer rows than weights anything fits, and predicts nothing


def all_baselines(dataset: Dataset) -> dict[str, NDArray[np.float64]]:
    """Return every baseline that the data set has the times and the rows for, by name."""
    found = {"persistence": persistence(dataset.values)}
    lags: set[int] = set()
    fitted = [set(range(1, NEAR_LAGS + 1))]
    for name, period in (("daily_naive", dataset.day), ("weekly_naive", dataset.week)):
        if period is not None and period < dataset.train_end:
            found[name] = seasonal_naive(dataset.values, period)
            # The change across the same time of day, not its level alone.
            fitted.append({period - 1, period, period + 1})
    for more in fitted:
        if _num_rows(dataset, lags | more) < ROWS_A_LAG * len(lags | more):
            break
        lags |= more
    if lags:
        found["linear_ar"] = linear_autoregression(dataset.values, sorted(lags), train_end=dataset.train_end)
    return found


def _num_rows(dataset: Dataset, lags: set[int]) -> int:
    """Return how many rows of the training part have a target, in some series, and all lags before it."""
    known = ~np.isnan(dataset.values[:, max(lags) : dataset.train_end]).all(axis=0)
    return int(known.sum())


def persistence(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Predict the last value again."""
    return repeat_last(values).astype(np.float64)


def seasonal_naive(values: NDArray[np.float32], period: int) -> NDArray[np.float64]:
    """Predict the value of one period (in rows) before the predicted one."""
    return _lagged(persistence(values), period)


def linear_autoregression(
    values: NDArray[np.float32], lags: list[int], *, train_end: int
) -> NDArray[np.float64]:
    """Predict a weighted sum of the values `lags` rows before the predicted one, plus a constant.

    The weights are one set for all series, by least squares over the rows before `train_end`.
    """
    filled = persistence(values)
    regressors = np.stack([*(_lagged(filled, lag) for lag in lags), np.ones_like(filled)], axis=-1)
    targets = values[:, 1:train_end]
    rows = regressors[:, : train_end - 1]  # [series, time, lags + 1]
    usable = ~np.isnan(targets) & ~np.isnan(rows).any(axis=-1)
    weights, *_ = np.linalg.lstsq(rows[usable], targets[usable].astype(np.float64), rcond=None)
    predictions: NDArray[np.float64] = regressors @ weights
    return predictions


def _lagged(filled: NDArray[np.float64], lag: int) -> NDArray[np.float64]:
    """Return at t the value of row t + 1 - lag, NaN before there is one."""
    shifted = np.full_like(filled, np.nan)
    shifted[:, lag - 1 :] = filled[:, : filled.shape[1] - lag + 1]
    return shifted
