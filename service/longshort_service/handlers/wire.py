"""The little of protobuf's wire format that is read and written here without protobuf: on the way of a value."""

from __future__ import annotations

import struct
from typing import Final

MAX_VARINT_BYTES: Final = 10
_MAX_FEATURES: Final = 29  # of a message below 128 bytes, whose length is one byte
_FLOATS: Final = [struct.Struct(f"<{count}f") for count in range(_MAX_FEATURES + 1)]


def varint_at(raw: bytes, position: int) -> tuple[int, int]:
    """Return the number that stands at a position, and the position behind it. Raises ValueError."""
    number = shift = 0
    for byte in raw[position : position + MAX_VARINT_BYTES]:
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, position
        shift += 7
    raise ValueError("a number without end")


def varint(number: int) -> bytes:
    """Return a number as protobuf writes it."""
    if number < 128:
        return bytes((number,))
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    written.append(number)
    return bytes(written)


def single_values(raw: bytes, num_features: int) -> tuple[tuple[float, ...], int | None, int] | None:
    """Read a StreamRequest that holds one step of values in protobuf's canonical form, as senders write it.

    Returns values `[features]`, step and `answers`; None for every other message, which is protobuf's to read. Most
    messages are of this form, and an object for each would cost several times as much.
    """
    size, position = len(raw), 4 + 4 * num_features
    # Field 2, `values`, of `size - 2` bytes; in it field 1, `values`, of 4 bytes a feature.
    if num_features > _MAX_FEATURES or not position <= size < 130 or raw[0] != 0x12 or raw[1] != size - 2:
        return None
    if raw[2] != 0x0A or raw[3] != 4 * num_features:
        return None
    step, answers = None, 0
    try:
        if position < size and raw[position] == 0x18:
            step, position = varint_at(raw, position + 1)
        if position < size and raw[position] == 0x20:
            answers, position = varint_at(raw, position + 1)
    except ValueError:
        return None
    if position != size or (step is not None and step >> 64):
        return None
    return _FLOATS[num_features].unpack_from(raw, 4), step, answers
