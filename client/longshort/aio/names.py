"""Looking up the DNS name of an async client's servers."""

from __future__ import annotations

import asyncio
import math
import socket
from typing import TYPE_CHECKING, Any

from longshort.addresses import resolved
from longshort.servers import LOOKUP_TIMEOUT_S

if TYPE_CHECKING:
    from longshort.servers import Servers


class Lookups:
    """The lookups of one client or gateway, for all of its tasks."""

    def __init__(self, servers: Servers[Any]) -> None:
        self._servers = servers
        self._task: asyncio.Task[None] | None = None
        self._first_is_over = False

    async def look_up(self, timeout_s: float = math.inf) -> None:
        """Look the name up where that is due, and wait for the answer no longer than needed, nor than `timeout_s`.

        Whoever comes during the first one waits as well: nothing is known yet.
        """
        wait_s = self._servers.begin_lookup()
        if wait_s is not None:
            self._task = asyncio.create_task(self._ask())
            await asyncio.wait({self._task}, timeout=min(wait_s, timeout_s))
            self._first_is_over = True  # or has been waited for long enough
        elif self._task is not None and not self._first_is_over:
            await asyncio.wait({self._task}, timeout=min(LOOKUP_TIMEOUT_S, timeout_s))

    def close(self) -> None:
        """Give up the lookup under way."""
        if self._task is not None:
            self._task.cancel()

    async def _ask(self) -> None:
        target = self._servers.target
        loop = asyncio.get_running_loop()
        try:
            infos = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except (OSError, ValueError):  # no such name, no name server, no name at all: what is known must do
            infos = []
        self._servers.end_lookup(resolved(infos))
