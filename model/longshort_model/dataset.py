"""Series to train on and to stream: the two that are bundled, and any CSV file.

Owns reading, the split into training, validation and test part, and the filling of missing inputs. Knows no
model and imports no torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from longshort_model.csv_file import DatasetError, read_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from numpy.typing import NDArray

BUNDLED: Final = ("metro", "metro-calendar", "parking")
LEAST_ROWS: Final = 120  # below it the validation part, a tenth, has too few values to choose a checkpoint by
SHARES: Final = (0.65, 0.10)  # of the rows, for training and validation; the rest is the test part


@dataclass(frozen=True, slots=True)
class Dataset:
    """Series of one quantity on a common grid of time; one model follows them, each in its own session.

    Rows before `train_end` are for training, from there to `validation_end` for choosing the checkpoint, the
    rest for testing. `day` and `week` are numbers of rows, None where the file has no times. `notice` is a
    line for whoever brought the file, if there is something to say. `has_calendar`: the model is told the hour and
    the weekday of each row beside its value.
    """

    name: str
    feature: str
    unit: str
    series: tuple[str, ...]
    values: NDArray[np.float32]  # [series, time], NaN where missing
    train_end: int
    validation_end: int
    times: tuple[datetime, ...] = ()
    step_s: float | None = None
    day: int | None = None
    source: str = ""
    notice: str = ""
    has_calendar: bool = False

    @property
    def week(self) -> int | None:
        """The number of rows in a week."""
        return None if self.day is None else 7 * self.day

    def hours(self) -> NDArray[np.int64] | None:
        """Return the hour of the day of each row, [time], or None where the file has no times."""
        return np.array([t.hour for t in self.times]) if self.times else None

    def inputs(self) -> NDArray[np.float32]:
        """Return what the model sees, [series, time, features]: missing values are the last known ones again.

        With a calendar the features are the value, the hour of the day (0 to 23) and the weekday (0 is Monday) of
        the row itself; otherwise the value alone.
        """
        filled = repeat_last(self.values)[..., None]
        if not self.has_calendar:
            return filled
        calendar = np.array([(t.hour, t.weekday()) for t in self.times], np.float32)  # [time, 2]
        return np.concatenate([filled, np.broadcast_to(calendar, (*filled.shape[:2], 2))], axis=-1)


def with_calendar(dataset: Dataset, name: str | None = None) -> Dataset:
    """Return the data set for a model that is told hour and weekday too. Raises DatasetError if it has no times."""
    if not dataset.times:
        raise DatasetError(
            f"{dataset.name}: a calendar needs the time of each row; name its column with --time"
        )
    return dataclasses.replace(dataset, name=name or dataset.name, has_calendar=True)


def load(name: str, columns: Sequence[str] = (), *, time_column: str | None = None) -> Dataset:
    """Return the bundled data set of that name, one of BUNDLED, or else read the CSV file of that name.

    Raises DatasetError.
    """
    if name in BUNDLED:
        if columns or time_column:
            raise DatasetError(f"{name} is bundled with its columns; --column and --time are for CSV files")
        if name == "parking":
            return parking()
        return metro() if name == "metro" else with_calendar(metro(), name)
    return read_csv(Path(name), columns, time_column=time_column)


def metro() -> Dataset:
    """Return the vehicles per hour on one road, 480 days to train, 70 to validate, 180 to test."""
    return _bundled(
        "metro_traffic.csv.gz",
        ("metro", "vehicles", "vehicles/h"),
        (480 * 24, 550 * 24),
        "Metro Interstate Traffic Volume, John Hogue (2019), UCI, doi:10.24432/C5X60B, CC BY 4.0",
    )


def parking() -> Dataset:
    """Return the share of places taken in 28 car parks, 46 days to train, 9 to validate, 18 to test.

    Half-hours from 08:00 to 16:30: the night is skipped, which penalises persistence at every first value.
    """
    return _bundled(
        "parking_birmingham.csv.gz",
        ("parking", "occupancy", "share of capacity"),
        (46 * 18, 55 * 18),
        "Parking Birmingham, Daniel Stolfi (2019), UCI, doi:10.24432/C51K5Z, CC BY 4.0",
    )


def read_csv(path: Path, columns: Sequence[str] = (), *, time_column: str | None = None) -> Dataset:
    """Read columns of a comma-separated file as `csv_file.read_table` does: a series a column.

    Raises DatasetError.
    """
    file = str(path)
    try:
        table = read_table(path.read_bytes(), file, columns, time_column=time_column)
    except OSError as error:
        raise DatasetError(f"{file}: {error.strerror or error}") from error
    rows = table.values.shape[1]
    if rows < LEAST_ROWS:
        raise DatasetError(f"{file}: {rows} rows of values; at least {LEAST_ROWS} are needed")
    ends = int(rows * SHARES[0]), int(rows * sum(SHARES))
    for part, start, end in (("training", 0, ends[0]), ("validation", *ends), ("test", ends[1], rows)):
        for name, values in zip(table.names, table.values, strict=True):
            if np.isnan(values[start:end]).all():
                lines = f"rows {start + 1} to {end}"
                raise DatasetError(f"{file}, column {name!r}: no value in its {part} part, {lines}")
    return Dataset(
        name=path.name.removesuffix(".gz").removesuffix(".csv"),
        feature=table.names[0] if len(table.names) == 1 else "value",
        unit="",
        series=table.names,
        values=table.values,
        train_end=ends[0],
        validation_end=ends[1],
        times=table.times,
        step_s=table.step_s,
        day=table.day,
        source=f"{path.name}: {', '.join(table.names)}",
        notice=table.notice,
    )


def repeat_last(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the values [..., time] as the model sees them: a missing one is the last known one again.

    Before a series' first known value stands that value; a series without any stays NaN.
    """
    known = ~np.isnan(values)
    index = np.where(known, np.arange(values.shape[-1]), -1)
    last = np.maximum.accumulate(index, axis=-1)
    first = known.argmax(axis=-1)[..., None]
    filled: NDArray[np.float32] = np.take_along_axis(values, np.where(last < 0, first, last), axis=-1)
    return filled


def _bundled(file: str, words: tuple[str, str, str], ends: tuple[int, int], source: str) -> Dataset:
    raw = resources.files("longshort_model").joinpath("data", file).read_bytes()
    table = read_table(raw, file)
    name, feature, unit = words
    return Dataset(
        name=name,
        feature=feature,
        unit=unit,
        series=table.names,
        values=table.values,
        train_end=ends[0],
        validation_end=ends[1],
        times=table.times,
        step_s=table.step_s,
        day=table.day,
        source=source,
    )
