"""Frames on the wire to columns and back, without an object a row.

The columns of a frame are packed fixed-width fields: their bytes are the arrays. So a frame's outermost fields are read
here; what is rare in it (openings, errors, forecasts) goes through protobuf.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from google.protobuf.message import DecodeError
from longshort.v1 import sequence_pb2

from longshort_service import errors
from longshort_service.frame_work import Frame
from longshort_service.handlers import codec
from longshort_service.handlers.wire import varint, varint_at

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longshort_service.frame_answer import FrameAnswer

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # the wire types
# The columns of a request, by field number: handles, counts, steps, values, closes, flushes.
_U4, _U8, _F4 = (np.dtype(code) for code in ("<u4", "<u8", "<f4"))
_DTYPES: Final[dict[int, np.dtype[Any]]] = {2: _U4, 3: _U4, 4: _U8, 5: _F4, 8: _U4, 9: _U4}
# The wire types in which each field may come: columns packed, or an element a field.
_WIRE_TYPES: Final[dict[int, tuple[int, ...]]] = {
    **{number: (_BYTES, _FIXED64 if dtype is _U8 else _FIXED32) for number, dtype in _DTYPES.items()},
    1: (_BYTES,),
    6: (_VARINT,),
    7: (_BYTES,),
}
_MAX_FIELD: Final = (1 << 29) - 1
_EMPTY: Final = {dtype: np.empty(0, dtype) for dtype in (_U4, _U8, _F4)}


@dataclass(slots=True)
class FrameRequest:
    """A frame as it came."""

    frame: Frame
    opens: list[sequence_pb2.FrameOpen] = field(default_factory=list)
    forecasts: list[sequence_pb2.FrameForecast] = field(default_factory=list)
    closes: NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, np.uint32))
    flushes: NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, np.uint32))


def parse(raw: bytes, max_message_bytes: int) -> FrameRequest:
    """Return a frame. Raises MessageTooLarge, MalformedMessage, or InvalidMessage for an unknown `answers`."""
    if len(raw) > max_message_bytes:
        raise errors.MessageTooLarge(
            f"the frame has {len(raw)} bytes: send at most {max_message_bytes}, in several frames",
            max_message_bytes=max_message_bytes,
        )
    try:
        fields = _read_fields(raw)
        opens = [sequence_pb2.FrameOpen.FromString(part) for part in fields.get(1, [])]
        forecasts = [sequence_pb2.FrameForecast.FromString(part) for part in fields.get(7, [])]
        columns = {number: _column(fields.get(number, []), dtype) for number, dtype in _DTYPES.items()}
        wanted: Any = fields[6][-1] & 0xFFFFFFFF if 6 in fields else 0  # as protobuf reads an enum
    except (DecodeError, ValueError) as error:
        raise errors.MalformedMessage("the bytes are no longshort.v1.StreamFramesRequest") from error
    handles, counts, steps, values = (columns[number] for number in (2, 3, 4, 5))
    frame = Frame(
        handles,
        counts.astype(np.int64) if len(counts) else None,
        steps.view(np.int64) if len(steps) else None,
        values,
        codec.answers(wanted),
    )
    return FrameRequest(frame, opens, forecasts, columns[8], columns[9])


def _read_fields(raw: bytes) -> dict[int, list[Any]]:
    """Return the outermost fields of a message by number: numbers of varints, bytes of the rest.

    Raises ValueError where the bytes are no message.
    """
    fields: dict[int, list[Any]] = {}
    view, position, end = memoryview(raw), 0, len(raw)
    while position < end:
        tag, position = varint_at(raw, position)
        number, wire_type = tag >> 3, tag & 7
        if not 0 < number <= _MAX_FIELD or wire_type not in _WIRE_TYPES.get(number, (wire_type,)):
            raise ValueError(f"field {number} of wire type {wire_type}")
        content: Any
        if wire_type == _VARINT:
            content, position = varint_at(raw, position)
        else:
            if wire_type == _BYTES:
                length, position = varint_at(raw, position)
            elif wire_type in (_FIXED32, _FIXED64):
                length = 4 if wire_type == _FIXED32 else 8
            else:
                raise ValueError(f"wire type {wire_type}")
            if position + length > end:
                raise ValueError("a field ends behind the message")
            content = view[position : position + length]
            position += length
        fields.setdefault(number, []).append(content)
    return fields


def _column(chunks: list[memoryview], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a column as an aligned copy. A sender may split it, down to a chunk an element that is not packed.

    Raises ValueError where a chunk is not of whole elements.
    """
    if not chunks:
        return _EMPTY[dtype]
    if any(len(chunk) % dtype.itemsize for chunk in chunks):
        raise ValueError("a chunk ends within a number")
    packed = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    return np.frombuffer(packed, dtype).copy()


def response(
    answer: FrameAnswer, durable_steps: NDArray[np.int64] | None, rest: sequence_pb2.StreamFramesResponse
) -> bytes:
    """Return the bytes of a StreamFramesResponse: the columns of `answer`, and what protobuf holds of it.

    `durable_steps` `[rows]` are those of the answered rows; None: all 0.
    """
    parts: list[bytes] = []
    if len(answer.handles):
        _append(parts, 2, answer.handles.astype("<u4", copy=False))
        if not (answer.counts == 1).all():
            _append(parts, 3, answer.counts.astype("<u4"))
        _append(parts, 4, answer.steps.astype("<i8", copy=False))
        _append(parts, 5, answer.values.astype("<f4", copy=False))
        if durable_steps is not None:
            _append(parts, 6, durable_steps.astype("<i8", copy=False))
        _append(parts, 7, answer.replayed.astype("<u4", copy=False))
    parts.append(rest.SerializeToString())
    return b"".join(parts)


def _append(parts: list[bytes], number: int, column: NDArray[Any]) -> None:
    if len(column):
        parts += (bytes((number << 3 | _BYTES,)), varint(column.nbytes), column.tobytes())
