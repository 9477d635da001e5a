"""Frames as bytes: what the client writes and reads by hand is what protobuf's own classes make of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from longshort import errors
from longshort.gateway import wire
from longshort.v1 import sequence_pb2

U32 = st.lists(st.integers(0, 2**32 - 1), max_size=200)
U64 = st.lists(st.integers(0, 2**64 - 1), max_size=200)
F32 = st.lists(st.floats(width=32, allow_nan=False), max_size=200)


@given(st.integers(1, 300), st.booleans())
def test_request_is_read_by_protobuf_as_it_was_meant(num_rows: int, is_counted: Any):
    handles = np.arange(num_rows, dtype=np.uint32)
    counts = np.full(num_rows, 2, np.uint32) if is_counted else None
    steps = np.arange(num_rows, dtype=np.uint64) + 2**40
    values = np.arange(2 * num_rows, dtype=np.float32)
    messages = sequence_pb2.StreamFramesRequest(closes=[7], forecasts=[{"handle": 1, "horizon": 2}])
    raw = wire.request(messages, handles, counts, steps, [values[:3], values[3:]])
    request = sequence_pb2.StreamFramesRequest.FromString(raw)
    assert list(request.handles) == handles.tolist()
    assert list(request.counts) == ([2] * num_rows if is_counted else [])
    assert list(request.steps) == steps.tolist()
    assert list(request.values) == values.tolist()
    assert (list(request.closes), request.forecasts[0].horizon) == ([7], 2)


def test_request_without_rows_has_no_columns():
    none = np.empty(0, np.uint32)
    messages = sequence_pb2.StreamFramesRequest(opens=[{"handle": 3}])
    raw = wire.request(messages, none, None, none.astype(np.uint64), [])
    assert raw == messages.SerializeToString()


COLUMNS = st.fixed_dictionaries(
    {"handles": U32, "counts": U32, "steps": U64, "values": F32, "durable_steps": U64, "replayed": U32}
)


@given(COLUMNS)
def test_response_is_read_as_protobuf_wrote_it(columns: Any):
    message = sequence_pb2.StreamFramesResponse(
        **columns,
        opened=[{"handle": 5, "opened": {"step": 9}}],
        errors=[{"handle": 6, "error": {"reason": "STEP_GAP"}}],
    )
    answer = wire.response(message.SerializeToString())
    for name, numbers in columns.items():
        assert getattr(answer, name).tolist() == numbers
    assert answer.messages.opened == message.opened
    assert answer.messages.errors == message.errors
    assert not answer.messages.handles


def test_columns_in_pieces_and_number_by_number_are_joined_and_unknown_fields_passed_over():
    packed = sequence_pb2.StreamFramesResponse(handles=[1, 2], steps=[5]).SerializeToString()
    unpacked = bytes([2 << 3 | 5, 3, 0, 0, 0, 4 << 3 | 1, 6, 0, 0, 0, 0, 0, 0, 0])
    unknown = bytes([0xA0, 6, 42])  # field 100, a varint
    answer = wire.response(packed + unpacked + unknown)
    assert answer.handles.tolist() == [1, 2, 3]
    assert answer.steps.tolist() == [5, 6]


@pytest.mark.parametrize(
    "raw",
    [
        b"\x12\x08\x01\x00\x00\x00",  # a column that ends too early
        b"\x12\x03\x01\x00\x00",  # no whole number of numbers
        b"\x12",  # no length
        b"\x12\xff",  # a length that does not end
        b"\x13\x00",  # a group
        b"\x0a\x02\xff\xff",  # an `opened` that is none
    ],
)
def test_bytes_that_are_no_frame_are_told_as_a_fault_of_the_server(raw: bytes):
    with pytest.raises(errors.ServerFault) as caught:
        wire.response(raw)
    assert caught.value.reason == "PROTOCOL_VIOLATION"
