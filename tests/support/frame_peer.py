"""The server of dictionaries behind a real gRPC port: it holds back or loses answers when told, dies and returns."""

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

    def __init__(self, server: FrameServer) -> None:
        self.server = server
        self.address = ""
        self.loses: dict[int, grpc.StatusCode] = {}
        self.holds: set[int] = set()
        self.let_go = threading.Event()
        self.num_frames = 0
        self._lock = threading.Lock()  # the streams of several lanes share the dictionaries
        self._port: Any = None

    def service(self, handler_call_details: Any) -> Any:
        assert handler_call_details.method == METHOD
        return grpc.stream_stream_rpc_method_handler(self._frames)

    def _frames(self, requests: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
        connection = Connection(self.server)
        for raw in requests:
            with self._lock:
                number, self.num_frames = self.num_frames, self.num_frames + 1
                answer = connection.answer(raw)
            if number in self.loses:
                context.abort(self.loses[number], "lost")
            if number in self.holds:
                self.let_go.wait(20)
            yield answer

    def start(self) -> None:
        """Listen, where it listened before."""
        self._port = grpc.server(ThreadPoolExecutor(20))  # a thread a stream
        self._port.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._port.add_insecure_port(self.address or '127.0.0.1:0')}"
        self._port.start()

    def die(self) -> None:
        """Listen no more, and forget what is not stored."""
        self.let_go.set()
        self._port.stop(None).wait()
        self.server.crash()


@contextmanager
def frame_peer(server: FrameServer | None = None) -> Iterator[FramePeer]:
    """Serve on a free port until the block ends."""
    peer = FramePeer(server or FrameServer(max_steps=4096))
    peer.start()
    try:
        yield peer
    finally:
        peer.die()
