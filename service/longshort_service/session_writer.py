"""Writing live sessions to the store, and ending those that turn out to be another server's.

Owns the copies that are on their way, one of a session at a time. When what is written is the checkpointer's affair.
Does not know gRPC, or how a store does it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from longshort_service import errors
from longshort_service.durability import Durability
from longshort_service.sessions import by_model
from longshort_service.snapshot import Snapshot
from longshort_service.turns import until_free, until_settled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from longshort_service.behind import Behind
    from longshort_service.record import SessionRecord
    from longshort_service.repository import Model
    from longshort_service.session import Session
    from longshort_service.sessions import SessionTable
    from longshort_service.stores.base import Refusal, Store
    from longshort_service.turns import Turns

    # Says of sessions which can be gone on from without a number, [sessions].
    IsClean = Callable[[Sequence[Session[Model]]], NDArray[np.bool_]]

logger = logging.getLogger(__name__)

# Sessions written at once: copying so many rows holds the loop for some 0.5 ms.
WRITE_BATCH: Final = 1024


class WriteObserver(Protocol):
    """Who is told of writes."""

    def store_seconds(self, operation: str, seconds: float) -> None:
        """Note that a call of the store took so long."""

    def move(self) -> None:
        """Note that a session was lost to another server."""


class Asker(Protocol):
    """Who wants sessions written: told what came of it."""

    def written(self, session: Session[Model]) -> None:
        """Note that more of a session is stored, or that it has ended."""

    def ask_again(self, sessions: Iterable[Session[Model]]) -> None:
        """Note that sessions were not written and have to be."""

    def give_up(self, session: Session[Model], error: errors.ServiceError) -> None:
        """Note that a session was ended: another server has it."""


class SessionWriter:
    """Copies sessions and writes the copies. `clock` is in seconds since 1970."""

    def __init__(
        self,
        *,
        table: SessionTable[Model],
        store: Store,
        turns: Turns,
        behind: Behind,
        asker: Asker,
        observer: WriteObserver,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        is_unary_sync: bool,
    ) -> None:
        self._table = table
        self._store = store
        self._turns = turns
        self._behind = behind
        self._asker = asker
        self._observer = observer
        self._clock = clock
        self._monotonic = monotonic
        self._is_unary_sync = is_unary_sync
        self._judging: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Wait for what the last writes have brought up."""
        await asyncio.gather(*self._judging, return_exceptions=True)

    def copy(self, sessions: list[Session[Model]], is_clean: NDArray[np.bool_]) -> Snapshot:
        """Copy settled sessions of one model that are to be written; no other write of them begins meanwhile."""
        snapshot = Snapshot(sessions, is_clean, self._monotonic())
        sessions[0].model.columns.is_writing[snapshot.rows] = True
        return snapshot

    def copies(self, sessions: Iterable[Session[Model]]) -> list[tuple[list[Session[Model]], Snapshot]]:
        """Copy settled sessions of any models; each part is to be given to `write`."""
        return [(part, self.copy(part, self.is_clean_now(part))) for part in by_model(sessions)]

    def is_clean(
        self, sessions: Sequence[Session[Model]], *, before_stream: bool = False
    ) -> NDArray[np.bool_]:
        """Return of sessions of one model whether what is written of each can be gone on from without a number.

        A step that comes after it must then be stored before it is answered: always under SYNC; and where no stream
        has the session open, as the step must come by a unary call, or by an opening, which clears the mark.
        """
        columns = sessions[0].model.columns
        rows = np.array([session.row for session in sessions], np.intp)
        is_clean: NDArray[np.bool_] = columns.durability[rows] == Durability.SYNC
        if self._is_unary_sync and not before_stream:
            is_clean |= columns.is_idle[rows]
        return is_clean

    def is_clean_now(self, sessions: Sequence[Session[Model]]) -> NDArray[np.bool_]:
        """Return the same, but none where somebody is at the session: an opening that has raised its epoch already."""
        is_clean = self.is_clean(sessions)
        for place in np.flatnonzero(is_clean).tolist():
            session = sessions[place]
            if session.durability is not Durability.SYNC and not self._turns.is_free(session.id):
                is_clean[place] = False
        return is_clean

    async def write(self, sessions: list[Session[Model]], snapshot: Snapshot) -> list[Refusal | None] | None:
        """Write copies of sessions of one model; None where the store has failed."""
        model = sessions[0].model
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
        model.columns.end_writing(snapshot.rows[live])
        if refusals is None:
            self._asker.ask_again(sessions)
            return None
        accepted = live & np.array([refusal is None for refusal in refusals], np.bool_)
        self._behind.stored(
            model, snapshot.rows[accepted], snapshot.steps[accepted], snapshot.copied_s, self._clock()
        )
        for place in np.flatnonzero(accepted).tolist():
            session = sessions[place]
            self._asker.written(session)
            if session.owner is not None:
                session.owner.stored(session.id, session.durable_step)
        for place in np.flatnonzero(live & ~accepted).tolist():
            refusal = refusals[place]
            if refusal is not None:
                task = asyncio.get_running_loop().create_task(
                    self._judge(sessions[place], int(snapshot.epochs[place]), refusal)
                )
                self._judging.add(task)
                task.add_done_callback(self._judging.discard)
        return refusals

    async def write_each(
        self, sessions: Sequence[Session[Model]], is_clean: IsClean
    ) -> list[errors.ServiceError | None]:
        """Write sessions, each given once, as soon as they are free; return for each why it was not written."""
        failures: dict[Session[Model], errors.ServiceError] = {}
        left = list(sessions)
        while left:
            await until_free(left[0])
            failures |= {each: ended(each) for each in left if each.is_ended}
            live = [each for each in left if not each.is_ended]
            free = [each for each in live if not each.is_busy and not each.is_writing]
            left = [each for each in live if each.is_busy or each.is_writing]
            # All of them now: during a write others may be used.
            copies = [(part, self.copy(part, is_clean(part))) for part in by_model(free)]
            for part, copy in copies:
                failures |= _failures(part, await self.write(part, copy))
        return [failures.get(session) for session in sessions]

    async def write_instead(
        self, session: Session[Model], record: SessionRecord, become: Callable[[], Awaitable[None]]
    ) -> None:
        """Write a record in the place of a session's own; then `become` makes the session what is written.

        No other write of it begins meanwhile. Raises StoreUnavailable or SessionMoved.
        """
        await until_free(session)
        if session.is_ended:
            raise ended(session)
        columns, rows = session.model.columns, np.array([session.row])
        columns.is_writing[rows] = True
        try:
            (refusal,) = await self._store.write([record])
            if refusal is not None or session.is_ended:
                raise ended(session)
            await become()
        except errors.StoreUnavailable:
            # It may have been written nevertheless: what the session is has to be written over it.
            if not session.is_ended:
                columns.durable[rows] = 0
                self._behind.set_waits(session.model, rows)
                self._asker.ask_again([session])
            raise
        finally:
            if not session.is_ended:
                columns.end_writing(rows)

    async def _judge(self, session: Session[Model], epoch: int, refusal: Refusal) -> None:
        """End a session that another server has, unless an opening here has come between."""
        # In its turn: an opening of this server raises the epoch in the store first, and in memory afterwards.
        async with self._turns.of(session.id):
            await until_settled(session)
            if session.is_ended:
                return
            if session.epoch == epoch and 0 < refusal.owned_since <= epoch:
                session.epoch = refusal.epoch  # raised by an opening of this server whose reply was lost
            if session.epoch != epoch:
                self._asker.ask_again([session])
                return
            cause = "deleted" if refusal.is_gone else "opened"
            moved = errors.SessionMoved(
                f"session {session.id} was {cause} elsewhere", cause=cause, client_id=refusal.client_id
            )
            self._table.give_up(session, moved, self._clock())
            self._observer.move()
            self._asker.give_up(session, moved)


def ended(session: Session[Model]) -> errors.SessionMoved:
    """Return why nothing more can be done with a session that was taken off its row."""
    return errors.SessionMoved(f"session {session.id} has ended", cause="ended", client_id="")


def all_clean(sessions: Sequence[Session[Model]]) -> NDArray[np.bool_]:
    """Say of sessions whose owner writes its last word that all can be gone on from without a number."""
    return np.ones(len(sessions), np.bool_)


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
