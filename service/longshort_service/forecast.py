"""The rows that a model is given in a forecast: what it predicts itself is fed back, the rest is known ahead. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from longshort_service import errors
from longshort_service.signature import MissingValue
from longshort_service.values import check_values, rows_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longshort_service.signature import Signature


def check_horizon(signature: Signature, horizon: int, max_steps: int) -> None:
    """Raise HorizonOutOfRange, or ForecastUnavailable for a model that none of its outputs is fed back to."""
    if not 1 <= horizon <= max_steps:
        raise errors.HorizonOutOfRange(
            f"the horizon must be 1 to {max_steps}, not {horizon}", horizon=horizon, max_steps=max_steps
        )
    if not signature.can_forecast:
        raise errors.ForecastUnavailable(
            f"{signature.name} has no output that is fed back to a feature: it cannot run ahead",
            model=signature.name,
        )


def rows_ahead(
    signature: Signature, first: NDArray[np.float32], known: NDArray[np.float32], horizon: int
) -> NDArray[np.float32]:
    """Return the rows `[horizon - 1, width]` that a model runs on after its prediction `first` `[width]`.

    `known` is flat, `[horizon - 1, known features]` or one row more, which is not looked at. The places of predictions
    are zero but in the first row. Raises WrongShape, ValueMissing or ValueNotFinite for what is wrong with `known`.
    """
    columns = signature.known_features()
    num_rows = horizon - 1
    if known.size not in {num_rows * len(columns), horizon * len(columns)}:
        names = ", ".join(signature.features[column].name for column in columns) or "nothing"
        raise errors.WrongShape(
            f"a forecast of {horizon} steps needs {num_rows} rows of what will be known ({names}), "
            f"{num_rows * len(columns)} numbers, or one row more; there are {known.size} numbers",
            num_values=known.size,
            num_features=len(columns),
        )
    numbers = np.zeros((num_rows, len(signature.features)), np.float32)
    numbers[:, columns] = known.reshape(-1, len(columns))[:num_rows] if columns else 0
    if np.isnan(numbers[:1]).any() and signature.missing is not MissingValue.PASS:
        column = columns[int(np.isnan(numbers[0, columns]).argmax())]
        raise errors.ValueMissing(
            f"row 0 of what will be known, {signature.features[column].name}: the value is NaN", row=0
        )
    rows = check_values(rows_of(numbers, signature), signature, None).copy()
    sources, targets = signature.feedback_words()
    rows[:1, targets] = first[sources]
    return rows
