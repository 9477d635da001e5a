"""A session as bytes: what comes back is what went in, and damaged bytes never get further than decode."""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from longshort_service import errors
from longshort_service.protocol import MessageIdentity
from longshort_service.record import MAGIC, MAX_STEP, SessionRecord, decode, encode


def with_last_message(record: SessionRecord, num_steps: int, crc: int) -> SessionRecord:
    """Return the record with a last message that has led to its step; a session at step 0 has none."""
    num_steps = min(num_steps, record.step)
    message = MessageIdentity(record.step - num_steps, num_steps, crc) if num_steps else None
    return dataclasses.replace(record, last_message=message)


FLOATS = arrays(np.float32, array_shapes(min_dims=0, max_dims=3, max_side=3))
COUNTS = st.integers(0, 2**64 - 1)

BARE_RECORDS = st.builds(
    SessionRecord,
    session_id=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=256),
    model=st.text(),
    version=st.integers(1, 2**63),
    fingerprint=st.text(max_size=64),
    step=st.integers(0, MAX_STEP),
    incarnation=COUNTS,
    epoch=COUNTS,
    is_gapless=st.booleans(),
    last_used_s=st.floats(0, 1e10),
    states=st.lists(FLOATS, max_size=3).map(tuple),
    last_message=st.none(),
    last_answer=st.none() | FLOATS,
    last_values=st.none() | FLOATS,
    last_output=st.none() | FLOATS,
)
RECORDS = BARE_RECORDS | st.builds(
    with_last_message, BARE_RECORDS, st.integers(1, 2**31 - 1), st.integers(0, 2**32 - 1)
)

EXAMPLE = SessionRecord(
    session_id="s",
    model="metro",
    version=3,
    fingerprint="ab",
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


def seal(body: bytes, header_length: int) -> bytes:
    """Return bytes whose checksum is right, whatever their inside."""
    length = struct.pack("<I", header_length)
    return MAGIC + struct.pack("<I", zlib.crc32(length + body)) + length + body


def with_header(**changes: object) -> bytes:
    """Return the example's bytes with a header that was tampered with and sealed again."""
    data = encode(EXAMPLE)
    (length,) = struct.unpack_from("<I", data, 12)
    header = json.loads(data[16 : 16 + length]) | changes
    text = json.dumps({name: value for name, value in header.items() if value != "absent"}).encode()
    return seal(text + data[16 + length :], len(text))


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


@given(RECORDS)
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


@given(body=st.binary(max_size=60), header_length=st.integers(0, 2**32 - 1))
def test_bytes_with_a_right_checksum_and_nonsense_inside_are_an_invalid_record(
    body: bytes, header_length: int
):
    with pytest.raises(errors.InvalidRecord):
        decode(seal(body, header_length))


def test_record_of_another_encoding_says_which_versions():
    data = bytearray(encode(EXAMPLE))
    data[7] = 2
    with pytest.raises(errors.InvalidRecord, match="version 2, this server reads 1"):
        decode(bytes(data))


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "absent"},
        {"shapes": "absent"},
        {"step": "many"},
        {"step": -1},
        {"step": float("inf")},
        {"step": 2**64},
        {"epoch": -1},
        {"epoch": 1.5},
        {"epoch": "many"},
        {"incarnation": 2**64},
        {"version": 0},
        {"last_used_s": float("nan")},
        {"last_used_s": "x"},
        {"last_message": [1, 2]},
        {"last_message": [1, 2, 3, 4]},
        {"last_message": [3, 1, 9]},
        {"last_message": [4, 2, 9]},
        {"last_message": [5, 0, 9]},
        {"last_message": [4, 1, 2**32]},
        {"last_message": [0, 2**31, 9], "step": 2**31},
        {"shapes": []},
        {"shapes": [[1, 2], [1, 3], [1], [4]]},
        {"shapes": [[1, 2], [1, 3], [1], [2]]},
        {"shapes": [[-1], None, None, None]},
        {"shapes": [[2**63, 2], [1, 3], [1], [3]]},
        {"shapes": [[2**40], [1, 3], [1], [3]]},
        {"shapes": [None, [1, 2], [1, 3], [1], [3]]},
        {"shapes": 7},
        {"session_id": ""},
        {"session_id": "with space"},
        {"session_id": "x" * 257},
    ],
    ids=str,
)
def test_header_that_makes_no_sense_is_an_invalid_record(changes: dict[str, object]):
    with pytest.raises(errors.InvalidRecord):
        decode(with_header(**changes))


def test_header_nested_without_end_is_an_invalid_record():
    text = b"[" * 100_000
    with pytest.raises(errors.InvalidRecord):
        decode(seal(text, len(text)))


def test_step_that_no_session_can_count_through_is_refused():
    record = dataclasses.replace(EXAMPLE, step=MAX_STEP + 1)
    with pytest.raises(errors.InvalidRecord, match="beyond any session's life"):
        decode(encode(record))
