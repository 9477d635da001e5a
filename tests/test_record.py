"""A session as bytes: what comes back is what went in, and damaged bytes never get further than decode."""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from longshort_service import errors
from longshort_service.protocol import MessageIdentity
from longshort_service.record import MAGIC, MAX_STEP, Origin, SessionRecord, birth, decode, encode


def with_last_message(record: SessionRecord, num_steps: int, crc: int) -> SessionRecord:
    """Return the record with a last message that has led to its step; a session at step 0 has none."""
    num_steps = min(num_steps, record.step)
    message = MessageIdentity(record.step - num_steps, num_steps, crc) if num_steps else None
    return dataclasses.replace(record, last_message=message)


COUNTS = st.integers(0, 2**64 - 1)
ORIGINS = st.builds(Origin, st.text(), st.integers(1, 2**63), *[st.text(max_size=64)] * 4)


def floats(*sizes: int) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float32, sizes)


@st.composite
def records(draw: st.DrawFn) -> SessionRecord:
    num_features, num_outputs = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    record = SessionRecord(
        session_id=draw(
            st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=256)
        ),
        origin=draw(ORIGINS),
        step=draw(st.integers(0, MAX_STEP)),
        incarnation=draw(COUNTS),
        epoch=draw(COUNTS),
        is_gapless=draw(st.booleans()),
        last_used_s=draw(st.floats(0, 1e10)),
        states=tuple(
            draw(st.lists(arrays(np.float32, array_shapes(min_dims=0, max_dims=3, max_side=3)), max_size=3))
        ),
        last_message=None,
        last_answer=draw(st.none() | floats(draw(st.integers(0, 3)), num_outputs)),
        last_values=draw(st.none() | floats(num_features)),
        last_output=draw(st.none() | floats(num_outputs)),
    )
    num_steps = draw(st.integers(0, 2**31 - 1))
    return with_last_message(record, num_steps, draw(st.integers(0, 2**32 - 1)))


EXAMPLE = SessionRecord(
    session_id="s",
    origin=Origin("metro", 3, "ab", "cpu", "a processor", "1.31.1", "f: 1 in, 1 out"),
    step=5,
    incarnation=6,
    epoch=7,
    is_gapless=True,
    last_used_s=8.5,
    states=(np.ones((1, 2), np.float32),),
    last_message=MessageIdentity(4, 1, 9),
    last_answer=np.ones((1, 3), np.float32),
    last_values=np.ones(1, np.float32),
    last_output=np.ones(3, np.float32),
)
NUMBERS = struct.Struct("<BQQQdIIIHH")
NAMES = (
    *("flags", "step", "incarnation", "epoch", "last_used_s", "message_steps", "message_crc", "answer_rows"),
    *("id_length", "description_length"),
)


def seal(body: bytes) -> bytes:
    """Return bytes whose checksum is right, whatever their inside."""
    return MAGIC + struct.pack("<I", zlib.crc32(body)) + body


def tampered_with(session_id: str = "s", description: bytes | None = None, **changes: Any) -> bytes:
    """Return the example's bytes with numbers or fields that were changed, sealed again."""
    data = encode(EXAMPLE)
    numbers = dict(zip(NAMES, NUMBERS.unpack_from(data, 12), strict=True))
    begin = 12 + NUMBERS.size + 1
    end = begin + numbers["description_length"]
    fields = json.loads(data[begin:end])
    fields |= {name: value for name, value in changes.items() if name not in NAMES}
    text = json.dumps({name: value for name, value in fields.items() if value != "absent"}).encode()
    text = text if description is None else description
    numbers |= {"id_length": len(session_id), "description_length": len(text)}
    numbers |= {name: value for name, value in changes.items() if name in NAMES}
    return seal(NUMBERS.pack(*numbers.values()) + session_id.encode() + text + data[end:])


def assert_equal(have: SessionRecord, want: SessionRecord) -> None:
    for field in dataclasses.fields(SessionRecord):
        one, other = getattr(have, field.name), getattr(want, field.name)
        if field.name == "states":
            assert len(one) == len(other)
            assert all(same(x, y) for x, y in zip(one, other, strict=True))
        elif isinstance(other, np.ndarray):
            assert same(one, other)
        else:
            assert one == other, field.name


def same(one: np.ndarray, other: np.ndarray) -> bool:  # bit for bit: NaN payloads and -0.0 included
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


@given(records())
def test_what_was_encoded_is_decoded_bit_for_bit(record: SessionRecord):
    assert_equal(decode(encode(record)), record)


def test_decoded_arrays_are_copies_that_may_be_kept():
    state = decode(encode(EXAMPLE)).states[0]
    assert state.flags.owndata
    assert state.flags.writeable


@given(st.binary(max_size=100))
def test_foreign_bytes_are_an_invalid_record(data: bytes):
    with pytest.raises(errors.InvalidRecord):
        decode(data)


@given(st.data())
def test_any_flipped_bit_is_noticed(data: st.DataObject):
    good = encode(EXAMPLE)
    place = data.draw(st.integers(0, 8 * len(good) - 1))
    bad = bytearray(good)
    bad[place // 8] ^= 1 << place % 8
    with pytest.raises(errors.InvalidRecord):
        decode(bytes(bad))


@given(st.integers(0, 10_000))
def test_any_truncation_is_noticed(length: int):
    good = encode(EXAMPLE)
    with pytest.raises(errors.InvalidRecord):
        decode(good[: length % len(good)])


def test_bytes_are_tampered_with_as_meant():
    assert tampered_with() == encode(EXAMPLE)


@given(st.binary(max_size=200))
def test_bytes_with_a_right_checksum_and_nonsense_inside_are_an_invalid_record(body: bytes):
    with pytest.raises(errors.InvalidRecord):
        decode(seal(body))


@pytest.mark.parametrize("version", [1, 3])
def test_record_of_another_encoding_says_which_versions(version: int):
    data = bytearray(encode(EXAMPLE))
    data[7] = version
    with pytest.raises(errors.InvalidRecord, match=f"version {version}, this server reads 2"):
        decode(bytes(data))


@pytest.mark.parametrize(
    "changes",
    [
        {"flags": 16},
        {"flags": 1},
        {"last_used_s": float("nan")},
        {"last_used_s": float("inf")},
        {"message_steps": 6},
        {"message_steps": 2**31, "step": 2**40},
        {"message_steps": 0},
        {"answer_rows": 2},
        {"answer_rows": 2**32 - 1},
        {"id_length": 2},
        {"id_length": 2**16 - 1},
        {"description_length": 2},
        {"description_length": 2**16 - 1},
        {"version": 0},
        {"version": "3"},
        {"version": True},
        {"model": 7},
        {"model": "absent"},
        {"build": None},
        {"features": 2},
        {"features": -1},
        {"outputs": 2},
        {"outputs": "many"},
        {"states": "absent"},
        {"states": 7},
        {"states": [7]},
        {"states": []},
        {"states": [[1, 2], [1]]},
        {"states": [[-1, -2]]},
        {"states": [[1.0, 2]]},
        {"states": [[2**63, 2]]},
        {"states": [[1] * 100 + [2]]},
        {"states": [[0, 2**70], [1, 2]]},
        {"session_id": ""},
        {"session_id": "with space"},
        {"session_id": "\u00e4"},
        {"session_id": "x" * 257},
        {"description": b"[" * 60_000},
        {"description": b"1" * 5_000},
        {"description": b"7"},
        {"description": b"\xff"},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_what_makes_no_sense_is_an_invalid_record(changes: dict[str, Any]):
    with pytest.raises(errors.InvalidRecord):
        decode(tampered_with(**changes))


def test_step_that_no_session_can_count_through_is_refused():
    record = dataclasses.replace(EXAMPLE, step=MAX_STEP + 1)
    with pytest.raises(errors.InvalidRecord, match="beyond any session's life"):
        decode(encode(record))


def test_birth_is_a_record_of_step_0_without_states():
    record = decode(encode(birth("s", EXAMPLE.origin, 6, 7, 8.5)))
    assert (record.step, record.states, record.last_message, record.last_output) == (0, (), None, None)
    assert (record.origin, record.incarnation, record.epoch, record.is_gapless) == (
        EXAMPLE.origin,
        6,
        7,
        True,
    )


def test_records_of_one_model_share_its_origin():
    assert decode(encode(EXAMPLE)).origin is decode(encode(dataclasses.replace(EXAMPLE, step=99))).origin


def test_states_of_a_column_order_or_another_byte_order_are_stored_as_they_read():
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    record = dataclasses.replace(EXAMPLE, states=(array, np.asfortranarray(array, np.float32)))
    one, other = decode(encode(record)).states
    assert one.tolist() == other.tolist() == array.tolist()


TYPED = dataclasses.replace(
    EXAMPLE,
    states=(
        np.array([1.5, 2**-14], np.float16),
        np.array([[1e300], [-0.0]]),
        np.array(-7, np.int32),
        np.array([2**62, -1], np.int64),
        np.array([[1, 2]], np.float32),
    ),
)


def test_states_of_every_dtype_come_back_bit_for_bit():
    states = decode(encode(TYPED)).states
    assert [(state.dtype, state.shape) for state in states] == [
        (state.dtype, state.shape) for state in TYPED.states
    ]
    assert [state.tobytes() for state in states] == [state.tobytes() for state in TYPED.states]


@pytest.mark.parametrize(
    "dtypes", [b'["float16", "float64", "int32", "int64", "float31"]', b'["float32"]', b"[1, 2, 3, 4, 5]"]
)
def test_dtypes_that_are_none_are_an_invalid_record(dtypes: bytes):
    data = encode(TYPED)
    written = b'["float16", "float64", "int32", "int64", "float32"]'
    assert data.count(written) == 1
    body = data[12:].replace(written, dtypes.ljust(len(written)))
    with pytest.raises(errors.InvalidRecord, match="damaged"):
        decode(data[:8] + struct.pack("<I", zlib.crc32(body)) + body)
