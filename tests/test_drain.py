"""SIGTERM under load: what is in flight is answered, streams end with DRAINING, and nothing holds the process back."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from inside import Gate, service, until
from longshort.v1 import sequence_pb2, types_pb2
from longshort_service.stores.sqlite import SqliteBackend
from wire import Caller, Stream, refusal_of, refused, values_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from longshort_service.app import App

    Run = Callable[..., Any]

DRAINING = ("UNAVAILABLE", "DRAINING")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def exit_code(server: Any) -> int:
    code = await asyncio.to_thread(server.process.wait, 30)
    assert isinstance(code, int)
    return code


async def converse(stream: Stream) -> tuple[int, Any]:
    """Step as fast as answers come; return how many came and how the stream ended."""
    step = 0
    try:
        while True:
            answer = await stream.step([1], step)
            assert list(answer.values) == [step + 1]
            step += 1
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.INTERNAL and "execute_batch" in str(error):
            return step, None  # grpc.aio's client: a write met the stream's end and the status was lost
        return step, refusal_of(error)


def test_streams_under_load_are_answered_and_ended_with_draining(run: Run, start_server: Any, adders: Path):
    server = start_server(models=adders)

    async def scenario() -> None:
        async with asyncio.timeout(30), Caller(server.address) as caller:
            streams = [(await caller.open(f"s{k}", "adder"))[0] for k in range(30)]
            tasks = [asyncio.create_task(converse(stream)) for stream in streams]
            await asyncio.sleep(0.3)
            begin_s = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            ends = await asyncio.gather(*tasks)
            assert await exit_code(server) == 0
            assert time.monotonic() - begin_s < 10  # well within drain_timeout
            assert min(step for step, _ in ends) > 0
            refusals = [refusal for _, refusal in ends if refusal is not None]
            assert len(refusals) > len(ends) // 2
            assert all(refusal == DRAINING for refusal in refusals)
            assert {refusal.retry_delay_s for refusal in refusals} == {0.2}

    run(scenario())


def test_idle_streams_watches_and_reflection_do_not_hold_the_process(
    run: Run, start_server: Any, adders: Path
):
    server = start_server(models=adders)

    async def scenario() -> None:
        async with asyncio.timeout(30), Caller(server.address) as caller:
            opened, _ = await caller.open("s", "adder")
            silent = caller.stream()
            await silent.call.wait_for_connection()
            watch = caller.health.Watch(health_pb2.HealthCheckRequest(service="longshort.v1.SequenceService"))
            assert (await watch.read()).status == SERVING
            reflected = reflection_pb2_grpc.ServerReflectionStub(caller.channel).ServerReflectionInfo()
            await reflected.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            listed = {entry.name for entry in (await reflected.read()).list_services_response.service}
            assert {"longshort.v1.SequenceService", "grpc.health.v1.Health"} <= listed
            begin_s = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert (await watch.read()).status == NOT_SERVING
            end = await opened.end()
            assert end == DRAINING
            assert end.retry_delay_s == 0.2
            assert await silent.end() == DRAINING
            assert await exit_code(server) == 0
            assert time.monotonic() - begin_s < 10

    run(scenario())


@asynccontextmanager
async def frozen_client(caller: Caller) -> AsyncIterator[None]:
    """Write without reading until the server, which cannot write its answers, reads no more."""
    stream, _ = await caller.open("frozen", "metro")
    num_written = 0

    async def write_for_ever() -> None:
        nonlocal num_written
        while not stream.call.done():
            await stream.send(values=values_of([1] * 4096, 4096 * num_written))
            num_written += 1

    writing = asyncio.create_task(write_for_ever())
    before = -1
    while num_written != before:
        before = num_written
        await asyncio.sleep(0.7)
    assert num_written > 0
    try:
        yield
    finally:
        writing.cancel()
        await asyncio.wait([writing])
        stream.call.cancel()


def test_client_that_does_not_read_does_not_hold_the_process(run: Run, start_server: Any):
    server = start_server("--drain-timeout", "1s")

    async def scenario() -> None:
        one, other = Caller(server.address), Caller(server.address)
        async with asyncio.timeout(60), one, other, frozen_client(one):
            good, _ = await other.open("good", "wide")
            assert (await good.step([1, 2, 3], 0)).step == 1  # meanwhile others are served
            begin_s = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert await good.end() == DRAINING
            assert await exit_code(server) == 0
            assert 1 <= time.monotonic() - begin_s < 8

    run(scenario())


def test_second_signal_ends_the_process_at_once(run: Run, start_server: Any):
    server = start_server("--drain-timeout", "20s")

    async def scenario() -> None:
        async with asyncio.timeout(60), Caller(server.address) as caller, frozen_client(caller):
            begin_s = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
            assert server.process.poll() is None  # it waits for the stream that cannot be answered
            server.process.send_signal(signal.SIGTERM)
            assert await exit_code(server) == -signal.SIGTERM
            assert time.monotonic() - begin_s < 10

    run(scenario())


@pytest.mark.parametrize("is_unary", [True, False])
def test_message_in_flight_is_answered_before_the_end(run: Run, adders: Path, *, is_unary: bool):
    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders, drain_timeout_s=10.0) as (app, caller):
            gate = Gate.before(app.repository.get("adder").lane)
            stream, _ = await caller.open("s", "adder")
            if is_unary:
                answer = asyncio.ensure_future(caller.step("u", [5], 0, "adder"))
            else:
                await stream.send(values=values_of([5], 0))
            await gate.arrival()
            stopping = asyncio.ensure_future(app.stop())
            await until(lambda: app._edge.is_draining)
            assert await caller.refused_open("t", "adder") == DRAINING
            assert await refused(caller.step("t", [1], 0, "adder")) == DRAINING
            gate.open()
            if is_unary:
                assert list((await answer).answer.values) == [5]
            else:
                assert list((await stream.receive()).answer.values) == [5]
            assert await stream.end() == DRAINING
            await stopping

    run(scenario())


def test_run_that_does_not_end_in_time_is_left_behind(run: Run, adders: Path):
    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders, drain_timeout_s=0.2) as (app, caller):
            gate = Gate.before(app.repository.get("adder").lane)
            stream, _ = await caller.open("s", "adder")
            await stream.send(values=values_of([5], 0))
            await gate.arrival()
            stopping = asyncio.ensure_future(app.stop())
            with pytest.raises((grpc.aio.AioRpcError, EOFError)):
                await stream.receive()  # cut: the time is over
            gate.open()
            await stopping

    run(scenario())


def test_health_follows_the_service(run: Run, server: Any):
    async def scenario() -> None:
        async with Caller(server.address) as caller:
            for name in ("", "longshort.v1.SequenceService", "longshort.v1.SessionService"):
                check = await caller.health.Check(health_pb2.HealthCheckRequest(service=name))
                assert check.status == SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await caller.health.Check(health_pb2.HealthCheckRequest(service="nobody"))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    run(scenario())


def test_open_is_refused_on_a_stream_that_waited_through_the_signal(run: Run, adders: Path):
    """A stream that was let in before the drain and opens after it is refused as well."""

    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (app, caller):
            stream = caller.stream()
            await until(lambda: app._streams.num_streams() == 1)
            app._edge.is_draining = True
            refusal = await stream.end(open=sequence_pb2.Open(model="adder"))
            assert refusal == DRAINING
            app._edge.is_draining = False

    run(scenario())


@asynccontextmanager
async def stuck_call(app: App, call: Callable[[], Awaitable[Any]], wait_s: float) -> AsyncIterator[Any]:
    """Have a call wait for the turn at the session `stuck` until so long after the block has begun."""
    num_calls = app._edge.num_calls
    turn = app._keeper.turns.of("stuck")
    await turn.__aenter__()
    answer = asyncio.ensure_future(call())
    await until(lambda: app._edge.num_calls > num_calls and app._keeper.turns._waiting["stuck"])

    async def free() -> None:
        await asyncio.sleep(wait_s)
        await turn.__aexit__(None, None, None)

    freeing = asyncio.ensure_future(free())
    try:
        yield answer
    finally:
        await freeing
        await asyncio.wait([answer])


def test_stream_that_is_stuck_costs_no_other_session_its_last_word(run: Run, adders: Path, tmp_path: Path):
    async def scenario() -> None:
        path = tmp_path / "sessions.db"
        settings: dict[str, Any] = {"store": f"sqlite:///{path}", "checkpoint_interval_s": 60.0}
        async with (
            asyncio.timeout(20),
            service(adders, may_log_errors=True, drain_timeout_s=1.0, **settings) as (app, caller),
        ):
            stream, _ = await caller.open("s", "adder", durability=types_pb2.DURABILITY_NONE)
            await stream.step([1, 2], 0)
            async with stuck_call(app, lambda: caller.open("stuck", "adder"), wait_s=2.0) as stuck:
                await app.stop()
                assert await stream.end() == DRAINING
            assert stuck.exception() is not None
        assert stored_step(path, "s") == 2

    run(scenario())


@pytest.mark.parametrize("unary_durability", ["session", "sync"])
def test_unary_step_in_hand_is_stored(run: Run, adders: Path, tmp_path: Path, unary_durability: str):
    async def scenario() -> None:
        path = tmp_path / "sessions.db"
        settings: dict[str, Any] = {"store": f"sqlite:///{path}", "checkpoint_interval_s": 60.0}
        async with (
            asyncio.timeout(20),
            service(adders, unary_durability=unary_durability, **settings) as (app, caller),
        ):
            async with stuck_call(app, lambda: caller.step("stuck", [5], 0, "adder"), wait_s=0.3) as step:
                await app.stop()
            assert step.result().answer.step == 1
        assert stored_step(path, "stuck") == 1

    run(scenario())


@pytest.mark.parametrize("is_held", [True, False])
def test_half_close_during_a_drain_ends_a_stream_well(run: Run, adders: Path, *, is_held: bool):
    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (app, caller):
            stream, _ = await caller.open("s", "adder")
            async with stuck_call(app, lambda: caller.open("stuck", "adder"), wait_s=0.3) as stuck:
                if is_held:
                    for each in app._streams._streams:
                        each.hold()
                await stream.half_close()
                with pytest.raises(EOFError):
                    await stream.receive()
            assert stuck.exception() is None

    run(scenario())


def stored_step(path: Path, session_id: str) -> int | None:
    """Return the step of a session in a SQLite file; None where it is not there."""
    backend = SqliteBackend(path, 100)
    try:
        record = backend.read(session_id)
    finally:
        backend.close()
    return None if record is None else record.step
