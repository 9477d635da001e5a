"""Values as text: lines of comma-separated numbers from a file descriptor, as they come.

Owns the form of the text; knows neither sessions nor gRPC.

A line is a row of numbers, one a feature. An empty cell, `nan`, `na` or `null` is a missing value. Blank
and lines that begin with `#` are left out. A first line without any number is a header: then the columns are
found by the features' names, and others (a time, say) may stand beside them.
"""

from __future__ import annotations

import csv
import math
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MISSING: Final = frozenset({"", "nan", "na", "null"})
CHUNK_BYTES: Final = 1 << 16  # what a pipe holds on Linux
GREATEST_FLOAT32: Final = (2 - 2**-23) * 2.0**127
LONGEST_LINE_BYTES: Final = 1 << 20  # beyond it the input is no text of ours


class BadLineError(ValueError):
    """A line that is no row of values; the message begins with its number."""


def available_lines(descriptor: int) -> Iterator[list[bytes]]:
    """Yield the lines that are there, at least one, waiting for more until the other side closes.

    Raises BadLineError where a line does not end.
    """
    rest = b""
    while chunk := os.read(descriptor, CHUNK_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            yield lines
        if len(rest) > LONGEST_LINE_BYTES:
            raise BadLineError(f"a line of more than {LONGEST_LINE_BYTES} bytes: the input is no text")
    if rest:
        yield [rest]


class LineReader:
    """Reads lines in order. `num_lines` is how many it has read, `has_header` whether the first was one."""

    def __init__(self, features: Sequence[str]) -> None:
        self.num_lines = 0
        self.has_header = False
        self._features = list(features)
        self._columns = list(range(len(features)))
        self._num_cells = len(features)
        self._is_first = True

    def read(self, line: bytes) -> list[float] | None:
        """Return a line's row [features], NaN where missing, or None where it holds no values.

        Raises BadLineError.
        """
        self.num_lines += 1
        try:
            text = line.decode("utf-8-sig" if self.num_lines == 1 else "utf-8").strip()
            if not text or text.startswith("#"):
                return None
            cells = [cell.strip() for cell in next(csv.reader([text], strict=True))]
        except UnicodeDecodeError:
            raise self._bad("not UTF-8") from None
        except csv.Error as error:
            raise self._bad(str(error)) from None
        if self._is_first:
            self._is_first = False
            if not any(_is_number(cell) or cell.lower() in MISSING for cell in cells):
                self._read_header(cells)
                return None
        if len(cells) != self._num_cells:
            wanted = (
                f"{self._num_cells} ({', '.join(self._features)})" if not self.has_header else self._num_cells
            )
            raise self._bad(f"{len(cells)} cells in place of {wanted}")
        return [self._number(cells[column]) for column in self._columns]

    def _read_header(self, cells: list[str]) -> None:
        for feature in self._features:
            if cells.count(feature) != 1:
                named = ", ".join(repr(cell[:40]) for cell in cells[:8])
                raise self._bad(f"no number, and as a header it must name {feature!r} once; it has {named}")
        self._columns = [cells.index(feature) for feature in self._features]
        self._num_cells = len(cells)
        self.has_header = True

    def _number(self, cell: str) -> float:
        if cell.lower() in MISSING:
            return math.nan
        if not _is_number(cell):
            raise self._bad(f"{cell[:40]!r} is no number")
        if not abs(float(cell)) <= GREATEST_FLOAT32:
            raise self._bad(f"{cell[:40]!r} is not a finite 32-bit number")
        return float(cell)

    def _bad(self, message: str) -> BadLineError:
        return BadLineError(f"line {self.num_lines}: {message}")


def _is_number(cell: str) -> bool:
    if "_" in cell:  # Python takes 1_000 for a number, no other reader of the file would
        return False
    try:
        float(cell)
    except ValueError:
        return False
    return True
