"""Turns at a session: openings and management calls of one session, and its messages, one after the other."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from longshort_service.repository import Model
    from longshort_service.session import Session

T = TypeVar("T")


async def until_settled(session: Session[Model]) -> None:
    """Wait until no message of the session is in flight. What follows without an await sees it so."""
    loop = asyncio.get_running_loop()
    while session.is_busy:
        settled = loop.create_future()
        session.when_settled(lambda settled=settled: settled.done() or settled.set_result(None))  # type: ignore[misc]
        await settled


@dataclass(slots=True)
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_users: int = 0  # whoever has it or waits for it


class Turns:
    """A lock for each session that anyone is at just now; the others cost nothing."""

    def __init__(self) -> None:
        self._turns: dict[str, _Turn] = {}
        self._under_way: set[asyncio.Task[Any]] = set()

    def is_free(self, session_id: str) -> bool:
        """Whether nobody is at a session: a turn taken without an await after this is had at once."""
        return session_id not in self._turns

    async def through(self, session_id: str, work: Callable[[], Awaitable[T]]) -> T:
        """Take one's turn at a session and do `work` in it to its end, also where the caller is cancelled meanwhile.

        What changes both store and table must not stop half-way: a raised epoch that nobody noted would make the
        session that is live here look superseded.
        """
        task = asyncio.get_running_loop().create_task(self._in_turn(session_id, work))
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def _in_turn(self, session_id: str, work: Callable[[], Awaitable[T]]) -> T:
        async with self.of(session_id):
            return await work()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited for it may have left; then nobody else looks at it

    @asynccontextmanager
    async def of(self, session_id: str) -> AsyncIterator[None]:
        """Wait for one's turn at a session and keep the others off it within the block."""
        turn = self._turns.setdefault(session_id, _Turn())
        turn.num_users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.num_users -= 1
            if not turn.num_users:
                del self._turns[session_id]

    def __len__(self) -> int:
        """Return how many sessions anyone is at."""
        return len(self._turns)
