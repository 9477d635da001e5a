"""Turns at a session: openings and management calls of one session, and its messages, one after the other."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence

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


async def until_written(session: Session[Model]) -> None:
    """Wait until no record of the session is on its way to the store. What follows without an await sees it so."""
    loop = asyncio.get_running_loop()
    while session.is_writing:
        written = loop.create_future()
        session.model.columns.when_written(
            lambda written=written: written.done() or written.set_result(None)  # type: ignore[misc]
        )
        await written


async def until_free(session: Session[Model]) -> None:
    """Wait until no message of a session is in flight and no record of it on its way to the store."""
    while session.is_busy or session.is_writing:
        await until_settled(session)
        await until_written(session)


async def first_of(event: asyncio.Event, timeout_s: float) -> None:
    """Wait until an event is set, at most so long."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass


class Turns:
    """Who is at which session. A turn costs a place in a dictionary: a frame takes thousands of them at once."""

    def __init__(self) -> None:
        # By each session that somebody is at: who waits for it, the first to come first.
        self._waiting: dict[str, deque[asyncio.Future[None]] | None] = {}
        self._under_way: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        """Return how many sessions anyone is at."""
        return len(self._waiting)

    def is_free(self, session_id: str) -> bool:
        """Whether nobody is at a session: a turn taken without an await after this is had at once."""
        return session_id not in self._waiting

    async def through(self, session_id: str, work: Callable[[], Awaitable[T]]) -> T:
        """Take one's turn at a session and do `work` in it to its end, also where the caller is cancelled."""
        return await self.to_its_end(self._in_turn(session_id, work))

    async def to_its_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work` to its end, also where the caller is cancelled meanwhile.

        What changes both store and table must not stop half-way: a raised epoch that nobody noted would make the
        session that is live here look superseded.
        """
        task = asyncio.get_running_loop().create_task(work)
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
        if session_id in self._waiting:
            await self._queue(session_id)
        else:
            self._waiting[session_id] = None
        try:
            yield
        finally:
            self._pass_on(session_id)

    @contextmanager
    def of_free(self, session_ids: Sequence[str]) -> Iterator[None]:
        """Keep the others off sessions within the block. The caller has just seen that all are free, each once."""
        self._waiting.update(dict.fromkeys(session_ids))
        try:
            yield
        finally:
            for session_id in session_ids:
                self._pass_on(session_id)

    async def _queue(self, session_id: str) -> None:
        """Wait until the turn is handed over."""
        turn = asyncio.get_running_loop().create_future()
        waiting = self._waiting[session_id]
        if waiting is None:
            waiting = self._waiting[session_id] = deque()
        waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was handed over and nobody takes it
                self._pass_on(session_id)
            raise

    def _pass_on(self, session_id: str) -> None:
        """Hand a turn to whoever waits longest, or free it."""
        waiting = self._waiting[session_id]
        while waiting:
            turn = waiting.popleft()
            if not turn.done():  # done: its task was cancelled
                turn.set_result(None)
                return
        del self._waiting[session_id]
