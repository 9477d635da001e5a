"""Reading a comma-separated file into columns of numbers, with errors that name line and column.

Owns the file's form. Does not know what the numbers are for.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import math
import zlib
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MISSING: Final = frozenset({"", "na", "nan", "null"})
TIME_NAMES: Final = frozenset({"time", "timestamp", "datetime", "date"})


class DatasetError(ValueError):
    """A file that cannot be used; the message names the file and, where it can, line and column."""


@dataclass(frozen=True, slots=True)
class Table:
    """The chosen columns of a file. `day` is the usual number of rows a day, `step_s` the usual step.

    `notice` says in a line where rows do not follow each other by that step; it is empty where all do.
    """

    names: tuple[str, ...]
    values: NDArray[np.float32]  # [columns, rows], NaN where missing
    times: tuple[datetime, ...]  # [rows], or empty
    step_s: float | None
    day: int | None
    notice: str


def read_table(
    raw: bytes, file: str, columns: Sequence[str] | None = None, *, time_column: str | None = None
) -> Table:
    """Read a file's bytes (UTF-8 with a header; unpacked where `file` ends with .gz).

    `columns` None takes all but the time; empty takes the only one beside the time. The time column (ISO
    8601) is the one named, or else one called time, timestamp, datetime or date, and may be absent. Empty
    cells, `NA`, `NaN` and `null` are missing values. Raises DatasetError.
    """
    header, rows = _rows(raw, file)
    time_index = _time_index(header, file, time_column)
    chosen = _chosen(header, file, columns, time_index)
    values = np.empty((len(chosen), len(rows)), np.float32)
    times: list[datetime] = []
    for t, (line, row) in enumerate(rows):
        if time_index is not None:
            times.append(_time(row[time_index], f"{file}, line {line}, column {header[time_index]!r}"))
        for k, column in enumerate(chosen):
            values[k, t] = _number(row[column], f"{file}, line {line}, column {header[column]!r}")
    step_s, day = _grid(times, file)
    notice = "" if step_s is None else _uneven(times, step_s, [line for line, _ in rows], file)
    return Table(tuple(header[column] for column in chosen), values, tuple(times), step_s, day, notice)


def _rows(raw: bytes, file: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header and the rows with their line numbers, every row as long as the header."""
    try:
        if file.endswith(".gz"):
            raw = gzip.decompress(raw)
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DatasetError(f"{file}, line {line}: not UTF-8 (byte 0x{raw[error.start]:02x})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{file}: not a gzip file, or damaged") from error
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        lines = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise DatasetError(f"{file}, line {reader.line_num}: {error}") from error
    while lines and not lines[-1][1]:
        lines.pop()
    if not lines:
        raise DatasetError(f"{file}: the file is empty")
    header = [name.strip() for name in lines[0][1]]
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise DatasetError(f"{file}, line 1: column {twice[0]!r} is named twice")
    rows = [
        (line, row or [""]) for line, row in lines[1:]
    ]  # a blank line of a single column is a missing value
    for line, row in rows:
        if len(row) != len(header):
            raise DatasetError(f"{file}, line {line}: {len(row)} cells where the header has {len(header)}")
    return header, rows


def _time_index(header: list[str], file: str, time_column: str | None) -> int | None:
    if time_column is not None:
        return _index(header, file, time_column)
    return next((k for k, name in enumerate(header) if name.lower() in TIME_NAMES), None)


def _chosen(header: list[str], file: str, columns: Sequence[str] | None, time_index: int | None) -> list[int]:
    if columns:
        return [_index(header, file, name) for name in columns]
    rest = [k for k in range(len(header)) if k != time_index]
    if not rest or (columns is not None and len(rest) > 1):
        raise DatasetError(f"{file}, line 1: name the column to learn from; there are {_listed(header)}")
    return rest


def _index(header: list[str], file: str, name: str) -> int:
    if name not in header:
        raise DatasetError(f"{file}, line 1: no column {name!r}; there are {_listed(header)}")
    return header.index(name)


def _listed(header: list[str]) -> str:
    shown = ", ".join(repr(name) for name in header[:8])
    return shown if len(header) <= 8 else f"{shown} and {len(header) - 8} more"


def _number(cell: str, place: str) -> float:
    if cell.strip().lower() in MISSING:
        return math.nan
    try:
        number = float(cell.replace("_", "?"))  # Python alone takes 1_000 for a number
    except ValueError:
        raise DatasetError(f"{place}: {cell[:40]!r} is no number") from None
    if not abs(number) <= float(np.finfo(np.float32).max):
        raise DatasetError(f"{place}: {cell[:40]!r} is not a finite 32-bit number")
    return number


def _time(cell: str, place: str) -> datetime:
    try:
        return datetime.fromisoformat(cell.strip())
    except ValueError:
        raise DatasetError(f"{place}: {cell[:40]!r} is no time in ISO 8601") from None


def _grid(times: list[datetime], file: str) -> tuple[float | None, int | None]:
    """Return the usual seconds between rows and the usual number of rows a day, where there are times."""
    if len(times) < 2:
        return None, None
    try:
        steps = Counter(_steps_s(times))
    except TypeError as error:
        raise DatasetError(f"{file}: some times have an offset from UTC and some have none") from error
    if min(steps) <= 0:
        raise DatasetError(f"{file}: the times do not always rise; sort the rows and keep one for each time")
    day = Counter(Counter(t.date() for t in times).values()).most_common(1)[0][0]
    return steps.most_common(1)[0][0], day if day > 1 else None


def _steps_s(times: list[datetime]) -> list[float]:
    """Return the seconds from each row to the next."""
    return [(after - before).total_seconds() for before, after in itertools.pairwise(times)]


def _uneven(times: list[datetime], step_s: float, lines: list[int], file: str) -> str:
    """Return how many steps are not of `step_s`, and the line after the first of them; empty if none."""
    wrong = [line for line, step in zip(lines[1:], _steps_s(times), strict=True) if step != step_s]
    if not wrong:
        return ""
    count = f"{len(wrong)} of {len(times) - 1} steps between rows"
    return f"{file}: {count} are not of {step_s:g} s as usual, the first at line {wrong[0]}"
