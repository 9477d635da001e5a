"""One wait for many writes: what waits until a store has made its writes durable shares that with all that wait.

Owns which wait covers whom. Does not know how a store makes writes durable.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Settler:
    """`ask` returns when all is durable that was accepted before it was called, and for which place that is so.

    A wait that is under way may have begun before a newcomer's write was accepted: the newcomer shares the next one.
    """

    def __init__(self, ask: Callable[[], Awaitable[str]]) -> None:
        self._ask = ask
        self._running: asyncio.Task[str] | None = None
        self._next: asyncio.Task[str] | None = None

    async def settle(self) -> str:
        """Return the place where all that was accepted before this call is durable. Raises what `ask` raises."""
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._running))
        return await asyncio.shield(self._next)

    async def _after(self, running: asyncio.Task[str] | None) -> str:
        if running is not None:
            await asyncio.wait([running])
        self._running, self._next = self._next, None
        return await self._ask()
