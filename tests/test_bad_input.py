"""Bad input on a stream: what is refused in band, what ends the stream, and that the next good message works."""

from __future__ import annotations

import struct
import uuid
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from longshort.v1 import sequence_pb2, types_pb2
from wire import Caller, assert_goes_on, key, refusal_of, values_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Scenario = Callable[[Callable[[Caller], Awaitable[None]]], None]

NAN, INF = float("nan"), float("inf")
FORECAST = {"forecast": sequence_pb2.StreamForecast(horizon=2)}
FLUSH = {"flush": sequence_pb2.Flush()}


# -- refused in band -----


def tensor(**changes: Any) -> dict[str, Any]:
    """Return a message of one tensor [2, 1] that is right but for the changes."""
    good = {
        "name": "x",
        "dtype": types_pb2.DATA_TYPE_FLOAT32,
        "shape": [2, 1],
        "data": struct.pack("<2f", 1, 2),
    }
    return {"values": sequence_pb2.Values(tensors=[types_pb2.Tensor(**(good | changes))])}


def both_forms() -> dict[str, Any]:
    message = tensor()
    message["values"].values.append(1)
    return message


def two_tensors() -> dict[str, Any]:
    message = tensor()
    message["values"].tensors.append(message["values"].tensors[0])
    return message


BAD_MESSAGES = {
    "empty": (lambda: {"values": values_of([])}, "EMPTY_VALUES"),
    "empty tensor": (lambda: tensor(shape=[0, 1], data=b""), "EMPTY_VALUES"),
    "too long": (lambda: {"values": values_of([1] * 51)}, "TOO_MANY_STEPS"),
    "too long tensor": (lambda: tensor(shape=[51, 1], data=b"\0" * 204), "TOO_MANY_STEPS"),
    "infinite": (lambda: {"values": values_of([1, INF])}, "VALUE_NOT_FINITE"),
    "minus infinite": (lambda: {"values": values_of([-INF])}, "VALUE_NOT_FINITE"),
    "values and tensors": (both_forms, "WRONG_SHAPE"),
    "two tensors": (two_tensors, "WRONG_SHAPE"),
    "foreign name": (lambda: tensor(name="y"), "WRONG_SHAPE"),
    "no type": (lambda: tensor(dtype=0), "WRONG_SHAPE"),
    "other type": (lambda: tensor(dtype=types_pb2.DATA_TYPE_FLOAT64), "WRONG_SHAPE"),
    "type that means nothing": (lambda: tensor(dtype=99), "WRONG_SHAPE"),
    "other rank": (lambda: tensor(shape=[2]), "WRONG_SHAPE"),
    "other width": (lambda: tensor(shape=[1, 2]), "WRONG_SHAPE"),
    "negative shape": (lambda: tensor(shape=[-2, 1]), "WRONG_SHAPE"),
    "vast shape": (lambda: tensor(shape=[2**62, 1]), "WRONG_SHAPE"),
    "too little data": (lambda: tensor(data=b"\0" * 7), "WRONG_SHAPE"),
    "too much data": (lambda: tensor(data=b"\0" * 12), "WRONG_SHAPE"),
    "too large": (lambda: {"values": values_of([1] * 1100)}, "MESSAGE_TOO_LARGE"),
    "horizon 0": (lambda: {"forecast": sequence_pb2.StreamForecast()}, "HORIZON_OUT_OF_RANGE"),
    "horizon too far": (
        lambda: {"forecast": sequence_pb2.StreamForecast(horizon=51)},
        "HORIZON_OUT_OF_RANGE",
    ),
}


@pytest.mark.parametrize("what", BAD_MESSAGES)
def test_bad_message_is_refused_in_band_and_the_next_good_one_works(against: Scenario, what: str):
    make, reason = BAD_MESSAGES[what]

    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open("", "adder")
        await stream.step([5], 0)
        refusal = await stream.error(**make())
        assert refusal == ("INVALID_ARGUMENT", reason)
        assert refusal.retry_delay_s is None
        assert refusal.message
        await assert_goes_on(stream, 1, 5)

    against(scenario)


def test_tensor_is_answered_with_a_tensor(against: Scenario):
    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open("", "adder")
        answer = (await stream.ask(**tensor())).answer
        assert not answer.values
        (found,) = answer.tensors
        assert (found.name, list(found.shape), found.dtype) == ("y", [2, 1], types_pb2.DATA_TYPE_FLOAT32)
        assert np.frombuffer(found.data, "<f4").tolist() == [1, 3]

    against(scenario)


def test_half_a_row_is_a_wrong_shape(run: Callable[..., Any], server: Any):
    async def scenario() -> None:
        async with Caller(server.address) as caller:
            stream, _ = await caller.open("", "wide")
            refusal = await stream.error(values=values_of([1, 2, 3, 4], 0))
            assert refusal == ("INVALID_ARGUMENT", "WRONG_SHAPE")
            assert refusal.metadata == {"num_values": "4", "num_features": "3"}
            assert (await stream.step([1, 2, 3], 0)).step == 1
            refusal = await stream.error(**FORECAST)
            assert refusal == ("FAILED_PRECONDITION", "FORECAST_UNAVAILABLE")

    run(scenario())


def test_forecast_of_a_session_without_a_value_is_session_empty(against: Scenario):
    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open("", "adder")
        assert await stream.error(**FORECAST) == ("FAILED_PRECONDITION", "SESSION_EMPTY")
        await assert_goes_on(stream, 0, 0)

    against(scenario)


# -- missing values -----


def test_nan_is_refused_where_the_signature_says_reject(against: Scenario):
    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open("", "strict")
        await stream.step([5], 0)
        refusal = await stream.error(values=values_of([1, NAN], 1))
        assert refusal == ("INVALID_ARGUMENT", "VALUE_MISSING")
        assert refusal.metadata == {"row": "1"}
        await assert_goes_on(stream, 1, 5)

    against(scenario)


def test_missing_value_repeats_the_last_one_across_messages_and_reconnects(against: Scenario):
    async def scenario(caller: Caller) -> None:
        stream, opened = await caller.open("", "adder")
        assert await stream.error(values=values_of([NAN, 1], 0)) == ("INVALID_ARGUMENT", "VALUE_MISSING")
        assert list((await stream.step([1, NAN, 3], 0)).values) == [1, 2, 5]
        assert list((await stream.step([NAN, NAN], 3)).values) == [8, 11]
        assert (await stream.step([NAN, NAN], 3)).replayed  # NaN equals itself in a message's identity
        await stream.half_close()
        again, _ = await caller.open(opened.session.id, "")
        assert list((await again.step([NAN], 5)).values) == [14]

    against(scenario)


def test_nan_that_the_model_passes_on_is_a_non_finite_result(against: Scenario):
    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open("", "passing")
        await stream.step([5], 0)
        refusal = await stream.error(values=values_of([1, NAN], 1))
        assert refusal == ("OUT_OF_RANGE", "NON_FINITE_RESULT")
        await assert_goes_on(stream, 1, 5)

    against(scenario)


@pytest.mark.parametrize("count", [2, 20])
def test_result_that_overflows_leaves_the_session_where_it_was(against: Scenario, count: int):
    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open("", "adder")
        await stream.step([5], 0)
        refusal = await stream.error(values=values_of([0] * (count - 2) + [3e38, 3e38], 1))
        assert refusal == ("OUT_OF_RANGE", "NON_FINITE_RESULT")
        await assert_goes_on(stream, 1, 5)

    against(scenario)


# -- what ends a stream -----


@pytest.mark.parametrize(
    "first", [{"values": values_of([1], 0)}, FORECAST, FLUSH], ids=["values", "forecast", "flush"]
)
def test_anything_before_open_ends_the_stream_with_not_open(against: Scenario, first: dict[str, Any]):
    async def scenario(caller: Caller) -> None:
        assert await caller.stream().end(**first) == ("FAILED_PRECONDITION", "NOT_OPEN")

    against(scenario)


def test_second_open_ends_the_stream_and_leaves_the_session(against: Scenario):
    async def scenario(caller: Caller) -> None:
        stream, opened = await caller.open("", "adder")
        await stream.step([5], 0)
        second = sequence_pb2.Open(session=opened.session, model="adder")
        assert await stream.end(open=second) == ("INVALID_ARGUMENT", "INVALID_MESSAGE")
        again, _ = await caller.open(opened.session.id, "")
        await assert_goes_on(again, 1, 5)

    against(scenario)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"values": values_of([1], 1, 99)},  # type: ignore[arg-type]
    ],
    ids=["says nothing", "answers that mean nothing"],
)
def test_message_that_means_nothing_ends_the_stream(against: Scenario, message: dict[str, Any]):
    async def scenario(caller: Caller) -> None:
        stream, opened = await caller.open("", "adder")
        await stream.step([5], 0)
        await stream.send(**message)
        assert await stream.end() == ("INVALID_ARGUMENT", "INVALID_MESSAGE")
        again, _ = await caller.open(opened.session.id, "")
        await assert_goes_on(again, 1, 5)

    against(scenario)


@pytest.mark.parametrize("junk", [b"\xff" * 9, b"\x0a\xff", b"\x12\x01\x08\x01junk"])
@pytest.mark.parametrize("is_open", [True, False])
def test_bytes_that_are_no_protobuf_end_the_stream_as_malformed(
    against: Scenario, junk: bytes, *, is_open: bool
):
    async def scenario(caller: Caller) -> None:
        session_id = str(uuid.uuid4())
        raw = caller.channel.stream_stream("/longshort.v1.SequenceService/Stream")()  # no serializers: bytes
        if is_open:
            opening = sequence_pb2.Open(session=key(session_id), model="adder")
            await raw.write(sequence_pb2.StreamRequest(open=opening).SerializeToString())
            assert sequence_pb2.StreamResponse.FromString(await raw.read()).opened.created
        await raw.write(junk)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw.read()
        assert refusal_of(caught.value) == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE")
        again, opened = await caller.open(session_id, "adder")
        assert opened.created is not is_open
        await assert_goes_on(again, 0, 0)

    against(scenario)


def test_message_far_beyond_the_limit_is_refused_by_grpc_itself_and_the_session_lives(against: Scenario):
    async def scenario(caller: Caller) -> None:
        stream, opened = await caller.open("", "adder")
        await stream.step([5], 0)
        await stream.send(values=values_of([1] * 5000))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.receive()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        again, reopened = await caller.open(opened.session.id, "")
        assert reopened.step == 1
        await assert_goes_on(again, 1, 5)

    against(scenario)


def test_opening_that_is_too_large_ends_the_stream(against: Scenario):
    async def scenario(caller: Caller) -> None:
        refusal = await caller.refused_open("", "x" * 5000)
        assert refusal == ("INVALID_ARGUMENT", "MESSAGE_TOO_LARGE")
        assert refusal.metadata == {"max_message_bytes": "4096"}

    against(scenario)
