"""What a coroutine handler is given of its call: as much of grpc.aio's context as handlers here use."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, Never

import grpc
import grpc.aio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from longshort_service.transport.call import Call

    Metadata = Iterable[tuple[str, str | bytes]]

# gRPC's "no deadline" is some 290 thousand years ahead; whoever waits longer than this waits for ever.
_NO_DEADLINE_S: Final = 1e11


class CallEnded(grpc.aio.InternalError):
    """The call ended while its handler was writing; the handler is about to be cancelled."""


class Context:
    """A call as grpc.aio presents it to its handler. Messages are bytes where the handler names no (de)serialiser."""

    def __init__(self, call: Call, method: grpc.RpcMethodHandler[Any, Any]) -> None:
        self._call = call
        self._deserialise = method.request_deserializer
        self._serialise = method.response_serializer
        self._code: Any = grpc.StatusCode.OK
        self._details = ""
        self._trailing_metadata: tuple[tuple[str, str | bytes], ...] = ()
        self._abort: Exception | None = None
        self._done_callbacks: list[Callable[[Context], object]] = []

    async def read(self) -> Any:
        """Return the next message, or grpc.aio.EOF where the client has half-closed or the call is over.

        Raises AbortError where the call was aborted meanwhile.
        """
        self._raise_if_aborted()
        message: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._call.read(lambda raw: None if message.done() else message.set_result(raw))
        raw = await message
        self._raise_if_aborted()
        return grpc.aio.EOF if raw is None else self.request_of(raw)  # type: ignore[attr-defined]

    async def requests(self) -> AsyncIterator[Any]:
        """Yield the messages until the client half-closes."""
        while (request := await self.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            yield request

    async def write(self, response: Any) -> None:
        """Write a message; returns when gRPC has taken it. Raises AbortError, UsageError after the end, CallEnded."""
        self._raise_if_aborted()
        if not self._call.is_active and not self._call.is_cancelled:
            raise grpc.aio.UsageError("the call has its status already")
        written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._call.write(
            self.response_bytes(response),
            lambda is_taken: None if written.done() else written.set_result(is_taken),
        )
        if not await written:
            self._raise_if_aborted()
            raise CallEnded("the call has ended before this was written")

    async def send_initial_metadata(self, metadata: Metadata) -> None:
        """Send initial metadata ahead of the first message. Raises UsageError where they have been sent."""
        try:
            self._call.send_initial_metadata(metadata)
        except RuntimeError as error:
            raise grpc.aio.UsageError(str(error)) from error

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()
    ) -> Never:
        """End the call with an error. Raises AbortError, to unwind the handler; UsageError the second time."""
        if self._abort is not None:
            raise grpc.aio.UsageError("abort was called before")
        trailers = tuple(trailing_metadata) or self._trailing_metadata
        self._call.finish(code, details or self._details, trailers)
        self._abort = grpc.aio.AbortError("the handler has aborted the call")
        raise self._abort

    async def abort_with_status(self, status: grpc.Status) -> Never:
        """End the call with a status that holds all of it, as `abort` does."""
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the code that the call ends with when its handler returns."""
        self._code = code

    def set_details(self, details: str) -> None:
        """Set the words that the call ends with."""
        self._details = details

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """Set the metadata that the call ends with."""
        self._trailing_metadata = tuple(metadata)

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Return what the client sent ahead."""
        return self._call.metadata

    def peer(self) -> str:
        """Return who calls, as gRPC writes it: ipv4:127.0.0.1:40512."""
        return self._call.peer

    def time_remaining(self) -> float | None:
        """Return how many seconds the client will wait, None where it set no deadline."""
        deadline_s = self._call.deadline_s
        return None if deadline_s > _NO_DEADLINE_S else max(deadline_s - time.time(), 0.0)

    def cancelled(self) -> bool:
        """Whether the call ended without a status of ours: the client left, or its deadline passed."""
        return self._call.is_cancelled

    def done(self) -> bool:
        """Whether the call has its end."""
        return not self._call.is_active

    def add_done_callback(self, callback: Callable[[Context], object]) -> None:
        """Have a function called with this context when the call is over."""
        self._done_callbacks.append(callback)

    def request_of(self, raw: bytes) -> Any:
        """Return a message as the handler takes it."""
        return raw if self._deserialise is None else self._deserialise(raw)

    def response_bytes(self, response: Any) -> bytes:
        """Return a message as gRPC takes it."""
        raw: bytes = response if self._serialise is None else self._serialise(response)
        return raw

    def finish(self) -> None:
        """End the call as its handler wishes, when it has returned. Raises AbortError where it has aborted."""
        self._raise_if_aborted()
        self._call.finish(self._code, self._details, self._trailing_metadata)

    def is_successful(self) -> bool:
        """Whether the handler wishes the call to end well."""
        return self._code is grpc.StatusCode.OK

    def tell_done(self) -> None:
        """Call what waits for the end of the call."""
        for callback in self._done_callbacks:
            callback(self)
        self._done_callbacks.clear()

    def _raise_if_aborted(self) -> None:
        if self._abort is not None:
            raise self._abort
