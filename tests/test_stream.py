"""One session on one stream: a conversation, and how many of them a server takes."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from histories_backend import BackendLine
from inside import Gate, service, until
from longshort.v1 import sequence_pb2, session_pb2, types_pb2
from longshort_service.values import check_values
from wire import ALL, CREATE, LAST, NONE, OPEN, Caller, assert_goes_on, in_band, key, refused, values_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from numpy.typing import NDArray

    Scenario = Callable[[Callable[[Caller], Awaitable[None]]], None]

NAN, INF = float("nan"), float("inf")
FLUSH = {"flush": sequence_pb2.Flush()}


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


@pytest.mark.parametrize("size", [1, 2])
def test_values_that_are_taken_and_not_stored_may_come_again_only_with_a_number(
    run: Callable[..., Any], adders: Any, tmp_path: Any, size: int
):
    async def scenario() -> None:
        settings: dict[str, Any] = {"store": f"sqlite:///{tmp_path}/sessions.db", "store_timeout_s": 0.3}
        sync = types_pb2.DURABILITY_SYNC
        async with asyncio.timeout(20), service(adders, **settings) as (app, caller):
            numbered, _ = await caller.open("numbered", "adder", durability=sync)
            unnumbered, _ = await caller.open("unnumbered", "adder", durability=sync)
            async with BackendLine.of(app).holding("write"):
                refusal, end = await asyncio.gather(
                    numbered.error(values=values_of([1] * size, 0)),
                    unnumbered.end(values=values_of([1] * size)),
                )
            assert (refusal, refusal.retry_delay_s) == (("UNAVAILABLE", "STORE_UNAVAILABLE"), 1.0)
            assert (end, end.retry_delay_s) == (("DATA_LOSS", "TAKEN_NOT_STORED"), None)
            assert (await numbered.step([1] * size, 0)).step == size

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


def test_bug_of_ours_ends_one_stream_with_internal_and_no_other(
    run: Callable[..., Any], adders: Any, monkeypatch: pytest.MonkeyPatch
):
    def stumble(rows: NDArray[np.float32], *rest: Any) -> Any:
        if np.isnan(rows).any():
            raise ZeroDivisionError
        return check_values(rows, *rest)

    monkeypatch.setattr("longshort_service.session.check_values", stumble)

    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders, may_log_errors=True) as (_, caller):
            broken, _ = await caller.open("broken", "adder")
            other, _ = await caller.open("other", "adder")
            end = await broken.end(values=values_of([NAN], 0))
            assert end == ("INTERNAL", "INTERNAL")
            assert "log" in end.message  # what is inside stays inside
            assert await refused(caller.step("broken", [NAN], 0, "adder")) == ("INTERNAL", "INTERNAL")
            await assert_goes_on(other, 0, 0)

    run(scenario())


def test_stream_whose_opening_takes_long_has_not_been_silent(
    run: Callable[..., Any], adders: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("longshort_service.handlers.conversation.OPEN_TIMEOUT_S", 0.1)

    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (app, caller):
            gate = Gate.before(app.repository.get("adder").lane)
            step = asyncio.ensure_future(caller.step("s", [5], 0, "adder"))
            await gate.arrival()
            opening = asyncio.ensure_future(caller.open("s", "adder"))
            await asyncio.sleep(0.2)
            gate.open()
            await step
            stream, _ = await opening
            await assert_goes_on(stream, 1, 5)

    run(scenario())


def test_session_that_ends_before_its_opening_is_answered_is_not_said_to_be_open(
    run: Callable[..., Any], adders: Any
):
    """Its row is another session's by then, perhaps: nothing of it may be told."""

    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (app, caller):
            gate = Gate.before(app.repository.get("adder").lane)
            step = asyncio.ensure_future(caller.step("s", [5], 0, "adder"))
            await gate.arrival()
            opening = asyncio.ensure_future(caller.refused_open("s", "adder"))
            await until(lambda: len(app._keeper.turns) == 1)
            delete = asyncio.ensure_future(
                caller.sessions.Delete(session_pb2.DeleteRequest(session=key("s")))
            )
            await until(lambda: app._keeper.turns._waiting["s"])
            gate.open()
            await step
            await delete
            moved = await opening
            assert moved == ("ABORTED", "SESSION_MOVED")
            assert moved.metadata["cause"] == "deleted"

    run(scenario())


def test_stream_that_is_not_opened_in_time_gives_its_place_back(
    run: Callable[..., Any], adders: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("longshort_service.handlers.conversation.OPEN_TIMEOUT_S", 0.2)

    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (app, caller):
            opened, _ = await caller.open("s", "adder")
            silent = caller.stream()
            await silent.call.wait_for_connection()
            assert await silent.end() == ("FAILED_PRECONDITION", "NOT_OPEN")
            await until(lambda: app._streams.num_streams() == 1)
            await assert_goes_on(opened, 0, 0)

    run(scenario())
