"""How the tensors that a model takes and gives at one step lie in one row of numbers.

The service moves rows `[width] f32`: through queues, columns, stored answers, records. Of a model whose tensors are
all float32 a row is its numbers one after the other. Of others it is their bytes, in words of four: a float64 takes
two, and what is smaller than a word is filled up with zeros at the end of its tensor. Rows are copied, compared and
summed bit for bit and never calculated with, so that both are moved alike. Pure functions on arrays.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

WORD_BYTES: Final = 4
DTYPES: Final = ("float16", "float32", "float64", "int32", "int64")


@dataclass(frozen=True, slots=True)
class Port:
    """A graph tensor that carries a part of each row of values, or of answers.

    `shape` is its shape at one step of one session. `batch_axis` and `time_axis` say where the graph has these two
    beside it: `[batch, time, *shape]` unless told otherwise. None: the graph has no such axis, so that it runs one
    session, or one step, at a time.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    batch_axis: int | None = 0
    time_axis: int | None = 1

    @property
    def num_elements(self) -> int:
        """How many numbers it has at one step of one session."""
        return math.prod(self.shape)

    @property
    def num_words(self) -> int:
        """How many words of a row it takes."""
        return -(-self.num_elements * np.dtype(self.dtype).itemsize // WORD_BYTES)

    @property
    def is_plain(self) -> bool:
        """Whether it is `[batch, time, numbers] f32`: the row itself."""
        return (
            self.dtype == "float32" and len(self.shape) == 1 and (self.batch_axis, self.time_axis) == (0, 1)
        )


class NotRepresentable(ValueError):
    """A number that a tensor's dtype cannot hold; `column` is its place among the row's numbers."""

    def __init__(self, column: int, number: float, dtype: str) -> None:
        super().__init__(f"{number} is no {dtype}")
        self.column = column


class RowLayout:
    """Where in a row each of some ports lies. Immutable."""

    __slots__ = ("_words", "is_float32", "num_elements", "ports", "width")

    def __init__(self, ports: Sequence[Port]) -> None:
        self.ports = tuple(ports)
        ends = np.cumsum([0, *(port.num_words for port in self.ports)]).tolist()
        self._words = [slice(begin, end) for begin, end in itertools.pairwise(ends)]
        self.width: int = ends[-1]  # in words
        self.num_elements = sum(port.num_elements for port in self.ports)
        # A row is its numbers one after the other: words and numbers are the same.
        self.is_float32 = all(port.dtype == "float32" for port in self.ports)

    def word_of(self, element: int) -> int:
        """Return which word of a row one of its numbers is. Raises LookupError for one that is no float32."""
        begin = 0
        for port, words in zip(self.ports, self._words, strict=True):
            if element < begin + port.num_elements:
                if port.dtype != "float32":
                    raise LookupError(f"{port.name} is {port.dtype}")
                first: int = words.start
                return first + element - begin
            begin += port.num_elements
        raise LookupError(element)

    def unpack(self, rows: NDArray[np.float32]) -> list[NDArray[Any]]:
        """Return of rows `[..., width]` each port's tensor `[..., *shape]` in its dtype: views or copies."""
        lead = rows.shape[:-1]
        tensors = []
        for port, words in zip(self.ports, self._words, strict=True):
            part = rows[..., words]
            if port.dtype != "float32":
                part = np.ascontiguousarray(part).view(port.dtype)[..., : port.num_elements]
            tensors.append(part.reshape((*lead, *port.shape)))
        return tensors

    def pack(self, tensors: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """Return rows `[..., width]` of each port's tensor `[..., *shape]`, which has its dtype."""
        first = tensors[0]
        lead = first.shape[: first.ndim - len(self.ports[0].shape)]
        if len(self.ports) == 1 and self.is_float32:
            return np.ascontiguousarray(first).reshape((*lead, self.width))
        rows = np.zeros((*lead, self.width), np.float32)
        for port, words, tensor in zip(self.ports, self._words, tensors, strict=True):
            part = np.ascontiguousarray(tensor, port.dtype).reshape((*lead, port.num_elements))
            if port.dtype == "float32":
                rows[..., words] = part
            else:
                num_bytes = part.shape[-1] * part.itemsize
                flat = np.zeros((*lead, port.num_words * WORD_BYTES), np.uint8)
                flat[..., :num_bytes] = part.view(np.uint8).reshape((*lead, num_bytes))
                rows[..., words] = flat.view(np.float32)
        return rows

    def from_numbers(self, numbers: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return rows `[..., width]` of numbers `[..., elements]`, each turned into its port's dtype.

        Raises NotRepresentable where an integer is asked for and the number is none, or is beyond the dtype's range.
        """
        if self.is_float32:
            return numbers
        tensors: list[NDArray[Any]] = []
        begin = 0
        for port in self.ports:
            part = numbers[..., begin : begin + port.num_elements]
            with np.errstate(all="ignore"):
                cast = part.astype(port.dtype)
            wrong = _misfits(part, port.dtype)
            if wrong.any():
                where = np.argwhere(wrong)[0]
                raise NotRepresentable(begin + int(where[-1]), float(part[tuple(where)]), port.dtype)
            tensors.append(cast.reshape(*numbers.shape[:-1], *port.shape))
            begin += port.num_elements
        return self.pack(tensors)

    def can_hold(self, numbers: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return of numbers `[..., elements]` whether `from_numbers` takes all of each row, `[...]`."""
        result: NDArray[np.bool_] = np.ones(numbers.shape[:-1], np.bool_)
        begin = 0
        for port in self.ports:
            end = begin + port.num_elements
            result &= ~_misfits(numbers[..., begin:end], port.dtype).any(axis=-1)
            begin = end
        return result

    def to_numbers(self, rows: NDArray[np.float32], dtype: type[np.floating] = np.float32) -> NDArray[Any]:
        """Return numbers `[..., elements]` of rows: what `dtype` cannot hold is rounded."""
        if self.is_float32:
            return rows.astype(dtype, copy=False)
        lead = rows.shape[:-1]
        with np.errstate(over="ignore"):
            parts = [
                tensor.reshape((*lead, port.num_elements)).astype(dtype)
                for tensor, port in zip(self.unpack(rows), self.ports, strict=True)
            ]
        return np.concatenate(parts, axis=-1)

    def are_finite(self, rows: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return of rows `[..., width]` whether all numbers of each are finite, `[...]`."""
        if self.is_float32:
            return np.asarray(np.isfinite(rows).all(axis=-1))
        lead = rows.shape[:-1]
        result: NDArray[np.bool_] = np.ones(lead, np.bool_)
        for tensor, port in zip(self.unpack(rows), self.ports, strict=True):
            if port.dtype.startswith("float"):
                result &= np.isfinite(tensor.reshape((*lead, port.num_elements))).all(axis=-1)
        return result


def _misfits(numbers: NDArray[np.float32], dtype: str) -> NDArray[np.bool_]:
    """Return of which numbers a cast makes other ones: a float16 may round, but not overflow."""
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return np.asarray(np.isinf(numbers.astype(dtype)) & np.isfinite(numbers))
    if not dtype.startswith("int"):
        return np.zeros(numbers.shape, np.bool_)
    # Beyond the range a cast to an integer gives any number: the greatest float32 below the range's end is checked.
    limit = float(np.iinfo(dtype).max) + 1.0
    return np.asarray(~((numbers >= -limit) & (numbers < limit) & (numbers == np.floor(numbers))))
