"""Numbers in and out of messages: what callers hand over, what answers hold."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np

from longshort.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

_AGES_S = 1e9  # in place of infinity, which gRPC takes for a time that has passed


def one_row(value: ArrayLike, num_features: int | None) -> NDArray[np.float32]:
    """Return one step's value, a number or [features], as [1, features] f32, or raise InvalidRequest.

    `num_features` None: not known yet, any width passes.
    """
    array = floats(value)
    if array.ndim > 1:
        raise wrong_shape(f"a step takes a number or an array of one axis, not of {array.ndim}")
    row = array.reshape(1, -1)
    return row if num_features is None else _with_width(row, num_features)


def many_rows(values: ArrayLike, num_features: int) -> NDArray[np.float32]:
    """Return [time] (one feature) or [time, features] as [time, features] f32, or raise InvalidRequest."""
    array = floats(values)
    if array.ndim == 0:
        raise wrong_shape("expected an array of values, got a single one: use step() for it")
    if array.ndim == 1 and num_features == 1:
        return array.reshape(-1, 1)
    if array.ndim != 2:
        raise wrong_shape(f"expected [time, {num_features}], got an array of {array.ndim} axes")
    return _with_width(array, num_features)


def check_ahead(known: NDArray[np.float32], horizon: int) -> None:
    """Raise InvalidRequest where [rows, features], told to a forecast, has not the rows of its steps.

    Fewer axes pass: they are [rows] of one feature, or flat. A message is flat and cannot say how wide its rows are:
    features by rows would pass for rows by features.
    """
    if horizon < 1 or known.ndim < 2 or (known.ndim == 2 and len(known) in {horizon - 1, horizon}):
        return  # a horizon of 0 is the server's to refuse
    raise wrong_shape(
        f"a forecast of {horizon} steps is told [{horizon - 1}, known features], got {list(known.shape)}"
    )


def whole_number(value: SupportsIndex, name: str, bound: int) -> int:
    """Return an argument as an int of [0, bound), or raise InvalidRequest: protobuf would raise its own."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number < bound:
        raise InvalidRequest(
            f"{name} is a whole number from 0 to {bound - 1}, not {value!r}", reason="INVALID_OPTION"
        )
    return number


def text(value: str, name: str) -> str:
    """Return an argument that is text, or raise InvalidRequest: protobuf would raise its own."""
    try:
        value.encode()
    except (AttributeError, UnicodeEncodeError):
        raise InvalidRequest(f"{name} is text, not {value!r}", reason="INVALID_OPTION") from None
    return value


def seconds(value: float, name: str) -> float:
    """Return a time limit in seconds, a number above 0, or raise InvalidRequest."""
    is_number = isinstance(value, int | float | np.integer | np.floating)
    if not is_number or math.isnan(value) or value <= 0:
        raise InvalidRequest(f"{name} is a number of seconds above 0, not {value!r}", reason="INVALID_OPTION")
    return min(float(value), _AGES_S)


def answer_rows(values: Sequence[float], num_outputs: int) -> NDArray[np.float32]:
    """Return an answer's numbers as [rows, outputs] f32."""
    return np.fromiter(values, np.float32, len(values)).reshape(-1, num_outputs)


def floats(values: ArrayLike) -> NDArray[np.float32]:
    """Return a copy as float32. Text and objects are refused: NumPy would turn "12" into 12."""
    try:
        array = np.asarray(values)
    except ValueError as error:  # a ragged list
        raise wrong_shape(str(error)) from None
    if array.dtype.kind not in "fiub":
        raise InvalidRequest(f"values must be real numbers, not {_kind(array)}", reason="WRONG_TYPE")
    with np.errstate(over="ignore"):  # 1e300 becomes infinity, which the server refuses
        return array.astype(np.float32)


def _kind(array: NDArray[np.generic]) -> str:
    """Return what a person would call an array's elements, with the way out where there is one."""
    if array.dtype.kind in "US":
        return "text: convert it first"
    if array.dtype.kind == "O" and any(value is None for value in array.flat):
        return "None: use NaN for a missing value"
    return {"c": "complex numbers", "M": "times", "m": "time spans"}.get(array.dtype.kind, str(array.dtype))


def _with_width(rows: NDArray[np.float32], num_features: int) -> NDArray[np.float32]:
    # A flat message cannot say how wide its rows are: six numbers would pass for six steps of one feature.
    if rows.shape[1] != num_features:
        raise wrong_shape(f"the model takes {num_features} features a step, got {rows.shape[1]}")
    return rows


def wrong_shape(message: str) -> InvalidRequest:
    """Return the error of an array of the wrong shape."""
    return InvalidRequest(message, reason="WRONG_SHAPE")
