"""Coroutine handlers: the four kinds, their errors, and how their calls end."""

from __future__ import annotations

import asyncio
from typing import Never

import grpc
import pytest
from raw_calls import serving

BIG = bytes(20 * 2**20)
UNARY = grpc.unary_unary_rpc_method_handler
STREAM = grpc.stream_stream_rpc_method_handler


async def shout(request, _context):
    return request.upper()


async def count(request, _context):
    for k in range(int(request)):
        yield b"%d" % k


async def count_by_writing(request, context):
    for k in range(int(request)):
        await context.write(b"%d" % k)


async def total(requests, _context):
    return b"%d" % sum([int(request) async for request in requests])


async def echo(requests, _context):
    async for request in requests:
        yield request


async def echo_by_reading(_requests, context):
    while (request := await context.read()) is not grpc.aio.EOF:
        await context.write(request)


def test_four_kinds_of_handlers_answer(run):
    async def scenario() -> None:
        async with serving(
            Shout=UNARY(shout),
            Count=grpc.unary_stream_rpc_method_handler(count),
            CountByWriting=grpc.unary_stream_rpc_method_handler(count_by_writing),
            Total=grpc.stream_unary_rpc_method_handler(total),
            Echo=STREAM(echo),
            EchoByReading=STREAM(echo_by_reading),
        ) as (_, channel):
            assert await channel.unary_unary("/test/Shout")(b"hello") == b"HELLO"
            for name in ("Count", "CountByWriting"):
                numbers = channel.unary_stream(f"/test/{name}")(b"3")
                assert [number async for number in numbers] == [b"0", b"1", b"2"]
            assert await channel.stream_unary("/test/Total")(iter([b"1", b"2"])) == b"3"
            for name in ("Echo", "EchoByReading"):
                answers = channel.stream_stream(f"/test/{name}")(iter([b"1", BIG[:1000], b""]))
                assert [answer async for answer in answers] == [b"1", BIG[:1000], b""]

    run(scenario())


def test_serialisers_of_a_handler_are_used(run):
    handler = UNARY(shout, request_deserializer=bytes.decode, response_serializer=str.encode)

    async def scenario() -> None:
        async with serving(Shout=handler) as (_, channel):
            assert await channel.unary_unary("/test/Shout")(b"hello") == b"HELLO"

    run(scenario())


def test_sync_client_in_a_thread_is_served(run):
    def call(port: int) -> list[bytes]:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            answers = channel.stream_stream("/test/Echo", None, None)(iter([b"1", b"2"]))
            return [*answers, channel.unary_unary("/test/Shout", None, None)(b"x")]

    async def scenario() -> None:
        async with serving(Shout=UNARY(shout), Echo=STREAM(echo)) as (port, _):
            assert await asyncio.to_thread(call, port) == [b"1", b"2", b"X"]

    run(scenario())


async def status_of(call) -> tuple[grpc.StatusCode, str, dict[str, str | bytes]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    return error.code(), error.details(), dict(error.trailing_metadata())


def test_abort_ends_the_call_and_unwinds_the_handler(run):
    unwound = []

    async def abort(request, context) -> bytes:
        context.set_trailing_metadata((("kept", "1"),))
        context.set_details("words set before")
        try:
            if request == b"all":
                await context.abort(grpc.StatusCode.ABORTED, "moved", (("why-bin", b"\xff"),))
            await context.abort(grpc.StatusCode.NOT_FOUND)
        except grpc.aio.AbortError:
            with pytest.raises(grpc.aio.UsageError):
                await context.abort(grpc.StatusCode.OK)
            unwound.append(context.done())
            if request != b"swallow":
                raise
        return b"not sent"

    async def scenario() -> None:
        async with serving(Abort=UNARY(abort)) as (_, channel):
            method = channel.unary_unary("/test/Abort")
            code, details, trailers = await status_of(method(b"all"))
            assert (code, details, trailers["why-bin"]) == (grpc.StatusCode.ABORTED, "moved", b"\xff")
            for request in (b"", b"swallow"):
                code, details, trailers = await status_of(method(request))
                assert (code, details, trailers["kept"]) == (
                    grpc.StatusCode.NOT_FOUND,
                    "words set before",
                    "1",
                )
        assert unwound == [True] * 3

    run(scenario())


def test_status_that_a_handler_sets_ends_its_call(run):
    async def refuse(_request, context) -> bytes:
        context.set_code(grpc.StatusCode.OUT_OF_RANGE)
        context.set_details("too far")
        context.set_trailing_metadata((("far", "1"),))
        return b"discarded"

    async def scenario() -> None:
        async with serving(Refuse=UNARY(refuse)) as (_, channel):
            code, details, trailers = await status_of(channel.unary_unary("/test/Refuse")(b""))
            assert (code, details, trailers["far"]) == (grpc.StatusCode.OUT_OF_RANGE, "too far", "1")

    run(scenario())


def test_abort_from_another_task_ends_a_sleeping_read(run):
    async def read(_requests, context) -> None:
        async def abort() -> None:
            with pytest.raises(grpc.aio.AbortError):
                await context.abort(grpc.StatusCode.UNAVAILABLE, "draining")

        aborting = asyncio.create_task(abort())
        with pytest.raises(grpc.aio.AbortError):
            await context.read()
        with pytest.raises(grpc.aio.AbortError):
            await context.write(b"late")
        await aborting

    async def scenario() -> None:
        async with serving(Read=STREAM(read)) as (_, channel):
            call = channel.stream_stream("/test/Read")()
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
            assert await call.details() == "draining"

    run(scenario())


def test_failing_handler_is_unknown_and_logged(run, caplog):
    async def fail(_request, _context) -> Never:
        raise LookupError("a bug")

    async def scenario() -> None:
        async with serving(Fail=UNARY(fail), Shout=UNARY(shout)) as (_, channel):
            code, details, _ = await status_of(channel.unary_unary("/test/Fail")(b""))
            assert code is grpc.StatusCode.UNKNOWN
            assert "LookupError" in details
            assert "a bug" in details
            assert await channel.unary_unary("/test/Shout")(b"x") == b"X"

    run(scenario())
    assert [record.message for record in caplog.records] == ["the handler of /test/Fail has failed"]


def test_unary_call_without_a_request_is_refused(run):
    async def scenario() -> None:
        async with serving(Shout=UNARY(shout)) as (_, channel):
            call = channel.stream_unary("/test/Shout")(iter(()))
            assert (await status_of(call))[0] is grpc.StatusCode.INTERNAL

    run(scenario())


def test_handler_knows_its_caller_and_its_time(run):
    seen = []

    async def look(_request, context) -> bytes:
        seen.append((dict(context.invocation_metadata()), context.peer(), context.time_remaining()))
        await context.send_initial_metadata((("hello", "you"),))
        with pytest.raises(grpc.aio.UsageError):
            await context.send_initial_metadata(())
        return b""

    async def scenario() -> None:
        async with serving(Look=UNARY(look)) as (_, channel):
            call = channel.unary_unary("/test/Look")(b"", timeout=5, metadata=(("session-id", "s"),))
            assert dict(await call.initial_metadata())["hello"] == "you"
            await call
            await channel.unary_unary("/test/Look")(b"")

    run(scenario())
    assert seen[0][0]["session-id"] == "s"
    assert seen[0][1].startswith("ipv4:127.0.0.1:")
    assert 4 < seen[0][2] < 5.5  # gRPC rounds what it sends
    assert seen[1][2] is None


async def sleep(_context):
    await asyncio.sleep(60)


async def read(context):
    await context.read()
    await context.read()
    await asyncio.sleep(60)


async def write(context):
    await context.write(BIG)
    await asyncio.sleep(60)


@pytest.mark.parametrize("phase", [sleep, read, write])
@pytest.mark.parametrize("timeout_s", [None, 0.1])
def test_cancel_or_deadline_of_a_call_cancels_its_handler(run, caplog, phase, timeout_s):
    async def scenario() -> None:
        begun, told = asyncio.Event(), asyncio.Queue()

        async def handle(_requests, context) -> None:
            context.add_done_callback(lambda over: told.put_nowait(("done", over.cancelled(), over.done())))
            begun.set()
            try:
                await phase(context)
            finally:
                told.put_nowait("ended")

        async with serving(Handle=STREAM(handle)) as (_, channel):
            call = channel.stream_stream("/test/Handle")(timeout=timeout_s)
            await begun.wait()
            if timeout_s is None:
                await asyncio.sleep(0.02)
                call.cancel()
            assert {await told.get(), await told.get()} == {"ended", ("done", True, True)}

    run(scenario())
    assert caplog.records == []


def test_write_after_the_status_is_misuse(run):
    async def scenario() -> None:
        caught = asyncio.Event()

        async def write_late(_request, context) -> None:
            context._call.finish()
            with pytest.raises(grpc.aio.UsageError):
                await context.write(b"late")
            caught.set()

        async with serving(Late=grpc.unary_stream_rpc_method_handler(write_late)) as (_, channel):
            assert [message async for message in channel.unary_stream("/test/Late")(b"")] == []
            await caught.wait()

    run(scenario())
