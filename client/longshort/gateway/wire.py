"""Frames as bytes. Columns never become protobuf objects: they are read and written where they lie.

It owns the layout of StreamFramesRequest and StreamFramesResponse. It does not know what the numbers mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from google.protobuf.message import DecodeError

from longshort.errors import ServerFault
from longshort.v1 import sequence_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_WIDTHS: Final = {_FIXED64: 8, _FIXED32: 4}
# The columns of StreamFramesResponse by field number; its other fields are messages.
_COLUMNS: Final[dict[int, str]] = {
    2: "<u4",
    3: "<u4",
    4: "<u8",
    5: "<f4",
    6: "<u8",
    7: "<u4",
    10: "<u4",
    11: "<u8",
}


@dataclass(frozen=True, slots=True, eq=False)
class FrameAnswer:
    """One StreamFramesResponse. The arrays are read-only and share the memory of the frame."""

    messages: sequence_pb2.StreamFramesResponse  # opened, errors and forecasts; no columns
    handles: NDArray[np.uint32]  # [rows]
    counts: NDArray[np.uint32]  # [rows], or empty: 1 each
    steps: NDArray[np.uint64]  # [rows]
    values: NDArray[np.float32]  # [sum of counts * outputs]
    durable_steps: NDArray[np.uint64]  # [rows], or empty: all 0
    replayed: NDArray[np.uint32]
    flushed: NDArray[np.uint32]  # [flushed]
    flushed_steps: NDArray[np.uint64]  # [flushed], or empty: all 0


def request(
    messages: sequence_pb2.StreamFramesRequest,
    handles: NDArray[np.uint32],
    counts: NDArray[np.uint32] | None,
    steps: NDArray[np.uint64],
    values: Iterable[NDArray[np.float32]],
) -> bytes:
    """Return a StreamFramesRequest of rows beside `messages`, which holds all else.

    `counts` None: 1 each. `values` is the rows' values in order, in as many C-contiguous pieces as they come.
    """
    parts = [messages.SerializeToString()]
    if len(handles):
        _column(parts, 2, [handles.tobytes()])
        if counts is not None:
            _column(parts, 3, [counts.tobytes()])
        _column(parts, 4, [steps.tobytes()])
        _column(parts, 5, [piece.tobytes() for piece in values])
    return b"".join(parts)


def response(raw: bytes) -> FrameAnswer:
    """Return what a StreamFramesResponse holds, or raise ServerFault where it is none."""
    chunks: dict[int, list[memoryview]] = {number: [] for number in _COLUMNS}
    others: list[memoryview] = []
    try:
        _split(memoryview(raw), chunks, others)
        columns = [np.frombuffer(_joined(chunks[number]), dtype) for number, dtype in _COLUMNS.items()]
        messages = sequence_pb2.StreamFramesResponse.FromString(b"".join(others))
    except (DecodeError, IndexError, ValueError) as error:
        raise ServerFault(f"a frame that cannot be read: {error}", reason="PROTOCOL_VIOLATION") from None
    return FrameAnswer(messages, *columns)


def _column(parts: list[bytes], number: int, pieces: list[bytes]) -> None:
    parts.append(bytes([number << 3 | _BYTES]) + _varint(sum(map(len, pieces))))
    parts.extend(pieces)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _split(raw: memoryview, chunks: dict[int, list[memoryview]], others: list[memoryview]) -> None:
    """Sort the fields of a message: the columns' contents by number, all else as it is.

    A column may be packed, in several pieces, or number by number: the encoding leaves it to the writer.
    """
    at = 0
    while at < len(raw):
        start = at
        tag, at = _read_varint(raw, at)
        number, kind = tag >> 3, tag & 7
        if kind == _BYTES:
            size, at = _read_varint(raw, at)
        elif kind == _VARINT:
            size = _read_varint(raw, at)[1] - at
        else:
            size = _WIDTHS[kind] if kind in _WIDTHS else len(raw)  # groups are not in use: cannot be read
        if at + size > len(raw):
            raise ValueError("it is cut short")
        if number in chunks and kind != _VARINT:
            chunks[number].append(raw[at : at + size])
        else:
            others.append(raw[start : at + size])
        at += size


def _read_varint(raw: memoryview, at: int) -> tuple[int, int]:
    """Return a number and where what follows it begins; IndexError where the bytes end within it."""
    number = shift = 0
    while True:
        byte = raw[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7


def _joined(chunks: list[memoryview]) -> Any:
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
