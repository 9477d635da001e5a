"""Turning what a caller sent into rows that a model may see: shape, count, missing values.

Pure functions on arrays; they know the signature, not the wire and not the sessions.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

from longshort_service import errors
from longshort_service.ports import NotRepresentable
from longshort_service.signature import MissingValue

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longshort_service.signature import Signature


def shape_rows(flat: NDArray[np.float32], signature: Signature, max_steps: int) -> NDArray[np.float32]:
    """Return flat numbers as rows `[time, width]`, as the model takes them.

    Raises EmptyValues, WrongShape or TooManySteps.
    """
    width = len(signature.features)
    num_steps, rest = divmod(flat.size, width)
    if flat.size == 0:
        raise errors.EmptyValues("the message holds no values: send at least one row")
    if rest:
        names = ", ".join(channel.name for channel in signature.features)
        raise errors.WrongShape(
            f"{flat.size} values do not make rows of {width} ({names})",
            num_values=flat.size,
            num_features=width,
        )
    check_num_steps(num_steps, max_steps)
    return rows_of(flat.reshape(num_steps, width), signature)


def check_num_steps(num_steps: int, max_steps: int) -> None:
    """Raise EmptyValues or TooManySteps for a message of so many steps."""
    if num_steps < 1:
        raise errors.EmptyValues("the message holds no values: send at least one row")
    if num_steps > max_steps:
        raise errors.TooManySteps(
            f"{num_steps} steps in one message: send at most {max_steps}",
            num_steps=num_steps,
            max_steps=max_steps,
        )


def rows_of(numbers: NDArray[np.float32], signature: Signature) -> NDArray[np.float32]:
    """Return numbers `[..., features]` as rows `[..., width]`. Raises WrongShape for one that its dtype cannot hold."""
    try:
        return signature.value_row.from_numbers(numbers)
    except NotRepresentable as error:
        name = signature.features[error.column].name
        raise errors.WrongShape(f"{name}: {error}: send its tensor, or a number that it holds") from error


def checksum(rows: NDArray[np.float32]) -> int:
    """Return the CRC-32 of the values as they were sent, little-endian: the third part of their identity."""
    return zlib.crc32(rows.astype("<f4", copy=False).data)


def check_values(
    rows: NDArray[np.float32], signature: Signature, last_row: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Return the rows that the model is to see: `rows` itself, or a copy where missing values were filled.

    `last_row` `[features]` is what the session saw last, None at its start. Raises ValueMissing or ValueNotFinite.
    """
    layout = signature.value_row
    if layout.is_float32:
        numbers: NDArray[np.floating] = rows
    else:
        numbers = layout.to_numbers(rows, np.float64)
    finite = np.isfinite(numbers)
    if finite.all():
        return rows
    if np.isinf(numbers).any():
        step, column = map(int, np.argwhere(np.isinf(numbers))[0])
        raise errors.ValueNotFinite(
            f"row {step}, {signature.features[column].name}: the value is infinite", row=step
        )
    if signature.missing is MissingValue.PASS:
        return rows
    step, column = map(int, np.argwhere(~finite)[0])
    where = f"row {step}, {signature.features[column].name}"
    if signature.missing is MissingValue.REJECT:
        raise errors.ValueMissing(f"{where}: the value is NaN and {signature.name} takes none", row=step)
    if last_row is None and not finite[0].all():
        raise errors.ValueMissing(f"{where}: the first value of a session cannot be missing", row=step)
    return _repeat_last(rows, finite, last_row)


def _repeat_last(
    rows: NDArray[np.float32], finite: NDArray[np.bool_], last_row: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Put the last finite value of its column into each missing place."""
    history = rows if last_row is None else np.vstack([last_row, rows])  # [1 + time, features] f32
    known = finite if last_row is None else np.vstack([np.ones((1, rows.shape[1]), bool), finite])
    index = np.where(known, np.arange(len(history))[:, None], 0)  # [1 + time, features] i64
    np.maximum.accumulate(index, axis=0, out=index)
    filled = np.take_along_axis(history, index, axis=0)
    return np.ascontiguousarray(filled[len(history) - len(rows) :])
