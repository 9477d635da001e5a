"""A server of the transport room in a test's own loop, with a client that sends bare bytes."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import grpc
from longshort_service.transport.server import Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from longshort_service.transport.call import Call

PATIENCE_S = 20.0


@asynccontextmanager
async def serving(
    routes: dict[str, Callable[[Call], Any]] | None = None, **handlers: Any
) -> AsyncIterator[tuple[int, grpc.aio.Channel]]:
    """Serve raw handlers by path, and coroutine handlers by name as /test/<name>; give the port and a channel to it."""
    server = Server([("grpc.so_reuseport", 0)])
    for path, accept in (routes or {}).items():
        server.route(path, accept)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", handlers),))
    port = server.add_port("127.0.0.1:0")
    server.start()
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    try:
        async with (
            asyncio.timeout(PATIENCE_S),
            grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel,
        ):
            yield port, channel
    finally:
        await server.stop(0)


class Kept:
    """A raw handler that keeps its call and what it is told, in the order in which it is told."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.told: list[Any] = []
        self.over = asyncio.Event()
        call.on_closed = self._on_closed

    @classmethod
    def into(cls, kept: asyncio.Queue[Self]) -> Callable[[Call], None]:
        """Return a handler that puts each call it takes into a queue."""
        return lambda call: kept.put_nowait(cls(call))

    async def read(self) -> bytes | None:
        """Read one message."""
        message: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self.call.read(message.set_result)
        return await message

    def tell(self, fact: Any) -> None:
        """Note what a callback was told."""
        self.told.append(fact)

    def _on_closed(self, is_cancelled: bool) -> None:  # noqa: FBT001  callbacks are told by position
        self.told.append("cancelled" if is_cancelled else "closed")
        self.over.set()
