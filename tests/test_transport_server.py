"""The server: its ports, who takes which call, many at once, and its stop."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Never

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from longshort_service.transport.event_loop import CompletionLoop
from longshort_service.transport.server import Server
from raw_calls import Kept, serving


async def shout(request, _context):
    return request.upper()


SHOUT = grpc.unary_unary_rpc_method_handler(shout)


async def code_of(call) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


def test_unknown_method_is_unimplemented(run):
    async def scenario() -> None:
        async with serving(Shout=SHOUT) as (_, channel):
            for path in ("/test/Whisper", "/other/Shout"):
                assert await code_of(channel.unary_unary(path)(b"x")) is grpc.StatusCode.UNIMPLEMENTED

    run(scenario())


def test_route_comes_before_a_coroutine_handler(run):
    async def scenario() -> None:
        route = {"/test/Shout": lambda call: call.finish(grpc.StatusCode.ABORTED)}
        async with serving(route, Shout=SHOUT) as (_, channel):
            assert await code_of(channel.unary_unary("/test/Shout")(b"x")) is grpc.StatusCode.ABORTED

    run(scenario())


def test_failing_acceptance_ends_its_call_and_no_other(run, caplog):
    def fail(_call) -> Never:
        raise LookupError("a bug")

    async def scenario() -> None:
        async with serving({"/test/Fail": fail}, Shout=SHOUT) as (_, channel):
            assert await code_of(channel.unary_unary("/test/Fail")(b"x")) is grpc.StatusCode.UNKNOWN
            assert await channel.unary_unary("/test/Shout")(b"x") == b"X"

    run(scenario())
    assert [record.message for record in caplog.records] == ["a call of /test/Fail could not be taken"]


def test_taken_port_is_an_error(run):
    async def scenario() -> None:
        async with serving() as (port, _):
            other = Server([("grpc.so_reuseport", 0)])
            with pytest.raises(RuntimeError, match=f"cannot listen on 127.0.0.1:{port}"):
                other.add_port(f"127.0.0.1:{port}")

    run(scenario())


def test_server_refuses_a_loop_that_does_not_wait_in_its_queue():
    async def scenario() -> None:
        with pytest.raises(TypeError, match="CompletionLoop"):
            Server()

    asyncio.run(scenario())


def test_thousand_calls_opened_at_once_are_all_answered_soon(run):
    async def scenario() -> None:
        def answer(call) -> None:
            call.read(lambda message: call.exchange(message or b"", lambda _end: call.finish()))

        async with serving({"/test/Answer": answer}) as (_, channel):
            begin_s = time.monotonic()
            calls = [channel.stream_stream("/test/Answer")(iter([b"%d" % k])) for k in range(1024)]
            assert [await call.read() for call in calls] == [b"%d" % k for k in range(1024)]
            assert time.monotonic() - begin_s < 10

    run(scenario())


def test_stop_ends_open_watches_and_raw_calls_and_leaves_nothing(run):
    async def scenario() -> None:
        queue: asyncio.Queue[Kept] = asyncio.Queue()
        servicer = health.aio.HealthServicer()
        server = Server()
        server.route("/test/Kept", Kept.into(queue))
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        port = server.add_port("127.0.0.1:0")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            tasks, threads = asyncio.all_tasks(), threading.active_count()
            server.start()
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            await servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            call = channel.stream_stream("/test/Kept")()
            kept = await queue.get()
            begin_s = time.monotonic()
            await server.stop(0.1)
            assert 0.1 <= time.monotonic() - begin_s < 1
            await kept.over.wait()
            assert kept.told == ["cancelled"]
            ends = (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
            assert await watch.code() in ends
            assert await call.code() in ends
            assert threading.active_count() == threads
        await asyncio.sleep(0)
        assert asyncio.all_tasks() <= tasks

    run(scenario())


def test_stop_waits_for_calls_in_hand_and_refuses_new_ones(run):
    async def scenario() -> None:
        let_go = asyncio.Event()

        async def wait(request, _context) -> bytes:
            await let_go.wait()
            return request

        server = Server()
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "test", {"Wait": grpc.unary_unary_rpc_method_handler(wait)}
                ),
            )
        )
        port = server.add_port("127.0.0.1:0")
        server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            begun = asyncio.ensure_future(channel.unary_unary("/test/Wait")(b"begun"))
            await asyncio.sleep(0.05)
            stopping = asyncio.create_task(server.stop(10))
            await asyncio.sleep(0.05)
            assert await code_of(channel.unary_unary("/test/Wait")(b"late")) is grpc.StatusCode.UNAVAILABLE
            let_go.set()
            assert await begun == b"begun"
            begin_s = time.monotonic()
            await stopping
            assert time.monotonic() - begin_s < 2

    run(scenario())


def test_handler_that_does_not_end_is_left_behind_and_told_of(run, caplog, monkeypatch):
    monkeypatch.setattr("longshort_service.transport.coroutines.CANCEL_TIMEOUT_S", 0.05)

    async def scenario() -> None:
        let_go = asyncio.Event()

        async def stubborn(_request, _context) -> None:
            try:
                await asyncio.sleep(60)
            finally:
                await let_go.wait()

        async with serving(Wait=grpc.unary_unary_rpc_method_handler(stubborn)) as (_, channel):
            call = channel.unary_unary("/test/Wait")(b"")
            await asyncio.sleep(0.05)
            call.cancel()
            await asyncio.sleep(0.05)
        let_go.set()

    run(scenario())
    assert "does not end although it was cancelled" in caplog.text


def test_loop_that_is_closed_ends_the_servers_that_nobody_has_stopped():
    begin_s = time.monotonic()
    with asyncio.Runner(loop_factory=CompletionLoop) as runner:

        async def start() -> tuple[grpc.Channel, grpc.Future]:
            queue: asyncio.Queue[Kept] = asyncio.Queue()
            server = Server()
            server.route("/test/Kept", Kept.into(queue))
            port = server.add_port("127.0.0.1:0")
            server.start()
            channel = grpc.insecure_channel(f"127.0.0.1:{port}")
            call = channel.unary_unary("/test/Kept", None, None).future(b"")
            (await queue.get()).call.read(lambda _message: None)
            return channel, call

        channel, call = runner.run(start())
    assert time.monotonic() - begin_s < 2
    assert call.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
    channel.close()
