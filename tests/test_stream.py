"""One session on one stream: what is answered, what is refused in band, what ends the stream, and what comes after."""

from __future__ import annotations

import asyncio
import struct
import uuid
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from inside import Gate, service, until
from longshort.v1 import sequence_pb2, types_pb2
from wire import ALL, CREATE, LAST, NONE, OPEN, Caller, Stream, in_band, key, refusal_of, refused, values_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Scenario = Callable[[Callable[[Caller], Awaitable[None]]], None]

NAN, INF = float("nan"), float("inf")
FORECAST = {"forecast": sequence_pb2.StreamForecast(horizon=2)}
FLUSH = {"flush": sequence_pb2.Flush()}


@pytest.fixture
def against(run: Callable[..., Any], adder_server: Any) -> Scenario:
    """Run a scenario with a connection to the service of adders."""

    def play(scenario: Callable[[Caller], Awaitable[None]]) -> None:
        async def connected() -> None:
            async with asyncio.timeout(20), Caller(adder_server.address) as caller:
                await scenario(caller)

        run(connected())

    return play


async def assert_goes_on(stream: Stream, step: int, total: float) -> None:
    """The session has not moved, and the next good message works."""
    answer = await stream.step([1], step)
    assert (answer.step, list(answer.values), answer.replayed) == (step + 1, [total + 1], False)


# -- a conversation -----


def test_stream_answers_each_value_with_a_prediction(against: Scenario):
    async def scenario(caller: Caller) -> None:
        stream, opened = await caller.open("", "adder")
        assert opened.created
        assert str(uuid.UUID(opened.session.id)) == opened.session.id
        assert (opened.model, opened.version, opened.step) == ("adder", 1, 0)
        assert (opened.num_features, opened.num_outputs, opened.max_steps) == (1, 1, 50)
        assert opened.durability == types_pb2.DURABILITY_NONE
        assert opened.incarnation
        assert opened.epoch
        assert len(opened.fingerprint) == 64
        assert list((await stream.step([1], 0)).values) == [1]
        answer = await stream.step([2, 3, 4], 1)
        assert (list(answer.values), answer.step, answer.durable_step) == ([3, 6, 10], 4, 0)
        await stream.half_close()

    against(scenario)


def test_answers_may_be_all_the_last_or_none(against: Scenario):
    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open("", "adder")
        assert list((await stream.step([1, 2], 0, ALL)).values) == [1, 3]
        assert list((await stream.step([1, 2], 2, LAST)).values) == [6]
        answer = await stream.step([1, 2], 4, NONE)
        assert (list(answer.values), answer.step) == ([], 6)
        assert list((await stream.step([0], 6)).values) == [9]

    against(scenario)


def test_forecast_feeds_predictions_back_and_leaves_the_session_where_it_was(against: Scenario):
    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open("", "adder")
        await stream.step([3], 0)
        answer = await stream.forecast(4)
        assert (list(answer.values), answer.step) == ([3, 6, 12, 24], 1)
        assert list((await stream.forecast(1)).values) == [3]
        await assert_goes_on(stream, 1, 3)

    against(scenario)


def test_flush_is_answered(against: Scenario):
    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open("", "adder")
        await stream.step([3], 0)
        response = await stream.ask(**FLUSH)
        assert response.WhichOneof("kind") == "flushed"
        assert response.flushed.durable_step == 0  # memory:// keeps nothing beyond the server
        await assert_goes_on(stream, 1, 3)

    against(scenario)


def test_many_messages_written_ahead_are_answered_in_order(against: Scenario):
    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open("", "adder")
        for step in range(50):
            await stream.send(values=values_of([1], step))
        for step in range(50):
            answer = (await stream.receive()).answer
            assert (answer.step, list(answer.values)) == (step + 1, [step + 1])

    against(scenario)


def test_half_close_leaves_the_session_alive(against: Scenario):
    async def scenario(caller: Caller) -> None:
        stream, opened = await caller.open("", "adder")
        await stream.step([3], 0)
        await stream.half_close()
        again, reopened = await caller.open(opened.session.id, "", mode=OPEN)
        assert not reopened.created
        assert (reopened.step, reopened.incarnation, reopened.model) == (1, opened.incarnation, "adder")
        assert reopened.epoch > opened.epoch
        await assert_goes_on(again, 1, 3)

    against(scenario)


def test_messages_written_before_half_close_are_all_answered(against: Scenario):
    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open("", "adder")
        for step in range(3):
            await stream.send(values=values_of([1], step))
        await stream.call.done_writing()
        assert [(await stream.receive()).answer.step for _ in range(3)] == [1, 2, 3]
        assert await stream.call.read() is grpc.aio.EOF

    against(scenario)


# -- the step table over the wire -----


def test_message_at_the_sessions_step_is_applied_over_the_wire(against: Scenario):
    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open("", "adder")
        assert (await stream.step([1, 1], 0)).step == 2
        answer = await stream.step([1], 2)
        assert (answer.step, answer.replayed) == (3, False)

    against(scenario)


@pytest.mark.parametrize("count", [2, 20])
def test_last_applied_message_again_gets_its_stored_answer_over_the_wire(against: Scenario, count: int):
    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open("", "adder")
        first = await stream.step([1] * count, 0, LAST)
        again = await stream.step(
            [1] * count, 0, ALL
        )  # the answer is the stored one, whatever is asked for now
        assert not first.replayed
        assert again.replayed
        assert (list(again.values), again.step) == (list(first.values), first.step) == ([count], count)
        await assert_goes_on(stream, count, count)

    against(scenario)


def test_same_place_with_other_values_is_values_differ_over_the_wire(against: Scenario):
    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open("", "adder")
        await stream.step([1, 1], 0)
        refusal = await stream.error(values=values_of([1, 2], 0))
        assert refusal == ("FAILED_PRECONDITION", "VALUES_DIFFER")
        assert refusal.metadata == {"expected_step": "2"}
        await assert_goes_on(stream, 2, 2)

    against(scenario)


@pytest.mark.parametrize(
    ("values", "step"),
    [([1], 0), ([9], 0), ([1, 1], 0), ([1], 1), ([1, 1, 1], 1), ([1], 2), ([1, 1, 1], 2)],
)
def test_anything_else_below_the_sessions_step_is_step_conflict_over_the_wire(
    against: Scenario, values: list[float], step: int
):
    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open("", "adder")
        await stream.step([1], 0)
        await stream.step([1, 1], 1)
        refusal = await stream.error(values=values_of(values, step))
        assert refusal == ("FAILED_PRECONDITION", "STEP_CONFLICT")
        assert refusal.metadata == {"expected_step": "3"}
        await assert_goes_on(stream, 3, 3)

    against(scenario)


@pytest.mark.parametrize("step", [2, 2**64 - 1])
def test_message_above_the_sessions_step_is_step_gap_over_the_wire(against: Scenario, step: int):
    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open("", "adder")
        await stream.step([1], 0)
        refusal = await stream.error(values=values_of([1], step))
        assert refusal == ("FAILED_PRECONDITION", "STEP_GAP")
        assert refusal.metadata == {"expected_step": "1"}
        await assert_goes_on(stream, 1, 1)

    against(scenario)


def test_message_without_a_step_is_applied_as_it_comes_over_the_wire(against: Scenario):
    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open("", "adder")
        assert [(await stream.step([1])).step for _ in range(3)] == [1, 2, 3]  # the same values, three times
        assert (await stream.step([1], 2)).replayed  # and the last may be repeated by its number

    against(scenario)


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


# -- opening -----

BAD_OPENINGS: dict[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "unknown model": ({"model": "nobody"}, ("NOT_FOUND", "MODEL_NOT_FOUND")),
    "model of a long name": ({"model": "x" * 4000}, ("NOT_FOUND", "MODEL_NOT_FOUND")),
    "no model": ({"model": ""}, ("NOT_FOUND", "MODEL_NOT_FOUND")),
    "unknown version": ({"version": 2}, ("NOT_FOUND", "MODEL_NOT_FOUND")),
    "space in the id": ({"session_id": "a b"}, ("INVALID_ARGUMENT", "INVALID_SESSION_ID")),
    "foreign letters": ({"session_id": "zähler"}, ("INVALID_ARGUMENT", "INVALID_SESSION_ID")),
    "line end": ({"session_id": "a\n"}, ("INVALID_ARGUMENT", "INVALID_SESSION_ID")),
    "long id": ({"session_id": "x" * 257}, ("INVALID_ARGUMENT", "INVALID_SESSION_ID")),
    "unknown session": ({"session_id": "nobody", "mode": OPEN}, ("NOT_FOUND", "SESSION_NOT_FOUND")),
    "mode that means nothing": ({"mode": 99}, ("INVALID_ARGUMENT", "INVALID_MESSAGE")),
    "long client id": ({"client_id": "x" * 65}, ("INVALID_ARGUMENT", "INVALID_MESSAGE")),
}


@pytest.mark.parametrize("what", BAD_OPENINGS)
def test_bad_opening_ends_the_stream_and_makes_no_session(against: Scenario, what: str):
    fields, expected = BAD_OPENINGS[what]

    async def scenario(caller: Caller) -> None:
        session_id = str(uuid.uuid4())
        refusal = await caller.refused_open(**({"session_id": session_id, "model": "adder"} | fields))
        assert refusal == expected
        assert refusal.retry_delay_s is None
        stream, opened = await caller.open(session_id, "adder", mode=CREATE)
        assert opened.created
        await assert_goes_on(stream, 0, 0)

    against(scenario)


def test_tenant_is_refused(against: Scenario):
    async def scenario(caller: Caller) -> None:
        named = sequence_pb2.Open(session=types_pb2.SessionKey(tenant="t", id="a"), model="adder")
        assert await caller.stream().end(open=named) == ("INVALID_ARGUMENT", "INVALID_SESSION_ID")
        unnamed = sequence_pb2.Open(session=types_pb2.SessionKey(tenant="t"), model="adder")
        assert await caller.stream().end(open=unnamed) == ("INVALID_ARGUMENT", "INVALID_SESSION_ID")

    against(scenario)


def test_longest_ids_are_taken(against: Scenario):
    async def scenario(caller: Caller) -> None:
        name = "~!" + "x" * 254
        _, opened = await caller.open(name, "adder", client_id="c" * 64)
        assert opened.session.id == name

    against(scenario)


@pytest.mark.parametrize(
    "fields", [{"model": "strict"}, {"model": "adder", "version": 2}, {"model": "nobody"}]
)
@pytest.mark.parametrize("is_streaming", [True, False])
def test_session_is_not_opened_with_another_model(
    against: Scenario, fields: dict[str, Any], *, is_streaming: bool
):
    async def scenario(caller: Caller) -> None:
        stream, opened = await caller.open("", "adder")
        await stream.step([5], 0)
        if not is_streaming:
            await stream.half_close()
        refusal = await caller.refused_open(opened.session.id, **fields)
        assert refusal == ("FAILED_PRECONDITION", "MODEL_MISMATCH")
        assert refusal.metadata == {"model": "adder", "version": "1"}
        if not is_streaming:
            stream, _ = await caller.open(opened.session.id, "")
        await assert_goes_on(stream, 1, 5)  # where a stream had it, that stream still has it

    against(scenario)


def test_create_refuses_what_is_there_and_does_not_disturb_it(against: Scenario):
    async def scenario(caller: Caller) -> None:
        stream, opened = await caller.open("", "adder", mode=CREATE)
        await stream.step([5], 0)
        refusal = await caller.refused_open(opened.session.id, "adder", mode=CREATE)
        assert refusal == ("ALREADY_EXISTS", "SESSION_EXISTS")
        await assert_goes_on(stream, 1, 5)

    against(scenario)


def test_create_whose_answer_was_lost_learns_that_the_session_is_its_own(against: Scenario):
    async def scenario(caller: Caller) -> None:
        stream, opened = await caller.open("", "adder", mode=CREATE, client_id="mine")
        await stream.half_close()
        again = await caller.refused_open(opened.session.id, "adder", mode=CREATE, client_id="mine")
        assert again.metadata == {"session_id": opened.session.id, "client_id": "mine"}

    against(scenario)


# -- who has the session -----


@pytest.mark.parametrize("newcomer", ["me", "somebody", ""])
def test_newer_stream_takes_the_session_and_the_older_learns_whose_it_is(against: Scenario, newcomer: str):
    async def scenario(caller: Caller) -> None:
        older, opened = await caller.open("", "adder", client_id="me")
        await older.step([5], 0)
        newer, reopened = await caller.open(opened.session.id, "", client_id=newcomer)
        assert (reopened.created, reopened.step) == (False, 1)
        end = await older.end()
        assert end == ("ABORTED", "SESSION_MOVED")
        assert end.metadata == {"cause": "opened", "client_id": newcomer}
        assert end.retry_delay_s is None
        await assert_goes_on(newer, 1, 5)

    against(scenario)


def test_two_clients_that_fight_for_a_session_never_apply_a_value_twice(against: Scenario):
    async def scenario(caller: Caller) -> None:
        session_id, num_moves = str(uuid.uuid4()), 0

        async def advance(goal: int) -> None:
            stream, opened = await caller.open(session_id, "adder")
            step = opened.step
            while step < goal:
                step = (await stream.step([1], step)).step

        async def fight(goal: int) -> None:
            nonlocal num_moves
            while True:
                try:
                    return await advance(goal)
                except grpc.aio.AioRpcError as error:
                    num_moves += 1
                    # A write that meets the stream's end in grpc.aio's client loses the status that came with it.
                    is_lost = error.code() is grpc.StatusCode.INTERNAL and "execute_batch" in str(error)
                    if not is_lost and refusal_of(error) != ("ABORTED", "SESSION_MOVED"):
                        raise
                await asyncio.sleep(0.002)

        await asyncio.gather(fight(300), fight(300), fight(300))
        assert num_moves > 0
        stream, opened = await caller.open(session_id, "adder")
        assert opened.step == 300
        await assert_goes_on(stream, 300, 300)

    against(scenario)


# -- limits of the server -----


def test_too_many_streams_are_refused_at_the_door(run: Callable[..., Any], start_server: Any, adders: Any):
    server = start_server("--max-streams", "2", models=adders)

    async def scenario() -> None:
        async with Caller(server.address) as caller:
            first, _ = await caller.open("a", "adder")
            await caller.open("b", "adder")
            refusal = await caller.refused_open("c", "adder")
            assert refusal == ("RESOURCE_EXHAUSTED", "STREAMS_EXHAUSTED")
            assert refusal.retry_delay_s == 1.0
            await first.half_close()
            await caller.open("c", "adder")

    run(scenario())


def test_too_many_sessions_are_refused_while_all_are_in_use(
    run: Callable[..., Any], start_server: Any, adders: Any
):
    server = start_server("--max-sessions", "2", models=adders)

    async def scenario() -> None:
        async with Caller(server.address) as caller:
            first, _ = await caller.open("a", "adder")
            await first.step([5], 0)
            second, _ = await caller.open("b", "strict")
            refusal = await caller.refused_open("c", "adder")
            assert refusal == ("RESOURCE_EXHAUSTED", "SESSIONS_EXHAUSTED")
            assert refusal.retry_delay_s == 1.0
            await second.half_close()
            await first.half_close()
            third, opened = await caller.open("c", "adder", mode=CREATE)  # the refused one has left nothing
            assert opened.created
            await third.step([7], 0)
            again, opened = await caller.open(
                "a", ""
            )  # one of the idle ones went to the store and comes back
            assert opened.step == 1
            await assert_goes_on(again, 1, 5)
            await assert_goes_on(third, 1, 7)

    run(scenario())


def test_full_queue_is_told_in_band_to_numbered_values_and_ends_an_unnumbered_stream(
    run: Callable[..., Any], adders: Any
):
    async def scenario() -> None:
        limits = {"max_steps": 50, "max_queued_steps": 50}
        async with asyncio.timeout(20), service(adders, **limits) as (app, caller):
            gate = Gate.before(app.repository.get("adder").lane)
            streams = {
                name: (await caller.open(name, "adder"))[0] for name in ("busy", "numbered", "unnumbered")
            }
            await streams["busy"].send(values=values_of([1] * 50, 0))
            await gate.arrival()
            refusal = await streams["numbered"].error(values=values_of([1], 0))
            assert refusal == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
            assert refusal.retry_delay_s == 0.1
            # Values without a number that might follow would close over the gap unseen.
            end = await streams["unnumbered"].end(values=values_of([1]))
            assert end == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
            assert end.retry_delay_s == 0.1
            gate.open()
            assert (await streams["busy"].receive()).answer.step == 50
            await assert_goes_on(streams["numbered"], 0, 0)

    run(scenario())


def test_result_that_overflows_does_not_touch_its_batch_mates(run: Callable[..., Any], adders: Any):
    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (app, caller):
            gate = Gate.before(app.repository.get("adder").lane)
            names = ("busy", "good", "bad", "other")
            streams = {name: (await caller.open(name, "adder"))[0] for name in names}
            await streams["busy"].send(values=values_of([1], 0))
            await gate.arrival()
            for name, value in (("good", 1), ("bad", 3e38), ("other", 2)):
                await streams[name].send(values=values_of([value, value], 0))
            await until(lambda: app.repository.get("adder").lane.num_queued_steps == 7)
            gate.open()
            assert list((await streams["good"].receive()).answer.values) == [1, 2]
            assert in_band((await streams["bad"].receive()).error) == ("OUT_OF_RANGE", "NON_FINITE_RESULT")
            assert list((await streams["other"].receive()).answer.values) == [2, 4]
            assert gate.batches == [1, 3]
            for name, total in (("good", 2), ("other", 4)):
                await assert_goes_on(streams[name], 2, total)
            await assert_goes_on(streams["bad"], 0, 0)

    run(scenario())


def test_bug_of_ours_ends_one_stream_with_internal_and_no_other(run: Callable[..., Any], adders: Any):
    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders, may_log_errors=True) as (app, caller):
            broken, _ = await caller.open("broken", "adder")
            other, _ = await caller.open("other", "adder")
            session = app._table.get("broken")
            assert session is not None
            session.last_values = np.zeros(3, np.float32)  # the model has one feature
            end = await broken.end(values=values_of([NAN], 0))
            assert end == ("INTERNAL", "INTERNAL")
            assert "log" in end.message  # what is inside stays inside
            assert await refused(caller.step("broken", [NAN], 0, "adder")) == ("INTERNAL", "INTERNAL")
            await assert_goes_on(other, 0, 0)

    run(scenario())


def test_stream_that_is_not_opened_in_time_gives_its_place_back(
    run: Callable[..., Any], adders: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("longshort_service.handlers.stream.OPEN_TIMEOUT_S", 0.2)

    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (app, caller):
            opened, _ = await caller.open("s", "adder")
            silent = caller.stream()
            await silent.call.wait_for_connection()
            assert await silent.end() == ("FAILED_PRECONDITION", "NOT_OPEN")
            await until(lambda: app._streams.num_streams() == 1)
            await assert_goes_on(opened, 0, 0)

    run(scenario())
