"""Looking up the DNS name of an async client's servers."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

from longshort.addresses import resolved

if TYPE_CHECKING:
    from longshort.servers import Servers


class Lookups:
    """The lookups of one client; at most one is waited for at a time. `close` ends it with the client."""

    def __init__(self, servers: Servers[Any]) -> None:
        self._servers = servers
        self._task: asyncio.Task[None] | None = None

    async def look_up(self) -> None:
        """Look the name up where that is due, and wait for the answer no longer than needed."""
        wait_s = self._servers.begin_lookup()
        if wait_s is not None:
            self.close()
            self._task = asyncio.create_task(self._ask())
            await asyncio.wait({self._task}, timeout=wait_s)

    def close(self) -> None:
        """Give up the lookup under way."""
        if self._task is not None:
            self._task.cancel()

    async def _ask(self) -> None:
        target = self._servers.target
        loop = asyncio.get_running_loop()
        try:
            infos = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # no such name, no name server, no name at all: what is known must do
            infos = []
        self._servers.end_lookup(resolved(infos))
