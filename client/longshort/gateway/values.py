"""What callers hand to a gateway as values of many sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from longshort import arrays, named

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from longshort.errors import LongshortError


def session_rows(values: ArrayLike, num_sessions: int, num_features: int) -> tuple[NDArray[np.float32], bool]:
    """Return [n], [n, features] or [n, time, features] as [n, time, features] f32, or raise InvalidRequest.

    [n, time] will do where the model has one feature. The second part is whether the axis of time was left out.
    `num_features` 0: not known yet, any width passes.
    """
    array = arrays.floats(values)
    shape = list(array.shape)
    is_flat = array.ndim < 3
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim == 2 and num_features == 1 and array.shape[1] != 1:
        array, is_flat = array[:, :, None], False
    if array.ndim == 2:
        array = array[:, None, :]
    if array.ndim != 3 or len(array) != num_sessions or (num_sessions and not array.size):
        raise arrays.wrong_shape(
            f"expected [{num_sessions}], [{num_sessions}, features] or [{num_sessions}, time, features], got {shape}"
        )
    if num_sessions and num_features and array.shape[2] != num_features:
        raise arrays.wrong_shape(f"the model takes {num_features} features a step, got {shape}")
    return array, is_flat


def session_known(known: ArrayLike | None, num_sessions: int, horizon: int) -> NDArray[np.float32] | None:
    """Return what forecasts are told as [n, numbers] f32, or raise InvalidRequest.

    [rows, known features], or [rows] of one, is the same for all; [n, rows, known features] each session's own.
    """
    if known is None:
        return None
    array = arrays.floats(known)
    if array.ndim < 3:
        arrays.check_ahead(array, horizon)
        return np.tile(array.reshape(1, -1), (num_sessions, 1))
    if array.ndim > 3 or len(array) != num_sessions:
        raise arrays.wrong_shape(
            f"expected [rows, features] or [{num_sessions}, rows, features], got {list(array.shape)}"
        )
    if num_sessions:
        arrays.check_ahead(array[0], horizon)
    return array.reshape(num_sessions, array.shape[1] * array.shape[2])


def session_fields(initial: named.Named, num_sessions: int) -> NDArray[Any]:
    """Return what sessions begin with, by name one array [n, *shape], as [n] of fields, or raise InvalidRequest."""
    rows = named.many_steps(initial)
    if len(rows) != num_sessions:
        raise arrays.wrong_shape(f"expected arrays of {num_sessions} sessions, got {len(rows)}")
    return rows


def wrong_width(num_given: int, num_features: int, *, is_array: bool) -> LongshortError:
    """Return the error of a row that was taken before the model's width was known."""
    hint = ", or give [n, time, 1]" if num_features == 1 and is_array else ""
    return arrays.wrong_shape(f"the model takes {num_features} features a step, got {num_given}{hint}")
