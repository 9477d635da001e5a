"""A gRPC server on the loop's completion queue: its ports, who takes which call, its end."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import grpc
from grpc._cython import cygrpc

from longshort_service.transport.call import Call
from longshort_service.transport.coroutines import CoroutineCalls
from longshort_service.transport.event_loop import CompletionLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

logger = logging.getLogger(__name__)

# Calls that gRPC may hand over before we have asked again; each waits in the queue, not for a turn of the loop.
NUM_REQUESTS: Final = 16


class Server:
    """Takes calls and gives each to whom its path belongs. Made, started and stopped once, on one CompletionLoop."""

    def __init__(self, options: Iterable[tuple[str, Any]] = ()) -> None:
        """Make a server with gRPC's channel arguments. Raises TypeError outside of a CompletionLoop."""
        loop = asyncio.get_running_loop()
        if not isinstance(loop, CompletionLoop):
            raise TypeError("a server needs the loop that waits in its queue: run it on a CompletionLoop")
        self._loop = loop
        self._server = cygrpc.Server(tuple(options), False)  # noqa: FBT003  (xds) takes no keyword
        self._routes: dict[str, Callable[[Call], None]] = {}
        self._generic_handlers: list[grpc.GenericRpcHandler[Any, Any]] = []
        self._coroutines = CoroutineCalls()
        self._is_taking = False
        self._gone: asyncio.Future[None] = loop.create_future()

    def add_port(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Listen on `host:port` and return the port. Raises RuntimeError where that cannot be had."""
        bare = getattr(credentials, "_credentials", None)  # what grpc's own server unwraps likewise
        port = self._server.add_http2_port(address.encode(), bare)
        if not port:
            raise RuntimeError(f"cannot listen on {address}")
        return int(port)

    def route(self, path: str, accept: Callable[[Call], None]) -> None:
        """Give the calls of a method, named `/package.Service/Method`, to a function on the loop's thread."""
        self._routes[path] = accept

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler[Any, Any]]) -> None:
        """Add coroutine handlers, as grpc.aio's server takes them. Routes come first."""
        self._generic_handlers.extend(handlers)

    def add_registered_method_handlers(
        self, service: str, methods: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Take what generated code registers beside its generic handler, which says the same: nothing is added."""

    def start(self) -> None:
        """Begin to take calls."""
        self._loop.add_server(self._server)
        self._server.start()
        self._is_taking = True
        for _ in range(NUM_REQUESTS):
            self._request_call()

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, give those there are `grace_s` to end, cancel the rest and wait for their handlers."""
        self._is_taking = False
        self._loop.end_server(self._server, lambda: self._gone.set_result(None))
        try:
            await asyncio.wait_for(asyncio.shield(self._gone), grace_s)
        except TimeoutError:
            self._server.cancel_all_calls()
            await self._gone
        await self._coroutines.until_done()

    def _request_call(self) -> None:
        self._server.request_call(self._loop.queue, self._loop.queue, self._on_call)

    def _on_call(self, event: Any) -> None:
        if not event.success:  # the server has stopped
            return
        if self._is_taking:
            self._request_call()
        call = Call(event)
        if not self._is_taking:
            call.finish(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
            return
        accept = self._routes.get(call.path)
        try:
            if accept is not None:
                accept(call)
            elif (method := self._find_method(call)) is not None:
                self._coroutines.accept(call, method)
            else:
                call.finish(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        except Exception:
            logger.exception("a call of %s could not be taken", call.path)
            call.finish(grpc.StatusCode.UNKNOWN, "the server has failed to take this call; its log says why")

    def _find_method(self, call: Call) -> grpc.RpcMethodHandler[Any, Any] | None:
        details = _CallDetails(call.path, call.metadata)
        for handler in self._generic_handlers:
            method = handler.service(details)  # type: ignore[arg-type]  # looks like one
            if method is not None:
                return method
        return None


class _CallDetails(NamedTuple):
    """What a generic handler looks at to know a method of its own."""

    method: str
    invocation_metadata: tuple[tuple[str, str | bytes], ...]
