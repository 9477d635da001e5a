"""Frames are read and written by hand, and protobuf sees the same in the same bytes."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from longshort.v1 import sequence_pb2
from longshort_service import errors
from longshort_service.frame_answer import FrameAnswer
from longshort_service.handlers import codec, frame_codec
from longshort_service.handlers.wire import varint

Request, Response = sequence_pb2.StreamFramesRequest, sequence_pb2.StreamFramesResponse

MAX_BYTES = 1 << 20
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
COLUMNS = {
    "handles": (2, "I"),
    "counts": (3, "I"),
    "steps": (4, "Q"),
    "values": (5, "f"),
    "closes": (8, "I"),
    "flushes": (9, "I"),
}
NUMBERS = {
    "I": st.integers(0, 2**32 - 1),
    "Q": st.integers(0, 2**64 - 1),
    "f": st.floats(width=32) | st.integers(-9, 9).map(float),
}


def delimited(number: int, content: bytes) -> bytes:
    return varint(number << 3 | BYTES) + varint(len(content)) + content


@st.composite
def column_chunk(draw: st.DrawFn) -> bytes:
    """Return some of one column: packed, or an element a field."""
    number, form = draw(st.sampled_from(list(COLUMNS.values())))
    elements = [struct.pack(f"<{form}", each) for each in draw(st.lists(NUMBERS[form], max_size=4))]
    if draw(st.booleans()):
        return delimited(number, b"".join(elements))
    tag = varint(number << 3 | (FIXED64 if form == "Q" else FIXED32))
    return b"".join(tag + element for element in elements)


OPENS = st.builds(
    lambda handle, name, mode: sequence_pb2.FrameOpen(
        handle=handle, open=sequence_pb2.Open(model=name, client_id=name, mode=mode)
    ),
    NUMBERS["I"],
    st.text(max_size=3),
    st.integers(0, 4),
).map(lambda message: delimited(1, message.SerializeToString()))
FORECASTS = st.builds(sequence_pb2.FrameForecast, handle=NUMBERS["I"], horizon=NUMBERS["I"]).map(
    lambda message: delimited(7, message.SerializeToString())
)
ANSWERS = st.sampled_from([0, 1, 2, 3, 1 << 32 | 2, 4, 2**64 - 1]).map(
    lambda number: b"\x30" + varint(number)
)


@st.composite
def field_of(draw: st.DrawFn, numbers: st.SearchStrategy[int]) -> bytes:
    """Return a field of any form."""
    number, wire_type = draw(numbers), draw(st.sampled_from([VARINT, FIXED64, BYTES, FIXED32]))
    if wire_type == BYTES:
        return delimited(number, draw(st.binary(max_size=9)))
    contents = {
        VARINT: NUMBERS["Q"].map(varint),
        FIXED64: st.binary(min_size=8, max_size=8),
        FIXED32: st.binary(min_size=4, max_size=4),
    }
    return varint(number << 3 | wire_type) + draw(contents[wire_type])


UNKNOWN = field_of(st.integers(10, 2**29 - 1))
GOOD = st.lists(column_chunk() | OPENS | FORECASTS | ANSWERS | UNKNOWN, max_size=12).map(b"".join)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Return bytes that may be no frame: cut short, changed, with fields of a wrong form, or anything at all."""
    parts = [
        draw(GOOD),
        draw(field_of(st.integers(0, 2**32)) | st.binary(max_size=12) | st.just(b"")),
        draw(GOOD),
    ]
    raw = bytearray(b"".join(parts))
    for _ in range(draw(st.integers(0, 2))):
        if raw:
            raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(raw[: draw(st.integers(0, len(raw)))]) if draw(st.booleans()) else bytes(raw)


def columns_of(request: frame_codec.FrameRequest) -> dict[str, Any]:
    frame = request.frame
    empty = np.empty(0, np.int64)
    return {
        "handles": frame.handles,
        "counts": empty if frame.counts is None else frame.counts,
        "steps": empty if frame.steps is None else frame.steps,
        "values": frame.values,
        "closes": request.closes,
        "flushes": request.flushes,
    }


def assert_same(request: frame_codec.FrameRequest, expected: Any) -> None:
    for name, column in columns_of(request).items():
        wanted = list(getattr(expected, name))
        if name == "values":
            assert column.dtype == np.float32
            assert np.array_equal(column, np.array(wanted, np.float32), equal_nan=True)
        else:
            assert [int(number) % (1 << 64) for number in column] == wanted
        assert column.flags.aligned
        assert column.flags.c_contiguous
    assert request.opens == list(expected.opens)
    assert request.forecasts == list(expected.forecasts)
    assert request.frame.answers is codec.answers(expected.answers)


def means_something(expected: Any) -> bool:
    try:
        codec.answers(expected.answers)
    except errors.InvalidMessage:
        return False
    return True


@settings(deadline=None, max_examples=300)
@given(raw=GOOD)
def test_frame_is_read_as_protobuf_reads_it(raw: bytes):
    expected = Request.FromString(raw)
    if means_something(expected):
        assert_same(frame_codec.parse(raw, MAX_BYTES), expected)
    else:
        with pytest.raises(errors.InvalidMessage):
            frame_codec.parse(raw, MAX_BYTES)


@settings(deadline=None, max_examples=600)
@given(raw=damaged())
def test_bytes_that_may_be_no_frame_are_malformed_or_read_as_protobuf_reads_them(raw: bytes):
    try:
        expected = Request.FromString(raw)
    except DecodeError:
        expected = None
    try:
        request = frame_codec.parse(raw, MAX_BYTES)
    except errors.MalformedMessage:
        return
    except errors.InvalidMessage:
        assert expected is None or not means_something(expected)
        return
    assert expected is not None, "protobuf refuses these bytes"
    assert_same(request, expected)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x12\x02\x00\x00" * 2,  # two halves of one handle
        b"\x22\x04" + bytes(4) + b"\x22\x04" + bytes(4),  # two halves of one step
        b"\x11" + bytes(8),  # a handle of 64 bits
        b"\x25" + bytes(4) + b"\x25" + bytes(4),  # steps of 32 bits
        b"\x0d" + bytes(4),  # an opening that is a number
        b"\x32\x01\x01",  # answers that are bytes
        b"\x13\x14",  # a group
        b"\x02\x00",  # field 0
        b"\xfa\xff\xff\xff\xff\x7f\x00",  # a field beyond 2^29
        b"\x12\x04\x00\x00\x00",  # a column that ends behind the frame
        b"\x15\x00\x00\x00",
        b"\x80" * 11,  # a number without end
        b"\x30",
        b"\x0a\x02\x12\x7f",  # an opening that is none
        b"\x3a\x01\x08",  # a forecast that is none
    ],
)
def test_bytes_that_are_no_frame_are_malformed(raw: bytes):
    with pytest.raises(errors.MalformedMessage):
        frame_codec.parse(raw, MAX_BYTES)


def test_frame_beyond_the_limit_is_too_large_whatever_it_holds():
    raw = Request(values=[1.0] * 20).SerializeToString()
    assert len(frame_codec.parse(raw, len(raw)).frame.values) == 20
    with pytest.raises(errors.MessageTooLarge) as caught:
        frame_codec.parse(raw, len(raw) - 1)
    assert caught.value.metadata == {"max_message_bytes": str(len(raw) - 1)}


def test_empty_frame_has_empty_columns():
    request = frame_codec.parse(b"", MAX_BYTES)
    assert (request.frame.counts, request.frame.steps) == (None, None)
    assert [len(column) for column in columns_of(request).values()] == [0] * len(COLUMNS)
    assert (request.opens, request.forecasts) == ([], [])


@st.composite
def answer_and_rest(draw: st.DrawFn) -> tuple[FrameAnswer, Any, Any]:
    """Return the columns of an answer, the durable steps of its rows or None, and what goes through protobuf."""
    handles = draw(st.lists(NUMBERS["I"], max_size=40))
    counts = draw(
        st.lists(st.integers(0, 300), min_size=len(handles), max_size=len(handles))
        | st.just([1] * len(handles))
    )
    values = np.arange(sum(counts), dtype=np.float32) / 3
    answer = FrameAnswer(
        np.array(handles, np.uint32),
        np.array(counts, np.int64),
        np.array(
            draw(st.lists(st.integers(0, 2**63 - 1), min_size=len(handles), max_size=len(handles))), np.int64
        ),
        values,
        np.array(draw(st.lists(st.sampled_from(handles), max_size=3)) if handles else [], np.uint32),
    )
    rest = Response()
    for handle in draw(st.lists(NUMBERS["I"], max_size=3)):
        rest.opened.add(handle=handle).opened.model = "m"
        rest.errors.add(handle=handle, part=sequence_pb2.FRAME_PART_VALUES).error.reason = "X"
        rest.forecasts.add(handle=handle, values=[1, 2], step=7)
    durable_steps = draw(
        st.none() | st.lists(st.integers(0, 2**63 - 1), min_size=len(handles), max_size=len(handles))
    )
    return answer, durable_steps, rest


@settings(deadline=None)
@given(made=answer_and_rest())
def test_response_is_what_protobuf_reads(made: tuple[FrameAnswer, Any, Any]):
    answer, durable_steps, rest = made
    column = None if durable_steps is None else np.array(durable_steps, np.int64)
    response = Response.FromString(frame_codec.response(answer, column, rest))
    assert list(response.handles) == answer.handles.tolist()
    counts = answer.counts.tolist()
    assert list(response.counts) == ([] if counts == [1] * len(counts) else counts)
    assert list(response.steps) == answer.steps.tolist()
    assert np.array(response.values, np.float32).tobytes() == answer.values.tobytes()
    assert list(response.replayed) == answer.replayed.tolist()
    assert list(response.durable_steps) == (durable_steps or [])
    for name in ("opened", "errors", "forecasts"):
        assert getattr(response, name) == getattr(rest, name)
