"""Baselines on series whose answers are known. What stands at t is the prediction for t + 1."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
from longshort_model.baselines import all_baselines, linear_autoregression, persistence, seasonal_naive
from longshort_model.dataset import Dataset, metro, parking
from longshort_model.evaluation import point_errors

if TYPE_CHECKING:
    from collections.abc import Callable


NAN = float("nan")


def test_persistence_repeats_the_last_value_over_gaps() -> None:
    assert persistence(np.array([[3, NAN, 5]], np.float32)).tolist() == [[3, 3, 5]]


def test_seasonal_naive_predicts_the_value_of_one_period_before_the_target() -> None:
    made = seasonal_naive(np.array([[0, 1, 2, 3, 4, 5]], np.float32), 3)
    np.testing.assert_array_equal(made, [[NAN, NAN, 0, 1, 2, 3]])  # at 2, for row 3: row 0


def test_seasonal_naive_is_exact_on_a_series_of_that_period() -> None:
    values = np.tile(np.array([5, 1, 7, 2], np.float32), 10)[None]
    made = seasonal_naive(values, 4)
    assert np.array_equal(made[:, 3:-1], values[:, 4:])


def test_linear_autoregression_finds_the_recurrence_behind_a_series() -> None:
    rng = np.random.default_rng(0)
    values = np.zeros((3, 400))
    values[:, :2] = rng.normal(size=(3, 2))
    for t in range(2, 400):
        values[:, t] = 1.6 * values[:, t - 1] - 0.99 * values[:, t - 2] + 0.5
    made = linear_autoregression(values.astype(np.float32), [1, 2], train_end=200)
    np.testing.assert_allclose(made[:, 200:-1], values[:, 201:], atol=1e-4)


def test_linear_autoregression_learns_nothing_from_after_the_training_part() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(1, 300)).astype(np.float32)
    changed = values.copy()
    changed[:, 250:] = 1e3
    made, other = (linear_autoregression(v, [1, 2, 5], train_end=200) for v in (values, changed))
    assert np.array_equal(made[:, 4:249], other[:, 4:249])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (metro, {"persistence": 586.7, "daily_naive": 535.7, "weekly_naive": 296.7, "linear_ar": 184.1}),
        (
            parking,
            {"persistence": 0.0526, "daily_naive": 0.0847, "weekly_naive": 0.0930, "linear_ar": 0.0236},
        ),
    ],
)
def test_the_bundled_sets_give_the_documented_errors(
    data: Callable[[], Dataset], expected: dict[str, float]
) -> None:
    dataset = data()
    found = {
        name: point_errors(dataset, made, dataset.validation_end).mae
        for name, made in all_baselines(dataset).items()
    }
    assert found == pytest.approx(expected, rel=2e-3)


def year_of(rows: int, *, day: int) -> Dataset:
    """A noisy daily wave around 1000, its seasons known."""
    t = np.arange(rows)
    values = 1000 + 10 * np.sin(2 * np.pi * t / day) + np.random.default_rng(2).normal(size=rows)
    ends = int(0.65 * rows), int(0.75 * rows)
    return Dataset("wave", "level", "", ("a",), values[None].astype(np.float32), *ends, day=day)


def mae_of(dataset: Dataset, name: str) -> float:
    return point_errors(dataset, all_baselines(dataset)[name], dataset.validation_end).mae


@pytest.mark.parametrize("rows", [120, 260, 261, 270, 300, 340, 390, 420, 700])
def test_a_linear_autoregression_with_little_history_leaves_out_the_lags_it_cannot_fit(rows: int) -> None:
    dataset = year_of(rows, day=24)
    assert mae_of(dataset, "linear_ar") < 2 * mae_of(dataset, "persistence")


def test_a_linear_autoregression_that_nothing_can_be_fitted_to_is_not_offered() -> None:
    dataset = year_of(120, day=24)
    values = dataset.values.copy()
    values[:, 10:70] = NAN  # of 78 rows to learn from 18 are known
    assert "linear_ar" not in all_baselines(dataclasses.replace(dataset, values=values))


def test_without_times_there_are_no_seasons() -> None:
    assert list(all_baselines(dataclasses.replace(metro(), day=None))) == ["persistence", "linear_ar"]
