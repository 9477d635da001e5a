"""The rows of a forecast: what is known, what is fed back, and what is wrong with either."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from longshort_service import errors
from longshort_service.forecast import check_horizon, rows_ahead
from longshort_service.ports import Port
from longshort_service.signature import Channel, Feedback, MissingValue, Signature

CALENDAR = Signature(
    "calendar",
    (Channel("demand"), Channel("hour"), Channel("rain")),
    (Channel("low"), Channel("next")),
    (),
    inputs=(Port("demand", (1,)), Port("hour", (), "int64"), Port("rain", (1,))),
    forecast=(Feedback("next", "demand"),),
)
ALONE = Signature("alone", (Channel("x"),), (Channel("y"),), (), forecast=(Feedback("y", "x"),))
FIRST = np.array([7, 9], np.float32)


def known(*numbers: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.array(numbers, np.float32)


@pytest.mark.parametrize("more", [(), (99, 99)])
def test_known_columns_are_filled_and_the_first_prediction_is_fed_back(more: tuple[float, ...]):
    rows = rows_ahead(CALENDAR, FIRST, known(1, 0.5, 2, 0.25, *more), 3)
    demand, hour, rain = CALENDAR.value_row.unpack(rows)
    assert demand.ravel().tolist() == [9, 0]
    assert hour.tolist() == [1, 2]
    assert rain.ravel().tolist() == [0.5, 0.25]


def test_model_that_predicts_all_of_its_features_is_told_nothing():
    assert rows_ahead(ALONE, known(7), known(), 3).tolist() == [[7], [0]]
    assert rows_ahead(ALONE, known(7), known(), 1).shape == (0, 1)
    with pytest.raises(errors.WrongShape, match="nothing"):
        rows_ahead(ALONE, known(7), known(1), 3)


@pytest.mark.parametrize("count", [0, 3, 5, 8])
def test_wrong_number_of_known_inputs_names_them(count: int):
    with pytest.raises(errors.WrongShape, match="hour, rain") as caught:
        rows_ahead(CALENDAR, FIRST, np.ones(count, np.float32), 3)
    assert caught.value.metadata == {"num_values": str(count), "num_features": "2"}


@pytest.mark.parametrize(
    ("numbers", "error"),
    [
        ((1.5, 0, 2, 0), errors.WrongShape),
        ((1, np.nan, 2, 0), errors.ValueMissing),
        ((1, 0, 2, np.inf), errors.ValueNotFinite),
    ],
)
def test_known_inputs_are_held_to_the_rules_of_values(numbers: tuple[float, ...], error: type[Exception]):
    with pytest.raises(error):
        rows_ahead(CALENDAR, FIRST, known(*numbers), 3)


def test_known_input_that_is_missing_in_the_first_row_is_named():
    """Nothing goes before it that could be repeated: what the session saw last is of another hour."""
    repeats = replace(CALENDAR, inputs=(Port("x", (3,)),), missing=MissingValue.REPEAT_LAST)
    for signature in (CALENDAR, repeats):
        with pytest.raises(errors.ValueMissing, match="row 0 of what will be known, rain: the value is NaN"):
            rows_ahead(signature, FIRST, known(1, np.nan, 2, 0), 3)
    assert rows_ahead(repeats, FIRST, known(1, 5, 2, np.nan), 3).tolist() == [[9, 1, 5], [0, 2, 5]]
    passes = replace(repeats, missing=MissingValue.PASS)
    assert np.isnan(rows_ahead(passes, FIRST, known(np.nan, 5, 2, 0), 3)[0, 1])


def test_horizon_and_feedback_are_checked():
    check_horizon(ALONE, 4, 4)
    for horizon in (0, 5):
        with pytest.raises(errors.HorizonOutOfRange):
            check_horizon(ALONE, horizon, 4)
    with pytest.raises(errors.ForecastUnavailable):
        check_horizon(
            Signature("deaf", (Channel("x"),), (Channel("y"),), (), missing=MissingValue.PASS), 1, 4
        )
