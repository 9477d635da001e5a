"""The async client: one channel to one address, its sessions, and the unary calls."""

from __future__ import annotations

import asyncio
import random
import time
import warnings
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc

from longshort import arrays, operations, recovery, view
from longshort.aio.channel import new_channel
from longshort.aio.session import Session
from longshort.backoff import Backoff, pause_s
from longshort.opening import Durability, Mode, Opening, own_client_id, routing_header
from longshort.options import DEFAULT_TIMEOUT_S, checked_address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from types import TracebackType

    from longshort.results import ModelInfo, SessionInfo

T = TypeVar("T")


class Client:
    """A connection to a longshort server. It may be shared by the tasks of its loop; each session may not.

    `credentials` are gRPC channel credentials (plain text without them), `options` gRPC channel options
    beside and above our own. `timeout_s` is what a call takes at most, reconnecting included, unless it says
    otherwise. `client_id` (at most 40 characters) is what others are told when this client takes a session
    over; without it that is host:process. InvalidRequest for an `address` that is not HOST:PORT.
    """

    def __init__(
        self,
        address: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        options: Sequence[tuple[str, Any]] = (),
        timeout_s: float = DEFAULT_TIMEOUT_S,
        client_id: str | None = None,
    ) -> None:
        asyncio.get_running_loop()  # gRPC would bind the channel to a loop that nobody runs
        self.address = checked_address(address)
        self.client_id = own_client_id(client_id)
        self._timeout_s = arrays.seconds(timeout_s, "timeout_s")
        self._is_closed = False
        self._channel = new_channel(address, credentials, options)
        self._stubs = operations.Stubs(self._channel)

    def session(
        self,
        session_id: str | None = None,
        model: str | None = None,
        version: int | None = None,
        *,
        mode: Mode = "open_or_create",
        durability: Durability | None = None,
        timeout_s: float | None = None,
    ) -> Session:
        """Return a session to be opened: `async with client.session(...)`, or `await` it and close it.

        Without an id (None or "") it gets a random UUID. `model` is needed to create one. `mode` is "open_or_create",
        "open" (SessionNotFound, SessionExpired) or "create" (SessionExists). `durability` is what is asked
        for; the session's attribute says what is given. `timeout_s` is for this and each of its calls.
        """
        opening = Opening(
            session_id,
            model=model,
            version=version,
            mode=mode,
            durability=durability,
            client_id=self.client_id,
        )
        return Session(self, opening, self._timeout_s if timeout_s is None else timeout_s)

    async def get_session(
        self, session_id: str, *, include_memory: bool = False, timeout_s: float | None = None
    ) -> SessionInfo:
        """Describe a session, with its memories by state input when asked. Nothing moves."""
        return await self.run(operations.get_session(session_id, include_memory=include_memory), timeout_s)

    async def sessions(
        self, *, model: str = "", id_prefix: str = "", page_size: int = 0, timeout_s: float | None = None
    ) -> AsyncIterator[SessionInfo]:
        """Iterate over the sessions in the order of their ids, a page at a time."""
        token = ""
        while True:
            operation = operations.list_sessions(token, model, id_prefix, page_size)
            page, token = await self.run(operation, timeout_s)
            for session in page:
                yield session
            if not token:
                return

    async def reset(self, session_id: str, *, timeout_s: float | None = None) -> SessionInfo:
        """Put a session back to step 0; whoever streams it gets SessionReplaced."""
        return await self.run(operations.reset(session_id), timeout_s)

    async def fork(
        self,
        session_id: str,
        fork_id: str | None = None,
        *,
        min_step: int = 0,
        timeout_s: float | None = None,
    ) -> SessionInfo:
        """Copy a session, its state and step, under a new id (a random UUID without one)."""
        return await self.run(operations.fork(session_id, fork_id or "", min_step), timeout_s)

    async def export(self, session_id: str, *, min_step: int = 0, timeout_s: float | None = None) -> bytes:
        """Return a session as bytes that `import_` takes on any server with the same model."""
        return await self.run(operations.export(session_id, min_step), timeout_s)

    async def import_(
        self, record: bytes, session_id: str | None = None, *, timeout_s: float | None = None
    ) -> SessionInfo:
        """Make a session of exported bytes, under its old id or the given one."""
        return await self.run(operations.import_(record, session_id or ""), timeout_s)

    async def delete(self, session_id: str, *, timeout_s: float | None = None) -> None:
        """End a session; its id may be created again."""
        await self.run(operations.delete(session_id), timeout_s)

    async def models(self, *, timeout_s: float | None = None) -> list[ModelInfo]:
        """List every loaded version of every model."""
        return await self.run(operations.list_models(), timeout_s)

    async def model(self, name: str, version: int = 0, *, timeout_s: float | None = None) -> ModelInfo:
        """Describe a model; version 0 is the highest."""
        return await self.run(operations.get_model(name, version), timeout_s)

    async def close(self) -> None:
        """Close the channel. Sessions still open raise SessionClosed from then on."""
        if not self._is_closed:
            self._is_closed = True
            await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        if not getattr(self, "_is_closed", True):
            warnings.warn(f"unclosed longshort.Client of {self.address}", ResourceWarning, 2, source=self)

    # For its sessions

    def stubs_for(self, _session_id: str) -> operations.Stubs:
        """Return where a session's calls go: the one place that will know of several addresses."""
        if self._is_closed:
            raise view.closed_error("client")
        return self._stubs

    def new_stream(self, session_id: str) -> Any:
        """Start a stream for a session."""
        return self.stubs_for(session_id).sequences.Stream(metadata=routing_header(session_id))

    async def run(self, operation: operations.Operation[T], timeout_s: float | None) -> T:
        """Run a unary call; what only reads is tried again until the time is up."""
        timeout_s = self._timeout_s if timeout_s is None else arrays.seconds(timeout_s, "timeout_s")
        deadline_s = time.monotonic() + timeout_s
        backoff = Backoff(random.random)
        while True:
            method = self.stubs_for(operation.session_id).method(operation)
            try:
                response = await method(
                    operation.request,
                    timeout=max(deadline_s - time.monotonic(), 0),
                    metadata=routing_header(operation.session_id),
                )
            except grpc.RpcError as failure:
                error = operations.error_of(failure)
            else:
                return operation.decode(response)
            if not operation.is_read or not recovery.is_transient(error):
                raise recovery.untold(error, self.address, None)
            asked_s, left_s = error.retry_delay_s, deadline_s - time.monotonic()
            pause = pause_s(backoff.next_delay_s(asked_s), asked_s, left_s)
            if pause is None:
                raise recovery.untold(error, self.address, timeout_s)
            await asyncio.sleep(pause)
