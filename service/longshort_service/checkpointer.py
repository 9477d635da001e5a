"""Bringing the store up to the sessions: which are behind, writing them, and answers that wait for it.

Owns when a live session is written, and who waits for that. Off the path of a value, which reads the column
`waits_from` alone. Does not know gRPC, or how a store does it. Times are of a monotonic clock, in seconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from longshort_service import errors
from longshort_service.behind import Behind
from longshort_service.durability import Durability
from longshort_service.interval_writer import IntervalWriter
from longshort_service.outage import Outage
from longshort_service.session_writer import WRITE_BATCH, SessionWriter, WriteObserver, all_clean, ended
from longshort_service.turns import first_of
from longshort_service.waiters import Waiters

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from longshort_service.behind import CheckpointLimits
    from longshort_service.record import SessionRecord
    from longshort_service.repository import Model
    from longshort_service.session import Session
    from longshort_service.sessions import SessionTable
    from longshort_service.stores.base import Store
    from longshort_service.turns import Turns

logger = logging.getLogger(__name__)

# How often is looked after answers that wait in vain, and after a store that is away.
TICK_S: Final = 0.25
AWAY_WAIT_S: Final = 0.5  # an answer waits so long for a store that is away already


class CheckpointObserver(WriteObserver, Protocol):
    """Who is told of writes and waits."""

    def store_wait(self, model: str, seconds: float) -> None:
        """Note that an answer waited so long for the store."""


class Checkpointer:
    """Writes live sessions. Nothing happens where the store is not durable."""

    def __init__(
        self,
        *,
        table: SessionTable[Model],
        store: Store,
        turns: Turns,
        limits: CheckpointLimits,
        observer: CheckpointObserver,
        clock: Callable[[], float],
        on_store_change: Callable[[], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = table
        self._limits = limits
        self._observer = observer
        self._clock = clock  # seconds since 1970
        self._on_store_change = on_store_change  # it has gone, come back, or been away too long
        self._monotonic = monotonic
        self.is_active = store.is_durable
        self.outage = Outage(store, limits.outage_s, monotonic)
        self._behind = Behind(table, self.outage, limits)
        self._writer = SessionWriter(
            table=table,
            store=store,
            turns=turns,
            behind=self._behind,
            asker=self,
            observer=observer,
            clock=clock,
            monotonic=monotonic,
            is_unary_sync=limits.is_unary_sync,
        )
        self._interval_writer = IntervalWriter(
            table=table,
            writer=self._writer,
            behind=self._behind,
            outage=self.outage,
            interval_s=limits.interval_s,
            monotonic=monotonic,
        )
        self.waiters = Waiters()
        self._urgent: dict[Session[Model], None] = {}  # to be written now, in the order of their asking
        self._wake = asyncio.Event()  # somebody waits for a write
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._has_last_words = False  # a drain has begun

    @property
    def lag_s(self) -> float:
        """How long the session furthest behind has been so."""
        return self._behind.lag_s

    # -- what the core asks --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to write."""
        if self.is_active:
            loop = asyncio.get_running_loop()
            duties = (self._write_on_request, self._interval_writer.run, self._watch, self._ask_store)
            self._tasks = [loop.create_task(self._keep_up(duty)) for duty in duties]

    async def _keep_up(self, duty: Callable[[], Awaitable[None]]) -> None:
        """Do a duty until `stop`; a bug in it is logged, and it begins again."""
        while not self._stopping.is_set():
            try:
                await duty()
            except Exception:
                logger.exception("a duty of the checkpointer has failed")
                await first_of(self._stopping, TICK_S)

    async def stop(self) -> None:
        """Write no more; what waits is told that the store is unavailable."""
        self._stopping.set()
        self._wake.set()
        self._interval_writer.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._writer.close()
        self.waiters.fail_all(_stopped())

    def take_on(self, session: Session[Model], wanted: Durability) -> None:
        """Have a session, whose `durable_step` is what is known to be stored, written as a durability says.

        Where the store is not durable it has NONE, whatever is wanted.
        """
        if not self.is_active:
            return
        columns, row = session.model.columns, session.row
        columns.durability[row] = wanted
        columns.written_s[row] = self._clock()
        self._behind.set_waits(session.model, np.array([row]))

    def leave(self, sessions: Iterable[Session[Model]]) -> None:
        """Have sessions written that a stream has left: their last step, so that they go on elsewhere."""
        if self.is_active:
            left = [each for each in sessions if not each.is_ended and each.durability is not Durability.NONE]
            if self._has_last_words:  # they are written, and marked as no write from here would mark them
                left = [each for each in left if each.step > each.durable_step]
            self._urgent.update(dict.fromkeys(left))
            self._wake.set()

    def when_stored(
        self,
        session: Session[Model],
        step: int,
        callback: Callable[[errors.ServiceError | None], None],
        *,
        strictly: bool = False,
    ) -> None:
        """Have `callback` called once when an answer at `step` may go, or with the reason why it may not.

        `strictly`: when that step is stored, whatever the session's durability. May call it at once.
        """
        if not self.is_active or self._behind.may_go(session, step, strictly=strictly):
            callback(None)
            return
        if self._stopping.is_set():
            callback(_stopped())
            return
        begin_s = self._monotonic()

        def told(error: errors.ServiceError | None) -> None:
            self._observer.store_wait(session.model.name, self._monotonic() - begin_s)
            callback(error)

        timeout_s = self._limits.answer_timeout_s
        # Nobody shall wait long for what is known not to be there: a frame waits as a whole.
        if self.outage.is_away:
            timeout_s = min(timeout_s, AWAY_WAIT_S)
        self.waiters.add(session, step, told, begin_s + timeout_s, strictly=strictly)
        self._ask_for(session)

    async def until_stored(self, session: Session[Model], step: int, *, strictly: bool = True) -> None:
        """Wait until an answer at `step` may go, as `when_stored` says. Raises StoreUnavailable or SessionMoved."""
        stored: asyncio.Future[errors.ServiceError | None] = asyncio.get_running_loop().create_future()

        def told(error: errors.ServiceError | None) -> None:
            if not stored.done():
                stored.set_result(error)

        self.when_stored(session, step, told, strictly=strictly)
        error = await stored
        if error is not None:
            raise error

    async def store(self, session: Session[Model]) -> None:
        """Write a session now, whatever is known to be stored of it. Raises StoreUnavailable or SessionMoved."""
        (failure,) = await self.store_many([session])
        if failure is not None:
            raise failure

    async def store_many(
        self, sessions: Sequence[Session[Model]], *, before_stream: bool = False
    ) -> list[errors.ServiceError | None]:
        """Write sessions, each given once, as `store` does; return for each what `store` would raise.

        `before_stream`: a stream is about to have them open, so that steps may follow which nobody stores.
        """
        if not self.is_active:
            return [None] * len(sessions)
        is_clean = partial(self._writer.is_clean, before_stream=before_stream)
        return await self._writer.write_each(sessions, is_clean)

    async def store_parts(self, sessions: Sequence[Session[Model]], *, before_stream: bool = False) -> bool:
        """Write any number of sessions as `store_many` does; return whether the store was there for all of them."""
        if not self.is_active:
            return True
        # Nobody has its turn at them: another opening may be on its way.
        is_clean = partial(self._writer.is_clean, before_stream=True)
        for begin in range(0, len(sessions), WRITE_BATCH):
            part = sessions[begin : begin + WRITE_BATCH]
            failures = await self._writer.write_each(
                part, is_clean if before_stream else self._writer.is_clean_now
            )
            if any(isinstance(failure, errors.StoreUnavailable) for failure in failures):
                return False
        return True

    async def store_instead(
        self, session: Session[Model], record: SessionRecord, become: Callable[[], Awaitable[None]]
    ) -> None:
        """Write a record in the place of a live session's own; then `become` makes the session what is written.

        Raises StoreUnavailable or SessionMoved, and then the session is as it was.
        """
        if self.is_active:
            await self._writer.write_instead(session, record, become)
        else:
            await become()

    def give_up(self, session: Session[Model], error: errors.ServiceError) -> None:
        """See Asker: those who wait for a session are told that what they wait for will not be stored."""
        self.waiters.fail(session, error)

    def refresh(self, before_s: float) -> None:
        """Have sessions written that the store has not heard of since `before_s`: to it they would look unused.

        An open stream is use.
        """
        if not self.is_active:
            return
        for model, index in self._table.by_model():
            columns, end = model.columns, index.num_rows
            is_open = (columns.written_s[:end] < before_s) & ~columns.is_idle[:end]
            columns.used_s[:end][is_open] = self._clock()
            self._urgent.update(dict.fromkeys(index.at(np.flatnonzero(is_open))))
        self._wake.set()

    async def store_all(self) -> None:
        """Write every live session as its owner's last word, so that it goes on elsewhere.

        The caller lets nothing new come to them, and sets a limit: while the store is away this waits for it, until
        `stop`. A caller that is cancelled cuts no write off half-way.
        """
        self._has_last_words = True
        if self.is_active:
            storing = asyncio.get_running_loop().create_task(self._store_all())
            self._tasks.append(storing)
            await asyncio.shield(storing)

    async def _store_all(self) -> None:
        left = list(self._table)
        while left and not self._stopping.is_set():
            part = left[:WRITE_BATCH]
            failures = await self._writer.write_each(part, all_clean)
            refused = [
                session
                for session, failure in zip(part, failures, strict=True)
                if isinstance(failure, errors.StoreUnavailable)
            ]
            left = left[WRITE_BATCH:] + refused
            if refused:  # away, or without a place in its queue
                await first_of(self._stopping, TICK_S)

    def log_what_is_lost(self) -> None:
        """Say which sessions have steps that are not stored: this server is about to end."""
        lost = sorted(session.id for session in self._table if session.step > session.durable_step)
        if self.is_active and lost:
            fields = {"sessions": len(lost), "first": ", ".join(lost[:10])}
            logger.error("sessions could not be stored", extra={"fields": fields})

    # -- what the writer tells -----------------------------------------------------------------------------------

    def written(self, session: Session[Model]) -> None:
        """See Asker: those who waited for it may go, and it may be written anew."""
        self._wake.set()
        self.waiters.tell(session, partial(self._behind.may_go, session))

    def ask_again(self, sessions: Iterable[Session[Model]]) -> None:
        """See Asker: as soon as the store is there."""
        self._urgent.update(dict.fromkeys(each for each in sessions if not each.is_ended))
        self._note_outage()
        self._wake.set()

    # -- writing -------------------------------------------------------------------------------------------------

    async def _write_on_request(self) -> None:
        """Write what somebody waits for, all that has come together at a time."""
        while not self._stopping.is_set():
            ready = [] if self.outage.is_away else self._take_urgent()
            parts = self._writer.copies(ready)
            written = await asyncio.gather(*(self._writer.write(part, snapshot) for part, snapshot in parts))
            if None in written:  # a store that only lacks a place in its queue would be asked in a circle
                await first_of(self._stopping, TICK_S)
            elif not ready:
                self._wake.clear()
                await self._wake.wait()

    def _take_urgent(self) -> list[Session[Model]]:
        """Return what is to be written now. Those in flight, or on their way to the store already, come again."""
        ready: list[Session[Model]] = []
        for session in list(self._urgent):
            if len(ready) == WRITE_BATCH:
                break
            if session.is_writing:
                continue
            del self._urgent[session]
            if session.is_busy:
                session.when_settled(partial(self._ask_for, session))
            elif not session.is_ended:
                ready.append(session)
        return ready

    def _ask_for(self, session: Session[Model]) -> None:
        self._urgent[session] = None
        self._wake.set()

    # -- the store away ------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """See to answers that wait in vain, and to laggards, also while a call of the store hangs."""
        next_look_s = 0.0
        while not self._stopping.is_set():
            now_s = self._monotonic()
            if now_s >= next_look_s:
                next_look_s = now_s + self._limits.interval_s
                self._behind.look(now_s)
            self._note_outage()
            self._end_waits(now_s)
            await first_of(self._stopping, TICK_S)

    async def _ask_store(self) -> None:
        """Ask a store that is away whether it is back."""
        while not self._stopping.is_set():
            if self.outage.is_away:
                await self.outage.ask()
                self._note_outage()
            await first_of(self._stopping, TICK_S)

    def _end_waits(self, now_s: float) -> None:
        """Tell those who wait in vain."""
        away = errors.StoreUnavailable(
            "the session store does not answer; the values were taken and are not stored yet: send them again"
        )
        self.waiters.fail_overdue(now_s, away)
        for session in self.waiters.sessions():
            if session.is_ended:
                self.waiters.fail(session, ended(session))

    def _note_outage(self) -> None:
        if self.outage.has_changed():
            self._behind.set_all_waits()
            for session in self.waiters.sessions():
                self.written(session)
            self._on_store_change()
            self._wake.set()


def _stopped() -> errors.StoreUnavailable:
    return errors.StoreUnavailable("the server is shutting down: connect again")
