"""The server of dictionaries behind a real gRPC port, which holds back or loses answers as it is told."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from frame_server import Connection, FrameServer

if TYPE_CHECKING:
    from collections.abc import Iterator

METHOD = "/longshort.v1.SequenceService/StreamFrames"


class FramePeer(grpc.GenericRpcHandler):
    """Serves StreamFrames. `loses` maps the number of a frame, counted from 0, to the status that ends its stream
    in place of the answer: the server has done what was asked. `holds` names frames whose answers wait.
    """

    def __init__(self) -> None:
        self.server = FrameServer(max_steps=4096)
        self.address = ""
        self.loses: dict[int, grpc.StatusCode] = {}
        self.holds: set[int] = set()
        self.let_go = threading.Event()
        self.num_frames = 0

    def service(self, handler_call_details: Any) -> Any:
        assert handler_call_details.method == METHOD
        return grpc.stream_stream_rpc_method_handler(self._frames)

    def _frames(self, requests: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
        connection = Connection(self.server)
        for raw in requests:
            number, self.num_frames = self.num_frames, self.num_frames + 1
            answer = connection.answer(raw)
            if number in self.loses:
                context.abort(self.loses[number], "lost")
            if number in self.holds:
                self.let_go.wait(20)
            yield answer


@contextmanager
def frame_peer() -> Iterator[FramePeer]:
    """Serve on a free port until the block ends."""
    peer = FramePeer()
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((peer,))
    peer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield peer
    finally:
        peer.let_go.set()
        server.stop(None).wait()
