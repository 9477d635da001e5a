"""An empty echo on grpc.aio: what a service on it cannot go below. For reference; longshort does not stand on it.

Usage: python -m bench.rivals.echo_aio
"""

from __future__ import annotations

import asyncio

import grpc

from bench.rivals.naive import say_ready


async def echo(_: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
    """Answer every message with itself."""
    while message := await context.read():  # the end of the stream is false too
        await context.write(message)


async def main() -> None:
    """Serve until killed."""
    server = grpc.aio.server()
    handlers = {"Stream": grpc.stream_stream_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("longshort.v1.SequenceService", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    say_ready(port)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
