"""The async client: its servers, its sessions, and the unary calls."""

from __future__ import annotations

import asyncio
import time
import warnings
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc

from longshort import arrays, operations
from longshort.addresses import parsed
from longshort.aio.channel import new_channel
from longshort.aio.names import Lookups
from longshort.aio.session import Session
from longshort.attempts import Attempts
from longshort.opening import Durability, Mode, ModelChange, Opening, own_client_id, routing_header
from longshort.options import DEFAULT_GIVE_UP_S, DEFAULT_TIMEOUT_S
from longshort.patience import Patience
from longshort.servers import Servers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from types import TracebackType

    from longshort.named import Named
    from longshort.results import ModelInfo, SessionInfo

T = TypeVar("T")


class Client:
    """A way to one longshort server or several. It may be shared by the tasks of its loop; each session may not.

    `address` is HOST:PORT; several, with commas or as a list; or dns:///NAME:PORT, whose addresses are all replicas:
    each session goes to one of them, by its id, and to another one when that fails. InvalidRequest for what is none.

    `credentials` are gRPC channel credentials (plain text without them), `options` gRPC channel options
    beside and above our own. `timeout_s` is what a call takes at most, reconnecting included, unless it says
    otherwise; a call that takes longer gives up after `give_up_s` without any server. `client_id` (at most 40
    characters) is what others are told when this client takes a session over; without it that is host:process.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        credentials: grpc.ChannelCredentials | None = None,
        options: Sequence[tuple[str, Any]] = (),
        timeout_s: float = DEFAULT_TIMEOUT_S,
        give_up_s: float = DEFAULT_GIVE_UP_S,
        client_id: str | None = None,
    ) -> None:
        asyncio.get_running_loop()  # gRPC would bind the channel to a loop that nobody runs
        target = parsed(address)
        self.address = target.text
        self.client_id = own_client_id(client_id)
        self.give_up_s = arrays.seconds(give_up_s, "give_up_s")
        self._timeout_s = arrays.seconds(timeout_s, "timeout_s")
        self._is_closed = False
        settings = (*target.channel_options, *options)
        self.servers: Servers[grpc.aio.Channel] = Servers(
            target, lambda address: new_channel(address, credentials, settings)
        )
        self.lookups = Lookups(self.servers)

    def session(
        self,
        session_id: str | None = None,
        model: str | None = None,
        version: int | None = None,
        *,
        mode: Mode = "open_or_create",
        durability: Durability | None = None,
        model_change: ModelChange = "refuse",
        initial: Named | None = None,
        timeout_s: float | None = None,
    ) -> Session:
        """Return a session to be opened: `async with client.session(...)`, or `await` it and close it.

        Without an id (None or "") it gets a random UUID. `model` is needed to create one. `mode` is "open_or_create",
        "open" (SessionNotFound, SessionExpired) or "create" (SessionExists). `durability` is what is asked
        for; the session's attribute says what is given. `model_change` says what to do where the session's state is
        of another model file or version than asked for: "refuse" (ModelMismatch), "move" its state where the signatures
        say that it fits, or "reset" it. `initial` is what a session that is created here begins with: arrays by the
        names of the model's states, each of one session, and its constants, which it may need (CONSTANT_MISSING).
        `timeout_s` is for this and each of its calls.
        """
        opening = Opening(
            session_id,
            model=model,
            version=version,
            mode=mode,
            durability=durability,
            model_change=model_change,
            initial=initial,
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
        """Close the channels. Sessions still open raise SessionClosed from then on."""
        if not self._is_closed:
            self._is_closed = True
            self.lookups.close()
            for channel in self.servers.close():
                await channel.close(None)

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

    def stubs(self, address: str) -> operations.Stubs:
        """Return where calls to one of the servers go."""
        return self.servers.stubs(address)

    def new_stream(self, session_id: str, address: str) -> Any:
        """Start a stream for a session."""
        return self.stubs(address).sequences.Stream(metadata=routing_header(session_id))

    async def run(
        self, operation: operations.Operation[T], timeout_s: float | None, address: str | None = None
    ) -> T:
        """Run a unary call, at the server of its session or at `address`; at others where that fails."""
        timeout_s = self._timeout_s if timeout_s is None else arrays.seconds(timeout_s, "timeout_s")
        patience = Patience(time.monotonic(), timeout_s, self.give_up_s)
        key = operation.session_id or self.client_id
        attempts = Attempts(operation, self.servers, key, address, patience)
        while True:
            await self.lookups.look_up(attempts.left_s)
            method = self.stubs(attempts.route.take()).method(operation)
            metadata = routing_header(operation.session_id)
            try:
                response = await method(operation.request, timeout=attempts.left_s, metadata=metadata)
            except grpc.RpcError as failure:
                pause = attempts.pause_after(operations.error_of(failure))
            else:
                attempts.route.succeeded()
                return operation.decode(response)
            await asyncio.sleep(pause)
