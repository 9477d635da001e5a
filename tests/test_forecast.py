"""The rows of a forecast: how far, what is fed back, what must be known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from longshort_service import errors
from longshort_service.forecast import check_horizon, rows_ahead
from longshort_service.ports import Port
from longshort_service.signature import Channel, Feedback, MissingValue, Signature, State

NAN, INF = float("nan"), float("inf")
# Demand is predicted and fed back; hour, an integer, and rain are known.
CALENDAR = Signature(
    name="calendar",
    features=(Channel("hour"), Channel("demand"), Channel("rain")),
    outputs=(Channel("sure"), Channel("next")),
    states=(State("h0", "hn", (-1, 1), 0),),
    inputs=(Port("hour", (), "int64"), Port("demand", (1,)), Port("rain", (1,))),
    answers=(Port("y", (2,)),),
    forecast=(Feedback("next", "demand"),),
    missing=MissingValue.REJECT,
    fingerprint="f1",
)
ALONE = Signature(
    name="alone",
    features=(Channel("demand"),),
    outputs=(Channel("next"),),
    states=(State("h0", "hn", (-1, 1), 0),),
    forecast=(Feedback("next", "demand"),),
    fingerprint="f1",
)
FIRST = np.array([1, 40], np.float32)


def flat(*numbers: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.array(numbers, np.float32)


@pytest.mark.parametrize("horizon", [1, 50])
def test_horizon_within_the_limit_will_do(horizon: int):
    check_horizon(ALONE, horizon, 50)


@pytest.mark.parametrize("horizon", [0, 51])
def test_horizon_out_of_range_is_refused(horizon: int):
    with pytest.raises(errors.HorizonOutOfRange, match="1 to 50"):
        check_horizon(ALONE, horizon, 50)


def test_model_that_feeds_nothing_back_cannot_run_ahead():
    with pytest.raises(errors.ForecastUnavailable, match="alone"):
        check_horizon(dataclasses.replace(ALONE, forecast=()), 2, 50)


def test_first_row_holds_what_was_predicted_and_every_row_what_is_known():
    rows = rows_ahead(CALENDAR, FIRST, flat(7, 0.5, 8, 0), 3)
    numbers = CALENDAR.value_row.to_numbers(rows)
    assert numbers.tolist() == [[7, 40, 0.5], [8, 0, 0]]


def test_last_row_more_is_not_looked_at():
    rows = rows_ahead(CALENDAR, FIRST, flat(7, 0.5, NAN, INF), 2)
    assert CALENDAR.value_row.to_numbers(rows).tolist() == [[7, 40, 0.5]]


@pytest.mark.parametrize("known", [(), (7, 0.5)])
def test_forecast_of_the_last_prediction_alone_needs_no_rows(known: tuple[float, ...]):
    assert rows_ahead(CALENDAR, FIRST, flat(*known), 1).shape == (0, CALENDAR.value_row.width)


def test_model_that_predicts_all_is_told_nothing():
    assert rows_ahead(ALONE, flat(3), flat(), 3).tolist() == [[3], [0]]
    with pytest.raises(errors.WrongShape, match=r"\(nothing\), 0 numbers; there are 2"):
        rows_ahead(ALONE, flat(3), flat(1, 2), 3)


@pytest.mark.parametrize("count", [0, 3, 5, 8])
def test_other_number_of_rows_is_refused_by_the_names_of_what_is_needed(count: int):
    with pytest.raises(errors.WrongShape, match=r"2 rows of what will be known \(hour, rain\)") as caught:
        rows_ahead(CALENDAR, FIRST, flat(*range(count)), 3)
    assert caught.value.metadata == {"num_values": str(count), "num_features": "2"}


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        ((7.5, 0), errors.WrongShape),
        ((7, NAN), errors.ValueMissing),
        ((7, INF), errors.ValueNotFinite),
    ],
)
def test_what_is_known_is_held_to_what_values_are(known: tuple[float, ...], reason: type[Exception]):
    with pytest.raises(reason):
        rows_ahead(CALENDAR, FIRST, flat(*known), 2)
