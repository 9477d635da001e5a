"""Taking sessions off their rows: to the store where they are idle or rows run out, to their end where nobody comes.

Off the path of a value. Does not know gRPC or how sessions are opened.
"""

from __future__ import annotations

import asyncio
import itertools
import operator
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from longshort_service import errors
from longshort_service.turns import until_settled, until_written

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from longshort_service.record import SessionRecord
    from longshort_service.repository import Model
    from longshort_service.session import Session
    from longshort_service.sessions import SessionTable
    from longshort_service.stores.base import Store
    from longshort_service.turns import Turns
    from longshort_service.waiters import Waiters

EVICTION_BATCH: Final = 256  # sessions spilled or buried between two looks at the event loop, some 4 ms
SWEEP_SCAN: Final = 4096  # idle sessions found at once: a look at a million rows takes 1 ms
SLACK_SHARE: Final = 1024  # one in so many sessions may leave before its room is needed


class EvictionObserver(Protocol):
    """Who is told what left."""

    def eviction(self, cause: str) -> None:
        """Note that a session left memory: "idle", "capacity" or "expired"."""

    def move(self) -> None:
        """Note that a session turned out to be another server's."""

    def store_seconds(self, operation: str, seconds: float) -> None:
        """Note that a call of the store took so long."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How many sessions are kept in memory, and how long things are kept, in seconds."""

    max_sessions: int
    idle_timeout_s: float
    session_ttl_s: float
    tombstone_ttl_s: float


class Evictor:
    """Spills, expires and makes room. `clock` returns seconds since 1970."""

    def __init__(
        self,
        *,
        table: SessionTable[Model],
        store: Store,
        turns: Turns,
        limits: Limits,
        waiters: Waiters,
        clock: Callable[[], float],
        observer: EvictionObserver,
    ) -> None:
        self._table = table
        self._store = store
        self._turns = turns
        self._limits = limits
        self._waiters = waiters  # for sessions to be stored
        self._clock = clock
        self._observer = observer

    async def make_room(self, count: int) -> int:
        """Return for how many more sessions there is room in memory, 1 to `count`; the longest idle make some.

        Raises SessionsExhausted. The room is the caller's until its next await.
        """
        limit = self._limits.max_sessions
        while (num_rooms := limit - len(self._table)) <= 0:
            # A few more than are asked for, so that where every opening drives one out they go in batches.
            wanted = min(count + limit // SLACK_SHARE, EVICTION_BATCH)
            # Not one that somebody is at: waiting for one's turn at a second session could go round in circles.
            idle = self._table.longest_idle(wanted, self._turns.is_free)
            if not idle:
                raise errors.SessionsExhausted(
                    f"all {len(self._table)} sessions that memory may hold are in use: "
                    "close some that nobody follows any more, or raise max_sessions",
                    max_sessions=limit,
                )
            if all(session.is_writing for session in idle):
                await until_written(idle[0])
            else:
                await self._spill(idle, "capacity")
        return min(num_rooms, count)

    async def _spill(self, sessions: Sequence[Session[Model]], cause: str) -> None:
        """Write sessions to the store and free their rows, but not those that anyone is at or uses meanwhile."""
        idle = [
            session
            for session in sessions
            if not session.is_ended
            and session.owner is None
            and not session.is_busy
            and not session.is_writing
            and self._turns.is_free(session.id)
        ]
        if not idle:
            return
        with self._turns.of_free([session.id for session in idle]):
            records = [session.record() for session in idle]
            for session in idle:
                session.model.columns.is_writing[session.row] = True
            begin_s = time.perf_counter()
            is_awaited = any(session in self._waiters for session in idle)
            try:
                refusals = await self._store.write(records, settled=is_awaited)
            finally:
                for session in idle:
                    if not session.is_ended:
                        session.model.columns.end_writing(np.array([session.row]))
            self._observer.store_seconds("write", time.perf_counter() - begin_s)
            accepted = [refusal is None for refusal in refusals]
            written = list(zip(idle, records, strict=True))
            # Where an opening on this server came first, or a step, what is here is newer than what was written.
            unused = [pair for pair, is_accepted in zip(written, accepted, strict=True) if is_accepted]
            self._take_off([session for session, record in unused if _is_as_written(session, record)], cause)
            for session, record in unused:
                if session.is_ended:  # an answer of a unary call waited for what is stored now
                    self._waiters.tell(session, partial(_reaches, record.step))
            for session, record in itertools.compress(written, map(operator.not_, accepted)):
                await until_settled(session)
                if not session.is_ended and session.epoch == record.epoch:
                    self._take_off([session], cause)  # another server has it: what is here is old
                    self._observer.move()

    def _take_off(self, sessions: Sequence[Session[Model]], cause: str) -> None:
        self._table.remove_many(sessions)
        for _ in sessions:
            self._observer.eviction(cause)

    async def sweep(self) -> None:
        """Spill what was idle too long, end what was unused for its time to live, forget old tombstones."""
        now_s = self._clock()
        limits = self._limits
        spill_before_s = now_s - min(limits.idle_timeout_s, limits.session_ttl_s)
        while idle := self._table.idle_since(spill_before_s, SWEEP_SCAN):
            num_live = len(self._table)
            for begin in range(0, len(idle), EVICTION_BATCH):
                await asyncio.sleep(0)
                await self._spill(idle[begin : begin + EVICTION_BATCH], "idle")
            if len(self._table) >= num_live:
                break  # somebody is at all of them: the next sweep sees
        while expired := await self._store.idle_since(now_s - limits.session_ttl_s, EVICTION_BATCH):
            if not await self._bury(expired, now_s - limits.session_ttl_s, now_s):
                break
            await asyncio.sleep(0)
        await self._store.forget_tombstones(now_s - limits.tombstone_ttl_s)

    async def _bury(self, unused: Sequence[tuple[str, int]], before_s: float, now_s: float) -> int:
        """End sessions that expired, but not those that anyone is at; return how many have ended."""
        entries = [
            (session_id, epoch)
            for session_id, epoch in unused
            if self._turns.is_free(session_id) and self._table.get(session_id) is None
        ]
        with self._turns.of_free([session_id for session_id, _ in entries]):
            num_buried = sum(await self._store.bury_many(entries, before_s, now_s))
        for _ in range(num_buried):
            self._observer.eviction("expired")
        return num_buried


def _is_as_written(session: Session[Model], record: SessionRecord) -> bool:
    return (
        not session.is_ended
        and session.epoch == record.epoch
        and session.owner is None
        and not session.is_busy
        and session.step == record.step
    )


def _reaches(stored_step: int, step: int, *, strictly: bool) -> bool:  # noqa: ARG001  as a MayGo
    return step <= stored_step
