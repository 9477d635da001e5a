"""What callers hand to a gateway as values of many sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longshort import arrays

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray


def session_rows(values: ArrayLike, num_sessions: int, num_features: int) -> tuple[NDArray[np.float32], bool]:
    """Return [n], [n, features] or [n, time, features] as [n, time, features] f32, or raise InvalidRequest.

    The second part is whether the axis of time was left out. `num_features` 0: not known yet, any width passes.
    """
    array = arrays.floats(values)
    is_flat = array.ndim < 3
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim == 2:
        array = array[:, None, :]
    if array.ndim != 3 or not array.size or len(array) != num_sessions:
        raise arrays.wrong_shape(
            f"expected [{num_sessions}], [{num_sessions}, features] or [{num_sessions}, time, features], "
            f"got {list(array.shape)}"
        )
    if num_features and array.shape[2] != num_features:
        raise arrays.wrong_shape(f"the model takes {num_features} features a step, got {array.shape[2]}")
    return array, is_flat
