"""Taking sessions off their rows: to the store where they are idle or rows run out, to their end where nobody comes.

Off the path of a value. Does not know gRPC or how sessions are opened.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from longshort_service import errors
from longshort_service.turns import until_settled

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshort_service.record import SessionRecord
    from longshort_service.repository import Model
    from longshort_service.session import Session
    from longshort_service.sessions import SessionTable
    from longshort_service.stores.base import Store
    from longshort_service.turns import Turns

SWEEP_BATCH: Final = 256  # sessions spilled or buried between two looks at the event loop


class EvictionObserver(Protocol):
    """Who is told what left."""

    def eviction(self, cause: str) -> None:
        """Note that a session left memory: "idle", "capacity" or "expired"."""

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
        clock: Callable[[], float],
        observer: EvictionObserver,
    ) -> None:
        self._table = table
        self._store = store
        self._turns = turns
        self._limits = limits
        self._clock = clock
        self._observer = observer

    async def make_room(self) -> None:
        """Spill the longest idle session where as many are in memory as may be. Raises SessionsExhausted."""
        while len(self._table) >= self._limits.max_sessions:
            # Not one that somebody is at: waiting for one's turn at a second session could go round in circles.
            idle = self._table.longest_idle(self._turns.is_free)
            if idle is None:
                raise errors.SessionsExhausted(
                    f"all {len(self._table)} sessions that memory may hold are in use: wait, or raise max_sessions",
                    max_sessions=self._limits.max_sessions,
                )
            await self._spill(idle, "capacity")

    async def _spill(self, session: Session[Model], cause: str) -> None:
        """Write a session to the store and free its row, unless somebody is at it or it was used meanwhile."""
        if session.is_ended or not self._turns.is_free(session.id):
            return
        async with self._turns.of(session.id):
            await self._spill_in_turn(session, cause)

    async def _spill_in_turn(self, session: Session[Model], cause: str) -> None:
        record = session.record()
        begin_s = time.perf_counter()
        (accepted,) = await self._store.write([record])
        self._observer.store_seconds("write", time.perf_counter() - begin_s)
        is_used = session.owner is not None or session.is_busy or session.step != record.step
        if session.is_ended or session.epoch != record.epoch or (accepted and is_used):
            return  # an opening on this server came first, or a step: what is here is newer than what was written
        await until_settled(session)
        if not session.is_ended and session.epoch == record.epoch:
            self._table.remove(session)  # also where the write was refused: another server has it
            self._observer.eviction(cause)

    async def sweep(self) -> None:
        """Spill what was idle too long, end what was unused for its time to live, forget old tombstones."""
        now_s = self._clock()
        limits = self._limits
        spill_before_s = now_s - min(limits.idle_timeout_s, limits.session_ttl_s)
        while idle := self._table.idle_since(spill_before_s, SWEEP_BATCH):
            num_live = len(self._table)
            for session in idle:
                await self._spill(session, "idle")
            await asyncio.sleep(0)
            if len(self._table) == num_live:
                break  # somebody is at all of them: the next sweep sees
        is_progress = True
        while is_progress:
            expired = await self._store.idle_since(now_s - limits.session_ttl_s, SWEEP_BATCH)
            is_progress = any([await self._bury(record, now_s) for record in expired])
            await asyncio.sleep(0)
        await self._store.forget_tombstones(now_s - limits.tombstone_ttl_s)

    async def _bury(self, record: SessionRecord, now_s: float) -> bool:
        async with self._turns.of(record.session_id):
            if self._table.get(record.session_id) is not None:
                return False
            is_buried = await self._store.bury(record.session_id, record.epoch, now_s)
        if is_buried:
            self._observer.eviction("expired")
        return is_buried
