"""A session as a value: what is stored of it, and its form as bytes.

Owns the record and its versioned encoding with a checksum. Does not know where records are kept.

The bytes, little-endian: magic; CRC-32 of the rest; numbers of a fixed layout; session id (ASCII); description
(JSON: origin, shapes, and dtypes where they are not float32); then, row-major: states, last answer, last values, last
output. The description is the same for all records of a model and is built once.
"""

from __future__ import annotations

import functools
import json
import math
import re
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from longshort_service import errors
from longshort_service.ports import DTYPES
from longshort_service.protocol import MessageIdentity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MAGIC: Final = b"LSREC\x00\x00\x02"  # the last byte is the version of the encoding
MAX_STEP: Final = 2**62  # steps are 64-bit and signed: what is left above it no session can count through
MAX_MESSAGE_STEPS: Final = 2**31 - 1  # what the column of it holds; no server takes as many
_PREFIX: Final = struct.Struct("<8sI")  # magic, CRC-32
# Flags, step, incarnation, epoch, last use in seconds; of the last message its steps (0: none), CRC-32 and the rows of
# its answer; the lengths of id and description.
_NUMBERS: Final = struct.Struct("<BQQQdIIIHH")
_BEGIN: Final = _PREFIX.size + _NUMBERS.size  # of the session id
_GAPLESS, _ANSWER, _VALUES, _OUTPUT = (
    1,
    2,
    4,
    8,
)  # the bits of the flags: the mark, and which arrays are there
_F4: Final = "float32"
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
    `last_message`, which ends at `step`, and `last_answer` `[rows, outputs]` are what a repeated message gets;
    `last_values` `[features]` and `last_output` `[outputs]` are None before the first step. States are of their own
    dtypes, the rest are rows of words as RowLayout has them. `is_gapless` is true where
    it is known that nothing is missing after `step`.
    """

    session_id: str
    origin: Origin
    step: int
    incarnation: int
    epoch: int
    is_gapless: bool
    last_used_s: float  # seconds since 1970
    states: tuple[NDArray[Any], ...]
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


def birth(  # noqa: PLR0917  a record's own fields, in their order
    session_id: str,
    origin: Origin,
    incarnation: int,
    epoch: int,
    now_s: float,
    states: Sequence[NDArray[Any]] = (),
) -> SessionRecord:
    """Return the record of a session that begins: step 0 in the model's initial state, or in `states`."""
    return SessionRecord(
        session_id=session_id,
        origin=origin,
        step=0,
        incarnation=incarnation,
        epoch=epoch,
        is_gapless=True,
        last_used_s=now_s,
        states=tuple(states),
        last_message=None,
        last_answer=None,
        last_values=None,
        last_output=None,
    )


@dataclass(frozen=True, slots=True)
class _Description:
    """What the records of one model have in common."""

    origin: Origin
    state_shapes: tuple[tuple[int, ...], ...]
    state_dtypes: tuple[str, ...]
    num_features: int
    num_outputs: int


def encode(record: SessionRecord) -> bytes:
    """Return the record as bytes that `decode` takes on any machine."""
    flags, arrays = _GAPLESS if record.is_gapless else 0, list(record.states)
    num_features = num_outputs = num_rows = 0
    if record.last_answer is not None:
        flags |= _ANSWER
        num_rows, num_outputs = record.last_answer.shape
        arrays.append(record.last_answer)
    if record.last_values is not None:
        flags |= _VALUES
        (num_features,) = record.last_values.shape
        arrays.append(record.last_values)
    if record.last_output is not None:
        flags |= _OUTPUT
        (num_outputs,) = record.last_output.shape
        arrays.append(record.last_output)
    shapes = tuple([state.shape for state in record.states])
    dtypes = tuple([state.dtype.name for state in record.states])
    description = _describe(_Description(record.origin, shapes, dtypes, num_features, num_outputs))
    session_id = record.session_id.encode("ascii")
    message = record.last_message
    numbers = _NUMBERS.pack(
        flags,
        record.step,
        record.incarnation,
        record.epoch,
        record.last_used_s,
        0 if message is None else message.num_steps,
        0 if message is None else message.crc,
        num_rows,
        len(session_id),
        len(description),
    )
    body = b"".join([numbers, session_id, description, *[_little(a).tobytes() for a in arrays]])
    return _PREFIX.pack(MAGIC, zlib.crc32(body)) + body


def decode(data: bytes) -> SessionRecord:
    """Read what `encode` wrote. Raises InvalidRecord where the bytes are damaged, foreign or of another version."""
    if len(data) < _PREFIX.size or data[:7] != MAGIC[:7]:
        raise errors.InvalidRecord("these bytes are no exported session")
    magic, crc = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise errors.InvalidRecord(
            f"the record has encoding version {magic[7]}, this server reads {MAGIC[7]}"
        )
    if zlib.crc32(memoryview(data)[_PREFIX.size :]) != crc:
        raise errors.InvalidRecord("the record is damaged: its checksum does not fit")
    try:
        return _record(data)
    # struct.error: too short. RecursionError: the description is JSON, and JSON may be nested without end.
    except (struct.error, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise errors.InvalidRecord(f"the record is damaged: {error!r}") from error


def _record(data: bytes) -> SessionRecord:
    """Read bytes whose checksum is right, which says nothing of who wrote them."""
    numbers = _NUMBERS.unpack_from(data, _PREFIX.size)
    flags, step, incarnation, epoch, last_used_s, num_steps, crc, num_rows, id_length, length = numbers
    offset = _BEGIN + id_length + length
    session_id = data[_BEGIN : _BEGIN + id_length].decode("ascii")
    described = _read_description(data[_BEGIN + id_length : offset])
    if step > MAX_STEP:
        raise ValueError(f"step {step} is beyond any session's life")
    if num_steps > min(step, MAX_MESSAGE_STEPS) or (crc and not num_steps):
        raise ValueError(f"a message of {num_steps} steps at step {step}")
    if not SESSION_ID.fullmatch(session_id) or not math.isfinite(last_used_s) or flags >= 2 * _OUTPUT:
        raise ValueError((session_id, last_used_s, flags))
    forms: list[tuple[tuple[int, ...] | None, str]] = [
        *zip(described.state_shapes, described.state_dtypes, strict=True),
        ((num_rows, described.num_outputs) if flags & _ANSWER else None, _F4),
        ((described.num_features,) if flags & _VALUES else None, _F4),
        ((described.num_outputs,) if flags & _OUTPUT else None, _F4),
    ]
    *states, last_answer, last_values, last_output = _arrays(forms, data, offset)
    return SessionRecord(
        session_id=session_id,
        origin=described.origin,
        step=step,
        incarnation=incarnation,
        epoch=epoch,
        is_gapless=bool(flags & _GAPLESS),
        last_used_s=last_used_s,
        states=tuple(state for state in states if state is not None),
        last_message=MessageIdentity(step - num_steps, num_steps, crc) if num_steps else None,
        last_answer=last_answer,
        last_values=last_values,
        last_output=last_output,
    )


def _little(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array with its bytes as every machine writes them."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _arrays(
    forms: list[tuple[tuple[int, ...] | None, str]], data: bytes, offset: int
) -> list[NDArray[Any] | None]:
    """Return copies of the arrays, which are all that there is from `offset` on."""
    sizes = [0 if shape is None else math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in forms]
    if offset + sum(sizes) != len(data):
        raise ValueError(f"{len(data) - offset} bytes for arrays of {sum(sizes)} bytes")
    arrays: list[NDArray[Any] | None] = []
    for (shape, dtype), size in zip(forms, sizes, strict=True):
        if shape is None:
            arrays.append(None)
            continue
        written = np.dtype(dtype).newbyteorder("<")
        array = np.frombuffer(data, written, size // written.itemsize, offset)
        arrays.append(array.reshape(shape).astype(dtype))
        offset += size
    return arrays


# Both are asked for every record. A server has few models; what callers send to be imported is bounded by the cache.
@functools.lru_cache(maxsize=64)
def _describe(description: _Description) -> bytes:
    """Return a description as bytes."""
    origin = description.origin
    fields = {
        "model": origin.model,
        "version": origin.version,
        "fingerprint": origin.fingerprint,
        "provider": origin.provider,
        "processor": origin.processor,
        "build": origin.build,
        "state_family": origin.state_family,
        "states": description.state_shapes,
        "features": description.num_features,
        "outputs": description.num_outputs,
    }
    if any(dtype != _F4 for dtype in description.state_dtypes):
        fields["dtypes"] = description.state_dtypes
    return json.dumps(fields).encode()


@functools.lru_cache(maxsize=64)
def _read_description(data: bytes) -> _Description:
    """Read what `_describe` wrote. Raises ValueError, TypeError, KeyError or RecursionError for anything else."""
    fields = json.loads(data)
    names = ("model", "fingerprint", "provider", "processor", "build", "state_family")
    origin = Origin(version=_count(fields["version"]), **{name: _text(fields[name]) for name in names})
    if origin.version == 0:
        raise ValueError("version 0")
    shapes = tuple(tuple(_count(size) for size in shape) for shape in fields["states"])
    dtypes = tuple(map(_text, fields.get("dtypes", [_F4] * len(shapes))))
    if len(dtypes) != len(shapes) or not set(dtypes) <= set(DTYPES):
        raise ValueError(dtypes)
    return _Description(origin, shapes, dtypes, _count(fields["features"]), _count(fields["outputs"]))


def _count(number: object) -> int:
    if type(number) is not int:  # a bool is an int to isinstance
        raise TypeError(number)
    if number < 0:
        raise ValueError(number)
    return number


def _text(text: object) -> str:
    if not isinstance(text, str):
        raise TypeError(text)
    return text
