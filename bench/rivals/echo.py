"""An empty echo on the transport that longshort itself stands on: what the service cannot go below.

Usage: python -m bench.rivals.echo
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
from longshort_service.transport.event_loop import CompletionLoop
from longshort_service.transport.server import Server

from bench.rivals.naive import say_ready

if TYPE_CHECKING:
    from longshort_service.transport.call import Call


def echo(call: Call) -> None:
    """Answer every message of a call with itself."""

    def answer(message: bytes | None) -> None:
        if message is None:
            call.finish(grpc.StatusCode.OK, "", ())
        else:
            call.exchange(message, answer)

    call.read(answer)


async def main() -> None:
    """Serve until killed."""
    server = Server((("grpc.so_reuseport", 0),))
    server.route("/longshort.v1.SequenceService/Stream", echo)
    port = server.add_port("127.0.0.1:0")
    server.start()
    say_ready(port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=CompletionLoop) as runner:
        runner.run(main())
