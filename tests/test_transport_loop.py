"""The loop that waits in gRPC's queue is an asyncio loop like any other: what wakes it, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from longshort_service.transport.event_loop import CompletionLoop
from longshort_service.transport.selector import MAX_EVENTS

# Far below the 200 ms after which gRPC's queue looks around by itself, far above what a busy machine needs.
SOON_S = 0.1


@pytest.fixture
def runner():
    """A runner of its own, for what is done to a loop as a whole."""
    with asyncio.Runner(loop_factory=CompletionLoop) as runner:
        yield runner


def in_thread(function, *args: object) -> threading.Thread:
    thread = threading.Thread(target=function, args=args)
    thread.start()
    return thread


def test_call_from_a_thread_wakes_the_loop_at_once(run):
    async def scenario() -> None:
        loop, delays_s = asyncio.get_running_loop(), []
        for _ in range(20):
            woken = loop.create_future()

            def wake(woken=woken) -> None:
                time.sleep(0.005)
                loop.call_soon_threadsafe(woken.set_result, time.perf_counter())

            thread = in_thread(wake)
            delays_s.append(-(await woken) + time.perf_counter())
            thread.join()
        assert sorted(delays_s)[10] < SOON_S

    run(scenario())


def test_no_wakeup_of_many_threads_is_lost(run):
    async def scenario() -> None:
        loop, done, num_calls = asyncio.get_running_loop(), asyncio.Event(), 0

        def count() -> None:
            nonlocal num_calls
            num_calls += 1
            if num_calls == 4 * 500:
                done.set()

        def call() -> None:
            for k in range(500):
                loop.call_soon_threadsafe(count)
                if not k % 50:
                    time.sleep(0.001)  # lets the loop fall asleep in between

        threads = [in_thread(call) for _ in range(4)]
        async with asyncio.timeout(10):
            await done.wait()
        for thread in threads:
            thread.join()

    run(scenario())


def test_single_wakeups_are_not_lost_to_each_other(run):
    async def scenario() -> None:
        for _ in range(500):
            assert await asyncio.wait_for(asyncio.to_thread(lambda: 5), 5) == 5

    run(scenario())


def test_descriptor_wakes_the_loop_at_once_and_as_long_as_it_is_ready(run):
    async def scenario() -> None:
        readable, writable = socket.socketpair()
        seen: asyncio.Queue[tuple[bytes, float]] = asyncio.Queue()
        with readable, writable:
            loop = asyncio.get_running_loop()
            loop.add_reader(readable, lambda: seen.put_nowait((readable.recv(1), time.perf_counter())))
            for _ in range(10):
                await asyncio.sleep(0.005)
                begin_s = time.perf_counter()
                in_thread(writable.send, b"abc").join()
                got = [await seen.get() for _ in range(3)]
                assert [byte for byte, _ in got] == [b"a", b"b", b"c"]
                assert got[-1][1] - begin_s < SOON_S
            loop.remove_reader(readable)
            writable.send(b"d")
            await asyncio.sleep(0.02)
            assert seen.empty()

    run(scenario())


def test_timers_are_kept_while_nothing_else_happens(run):
    async def scenario() -> None:
        for wait_s in (0.0, 0.001, 0.02, 0.3):
            begin_s = time.monotonic()
            await asyncio.sleep(wait_s)
            assert wait_s <= time.monotonic() - begin_s < wait_s + SOON_S

    run(scenario())


def test_streams_and_processes_of_asyncio_work(run):
    async def serve(reader, writer) -> None:
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()

    async def scenario() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"hello\n")
            assert await reader.read() == b"HELLO\n"
            writer.close()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "print(input()[::-1])", stdin=-1, stdout=-1
        )
        assert (await process.communicate(b"abc\n"))[0] == b"cba\n"
        assert process.returncode == 0

    run(scenario())


def test_signal_is_handled_at_once(runner):
    async def scenario() -> None:
        loop, signalled = asyncio.get_running_loop(), asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, signalled.set)
        for _ in range(3):
            thread = in_thread(lambda: (time.sleep(0.02), os.kill(os.getpid(), signal.SIGUSR1)))
            begin_s = time.perf_counter()
            await signalled.wait()
            assert time.perf_counter() - begin_s < 0.02 + SOON_S
            signalled.clear()
            thread.join()
        loop.remove_signal_handler(signal.SIGUSR1)

    runner.run(scenario())


def test_interrupt_without_a_handler_ends_the_loop():
    code = """
import asyncio
from longshort_service.transport.event_loop import CompletionLoop
async def main():
    print("ready", flush=True)
    await asyncio.sleep(60)
with asyncio.Runner(loop_factory=CompletionLoop) as runner:
    runner.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    assert errors.splitlines()[-1] == b"KeyboardInterrupt"


def post(loop: CompletionLoop, tag) -> None:
    """Put an event into a loop's queue."""
    loop._selector._doorbell._start((), tag)


def test_failing_event_is_logged_and_the_loop_goes_on(runner, caplog):
    def fail(_event: object) -> None:
        raise LookupError("a bug")

    async def scenario() -> None:
        loop, handled = asyncio.get_running_loop(), asyncio.Event()
        post(loop, fail)
        post(loop, lambda _event: handled.set())
        await handled.wait()

    runner.run(scenario())
    assert [record.message for record in caplog.records] == ["an event of gRPC could not be handled"]


def test_flood_of_events_leaves_the_loop_s_own_work_its_turn(runner):
    async def scenario() -> None:
        loop, handled = asyncio.get_running_loop(), []
        for _ in range(3 * MAX_EVENTS):
            post(loop, handled.append)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert 0 < len(handled) <= 2 * MAX_EVENTS
        while len(handled) < 3 * MAX_EVENTS:  # noqa: ASYNC110  the events tell nobody
            await asyncio.sleep(0)

    runner.run(scenario())


def test_idle_loop_sleeps(runner):
    async def scenario() -> None:
        begin_s = time.thread_time()
        await asyncio.sleep(0.5)
        assert time.thread_time() - begin_s < 0.05

    runner.run(scenario())


def test_closed_loop_leaves_no_thread_and_no_descriptor():
    def open_and_close() -> None:
        with asyncio.Runner(loop_factory=CompletionLoop) as runner:
            assert runner.run(asyncio.to_thread(lambda: 5)) == 5

    open_and_close()  # what gRPC keeps for the process comes with the first
    threads, num_fds = threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        open_and_close()
    assert threading.active_count() == threads
    deadline_s = time.monotonic() + 5
    while len(list(Path("/proc/self/fd").iterdir())) > num_fds and time.monotonic() < deadline_s:
        time.sleep(0.05)  # gRPC closes the connection's sockets in threads of its own
    assert len(list(Path("/proc/self/fd").iterdir())) <= num_fds


def test_loop_runs_again_after_it_has_stopped(runner):
    for _ in range(3):
        assert runner.run(asyncio.to_thread(lambda: 5)) == 5
