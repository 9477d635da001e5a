"""How many steps may wait in a gateway, and who waits until there are fewer."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from longshort.gateway.turns import Turns


class Room:
    """Lets calls in, in order, while fewer than `max_waiting_steps` wait: the last one let in may be larger.

    None takes more than a quarter of the room, `max_weight`, however large it is: small ones go on beside it.
    """

    def __init__(self, turns: Sequence[Turns], max_waiting_steps: int) -> None:
        self._turns = turns  # of all lanes: the room is shared
        self.max_weight = max(max_waiting_steps // 4, 1)
        self._max_waiting_steps = max_waiting_steps
        self._outside: deque[asyncio.Future[None]] = deque()
        self._is_closed = False

    @property
    def is_full(self) -> bool:
        """Whether a call has to wait before it is taken; none may overtake those that do."""
        if self._is_closed:
            return False
        return bool(self._outside) or self._num_free() <= 0

    def enter(self) -> asyncio.Future[None]:
        """Return what is done when a call may be taken."""
        waiter = asyncio.get_running_loop().create_future()
        self._outside.append(waiter)
        return waiter

    def let_in(self) -> None:
        """Let calls in while there is room, each for one step until it has said how many it is."""
        free, num_let_in = self._num_free(), 0
        while self._outside and (free > 0 or self._is_closed):
            waiter = self._outside.popleft()
            if not waiter.done():
                waiter.set_result(None)
                free -= 1
                num_let_in += 1
        if (
            self._outside and num_let_in
        ):  # some may ask nothing after all: no answer will let the next ones in
            asyncio.get_running_loop().call_soon(self.let_in)

    def _num_free(self) -> int:
        num_free = self._max_waiting_steps
        for turns in self._turns:  # one step asks this: a sum of a generator would take five times as long
            num_free -= turns.num_waiting_steps
        return num_free

    def close(self) -> None:
        """Let all in: each is told by the core that there is nothing to ask any more."""
        self._is_closed = True
        self.let_in()
