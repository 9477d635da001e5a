"""Both clients against the real service behind peers that lose answers, hold them back, or cut the wire."""

from __future__ import annotations

import asyncio
import queue
import signal
import threading
import time
from concurrent import futures
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc
import longshort
import numpy as np
import pytest
from longshort import errors
from longshort.v1 import sequence_pb2_grpc
from peers import Relay, Wire, frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

VALUES = [float(value) for value in np.sin(np.arange(40)).round(3)]
LOST = [
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    None,  # the stream ends as if all were said
]


@pytest.fixture
def relay(server: Any) -> Iterator[Relay]:
    with grpc.insecure_channel(server.address) as channel, futures.ThreadPoolExecutor(8) as pool:
        relay = Relay(channel)
        front = grpc.server(pool)
        sequence_pb2_grpc.add_SequenceServiceServicer_to_server(relay, front)
        relay.address = f"127.0.0.1:{front.add_insecure_port('127.0.0.1:0')}"
        front.start()
        yield relay
        relay.let_go.set()
        front.stop(0).wait()


@pytest.fixture
def cut_wire(server: Any) -> Iterator[Callable[[int], Wire]]:
    wires: list[Wire] = []

    def make(seed: int) -> Wire:
        wires.append(Wire(server.address, seed))
        return wires[-1]

    yield make
    for wire in wires:
        wire.close()


def alone(server: Any, values: list[float]) -> NDArray[np.float32]:
    """Return what a session of its own, on an unbroken connection, answers to the values."""
    with longshort.Client(server.address) as client, client.session(model="metro") as session:
        return session.steps(values)


def stream_sync(address: str, values: list[float]) -> NDArray[np.float32]:
    with longshort.Client(address, timeout_s=60) as client, client.session(model="metro") as session:
        rows = [session.step(value) for value in values]
        assert session.position == len(values)
        return np.stack(rows)


def stream_async(address: str, values: list[float]) -> NDArray[np.float32]:
    async def stream() -> NDArray[np.float32]:
        async with (
            longshort.aio.Client(address, timeout_s=60) as client,
            client.session(model="metro") as session,
        ):
            rows = [await session.step(value) for value in values]
            assert session.position == len(values)
            return np.stack(rows)

    return asyncio.run(stream())


STREAMS = [stream_sync, stream_async]


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("code", LOST)
def test_answers_lost_behind_any_proxy_are_given_once_each(
    server: Any, relay: Relay, stream: Any, code: grpc.StatusCode | None
):
    relay.loses = dict.fromkeys([0, 3, 4, 5, 9], code)  # 0 is the first `opened`, 4 that of a reopening
    np.testing.assert_array_equal(stream(relay.address, VALUES[:6]), alone(server, VALUES[:6]))
    assert relay.num_answers > 9
    assert len(set(relay.session_ids)) == 1
    assert len({request.open.client_id for request in relay.requests if request.HasField("open")}) == 1


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_wire_cut_at_random_bytes_loses_no_answer_and_doubles_none(
    server: Any, cut_wire: Callable[[int], Wire], stream: Any, seed: int
):
    wire = cut_wire(seed)
    np.testing.assert_array_equal(stream(wire.address, VALUES * 5), alone(server, VALUES * 5))
    assert wire.num_cuts > 3


def test_withheld_answer_is_in_doubt_after_the_timeout_and_retried_once(server: Any, relay: Relay):
    wanted = alone(server, VALUES[:3])
    with longshort.Client(relay.address) as client, client.session(model="metro") as session:
        session.step(VALUES[0])
        relay.holds = {2}
        with pytest.raises(errors.DeadlineExceeded, match="retry"):
            session.step(VALUES[1], timeout_s=0.3)
        assert session.in_doubt
        assert session.position == 1
        with pytest.raises(errors.StepInDoubt):
            session.step(VALUES[1])
        for ask in (lambda: session.forecast(1), session.memory, lambda: session.explain([1])):
            with pytest.raises(errors.StepInDoubt):
                ask()
        np.testing.assert_array_equal(session.retry(), wanted[1])
        np.testing.assert_array_equal(session.step(VALUES[2]), wanted[2])


def test_interrupt_from_the_keyboard_leaves_the_session_in_doubt_and_whole(server: Any, relay: Relay):
    wanted = alone(server, VALUES[:3])
    with longshort.Client(relay.address) as client, client.session(model="metro") as session:
        session.step(VALUES[0])
        relay.holds = {2}
        main = threading.main_thread().ident
        assert main is not None

        def interrupt() -> None:
            relay.is_holding.wait(10)
            signal.pthread_kill(main, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            session.steps(VALUES[1:3])
        thread.join()
        assert session.in_doubt
        np.testing.assert_array_equal(session.retry(), wanted[1:])


def test_second_thread_in_one_session_is_refused(relay: Relay):
    with longshort.Client(relay.address) as client, client.session(model="metro") as session:
        relay.holds = {1}
        outcome: queue.SimpleQueue[Any] = queue.SimpleQueue()
        thread = threading.Thread(target=lambda: outcome.put(session.step(1)))
        thread.start()
        assert relay.is_holding.wait(10)
        with pytest.raises(errors.ConcurrentUse):
            session.step(2)
        relay.let_go.set()
        assert outcome.get(timeout=10).shape == (3,)
        thread.join()
        assert session.position == 1


@pytest.mark.parametrize("what", ["session", "client"])
def test_closing_under_another_threads_call_ends_that_call(relay: Relay, what: str):
    client = longshort.Client(relay.address)
    session = client.session(model="metro")
    relay.holds = {1}
    outcome: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def step() -> None:
        with pytest.raises(errors.SessionClosed):
            session.step(1)
        outcome.put("ended")

    thread = threading.Thread(target=step)
    thread.start()
    assert relay.is_holding.wait(10)
    (session if what == "session" else client).close()
    assert outcome.get(timeout=10) == "ended"
    thread.join()
    session.close()
    client.close()


@pytest.mark.parametrize("what", ["session", "client"])
def test_closing_under_another_tasks_call_ends_that_call(relay: Relay, what: str):
    async def scenario() -> None:
        client = longshort.aio.Client(relay.address)
        session = await client.session(model="metro")
        relay.holds = {1}
        task = asyncio.create_task(session.step(1))
        await asyncio.to_thread(relay.is_holding.wait, 10)
        await (session if what == "session" else client).close()
        with pytest.raises(errors.SessionClosed):
            await task
        await session.close()
        await client.close()

    asyncio.run(scenario())


def test_cancelled_task_leaves_the_session_in_doubt_and_whole(server: Any, relay: Relay):
    wanted = alone(server, VALUES[:2])

    async def scenario() -> None:
        async with longshort.aio.Client(relay.address) as client, client.session(model="metro") as session:
            await session.step(VALUES[0])
            relay.holds = {2}
            task = asyncio.create_task(session.step(VALUES[1]))
            await asyncio.to_thread(relay.is_holding.wait, 10)
            with pytest.raises(errors.ConcurrentUse):
                await session.step(5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert session.in_doubt
            with pytest.raises(errors.StepInDoubt):
                await session.step(VALUES[1])
            np.testing.assert_array_equal(await session.retry(), wanted[1])

    asyncio.run(scenario())


def test_async_timeout_leaves_the_session_in_doubt_and_whole(server: Any, relay: Relay):
    wanted = alone(server, VALUES[:2])

    async def scenario() -> None:
        async with longshort.aio.Client(relay.address) as client, client.session(model="metro") as session:
            await session.step(VALUES[0])
            relay.holds = {2, 4}
            with pytest.raises(errors.DeadlineExceeded):
                await session.step(VALUES[1], timeout_s=0.3)
            with pytest.raises(errors.DeadlineExceeded):
                await session.retry(timeout_s=0.3)
            relay.let_go.set()
            np.testing.assert_array_equal(await session.retry(), wanted[1])

    asyncio.run(scenario())


def test_timed_out_forecast_is_no_doubt_since_nothing_moves(relay: Relay):
    with longshort.Client(relay.address) as client, client.session(model="metro") as session:
        session.step(1)
        relay.holds = {2}
        with pytest.raises(errors.DeadlineExceeded):
            session.forecast(2, timeout_s=0.3)
        relay.let_go.set()
        assert not session.in_doubt
        assert session.forecast(2).shape == (2, 3)
        assert session.position == 1


def test_closing_a_session_whose_server_does_not_end_the_stream_takes_a_bounded_time(relay: Relay):
    with longshort.Client(relay.address) as client:
        session = client.session(model="metro")
        relay.holds = {1}
        with suppress(errors.DeadlineExceeded):
            session.step(1, timeout_s=0.1)
        started_s = time.monotonic()
        session.close()
        assert time.monotonic() - started_s < 5


def test_restarted_server_without_a_store_is_a_lost_session_to_a_reader_too(start_server: Any):
    first = start_server()

    async def scenario(session: longshort.Session) -> None:
        async with longshort.aio.Client(first.address) as client, client.session(model="metro") as awaited:
            await awaited.step(1)
            assert first.stop() == 0
            start_server(port=first.port)
            with pytest.raises(errors.SessionLost):
                await awaited.memory()
        with pytest.raises(errors.SessionLost):
            session.explain([1])

    with longshort.Client(first.address) as client, client.session(model="metro") as session:
        session.step(1)
        asyncio.run(scenario(session))


def test_frozen_server_costs_the_timeout_and_no_value(start_server: Any):
    server = start_server()
    with longshort.Client(server.address) as client, client.session(model="metro") as session:
        first = session.step(1)
        with frozen(server), pytest.raises(errors.DeadlineExceeded):
            session.step(2, timeout_s=0.3)
        second = session.retry()
    with longshort.Client(server.address) as client, client.session(model="metro") as session:
        np.testing.assert_array_equal(session.steps([1, 2]), np.stack([first, second]))
