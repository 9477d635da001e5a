"""A naive grpcio service with asyncio, as most people would write one: a task a stream, a run a message.

Usage: python -m bench.rivals.naive_asyncio MODEL
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import grpc
from longshort.v1 import sequence_pb2_grpc

from bench.rivals.model import load
from bench.rivals.naive import Sequence, register, say_ready

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import onnxruntime as ort
    from longshort.v1 import sequence_pb2


class Service(sequence_pb2_grpc.SequenceServiceServicer):
    """The service."""

    def __init__(self, engine: ort.InferenceSession) -> None:
        self._engine = engine

    async def Stream(  # noqa: N802  gRPC's name
        self, request_iterator: AsyncIterator[sequence_pb2.StreamRequest], context: object
    ) -> AsyncIterator[sequence_pb2.StreamResponse]:
        """Answer one stream."""
        del context
        sequence = Sequence(self._engine)
        async for request in request_iterator:
            yield sequence.answer(request)


async def serve(service: sequence_pb2_grpc.SequenceServiceServicer) -> None:
    """Serve until killed."""
    server = grpc.aio.server()
    register(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    say_ready(port)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(Service(load(sys.argv[1]))))
