"""The loop that drains gRPC's wake-ups, with gRPC's own class standing at the other end."""

from __future__ import annotations

import asyncio
import functools
import socket

from longshort_service.event_loop import ServiceLoop


class PollerCompletionQueue:
    """Reads as gRPC's does: one byte a call, and it would block where there is none."""

    def __init__(self, readable: socket.socket) -> None:
        self.readable = readable
        self.num_calls = 0

    def handle_events(self, *_loop: object) -> None:
        self.num_calls += 1
        assert self.readable.recv(1) == b"1"


def calls_for(num_bytes: int, *, as_partial: bool) -> int:
    """Wake the loop with so many bytes at once; return how often the reader was called."""
    readable, writable = socket.socketpair()
    with readable, writable, asyncio.Runner(loop_factory=ServiceLoop) as runner:
        poller = PollerCompletionQueue(readable)
        callback = functools.partial(poller.handle_events, None) if as_partial else poller.handle_events

        async def wake() -> None:
            asyncio.get_running_loop().add_reader(readable, callback)
            writable.sendall(b"1" * num_bytes)
            await asyncio.sleep(0.05)
            asyncio.get_running_loop().remove_reader(readable)

        runner.run(wake())
        return poller.num_calls


def test_many_wakeups_cost_one_turn():
    assert calls_for(200, as_partial=True) == 1
    assert calls_for(200, as_partial=False) == 1


def test_single_wakeup_is_left_to_grpc():
    assert calls_for(1, as_partial=True) == 1


def test_other_readers_are_left_alone():
    readable, writable = socket.socketpair()
    with readable, writable, asyncio.Runner(loop_factory=ServiceLoop) as runner:
        seen: list[bytes] = []

        async def read() -> None:
            asyncio.get_running_loop().add_reader(readable, lambda: seen.append(readable.recv(1)))
            writable.sendall(b"abc")
            await asyncio.sleep(0.05)
            asyncio.get_running_loop().remove_reader(readable)

        runner.run(read())
    assert seen == [b"a", b"b", b"c"]


def test_grpc_hands_its_wakeup_socket_to_the_loop_in_the_form_that_is_drained():
    import subprocess
    import sys

    code = """
import asyncio, grpc
from longshort_service import event_loop
drained = []
original = event_loop._drained
event_loop._drained = lambda *args: drained.append(args) or original(*args)
async def main():
    server = grpc.aio.server()
    server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await server.stop(0)
with asyncio.Runner(loop_factory=event_loop.ServiceLoop) as runner:
    runner.run(main())
print(len(drained))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "1"
