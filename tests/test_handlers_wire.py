"""Reading and writing without protobuf against protobuf: what is read by hand is what it would have read."""

from __future__ import annotations

import struct

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st
from longshort.v1 import sequence_pb2, types_pb2
from longshort_service.handlers.wire import single_values, varint, varint_at

UINT64 = st.integers(0, 2**64 - 1) | st.sampled_from([0, 127, 128, 2**14 - 1, 2**14, 2**32, 2**64 - 1])
FLOATS = st.floats(width=32)


def values_request(
    values: list[float], step: int | None = None, answers: int = 0
) -> sequence_pb2.StreamRequest:
    message = sequence_pb2.Values(values=values, answers=answers)
    if step is not None:
        message.step = step
    return sequence_pb2.StreamRequest(values=message)


def bits_of(values: tuple[float, ...]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)  # NaN is itself here


def assert_read_as_protobuf_reads_it(raw: bytes, num_features: int) -> None:
    """Hold what was read, if anything was, against protobuf."""
    single = single_values(raw, num_features)
    if single is None:
        return
    values, step, answers = single
    request = sequence_pb2.StreamRequest.FromString(raw)
    assert request.WhichOneof("kind") == "values"
    message = request.values
    assert bits_of(values) == bits_of(tuple(message.values))
    assert step == (message.step if message.HasField("step") else None)
    if answers <= types_pb2.ANSWERS_NONE:  # beyond these the stream leaves the message to protobuf
        assert answers == message.answers
    assert not message.tensors


@given(UINT64)
def test_number_is_written_as_protobuf_writes_it_and_read_back(number: int):
    written = varint(number)
    assert b"\x18" + written == (sequence_pb2.Answer(step=number).SerializeToString() or b"\x18\x00")
    assert varint_at(b"ab" + written + b"c", 2) == (number, 2 + len(written))


@pytest.mark.parametrize("raw", [b"", b"\x80", b"\xff" * 9, b"\xff" * 10, b"\xff" * 11])
def test_number_without_end_is_refused(raw: bytes):
    with pytest.raises(ValueError, match="without end"):
        varint_at(raw, 0)


@given(
    values=st.lists(FLOATS, min_size=1, max_size=26),
    step=st.none() | UINT64,
    answers=st.integers(0, 3),
)
def test_one_step_of_values_is_read_without_protobuf(values: list[float], step: int | None, answers: int):
    raw = values_request(values, step, answers).SerializeToString()
    single = single_values(raw, len(values))
    if len(raw) < 130:
        assert single is not None
        assert bits_of(single[0]) == bits_of(tuple(values))
        assert single[1:] == (step, answers)
    assert_read_as_protobuf_reads_it(raw, len(values))


TENSOR = types_pb2.Tensor(name="x", dtype=types_pb2.DATA_TYPE_FLOAT32, shape=[1, 1], data=b"1234")
OTHERS = {
    "two steps": values_request([1, 2]),
    "no values": values_request([]),
    "a tensor": sequence_pb2.StreamRequest(values=sequence_pb2.Values(tensors=[TENSOR])),
    "a value and a tensor": sequence_pb2.StreamRequest(
        values=sequence_pb2.Values(values=[1], tensors=[TENSOR])
    ),
    "open": sequence_pb2.StreamRequest(open=sequence_pb2.Open(model="metro")),
    "forecast": sequence_pb2.StreamRequest(forecast=sequence_pb2.StreamForecast(horizon=3)),
    "flush": sequence_pb2.StreamRequest(flush=sequence_pb2.Flush()),
    "nothing": sequence_pb2.StreamRequest(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_message_is_left_to_protobuf(name: str):
    assert single_values(OTHERS[name].SerializeToString(), 1) is None


def test_model_too_wide_for_a_short_message_is_left_to_protobuf():
    raw = values_request([1.0] * 40).SerializeToString()
    assert single_values(raw, 40) is None


def test_number_that_breaks_off_is_left_to_protobuf():
    raw = values_request([1.0], 300).SerializeToString()
    cut = bytes([raw[0], raw[1] - 1]) + raw[2:-1]
    assert single_values(raw, 1) == ((1.0,), 300, 0)
    assert single_values(cut, 1) is None


SPOILS = st.tuples(st.integers(0, 40), st.integers(0, 3), st.binary(max_size=3))  # where, how much, by what


@given(
    values=st.lists(FLOATS, min_size=1, max_size=3),
    step=st.none() | UINT64,
    answers=st.integers(0, 3),
    spoil=SPOILS,
)
@example(values=[1.0], step=5, answers=0, spoil=(9, 1, b"\x85\x00"))  # a number longer than need be
def test_bytes_that_were_tampered_with_are_never_read_otherwise_than_by_protobuf(
    values: list[float], step: int | None, answers: int, spoil: tuple[int, int, bytes]
):
    raw = values_request(values, step, answers).SerializeToString()
    place, num_replaced, change = spoil
    spoiled = bytearray(raw[:place] + change + raw[place + num_replaced :])
    if len(spoiled) > 1:
        spoiled[1] = min(len(spoiled) - 2, 127)  # so that the outer length still fits
    try:
        sequence_pb2.StreamRequest.FromString(bytes(spoiled))
    except DecodeError:
        assert single_values(bytes(spoiled), len(values)) is None
    else:
        assert_read_as_protobuf_reads_it(bytes(spoiled), len(values))


@given(raw=st.binary(max_size=40), num_features=st.integers(1, 4))
def test_any_bytes_are_read_as_protobuf_reads_them_or_left_to_it(raw: bytes, num_features: int):
    try:
        sequence_pb2.StreamRequest.FromString(raw)
    except DecodeError:
        assert single_values(raw, num_features) is None
    else:
        assert_read_as_protobuf_reads_it(raw, num_features)
