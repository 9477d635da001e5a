"""The deadlines of a gateway's calls: one timer for all of them, so that a call costs no timer of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from longshort import recovery
from longshort.gateway.calls import StepCall

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshort.gateway.stream import FrameStream


class Deadlines:
    """Fails the calls of a core whose time is up. `on_expired` is told when some were."""

    def __init__(self, core: FrameStream, address: str, on_expired: Callable[[], None]) -> None:
        self._core = core
        self._address = address
        self._on_expired = on_expired
        self._loop = asyncio.get_running_loop()
        self._alarm: asyncio.TimerHandle | None = None

    def after(self, limit_s: float) -> float:
        """Return the deadline of a call made now, and see to it that somebody looks then."""
        deadline_s = self._loop.time() + limit_s
        if self._alarm is None or deadline_s < self._alarm.when():
            self._set(deadline_s)
        return deadline_s

    def stop(self) -> None:
        """Look no more."""
        if self._alarm is not None:
            self._alarm.cancel()

    def _set(self, deadline_s: float) -> None:
        self.stop()
        self._alarm = self._loop.call_at(deadline_s, self._expire)

    def _expire(self) -> None:
        now_s = self._loop.time()
        self._alarm = None
        left_s = []
        for call in self._core.waiting():
            waiter = call if isinstance(call, StepCall) else call.waiter
            if call.deadline_s > now_s:
                left_s.append(call.deadline_s)
            elif not waiter.done():
                in_doubt = self._core.turns.abandon(call)
                error = recovery.time_is_up(self._core.failure, in_doubt=in_doubt)
                waiter.set_exception(recovery.untold(error, self._address, None))
        if left_s:
            self._set(min(left_s))
        self._on_expired()
