"""Peers that are no good to a client: one loses or holds back answers, one cuts the wire, one is frozen."""

from __future__ import annotations

import random
import signal
import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from longshort.v1 import sequence_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import grpc


class Relay(sequence_pb2_grpc.SequenceServiceServicer):
    """A gRPC proxy of the service. It owns which answers do not reach the client.

    `loses` maps the number of an answer, counted over all streams from 0, to the status that comes in its
    place: the service has done what was asked. `holds` names answers that wait until `let_go`.
    """

    def __init__(self, channel: grpc.Channel) -> None:
        self.stub = sequence_pb2_grpc.SequenceServiceStub(channel)
        self.address = ""
        self.loses: dict[int, grpc.StatusCode | None] = {}
        self.holds: set[int] = set()
        self.is_holding = threading.Event()
        self.let_go = threading.Event()
        self.num_answers = 0
        self.requests: list[Any] = []
        self.session_ids: list[Any] = []

    def Stream(self, request_iterator: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        metadata = dict(context.invocation_metadata())
        self.session_ids.append(metadata.get("session-id"))
        upstream = self.stub.Stream(self._noted(request_iterator))
        context.add_callback(upstream.cancel)
        for response in upstream:
            number, self.num_answers = self.num_answers, self.num_answers + 1
            if number in self.loses:
                upstream.cancel()
                code = self.loses[number]
                if code is None:
                    return
                context.abort(code, "lost by the relay")
            if number in self.holds:
                self.is_holding.set()
                self.let_go.wait(20)
            yield response

    def _noted(self, requests: Any) -> Iterator[Any]:
        for request in requests:
            self.requests.append(request)
            yield request


class Wire:
    """A TCP proxy that cuts its connections after a random number of bytes, in either direction."""

    def __init__(self, target: str, seed: int) -> None:
        self._target = (target.rpartition(":")[0], int(target.rpartition(":")[2]))
        self._random = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.num_cuts = 0
        self._start(self._accept)

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                front, _ = self._listener.accept()
                back = socket.create_connection(self._target)
                for source, sink in ((front, back), (back, front)):
                    self._start(self._pump, source, sink, self._random.uniform(100, 2500))

    def _pump(self, source: socket.socket, sink: socket.socket, budget: float) -> None:
        with suppress(OSError):  # the other direction was cut
            while data := source.recv(4096):
                sink.sendall(data[: max(int(budget), 0)])
                budget -= len(data)
                if budget <= 0:
                    self.num_cuts += 1
                    break
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)


@contextmanager
def frozen(server: Any) -> Iterator[None]:
    server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)
