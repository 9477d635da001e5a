"""Raw calls: messages, flow control, endings, and what a call's owner is told of them."""

from __future__ import annotations

import asyncio
import gc
import time

import grpc
import pytest
from longshort_service.transport.call import Call
from raw_calls import Kept, serving

BIG = bytes(20 * 2**20)


class Echo:
    """Answers each message with itself."""

    def __init__(self, call: Call) -> None:
        self.call = call
        call.read(self.on_message)

    def on_message(self, message: bytes | None) -> None:
        if message is None:
            self.call.finish(trailing_metadata=(("answered", "all"),))
        else:
            self.answer(message)

    def answer(self, message: bytes) -> None:
        self.call.write(message)
        self.call.read(self.on_message)


class ExchangingEcho(Echo):
    def answer(self, message: bytes) -> None:
        self.call.exchange(message, self.on_message)


@pytest.fixture
def kept(run):
    """Play a scenario with a server whose one method keeps its calls: `kept(scenario)(queue, method)`."""

    def play(scenario) -> None:
        async def served() -> None:
            queue: asyncio.Queue[Kept] = asyncio.Queue()
            async with serving({"/test/Kept": Kept.into(queue)}) as (_, channel):
                await scenario(queue, channel.stream_stream("/test/Kept"))

        run(served())

    return play


@pytest.mark.parametrize("echo", [Echo, ExchangingEcho])
def test_messages_are_answered_in_order_until_the_half_close(run, echo):
    async def scenario() -> None:
        async with serving({"/test/Echo": echo}) as (_, channel):
            call = channel.stream_stream("/test/Echo")()
            for message in (b"", b"one", BIG[: 3 * 2**20], b"last"):
                await call.write(message)
                assert await call.read() == message
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            assert await call.code() is grpc.StatusCode.OK
            assert dict(await call.trailing_metadata()) == {"answered": "all"}

    run(scenario())


@pytest.mark.parametrize("echo", [Echo, ExchangingEcho])
def test_messages_sent_ahead_are_answered_in_order(run, echo):
    async def scenario() -> None:
        async with serving({"/test/Echo": echo}) as (_, channel):
            sent = [b"%d" % k for k in range(500)]
            call = channel.stream_stream("/test/Echo")(iter(sent))
            assert [message async for message in call] == sent

    run(scenario())


def test_metadata_go_both_ways_binary_ones_too(kept):
    async def scenario(queue, method) -> None:
        sent = (("session-id", "s1"), ("proof-bin", b"\x00\xff"))
        client = method(metadata=sent)
        server = await queue.get()
        assert set(sent) <= set(map(tuple, server.call.metadata))
        assert server.call.path == "/test/Kept"
        assert server.call.peer.startswith("ipv4:127.0.0.1:")
        server.call.send_initial_metadata((("hello", "you"),))
        assert dict(await client.initial_metadata())["hello"] == "you"
        with pytest.raises(RuntimeError, match="have been sent"):
            server.call.send_initial_metadata(())
        server.call.finish(grpc.StatusCode.NOT_FOUND, "nö", (("status-bin", b"\x01\x00"),))
        assert await client.code() is grpc.StatusCode.NOT_FOUND
        assert await client.details() == "nö"
        assert dict(await client.trailing_metadata())["status-bin"] == b"\x01\x00"

    kept(scenario)


def test_metadata_that_http_does_not_allow_end_the_call(kept):
    async def scenario(queue, method) -> None:
        for end in (
            lambda call: call.send_initial_metadata((("Upper", "case"),)),
            lambda call: call.finish(trailing_metadata=(("name", "zähler"),)),
        ):
            client = method()
            server = await queue.get()
            end(server.call)
            assert await client.code() is grpc.StatusCode.INTERNAL
            await server.over.wait()
            assert server.told == ["cancelled"]

    kept(scenario)


def test_messages_written_at_once_are_queued_and_come_before_the_status(kept):
    async def scenario(queue, method) -> None:
        client = method()
        server = await queue.get()
        sent = [b"%d" % k for k in range(100)]
        for k, message in enumerate(sent):
            server.call.write(message, lambda is_taken, k=k: server.tell((k, is_taken)))
        server.call.finish()
        assert [message async for message in client] == sent
        assert await client.code() is grpc.StatusCode.OK
        await server.over.wait()
        assert server.told == [*((k, True) for k in range(100)), "closed"]

    kept(scenario)


def test_message_is_taken_only_as_fast_as_the_client_reads(kept):
    async def scenario(queue, method) -> None:
        client = method()
        server = await queue.get()
        server.call.write(BIG, server.tell)
        server.call.write(b"after", server.tell)
        await asyncio.sleep(0.1)
        assert server.told == []
        assert await client.read() == BIG
        assert await client.read() == b"after"
        server.call.finish()
        await server.over.wait()
        assert server.told == [True, True, "closed"]

    kept(scenario)


def test_end_comes_after_an_answer_that_the_client_has_not_read_yet(kept):
    async def scenario(queue, method) -> None:
        client = method()
        server = await queue.get()
        server.call.exchange(BIG, server.tell)
        await asyncio.sleep(0.05)
        server.call.finish(grpc.StatusCode.UNAVAILABLE, "draining")
        assert await client.read() == BIG
        assert await client.code() is grpc.StatusCode.UNAVAILABLE
        await server.over.wait()
        assert server.told == [None, "closed"]

    kept(scenario)


def test_message_written_during_an_exchange_waits_for_it(kept):
    async def scenario(queue, method) -> None:
        client = method()
        server = await queue.get()
        server.call.exchange(b"one", server.tell)
        server.call.write(b"two", server.tell)
        assert await client.read() == b"one"
        await client.write(b"next")
        assert await client.read() == b"two"
        server.call.exchange(b"three", server.tell)
        server.call.write(b"never", lambda is_taken: server.tell(("never", is_taken)))
        server.call.finish()
        assert await client.read() == b"three"
        assert await client.read() is grpc.aio.EOF
        await server.over.wait()
        assert server.told == [b"next", True, ("never", False), None, "closed"]

    kept(scenario)


def test_status_ends_a_read_and_nothing_is_sent_after_it(kept):
    async def scenario(queue, method) -> None:
        client = method()
        server = await queue.get()
        server.call.read(server.tell)
        with pytest.raises(RuntimeError, match="under way"):
            server.call.read(server.tell)
        with pytest.raises(RuntimeError, match="under way"):
            server.call.exchange(b"", server.tell)
        server.call.finish(grpc.StatusCode.ABORTED, "moved")
        server.call.finish(grpc.StatusCode.OK)
        server.call.write(b"late", lambda is_taken: server.tell(("late", is_taken)))
        assert not server.call.is_active
        assert await client.code() is grpc.StatusCode.ABORTED
        await server.over.wait()
        server.call.read(server.tell)
        assert server.told == [("late", False), None, "closed", None]
        assert not server.call.is_cancelled

    kept(scenario)


def nothing(_server: Kept) -> list[object]:
    return []


def reading(server: Kept) -> list[object]:
    server.call.read(server.tell)
    return [None]


def writing(server: Kept) -> list[object]:
    server.call.write(BIG, server.tell)
    server.call.write(b"queued", server.tell)
    return [False, False]


def exchanging(server: Kept) -> list[object]:
    server.call.exchange(b"answer", server.tell)
    return [None]


def exchanging_with_flow_control(server: Kept) -> list[object]:
    server.call.exchange(BIG, server.tell)
    server.call.write(b"queued", server.tell)
    return [None, False]


def finishing(server: Kept) -> list[object]:
    server.call.write(BIG, server.tell)
    server.call.write(b"queued", server.tell)
    server.call.finish()
    return [False, False]


PHASES = [nothing, reading, writing, exchanging, exchanging_with_flow_control, finishing]


@pytest.mark.parametrize("phase", PHASES)
def test_cancel_is_told_last_and_once(kept, phase):
    async def scenario(queue, method) -> None:
        client = method()
        server = await queue.get()
        told = phase(server)
        await asyncio.sleep(0.02)
        client.cancel()
        await server.over.wait()
        assert sorted(map(str, server.told[:-1])) == sorted(map(str, told))
        assert server.told[-1] == "cancelled"
        assert server.call.is_cancelled
        assert not server.call.is_active
        server.call.finish()
        server.call.write(b"late")
        await asyncio.sleep(0.02)
        assert server.told[-1] == "cancelled"

    kept(scenario)


@pytest.mark.parametrize("phase", PHASES)
def test_deadline_ends_a_call_in_every_phase(kept, phase):
    async def scenario(queue, method) -> None:
        client = method(timeout=0.2)
        server = await queue.get()
        assert 0 < server.call.deadline_s - time.time() < 0.3
        phase(server)
        await server.over.wait()
        assert server.told[-1] == "cancelled"
        assert await client.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    kept(scenario)


def test_lost_connection_cancels_its_calls(run):
    async def scenario() -> None:
        queue: asyncio.Queue[Kept] = asyncio.Queue()
        async with serving({"/test/Kept": Kept.into(queue)}) as (_, channel):
            clients = [channel.stream_stream("/test/Kept")() for _ in range(3)]
            servers = [await queue.get() for _ in clients]
            for server in servers:
                server.call.read(server.tell)
            await channel.close()
            for server in servers:
                await server.over.wait()
                assert server.told == [None, "cancelled"]

    run(scenario())


def test_failing_callback_ends_its_call_and_no_other(run, caplog):
    def fail(_told: object) -> None:
        raise LookupError("a bug")

    def accept(call: Call) -> None:
        if dict(call.metadata).get("fails") == "read":
            call.read(fail)
        elif dict(call.metadata).get("fails") == "write":
            call.write(b"one", fail)
        else:
            Echo(call)

    async def scenario() -> None:
        async with serving({"/test/Echo": accept}) as (_, channel):
            method = channel.stream_stream("/test/Echo")
            good = method()
            await good.write(b"one")
            assert await good.read() == b"one"
            for phase in ("read", "write"):
                bad = method(metadata=(("fails", phase),))
                await bad.done_writing()
                if phase == "write":
                    assert await bad.read() == b"one"
                assert await bad.code() is grpc.StatusCode.UNKNOWN
            await good.write(b"two")
            assert await good.read() == b"two"
            good.cancel()

    run(scenario())
    assert [record.message for record in caplog.records] == [
        "a reader of /test/Echo has failed",
        "a writer of /test/Echo has failed",
    ]


def test_call_that_is_over_is_freed_at_once(run):
    def is_of_here(thing: object) -> bool:
        # Not isinstance: some libraries have objects that warn when they are asked for their class.
        return type(thing) is Call and thing.path == "/test/Freed"

    async def scenario() -> None:
        async with serving({"/test/Freed": ExchangingEcho}) as (_, channel):
            method = channel.stream_stream("/test/Freed")
            gc.collect()
            gc.disable()
            try:
                for k in range(60):
                    call = method()
                    await call.write(b"one")
                    assert await call.read() == b"one"
                    if k % 2:
                        call.cancel()
                    else:
                        await call.done_writing()
                        assert await call.code() is grpc.StatusCode.OK
                while any(is_of_here(thing) for thing in gc.get_objects()):  # noqa: ASYNC110  nothing tells
                    await asyncio.sleep(0.01)
            finally:
                gc.enable()

    run(scenario())
