"""A loop whose time passes only when nothing else is left to do: waits cost nothing, and every run is the same."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine

# Turns of the loop in which no time passes: more is a loop that spins.
MAX_TURNS_AT_ONCE = 20_000
LIMIT_S = 3_600.0


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop with nothing but timers and tasks. Where all wait for what never comes, or somebody spins, it fails."""

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(_Jumping(self))
        self.unhandled: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _loop, context: self.unhandled.append(context))

    def time(self) -> float:
        """Return the seconds that have passed."""
        return self.now_s

    def play(self, scenario: Coroutine[Any, Any, Any]) -> Any:
        """Run a scenario to its end; nothing may be left to the loop's exception handler."""

        async def limited() -> Any:
            async with asyncio.timeout(LIMIT_S):
                return await scenario

        try:
            result = self.run_until_complete(limited())
            # The selector's self-pipe is the loop's own; tasks left behind are a test's mistake or a leak.
            assert not asyncio.all_tasks(self)
        finally:
            self.close()
        assert self.unhandled == []
        return result


class _Jumping(selectors.SelectSelector):
    """Waits by moving the loop's time."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop
        self._num_turns = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everything waits for what never comes"
        self._num_turns = 0 if timeout > 0 else self._num_turns + 1
        assert self._num_turns < MAX_TURNS_AT_ONCE, "something spins"
        self._loop.now_s += max(timeout, 0.0)
        return []
