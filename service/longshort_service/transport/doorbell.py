"""A doorbell: wakes whoever waits in a completion queue, from any thread. It knows no loop and no descriptors."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc._cython import cygrpc

if TYPE_CHECKING:
    from collections.abc import Callable

SETUP_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 1.0
_CHANNEL_OPTIONS: Final = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
_SERVER_OPTIONS: Final = (("grpc.so_reuseport", 0),)


class Doorbell:
    """Puts an event into a completion queue.

    Of what gRPC gives to Python only operations on a server's call complete in a queue of our choice, and a batch of
    none of them completes at once, from any thread, also on a call that has ended. So the queue's first act is a call
    to itself over the loopback interface, whose server half is kept; client, listener and connection are gone again
    when the constructor returns.
    """

    def __init__(self, queue: cygrpc.CompletionQueue) -> None:
        """Set the bell up; nothing else may be in the queue yet. Raises OSError where there is no loopback to use."""
        self._queue = queue
        self._is_rung = False
        self._is_shut = False
        self._server = cygrpc.Server(_SERVER_OPTIONS, False)  # noqa: FBT003  (xds) takes no keyword
        self._server.register_completion_queue(queue)
        port = self._server.add_http2_port(b"127.0.0.1:0")
        if not port:
            raise OSError("cannot listen on 127.0.0.1: the event loop needs it to wake itself")
        self._server.start()
        self._call: Any = self._call_ourselves(port)
        self._start: Callable[..., Any] | None = self._call.start_server_batch
        # The listener closes now; the event that says so comes when the call is dropped.
        self._server.shutdown(queue, self._on_shutdown)

    def ring(self) -> None:
        """Wake the one who waits, or will wait next; further rings until then are one. Any thread may ring."""
        start = self._start
        if self._is_rung or start is None:
            return
        self._is_rung = True
        start((), self._on_rung)

    def close(self) -> None:
        """Give up the call and wait until its server is gone. Only the thread that polls the queue may close."""
        self._start = self._call = None
        deadline_s = time.time() + CLOSE_TIMEOUT_S
        while not self._is_shut and time.time() < deadline_s:
            event = self._queue.poll(deadline_s)
            if event.tag is not None:
                event.tag(event)
            event = None
        if self._is_shut:
            self._server.destroy()

    def _call_ourselves(self, port: int) -> Any:
        """Return the server half of a call of ours. Others who meet the port are left to end with the listener."""
        path = f"/doorbell/{secrets.token_hex(16)}"
        deadline_s = time.time() + SETUP_TIMEOUT_S
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=_CHANNEL_OPTIONS) as channel:
            asked = channel.unary_unary(path, None, None).future(b"", timeout=SETUP_TIMEOUT_S)
            self._server.request_call(self._queue, self._queue, None)
            while not asked.done():
                event = self._queue.poll(deadline_s)
                if event.completion_type == cygrpc.CompletionType.queue_timeout:
                    break
                if event.call_details.method == path.encode():
                    return event.call
                self._server.request_call(self._queue, self._queue, None)
            raise OSError("cannot connect to 127.0.0.1: the event loop needs it to wake itself")

    def _on_rung(self, _event: object) -> None:
        # Whoever rang before this line is woken by this event, whoever rings after it sends another.
        self._is_rung = False

    def _on_shutdown(self, _event: object) -> None:
        self._is_shut = True
