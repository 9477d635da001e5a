"""Bringing the store up to the sessions: which are behind, writing them, and answers that wait for it.

Owns when a live session is written, and the columns that say how far it is stored. Off the path of a value, which
reads `waits_from` alone. Does not know gRPC, or how a store does it. Times are of a monotonic clock, in seconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from longshort_service import errors
from longshort_service.durability import NEVER, Durability
from longshort_service.outage import Outage
from longshort_service.snapshot import Snapshot
from longshort_service.turns import until_settled, until_written
from longshort_service.waiters import Waiters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from longshort_service.repository import Model
    from longshort_service.session import Session
    from longshort_service.sessions import SessionTable
    from longshort_service.stores.base import Refusal, Store
    from longshort_service.turns import Turns

logger = logging.getLogger(__name__)

# Sessions written at once: copying so many rows holds the loop for some 0.5 ms.
WRITE_BATCH: Final = 1024
# A store may need a second until what it was given is durable: so many wait for that together.
WRITES_AT_ONCE: Final = 8
# How often is looked after answers that wait in vain, and after a store that is away.
TICK_S: Final = 0.25
# A session that is not stored within so many intervals is a laggard: its next answer waits.
LAGGARD_INTERVALS: Final = 2


@dataclass(frozen=True, slots=True)
class CheckpointLimits:
    """How far BEHIND may be behind, and how long is waited for the store."""

    interval_s: float
    steps: int
    answer_timeout_s: float  # an answer that waits longer becomes STORE_UNAVAILABLE
    outage_s: float  # without its store the server goes on for so long
    is_unary_sync: bool = True  # every step of a unary call is stored before it is answered


class CheckpointObserver(Protocol):
    """Who is told of writes."""

    def store_seconds(self, operation: str, seconds: float) -> None:
        """Note that a call of the store took so long."""

    def store_wait(self, model: str, seconds: float) -> None:
        """Note that an answer waited so long for the store."""

    def move(self) -> None:
        """Note that a session was lost to another server."""


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
        self._store = store
        self._turns = turns
        self._limits = limits
        self._observer = observer
        self._clock = clock  # seconds since 1970
        self._on_store_change = on_store_change  # it has gone, come back, or been away too long
        self._monotonic = monotonic
        self.is_active = store.is_durable
        self.outage = Outage(store, limits.outage_s, monotonic)
        # By Durability: how many steps may be answered beyond the stored one.
        self._slack = np.array([NEVER, limits.steps, 0], np.int64)
        self._waiters = Waiters()
        self._urgent: dict[Session[Model], None] = {}  # to be written now, in the order of their asking
        self._snapshots: deque[tuple[list[Session[Model]], Snapshot]] = deque()  # taken and not yet written
        self._awaited: dict[Model, set[int]] = {}  # busy rows that are taken when they settle
        self._wake = asyncio.Event()  # somebody waits for a write
        self._has_copies = asyncio.Event()
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._moving: set[asyncio.Task[None]] = set()
        self.lag_s = 0.0  # how long the session furthest behind has been so

    # -- what the core asks --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to write."""
        if self.is_active:
            loop = asyncio.get_running_loop()
            duties = (self._write_on_request(), self._write_behind(), self._watch(), self._ask_store())
            self._tasks = [loop.create_task(duty) for duty in duties]

    async def stop(self) -> None:
        """Write no more; what waits is told that the store is unavailable."""
        self._stopping.set()
        self._wake.set()
        self._has_copies.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*self._moving, return_exceptions=True)  # what the last writes have brought up
        self._waiters.fail_all(_stopped())

    def take_on(self, session: Session[Model], wanted: Durability) -> None:
        """Have a session, whose `durable_step` is what is known to be stored, written as a durability says.

        Where the store is not durable it has NONE, whatever is wanted.
        """
        if not self.is_active:
            return
        columns, row = session.model.columns, session.row
        columns.durability[row] = wanted
        columns.written_s[row] = self._clock()
        rows = np.array([row])
        columns.waits_from[rows] = self._waits_from(session.model, rows)

    def leave(self, sessions: Iterable[Session[Model]]) -> None:
        """Have sessions written that a stream has left: their last step, so that they go on elsewhere."""
        if self.is_active:
            left = [each for each in sessions if not each.is_ended and each.durability is not Durability.NONE]
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
        if not self.is_active or self._may_go(session, step, strictly=strictly):
            callback(None)
            return
        if self._stopping.is_set():
            callback(_stopped())
            return
        begin_s = self._monotonic()

        def told(error: errors.ServiceError | None) -> None:
            self._observer.store_wait(session.model.name, self._monotonic() - begin_s)
            callback(error)

        self._waiters.add(session, step, told, begin_s + self._limits.answer_timeout_s, strictly=strictly)
        self._urgent[session] = None
        self._wake.set()

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
        return await self._store_each(sessions, partial(self._is_clean, before_stream=before_stream))

    def give_up(self, session: Session[Model], error: errors.ServiceError) -> None:
        """Tell those who wait for a session that what they wait for will not be stored."""
        self._waiters.fail(session, error)

    async def _store_each(
        self,
        sessions: Sequence[Session[Model]],
        is_clean: Callable[[Sequence[Session[Model]]], NDArray[np.bool_]],
    ) -> list[errors.ServiceError | None]:
        failures: dict[Session[Model], errors.ServiceError] = {}
        left = list(sessions)
        while left:
            await self.until_free(left[0])
            failures |= {each: ended(each) for each in left if each.is_ended}
            live = [each for each in left if not each.is_ended]
            free = [each for each in live if not each.is_busy and not each.is_writing]
            left = [each for each in live if each.is_busy or each.is_writing]
            # All of them now: during a write others may be used.
            copies = [(part, self._copy(part, is_clean(part))) for part in _by_model(free)]
            for part, copy in copies:
                failures |= self._failures(part, await self._write(part, copy))
        return [failures.get(session) for session in sessions]

    @staticmethod
    def _failures(
        sessions: Sequence[Session[Model]], refusals: Sequence[Refusal | None] | None
    ) -> dict[Session[Model], errors.ServiceError]:
        """Return the errors of those that were not written."""
        if refusals is None:
            away = errors.StoreUnavailable(
                "the session store does not answer: nothing was changed there, try again"
            )
            return dict.fromkeys(sessions, away)
        written = zip(sessions, refusals, strict=True)
        return {session: ended(session) for session, refusal in written if refusal is not None}

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

        The caller lets nothing new come to them. What the store does not take stays where it is; it is logged.
        """
        if not self.is_active:
            return
        everything = list(self._table)
        for begin in range(0, len(everything), WRITE_BATCH):
            await self._store_each(everything[begin : begin + WRITE_BATCH], _all_clean)
        num_behind = sum(session.step > session.durable_step for session in self._table)
        if num_behind:
            logger.error("sessions could not be stored", extra={"fields": {"sessions": num_behind}})

    async def until_free(self, session: Session[Model]) -> None:
        """Wait until no message of a session is in flight and no record of it on its way to the store."""
        while session.is_busy or session.is_writing:
            await until_settled(session)
            await until_written(session)

    # -- which are behind ----------------------------------------------------------------------------------------

    def _may_go(self, session: Session[Model], step: int, *, strictly: bool) -> bool:
        if session.is_ended:
            return False
        columns, row = session.model.columns, session.row
        return columns.durable_of[row] >= step if strictly else step < columns.waits_from_of[row]

    def _waits_from(self, model: Model, rows: NDArray[np.intp]) -> NDArray[np.int64]:
        """Return the step from which answers of rows wait, as things are with the store."""
        columns = model.columns
        durability = columns.durability[rows]
        is_none = durability == Durability.NONE
        if self.outage.is_over_limit:
            return np.where(is_none, NEVER, 0)
        slack = self._slack[durability]
        if self.outage.is_away:  # BEHIND goes on in memory
            slack = np.where(durability == Durability.BEHIND, NEVER, slack)
        limit = columns.durable[rows] + 1
        return np.where(slack == NEVER, NEVER, limit + np.minimum(slack, NEVER - limit))

    def _review(self) -> None:
        """Work out anew who waits from where: the store has gone, come back, or been away too long."""
        for model, index in self._table.by_model():
            rows = np.arange(index.num_rows)
            model.columns.waits_from[rows] = self._waits_from(model, rows)
        for session in self._waiters.sessions():
            self._tell(session)

    def _note_behind(self, now_s: float) -> None:
        """Note since when sessions are behind; the answers of laggards wait from now on."""
        oldest_s = now_s
        for model, index in self._table.by_model():
            columns, end = model.columns, index.num_rows
            is_behind = (columns.durability[:end] > 0) & (columns.step[:end] > columns.durable[:end])
            since_s = columns.behind_since_s[:end]
            since_s[~is_behind] = 0
            since_s[is_behind & (since_s == 0)] = now_s
            if is_behind.any():
                oldest_s = min(oldest_s, float(since_s[is_behind].min()))
            if not self.outage.is_away:
                overdue_s = now_s - LAGGARD_INTERVALS * self._limits.interval_s
                columns.waits_from[:end][is_behind & (since_s < overdue_s)] = 0
        self.lag_s = now_s - oldest_s

    def _snap_behind(self) -> None:
        """Copy what is behind and settled, and have copied what is in flight as soon as it settles.

        At full speed a session is in flight whenever the loop comes to anything else: the moment between two messages
        is where its message settles.
        """
        by_model = self._table.by_model()
        # A model without sessions may be unloaded: nothing of it is kept.
        self._awaited = {model: self._awaited.get(model, set()) for model, _ in by_model}
        for model, index in by_model:
            columns, end = model.columns, index.num_rows
            is_due = (columns.durability[:end] > 0) & (columns.step[:end] > columns.durable[:end])
            is_due &= ~columns.is_writing[:end]
            is_busy = columns.is_busy[:end]
            self._snap(index.at(np.flatnonzero(is_due & ~is_busy)))
            awaited = self._awaited[model]
            for row in set(np.flatnonzero(is_due & is_busy).tolist()) - awaited:
                awaited.add(row)
                columns.when_settled(row, partial(self._row_settled, model, row))

    def _row_settled(self, model: Model, row: int) -> None:
        """Copy all awaited rows that are settled by now: a job settles many at once."""
        awaited = self._awaited.get(model)
        if awaited is None or row not in awaited:
            return
        rows = np.array(sorted(awaited), np.intp)
        columns = model.columns
        is_free = ~columns.is_busy[rows]
        awaited.difference_update(rows[is_free].tolist())
        rows = rows[is_free]
        rows = rows[~columns.is_writing[rows] & (columns.step[rows] > columns.durable[rows])]
        index = dict(self._table.by_model()).get(model)
        if index is not None:
            self._snap(index.at(rows[rows < index.num_rows]))

    def _snap(self, sessions: list[Session[Model]]) -> None:
        for begin in range(0, len(sessions), WRITE_BATCH):
            part = sessions[begin : begin + WRITE_BATCH]
            self._snapshots.append((part, self._copy(part, self._is_clean(part))))
            self._has_copies.set()

    def _copy(self, sessions: list[Session[Model]], is_clean: NDArray[np.bool_]) -> Snapshot:
        """Copy settled sessions of one model that are to be written; no other write of them begins meanwhile."""
        snapshot = Snapshot(sessions, is_clean)
        sessions[0].model.columns.is_writing[snapshot.rows] = True
        return snapshot

    def _is_clean(
        self, sessions: Sequence[Session[Model]], *, before_stream: bool = False
    ) -> NDArray[np.bool_]:
        """Whether what is written of each can be gone on from without a number.

        A step that comes after it must then be stored before it is answered: always under SYNC; and where no stream
        has the session open, as the step must come by a unary call, or by an opening, which clears the mark.
        """
        columns = sessions[0].model.columns
        rows = np.array([session.row for session in sessions], np.intp)
        is_clean: NDArray[np.bool_] = columns.durability[rows] == Durability.SYNC
        if self._limits.is_unary_sync and not before_stream:
            is_clean |= columns.is_idle[rows]
        return is_clean

    # -- writing -------------------------------------------------------------------------------------------------

    async def _write_on_request(self) -> None:
        """Write what somebody waits for, all that has come together at a time."""
        while not self._stopping.is_set():
            ready = [] if self.outage.is_away else self._take_urgent()
            parts = [(part, self._copy(part, self._is_clean(part))) for part in _by_model(ready)]
            written = await asyncio.gather(*(self._write(part, snapshot) for part, snapshot in parts))
            if None in written:  # a store that only lacks a place in its queue would be asked in a circle
                await _first_of(self._stopping, TICK_S)
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

    async def _write_behind(self) -> None:
        """Write what is behind, once an interval, and what was in flight then as soon as it is copied."""
        while not self._stopping.is_set():
            next_look_s = self._monotonic() + self._limits.interval_s
            if not self.outage.is_away:
                self._snap_behind()
            while True:
                await self._write_snapshots()
                pause_s = next_look_s - self._monotonic()
                if pause_s <= 0 or self._stopping.is_set():
                    break
                self._has_copies.clear()
                await _first_of(self._has_copies, pause_s)
            await asyncio.sleep(
                0
            )  # a store that is slower than the interval does not keep the loop to itself

    async def _write_snapshots(self) -> None:
        while self._snapshots:
            parts = [self._snapshots.popleft() for _ in range(min(WRITES_AT_ONCE, len(self._snapshots)))]
            await asyncio.gather(*(self._write(sessions, snapshot) for sessions, snapshot in parts))

    async def _write(self, sessions: list[Session[Model]], snapshot: Snapshot) -> list[Refusal | None] | None:
        """Write copies of sessions of one model, and tell who waits for them; None where the store has failed."""
        columns = sessions[0].model.columns
        begin_s = self._monotonic()
        try:
            refusals = await self._store.write(snapshot)
        except errors.StoreUnavailable:
            refusals = None
        except Exception:
            logger.exception("writing sessions has failed")
            refusals = None
        self._observer.store_seconds("write", self._monotonic() - begin_s)
        live = np.array([not session.is_ended for session in sessions], np.bool_)
        columns.end_writing(snapshot.rows[live])
        self._wake.set()
        if refusals is None:
            self._keep_asking(sessions)
            self._note_outage()
            return None
        accepted = live & np.array([refusal is None for refusal in refusals], np.bool_)
        rows = snapshot.rows[accepted]
        columns.durable[rows] = np.maximum(columns.durable[rows], snapshot.steps[accepted])
        columns.behind_since_s[rows] = np.where(columns.step[rows] > columns.durable[rows], begin_s, 0)
        columns.written_s[rows] = self._clock()
        columns.waits_from[rows] = self._waits_from(sessions[0].model, rows)
        for place in np.flatnonzero(accepted).tolist():
            self._tell(sessions[place])
            owner = sessions[place].owner
            if owner is not None:
                owner.stored(sessions[place].id, sessions[place].durable_step)
        for place in np.flatnonzero(live & ~accepted).tolist():
            refusal = refusals[place]
            if refusal is not None:
                self._refused(sessions[place], int(snapshot.epochs[place]), refusal)
        return refusals

    def _keep_asking(self, sessions: Iterable[Session[Model]]) -> None:
        """Write again, as soon as the store is there, what somebody waits for."""
        self._urgent.update(dict.fromkeys(each for each in sessions if not each.is_ended))

    def _tell(self, session: Session[Model]) -> None:
        self._waiters.tell(session, partial(self._may_go, session))

    def _refused(self, session: Session[Model], epoch: int, refusal: Refusal) -> None:
        """End a session that another server has, unless an opening here has come between."""
        task = asyncio.get_running_loop().create_task(self._judge(session, epoch, refusal))
        self._moving.add(task)
        task.add_done_callback(self._moving.discard)

    async def _judge(self, session: Session[Model], epoch: int, refusal: Refusal) -> None:
        # In its turn: an opening of this server raises the epoch in the store first, and in memory afterwards.
        async with self._turns.of(session.id):
            await until_settled(session)
            if session.is_ended:
                return
            if session.epoch != epoch:
                self._keep_asking([session])
                self._wake.set()
                return
            cause = "deleted" if refusal.is_gone else "opened"
            moved = errors.SessionMoved(
                f"session {session.id} was {cause} elsewhere", cause=cause, client_id=refusal.client_id
            )
            if session.owner is not None:
                session.owner.lose(session.id, moved)
                self._table.detach(session, session.owner, self._clock())
            self._table.remove(session)
            self._observer.move()
            self._waiters.fail(session, moved)

    # -- the store away ------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """See to answers that wait in vain, and to laggards, also while a call of the store hangs."""
        next_look_s = 0.0
        while not self._stopping.is_set():
            now_s = self._monotonic()
            if now_s >= next_look_s:
                next_look_s = now_s + self._limits.interval_s
                self._note_behind(now_s)
            self._note_outage()
            self._end_waits(now_s)
            await _first_of(self._stopping, TICK_S)

    async def _ask_store(self) -> None:
        """Ask a store that is away whether it is back."""
        while not self._stopping.is_set():
            if self.outage.is_away:
                await self.outage.ask()
                self._note_outage()
            await _first_of(self._stopping, TICK_S)

    def _end_waits(self, now_s: float) -> None:
        """Tell those who wait in vain."""
        away = errors.StoreUnavailable(
            "the session store does not answer; the values were taken and are not stored yet: send them again"
        )
        self._waiters.fail_overdue(now_s, away)
        for session in self._waiters.sessions():
            if session.is_ended:
                self._waiters.fail(session, ended(session))

    def _note_outage(self) -> None:
        if self.outage.has_changed():
            self._review()
            self._on_store_change()
            self._wake.set()


def ended(session: Session[Model]) -> errors.SessionMoved:
    """Return why nothing more can be done with a session that was taken off its row."""
    return errors.SessionMoved(f"session {session.id} has ended", cause="ended", client_id="")


def _stopped() -> errors.StoreUnavailable:
    return errors.StoreUnavailable("the server is shutting down: connect again")


def _all_clean(sessions: Sequence[Session[Model]]) -> NDArray[np.bool_]:
    return np.ones(len(sessions), np.bool_)


async def _first_of(event: asyncio.Event, timeout_s: float) -> None:
    """Wait until an event is set, at most so long."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass


def _by_model(sessions: Iterable[Session[Model]]) -> list[list[Session[Model]]]:
    parts: dict[Model, list[Session[Model]]] = {}
    for session in sessions:
        parts.setdefault(session.model, []).append(session)
    return list(parts.values())
