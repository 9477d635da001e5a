"""Bringing sessions to a row: opening them, from memory, from the store, or new. Off the path of a value.

Owns the store and the order in which table and store change. Openings of one session happen one after the other.
Does not know gRPC.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from longshort_service import errors
from longshort_service.stores.base import Found, OpenMode, StoreOpening
from longshort_service.turns import until_settled

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshort_service.eviction import Evictor
    from longshort_service.record import SessionRecord
    from longshort_service.repository import Model, Repository
    from longshort_service.session import Session, StreamOwner
    from longshort_service.sessions import SessionTable
    from longshort_service.stores.base import Store
    from longshort_service.turns import Turns

MAX_WAITING: Final = 64  # unary calls that wait for one session; each costs every other a wake-up


class KeeperObserver(Protocol):
    """Who is told what happened to sessions."""

    def move(self) -> None:
        """Note that a stream lost its session to another opening."""

    def store_seconds(self, operation: str, seconds: float) -> None:
        """Note that a call of the store took so long."""


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """What an opening asks for. `model` may be empty on an existing session; `version` 0 leaves it open."""

    session_id: str
    mode: OpenMode = OpenMode.OPEN_OR_CREATE
    model: str = ""
    version: int = 0
    client_id: str = ""


class Keeper:
    """The way of a session to its row. `clock` returns seconds since 1970."""

    def __init__(
        self,
        *,
        table: SessionTable[Model],
        store: Store,
        repository: Repository,
        turns: Turns,
        evictor: Evictor,
        clock: Callable[[], float],
        draw_incarnation: Callable[[], int],
        observer: KeeperObserver,
    ) -> None:
        self.table = table
        self.store = store
        self.repository = repository
        self.clock = clock
        self.draw_incarnation = draw_incarnation
        self.turns = turns
        self._evictor = evictor
        self._observer = observer

    until_settled = staticmethod(until_settled)

    async def open(self, request: OpenRequest, owner: StreamOwner) -> tuple[Session[Model], bool]:
        """Open a session for a stream; return it and whether it is new.

        A stream that has it open is ended first. Raises SessionNotFound, SessionExpired, SessionExists, ModelNotFound,
        ModelMismatch, ModelChanged, SessionsExhausted; then no session and no stream has changed.
        """
        has_left = False

        async def take() -> tuple[Session[Model], bool]:
            session, created = await self._take(request)
            if not has_left:
                self.table.attach(session, owner, self.clock())
            return session, created

        try:
            return await self.turns.through(request.session_id, take)
        except asyncio.CancelledError:
            has_left = True
            live = self.table.get(request.session_id)
            if live is not None:
                self.table.detach(live, owner, self.clock())
            raise

    async def _take(self, request: OpenRequest) -> tuple[Session[Model], bool]:
        """End the stream that has the session, and have it live and settled for the next. The caller has its turn."""
        live = self.table.get(request.session_id)
        if live is not None and request.mode is not OpenMode.CREATE:
            _check_model(request, live.model.name, live.model.version)
            if live.owner is not None:
                live.owner.lose(
                    live.id,
                    errors.SessionMoved(
                        f"session {live.id} was opened by another stream",
                        cause="opened",
                        client_id=request.client_id,
                    ),
                )
                self._observer.move()
            await self.until_settled(live)
        session, created = await self._bring(request)
        if created:
            session.created_by = sys.intern(request.client_id)
        await self.until_settled(session)  # a unary call may have begun while the store was asked
        return session, created

    async def ensure(self, request: OpenRequest) -> tuple[Session[Model], bool]:
        """Bring a session to a row without taking it from a stream; return it settled, and whether it is new.

        Raises what `open` raises, and QueueFull where many wait for the session already.
        """
        while True:
            live = self.table.get(request.session_id)
            if live is not None and request.mode is not OpenMode.CREATE:
                _check_model(request, live.model.name, live.model.version)
                if live.num_waiting >= MAX_WAITING:
                    raise errors.QueueFull(
                        f"{live.num_waiting} calls wait for session {live.id} already: one writer a session is enough"
                    )
                session, created = live, False
            else:
                session, created = await self.turns.through(request.session_id, lambda: self._bring(request))
            await self.until_settled(session)
            if not session.is_ended:
                self.table.touch(session, self.clock())
                return session, created

    async def raise_epoch(self, live: Session[Model]) -> None:
        """Raise a live session's epoch, as an opening does. The caller has its turn."""
        live.epoch = (await self.store.open(live.id, OpenMode.OPEN)).epoch

    async def _bring(self, request: OpenRequest) -> tuple[Session[Model], bool]:
        """Raise the epoch and have the session live, from memory, from its record, or new."""
        await self._refuse_unknown_model(request)
        begin_s = time.perf_counter()
        opening = await self.store.open(request.session_id, request.mode)
        self._observer.store_seconds("open", time.perf_counter() - begin_s)
        live = self.table.get(request.session_id)
        _refuse_unfound(opening, request.session_id, live)
        if live is not None:
            if opening.previous_epoch == live.epoch:
                live.epoch = opening.epoch
                return live, False
            await self.until_settled(live)
            if not live.is_ended:
                self.table.remove(live)  # another server has moved it since; what is here is old
        try:
            return await self._admit(request, opening)
        except errors.ServiceError:
            await self._give_back(request.session_id, opening)
            raise

    async def _refuse_unknown_model(self, request: OpenRequest) -> None:
        """Raise ModelNotFound before the store makes an entry that nobody could fill."""
        if request.mode is OpenMode.OPEN:
            return
        try:
            self.repository.get(request.model, request.version)
        except errors.ModelNotFound as error:
            if await self._exists(request):
                return
            if request.model:
                raise
            known = ", ".join(sorted({model.name for model in self.repository.models()}))
            raise errors.ModelNotFound(
                f"there is no session {request.session_id}: name a model to create it with ({known})",
                model="",
            ) from error

    async def _admit(self, request: OpenRequest, opening: StoreOpening) -> tuple[Session[Model], bool]:
        record = opening.record
        if record is None and opening.found is Found.OPENED:
            # The entry's owner has never written it and does not hold it any more.
            raise errors.SessionNotFound(f"session {request.session_id} was lost before it was stored")
        if record is None:
            model = self.repository.get(request.model, request.version)
            await self._evictor.make_room()
            session = self.table.create(
                request.session_id,
                model,
                epoch=opening.epoch,
                incarnation=self.draw_incarnation(),
                now_s=self.clock(),
            )
            return session, True
        _check_model(request, record.model, record.version)
        model = self.repository.get(record.model, record.version)
        await self._evictor.make_room()
        return self.table.restore(record, model, epoch=opening.epoch, now_s=self.clock()), False

    async def create_from(self, record: SessionRecord, model: Model) -> Session[Model]:
        """Make a live session of a record, with an epoch and an incarnation of its own. The caller has its turn.

        Raises SessionExists, SessionsExhausted or ModelChanged, and then there is no such session.
        """
        opening = await self.store.open(record.session_id, OpenMode.CREATE)
        _refuse_unfound(opening, record.session_id, self.table.get(record.session_id))
        try:
            await self._evictor.make_room()
            fresh = dataclasses.replace(record, incarnation=self.draw_incarnation())
            return self.table.restore(fresh, model, epoch=opening.epoch, now_s=self.clock())
        except errors.ServiceError:
            await self.store.delete(record.session_id)
            raise

    async def uncreate(self, session: Session[Model]) -> None:
        """Take back a session that was created for a message that was then refused, unless anyone uses it by now."""
        epoch = session.epoch
        async with self.turns.of(session.id):
            await self.until_settled(session)
            is_unused = session.owner is None and session.step == 0 and session.epoch == epoch
            if is_unused and not session.is_ended:
                self.table.remove(session)
                await self.store.delete(session.id)

    def durable_step(self, step: int) -> int:
        """Return the step that would survive the loss of this server: none in a store that is not durable."""
        return step if self.store.is_durable else 0

    async def _give_back(self, session_id: str, opening: StoreOpening) -> None:
        """Leave the store as an opening found it, except for the epoch."""
        if opening.record is not None:
            await self.store.write([dataclasses.replace(opening.record, epoch=opening.epoch)])
        else:
            await self.store.delete(session_id)

    async def _exists(self, request: OpenRequest) -> bool:
        if self.table.get(request.session_id) is not None:
            return True
        try:
            return await self.store.read(request.session_id) is not None
        except errors.SessionExpired:
            if request.mode is OpenMode.CREATE:
                return False
            raise

    async def close(self) -> None:
        """Write every live session that a durable store can keep, and close the store."""
        if self.store.is_durable:
            for session in list(self.table):
                await self.until_settled(session)
                await self.store.write([session.record()])
        await self.store.close()


def _check_model(request: OpenRequest, model: str, version: int) -> None:
    if (request.model and request.model != model) or (request.version and request.version != version):
        raise errors.ModelMismatch(
            f"session {request.session_id} runs on {model}/{version}: a session stays on its model and version",
            model=model,
            version=version,
        )


def _refuse_unfound(opening: StoreOpening, session_id: str, live: Session[Model] | None) -> None:
    if opening.found is Found.ABSENT:
        raise errors.SessionNotFound(f"there is no session {session_id}", session_id=session_id)
    if opening.found is Found.EXPIRED:
        raise errors.SessionExpired(
            f"session {session_id} was ended because nobody used it; create it to begin again",
            session_id=session_id,
        )
    if opening.found is Found.EXISTS:
        # A client whose CREATE succeeded and whose answer was lost knows by this that the session is its own.
        client_id = "" if live is None else live.created_by
        raise errors.SessionExists(
            f"there is a session {session_id} already: open it, delete it first, or take another id",
            session_id=session_id,
            client_id=client_id,
        )
