"""How long a gateway's calls wait, for room or for what they asked, and what they are told when that is too long."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from longshort import arrays, recovery
from longshort.aio.calls import RetryFuture

if TYPE_CHECKING:
    from longshort.aio.lanes import Lanes

T = TypeVar("T")


class Waits:
    """The waits of one gateway. `timeout_s` is the limit of those who name none, `address` is what errors say."""

    def __init__(self, lanes: Lanes, address: str, timeout_s: float) -> None:
        self._lanes = lanes
        self._address = address
        self._timeout_s = arrays.seconds(timeout_s, "timeout_s")
        self._loop = asyncio.get_running_loop()

    def within(self, timeout_s: float | None) -> float:
        """Return a call's limit in seconds, or raise InvalidRequest."""
        return self._timeout_s if timeout_s is None else arrays.seconds(timeout_s, "timeout_s")

    async def enter(self, timeout_s: float | None) -> float | None:
        """Wait until a call may be taken, in the order of calls; return what is left of its time."""
        room = self._lanes.room
        if not room.is_full:
            return timeout_s
        limit_s = self.within(timeout_s)
        deadline_s = self._loop.time() + limit_s
        await self.until(room.enter(), limit_s)
        # It is to be told that its time is up, not of a wrong limit.
        return max(deadline_s - self._loop.time(), 1e-6)

    async def until(self, waiter: asyncio.Future[T], timeout_s: float | None) -> T:
        """Return the result of what was asked of any lane, or raise what a call is told whose time is up."""
        limit_s = self.within(timeout_s)
        for lane in self._lanes:
            lane.pump.wake()
        try:
            async with asyncio.timeout(limit_s):
                return await waiter
        except TimeoutError:
            in_doubt = isinstance(waiter, RetryFuture)
            error = recovery.time_is_up(self._lanes.failure, in_doubt=in_doubt)
            raise recovery.untold(error, self._address, limit_s) from None
