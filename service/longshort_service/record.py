"""A session as a value: what is stored of it, and its form as bytes.

Owns the record and its versioned encoding with a checksum. Does not know where records are kept.

The bytes: magic, CRC-32 of the rest (u32), length of the header (u32), header (JSON), then the arrays one after
the other (float32, little-endian, row-major).
"""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from longshort_service import errors
from longshort_service.protocol import MessageIdentity

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAGIC: Final = b"LSREC\x00\x00\x01"  # the last byte is the version of the encoding
MAX_STEP: Final = 2**62  # steps are 64-bit and signed: what is left above it no session can count through
MAX_MESSAGE_STEPS: Final = 2**31 - 1  # what the column of it holds; no server takes as many
_PREFIX: Final = struct.Struct("<8sII")
# Printable ASCII without space: an id travels in headers, and gRPC takes nothing else there.
SESSION_ID: Final = re.compile(r"[\x21-\x7e]{1,256}")


@dataclass(frozen=True, slots=True)
class Origin:
    """What a session's numbers come from: the model file, and what computes it. One object for each loaded model.

    Bit for bit the same answers are promised where all of it is equal; the model's file must be, the rest need not.
    """

    model: str
    version: int
    fingerprint: str  # of the model file's graph and weights
    provider: str = "cpu"  # onnxruntime's execution provider
    processor: str = ""  # the processor's name, as the system tells it
    build: str = ""  # of onnxruntime
    state_family: str = ""  # Signature.family_of_states: the files that may go on with its states


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """Everything that a session is, between two messages.

    `states` are the rows of the arena without the batch axis; none at all at step 0: the model's initial state.
    `last_message` and `last_answer` `[rows, outputs]`
    are what a repeated message gets; `last_values` `[features]` and `last_output` `[outputs]` are None before the
    first step. `is_gapless` is true where it is known that nothing is missing after `step`.
    """

    session_id: str
    origin: Origin
    step: int
    incarnation: int
    epoch: int
    is_gapless: bool
    last_used_s: float  # seconds since 1970
    states: tuple[NDArray[np.float32], ...]
    last_message: MessageIdentity | None
    last_answer: NDArray[np.float32] | None
    last_values: NDArray[np.float32] | None
    last_output: NDArray[np.float32] | None

    @property
    def model(self) -> str:
        """The name of its model."""
        return self.origin.model

    @property
    def version(self) -> int:
        """The version of its model."""
        return self.origin.version

    @property
    def fingerprint(self) -> str:
        """The fingerprint of its model's file."""
        return self.origin.fingerprint


def birth(session_id: str, origin: Origin, incarnation: int, epoch: int, now_s: float) -> SessionRecord:
    """Return the record of a session that begins: step 0 in the model's initial state."""
    return SessionRecord(
        session_id=session_id,
        origin=origin,
        step=0,
        incarnation=incarnation,
        epoch=epoch,
        is_gapless=True,
        last_used_s=now_s,
        states=(),
        last_message=None,
        last_answer=None,
        last_values=None,
        last_output=None,
    )


def encode(record: SessionRecord) -> bytes:
    """Return the record as bytes that `decode` takes on any machine."""
    arrays: list[NDArray[np.float32] | None] = [
        *record.states,
        record.last_answer,
        record.last_values,
        record.last_output,
    ]
    message = record.last_message
    header = json.dumps(
        {
            "session_id": record.session_id,
            "model": record.model,
            "version": record.version,
            "fingerprint": record.fingerprint,
            "step": record.step,
            "incarnation": record.incarnation,
            "epoch": record.epoch,
            "is_gapless": record.is_gapless,
            "last_used_s": record.last_used_s,
            "last_message": None if message is None else [message.first_step, message.num_steps, message.crc],
            "shapes": [None if array is None else list(array.shape) for array in arrays],
        }
    ).encode()
    body = header + b"".join(array.astype("<f4").tobytes() for array in arrays if array is not None)
    length = struct.pack("<I", len(header))
    return MAGIC + struct.pack("<I", zlib.crc32(length + body)) + length + body


def decode(data: bytes) -> SessionRecord:
    """Read what `encode` wrote. Raises InvalidRecord where the bytes are damaged, foreign or of another version."""
    if len(data) < _PREFIX.size or data[:7] != MAGIC[:7]:
        raise errors.InvalidRecord("these bytes are no exported session")
    magic, crc, header_length = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise errors.InvalidRecord(
            f"the record has encoding version {magic[7]}, this server reads {MAGIC[7]}"
        )
    if zlib.crc32(data[12:]) != crc:
        raise errors.InvalidRecord("the record is damaged: its checksum does not fit")
    try:
        header = json.loads(data[_PREFIX.size : _PREFIX.size + header_length])
        arrays = _arrays(header["shapes"], data, _PREFIX.size + header_length)
        return _record(header, arrays)
    # RecursionError: the header is JSON, and JSON may be nested without end.
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise errors.InvalidRecord(f"the record is damaged: {error!r}") from error


def _arrays(shapes: list[list[int] | None], data: bytes, offset: int) -> list[NDArray[np.float32] | None]:
    arrays: list[NDArray[np.float32] | None] = []
    for shape in shapes:
        if shape is None:
            arrays.append(None)
            continue
        count = math.prod(shape)
        if count < 0:
            raise ValueError(f"shape {shape}")
        arrays.append(np.frombuffer(data, "<f4", count, offset).reshape(shape).astype(np.float32))
        offset += 4 * count
    if offset != len(data):
        raise ValueError(f"{len(data) - offset} bytes are left over")
    return arrays


def _record(header: dict[str, Any], arrays: list[NDArray[np.float32] | None]) -> SessionRecord:
    *states, last_answer, last_values, last_output = arrays
    if int(header["step"]) > MAX_STEP:
        raise ValueError(f"step {header['step']} is beyond any session's life")
    message = (
        None if header["last_message"] is None else MessageIdentity(*map(_uint64, header["last_message"]))
    )
    last_used_s = float(header["last_used_s"])
    is_sane = (
        SESSION_ID.fullmatch(header["session_id"])
        and int(header["version"]) > 0
        and math.isfinite(last_used_s)
        and all(state is not None for state in states)
        and (message is None or _ends_at(message, header["step"]))
    )
    if not is_sane:
        raise ValueError(header)
    return SessionRecord(
        session_id=header["session_id"],
        origin=Origin(str(header["model"]), int(header["version"]), str(header["fingerprint"])),
        step=_uint64(header["step"]),
        incarnation=_uint64(header["incarnation"]),
        epoch=_uint64(header["epoch"]),
        is_gapless=bool(header["is_gapless"]),
        last_used_s=last_used_s,
        states=tuple(state for state in states if state is not None),
        last_message=message,
        last_answer=last_answer,
        last_values=last_values,
        last_output=last_output,
    )


def _ends_at(message: MessageIdentity, step: int) -> bool:
    """Whether a message can be the last one of a session at `step`."""
    return (
        0 < message.num_steps <= MAX_MESSAGE_STEPS
        and message.first_step + message.num_steps == step
        and message.crc < 1 << 32
    )


def _uint64(number: object) -> int:
    """Return a number as it travels in messages. Raises ValueError or TypeError for what does not."""
    if not isinstance(number, int):
        raise TypeError(number)
    if not 0 <= number < 1 << 64:
        raise ValueError(number)
    return number
