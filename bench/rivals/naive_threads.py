"""A naive grpcio service with threads, as most people would write one: a thread a stream, a run a message.

Usage: python -m bench.rivals.naive_threads MODEL
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
from longshort.v1 import sequence_pb2_grpc

from bench.rivals.model import load
from bench.rivals.naive import Sequence, register, say_ready

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnxruntime as ort
    from longshort.v1 import sequence_pb2

MAX_STREAMS = 12_000


class Service(sequence_pb2_grpc.SequenceServiceServicer):
    """The service."""

    def __init__(self, engine: ort.InferenceSession) -> None:
        self._engine = engine

    def Stream(  # noqa: N802  gRPC's name
        self, request_iterator: Iterator[sequence_pb2.StreamRequest], context: grpc.ServicerContext
    ) -> Iterator[sequence_pb2.StreamResponse]:
        """Answer one stream."""
        del context
        sequence = Sequence(self._engine)
        for request in request_iterator:
            yield sequence.answer(request)


def main() -> None:
    """Serve until killed."""
    server = grpc.server(ThreadPoolExecutor(MAX_STREAMS))
    register(Service(load(sys.argv[1])), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    say_ready(port)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
