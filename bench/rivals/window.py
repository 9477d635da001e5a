"""A service without state: each message brings a window of the last values, and every one of them is run again.

Usage: python -m bench.rivals.window MODEL
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from longshort.v1 import sequence_pb2_grpc

from bench.rivals.model import load
from bench.rivals.naive import Sequence
from bench.rivals.naive_asyncio import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import onnxruntime as ort
    from longshort.v1 import sequence_pb2


class Service(sequence_pb2_grpc.SequenceServiceServicer):
    """The service. It streams, which costs less than a call a message."""

    def __init__(self, engine: ort.InferenceSession) -> None:
        self._engine = engine

    async def Stream(  # noqa: N802  gRPC's name
        self, request_iterator: AsyncIterator[sequence_pb2.StreamRequest], context: object
    ) -> AsyncIterator[sequence_pb2.StreamResponse]:
        """Answer each message as if it were the first."""
        del context
        async for request in request_iterator:
            yield Sequence(self._engine).answer(request)


if __name__ == "__main__":
    asyncio.run(serve(Service(load(sys.argv[1]))))
