"""The arithmetic of scores on a series short enough to check by hand."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest
from longshort_model.dataset import Dataset, parking, repeat_last
from longshort_model.evaluation import coverage, error_by_age, point_errors, series_better_than, summary
from longshort_model.report import draw, draw_horizons, write_json

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


NAN = float("nan")
# Two series of eight rows; rows 0 to 3 are for training, the targets scored are rows 5 to 7.
VALUES = np.array([[1, 2, 4, 5, 0, 10, NAN, 20], [0, 4, 0, 4, 0, 5, 5, 5]], np.float32)
START = 5


@pytest.fixture
def dataset() -> Dataset:
    return Dataset(
        name="hand",
        feature="value",
        unit="m",
        series=("a", "b"),
        values=VALUES,
        train_end=4,
        validation_end=START,
        times=tuple(datetime(2024, 1, 1, 22) + timedelta(hours=k) for k in range(8)),  # noqa: DTZ001
        step_s=3600.0,
    )


@pytest.fixture
def predictions() -> NDArray[np.float64]:
    """Made after the value of the same column, so that columns 4 to 6 are for rows 5 to 7."""
    made = np.full((2, 8), 99.0)
    made[0, 4:7] = [12, 50, 14]  # errors 2, not scored, 6
    made[1, 4:7] = [5, 4, 8]  # errors 0, 1, 3
    return made


def test_errors_are_those_of_the_prediction_made_one_step_before(
    dataset: Dataset, predictions: NDArray[np.float64]
) -> None:
    errors = point_errors(dataset, predictions, START)
    assert errors.num_scored == 5
    assert errors.mae == pytest.approx((2 + 6 + 0 + 1 + 3) / 5)
    assert errors.rmse == pytest.approx(((4 + 36 + 0 + 1 + 9) / 5) ** 0.5)


def test_mase_divides_each_series_by_its_own_changes_in_training(
    dataset: Dataset, predictions: NDArray[np.float64]
) -> None:
    # a: mean error 4, changes 1, 2, 1; b: mean error 4/3, changes 4, 4, 4
    assert point_errors(dataset, predictions, START).mase == pytest.approx((4 / (4 / 3) + (4 / 3) / 4) / 2)


def test_coverage_counts_bounds_as_inside_and_goes_by_the_hour_of_the_target(dataset: Dataset) -> None:
    low, high = np.full((2, 8), 5.0), np.full((2, 8), 10.0)
    low[1, 5] = 6  # for row 6, where b is 5: below
    band = coverage(dataset, low, high, START)
    assert band.overall == pytest.approx(3 / 5)  # a: 10 in, 20 above; b: 5 in, 5 below, 5 in
    assert (band.below, band.above) == pytest.approx((1 / 5, 1 / 5))
    assert band.by_hour == {3: 1.0, 4: 0.0, 5: 0.5}


def test_error_by_age_leaves_out_missing_targets() -> None:
    targets = np.array([[1, 2, NAN], [3, NAN, NAN]])
    found = error_by_age(targets, np.array([[0, 0, 0], [7, 0, 0]]))
    np.testing.assert_array_equal(found, [2.5, 2.0, NAN])


def test_better_series_are_counted_one_by_one(dataset: Dataset, predictions: NDArray[np.float64]) -> None:
    rival = predictions.copy()
    rival[1, 4:7] = [5, 5, 5]  # exact in b, the same in a
    assert series_better_than(dataset, predictions, rival, START) == 0
    assert series_better_than(dataset, rival, predictions, START) == 1


def test_a_forecast_that_knows_the_future_has_no_error() -> None:
    dataset = parking()
    oracle = np.roll(dataset.values, -1, axis=1)
    found = summary(dataset, np.stack([oracle, oracle, oracle], axis=-1), dataset.validation_end)
    assert (found["mae"], found["rmse"], found["mase"], found["coverage"]) == (0, 0, 0, 1)
    assert found["num_series_better_than"] == dict.fromkeys(found["baselines"], 28)


def test_the_report_is_written_as_json_and_drawn(tmp_path: Path) -> None:
    dataset = parking()
    last = repeat_last(dataset.values)
    band = np.stack([last, last - 0.05, last + 0.05], axis=-1)
    report = summary(dataset, band, dataset.validation_end)
    report |= {"model": "parking", "error_by_age": [0.3, None, 0.1], "error_by_horizon": [0.1, None, 0.3]}
    report["unit"] = dataset.unit
    write_json(tmp_path / "new" / "report.json", report)
    read = json.loads((tmp_path / "new" / "report.json").read_text())
    assert read["mae"] == pytest.approx(read["persistence_mae"]) == pytest.approx(0.0526, rel=2e-3)
    draw(tmp_path / "picture.png", dataset, band, report)
    draw_horizons(tmp_path / "more" / "horizons.png", [report, report | {"model": "another"}])
    for picture in ("picture.png", "more/horizons.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
