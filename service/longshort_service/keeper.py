"""Whose turn it is at a session, and which stream has it open. Off the path of a value.

Owns the store and when sessions are opened and closed; the opener brings them to rows. Openings of one session happen
one after the other. Does not know gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from longshort_service import errors
from longshort_service.model_change import ModelChange, check_model, model_for
from longshort_service.model_exchange import ModelExchange
from longshort_service.opener import Opened, Opener, OpenRequest, is_newest, refuse_unfound, superseded
from longshort_service.record import birth
from longshort_service.served_model import check_fit
from longshort_service.stores.base import Birth, OpenMode, StoreRequest, open_one
from longshort_service.turns import until_free, until_settled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from longshort_service.arena import States
    from longshort_service.checkpointer import Checkpointer
    from longshort_service.durability import Durability
    from longshort_service.eviction import Evictor
    from longshort_service.record import SessionRecord
    from longshort_service.repository import Model, Repository
    from longshort_service.session import Session, StreamOwner
    from longshort_service.sessions import SessionTable
    from longshort_service.stores.base import Store
    from longshort_service.turns import Turns

T = TypeVar("T")

MAX_WAITING: Final = 64  # unary calls that wait for one session; each costs every other a wake-up
# Sessions that are opened, or written, or left, between two looks at the event loop: 1 to 3 ms.
OPEN_BATCH: Final = 128
DETACH_BATCH: Final = 4096


class KeeperObserver(Protocol):
    """Who is told what happened to sessions."""

    def move(self) -> None:
        """Note that a stream lost its session to another opening."""

    def store_seconds(self, operation: str, seconds: float) -> None:
        """Note that a call of the store took so long."""


class Keeper:
    """The sessions and those who come to them. `clock` returns seconds since 1970."""

    def __init__(
        self,
        *,
        table: SessionTable[Model],
        store: Store,
        repository: Repository,
        turns: Turns,
        evictor: Evictor,
        checkpointer: Checkpointer,
        durability: Durability,
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
        self.checkpointer = checkpointer
        self._durability = durability  # of sessions whose opening asks for none
        self._evictor = evictor
        self._observer = observer
        self._opener = Opener(
            table=table,
            store=store,
            repository=repository,
            evictor=evictor,
            clock=clock,
            draw_incarnation=draw_incarnation,
            outage=checkpointer.outage,
            observer=observer,
        )
        self._exchange = ModelExchange(
            table=table,
            repository=repository,
            checkpointer=checkpointer,
            clock=clock,
            draw_incarnation=draw_incarnation,
        )

    until_settled = staticmethod(until_settled)

    async def open(self, request: OpenRequest, owner: StreamOwner) -> tuple[Session[Model], bool]:
        """Open a session for a stream; return it and whether it is new.

        A stream that has it open loses it first. Raises SessionNotFound, SessionExpired, SessionExists, ModelNotFound,
        ModelMismatch, ModelChanged, SessionsExhausted, RecordDamaged, StoreUnavailable; then no session and no stream
        has changed. A `model_change` alone may fail later, the session taken from its stream: it is still on the model
        that it had, or, after StoreUnavailable or SessionMoved, live on the other one and not stored there yet; asked
        for again it is carried through.
        """
        (opened,) = await self.open_many([request], owner)
        return _unless_refused(opened)

    async def open_many(self, requests: Sequence[OpenRequest], owner: StreamOwner) -> list[Opened]:
        """Open sessions for a stream, as `open` does each; return what became of each.

        Those that nobody is at go together, batch by batch, and the others after them: a session may be taken away
        again, by another stream or by its own second opening here, before the last is open.
        """
        has_left = False

        async def take() -> list[Opened]:
            outcomes: list[Opened] = []
            for part in _parts(requests, OPEN_BATCH):
                if not has_left:
                    outcomes += await self._open_part(part, attach)
                    await asyncio.sleep(0)
            return outcomes

        def attach(sessions: Sequence[Session[Model]]) -> None:
            if not has_left:
                self.table.attach_many(sessions, owner, self.clock())

        try:
            return await self.turns.to_its_end(take())
        except asyncio.CancelledError:
            has_left = True
            live = [self.table.get(request.session_id) for request in requests]
            await self.detach_many([session for session in live if session is not None], owner)
            raise

    async def _open_part(
        self, requests: Sequence[OpenRequest], attach: Callable[[Sequence[Session[Model]]], None]
    ) -> list[Opened]:
        """Open sessions, those that nobody is at together; `attach` is given them while others are kept off."""
        together: dict[str, int] = {}  # places among the requests
        alone = []
        for place, request in enumerate(requests):
            name = request.session_id
            if name in together or not self.turns.is_free(name) or _is_contended(self.table.get(name)):
                alone.append(place)
            else:
                together[name] = place
        outcomes: dict[int, Opened] = {}
        with self.turns.of_free(list(together)):
            places = list(together.values())
            taken = await self._take([requests[place] for place in places], attach)
            outcomes.update(zip(places, taken, strict=True))
        for place in alone:
            async with self.turns.of(requests[place].session_id):
                (outcomes[place],) = await self._take([requests[place]], attach)
        return [outcomes[place] for place in range(len(requests))]

    async def _take(
        self, requests: Sequence[OpenRequest], attach: Callable[[Sequence[Session[Model]]], None]
    ) -> list[Opened]:
        """Have sessions live for a stream; others lose them. The caller has the turns at all of them.

        Each is settled at some time after its opening; a unary call may begin while another one is waited for.
        """
        refusals = [self._refusal(request) for request in requests]
        wanted = [request for request, refusal in zip(requests, refusals, strict=True) if refusal is None]
        brought = await self._bring(wanted)
        sessions = [opened[0] for opened in brought if not isinstance(opened, errors.ServiceError)]
        for session in sessions:
            if session.is_busy:  # a unary call has begun while the store was asked
                await until_settled(session)
        attach(sessions)
        rest = iter(brought)
        return [next(rest) if refusal is None else refusal for refusal in refusals]

    async def _bring(self, requests: Sequence[OpenRequest]) -> list[Opened]:
        """Have sessions live, on the models that they ask for, and stored from now on as they ask."""
        granted = await self._opener.bring(requests)
        for request, one in zip(requests, granted, strict=True):
            # Not before the store has granted it: an opening that is refused takes nothing from anyone.
            if not isinstance(one, errors.ServiceError):
                self._take_away(one[0], request.client_id)
        brought = await self._exchange.take_over(requests, granted)
        changed: dict[int, Session[Model]] = {}  # by place
        for place, (request, opened) in enumerate(zip(requests, brought, strict=True)):
            if not isinstance(opened, errors.ServiceError):
                wanted = self._durability if request.durability is None else request.durability
                self.checkpointer.take_on(opened[0], wanted)
                if request.model_change is not ModelChange.REFUSE:
                    changed[place] = opened[0]
        # At once: after a crash a session must not be back on the model that it has left.
        failures = await self.checkpointer.store_many(list(changed.values()), before_stream=True)
        for place, failure in zip(changed, failures, strict=True):
            brought[place] = failure or brought[place]
        return brought

    def _refusal(self, request: OpenRequest) -> errors.ServiceError | None:
        """Return why a live session cannot be opened as is asked, before the store is; None where it may be."""
        live = self.table.get(request.session_id)
        if live is None or request.mode is OpenMode.CREATE:
            return None
        try:
            model_for(request, live.model.origin, self.repository)
        except errors.ServiceError as error:
            return error
        return None

    def _take_away(self, session: Session[Model], client_id: str) -> None:
        """Take a session from the stream that has it open, so that it sends no more."""
        owner = session.owner
        if owner is not None:
            moved = errors.SessionMoved(
                f"session {session.id} was opened by another stream", cause="opened", client_id=client_id
            )
            owner.lose(session.id, moved)
            # At once: where the new stream leaves before it has it, nobody else would make it idle.
            self.table.detach(session, owner, self.clock())
            self._observer.move()

    async def detach_many(self, sessions: Sequence[Session[Model]], owner: StreamOwner) -> None:
        """Take sessions back from a stream that ends, also where the caller is cancelled meanwhile.

        Those that another stream has by now stay with it.
        """

        async def detach() -> None:
            for part in _parts(sessions, DETACH_BATCH):
                self.detach(part, owner)
                await asyncio.sleep(0)

        await self.turns.to_its_end(detach())

    def detach(self, sessions: Sequence[Session[Model]], owner: StreamOwner) -> None:
        """Take a few sessions back from a stream; their last step is written, so that they go on elsewhere."""
        left = [session for session in sessions if session.owner is owner]
        self.table.detach_many(left, owner, self.clock())
        self.checkpointer.leave(left)

    async def ensure(self, request: OpenRequest) -> tuple[Session[Model], bool]:
        """Bring a session to a row without taking it from a stream; return it settled, and whether it is new.

        Raises what `open` raises, and QueueFull where many wait for the session already.
        """
        while True:
            session, created = self._live_for(request), False
            if session is None:
                opened = await self.turns.through(request.session_id, lambda: self._bring_absent(request))
                session, created = _unless_refused(opened)
            await until_settled(session)
            if not session.is_ended:
                self.table.touch(session, self.clock())
                return session, created

    def _live_for(self, request: OpenRequest) -> Session[Model] | None:
        """Return the live session that a unary call goes on with; None where the store is to be asked.

        Raises ModelMismatch or QueueFull.
        """
        live = self.table.get(request.session_id)
        if live is None or request.mode is OpenMode.CREATE:
            return None
        check_model(request, live.model.name, live.model.version)
        if live.num_waiting >= MAX_WAITING:
            raise errors.QueueFull(
                f"{live.num_waiting} calls wait for session {live.id} already: one writer a session is enough"
            )
        return live

    async def _bring_absent(self, request: OpenRequest) -> Opened:
        """Have a session live for a unary call, which has its turn."""
        # Looked up again: a stream may have brought it meanwhile, and then it is that stream's, stored as that asked.
        live = self._live_for(request)
        if live is not None:
            return live, False
        (brought,) = await self._bring([request])
        return brought

    async def raise_epoch(self, live: Session[Model]) -> None:
        """Raise a live session's epoch, as an opening does. The caller has its turn.

        Raises SessionNotFound, SessionExpired, or SessionMoved where another server has had it since; it has ended
        here then. Raises StoreUnavailable or RecordDamaged too.
        """
        opening = await open_one(self.store, StoreRequest(live.id, OpenMode.OPEN), self.clock())
        if is_newest(live, opening):
            live.epoch = opening.epoch
            return
        await self._end_stale(live)
        refuse_unfound(opening, live.id, None)
        raise errors.SessionMoved(f"session {live.id} was opened elsewhere", cause="opened", client_id="")

    async def _end_stale(self, live: Session[Model]) -> None:
        """Take a session off its row that another server has moved or ended since: what is here is old."""
        await until_free(live)
        if not live.is_ended:
            self.table.give_up(live, superseded(live.id, ""), self.clock())

    async def create_from(self, record: SessionRecord, model: Model) -> Session[Model]:
        """Make a live session of a record, with an epoch and an incarnation of its own. The caller has its turn.

        It is stored when this returns, where the store is durable. Raises SessionExists, SessionsExhausted,
        ModelChanged, SessionMoved or StoreUnavailable, and then it is not live here. After StoreUnavailable the store
        may have it, as a whole; after the others it has no such session of this call's.
        """
        check_fit(record, model)
        now_s = self.clock()
        fresh = dataclasses.replace(
            record, origin=model.origin, incarnation=self.draw_incarnation(), last_used_s=now_s
        )
        # With the record, at once: nobody shall find a session at step 0 where this goes no further.
        birth_of_it = Birth(model.origin, fresh.incarnation, fresh)
        opening = await open_one(
            self.store, StoreRequest(record.session_id, OpenMode.CREATE, birth=birth_of_it), now_s
        )
        stale = self.table.get(record.session_id)
        refuse_unfound(opening, record.session_id, stale)
        if stale is not None:
            await self._end_stale(stale)
        session = None
        try:
            await self._evictor.make_room(1)
            session = self.table.restore(fresh, model, epoch=opening.epoch, now_s=self.clock())
            self.checkpointer.take_on(session, self._durability)
            # Accepted is not durable: this waits until it is.
            await self.checkpointer.store(session)
        except errors.ServiceError:
            if session is not None:
                await until_free(session)  # a unary call may have found it
                if not session.is_ended:
                    self.table.remove(session)
            with contextlib.suppress(errors.StoreUnavailable):
                await self.store.delete_many([(record.session_id, opening.epoch)])
            raise
        return session

    async def uncreate(self, session: Session[Model]) -> None:
        """Take back a session that was created for a message that was then refused, unless anyone uses it by now."""
        epoch = session.epoch

        async def uncreate() -> None:
            await until_free(session)
            is_unused = session.owner is None and session.step == 0 and session.epoch == epoch
            if is_unused and not session.is_ended:
                self.table.remove(session)
                # What another server has opened since has another epoch, and stays.
                await self.store.delete_many([(session.id, epoch)])

        await self.turns.through(session.id, uncreate)

    async def restart(self, live: Session[Model], states: States, end_stream: Callable[[], None]) -> None:
        """Put a live session back to step 0, with another incarnation. The caller has its turn.

        `end_stream` is called when that is certain: it is stored by then, where the store is durable. Raises
        StoreUnavailable or RecordDamaged, and then the session goes on as it was, or what `raise_epoch` raises where it
        is not this server's any more.
        """
        await self.raise_epoch(live)
        incarnation = self.draw_incarnation()

        async def begin_again() -> None:
            end_stream()
            await until_settled(live)
            # An answer that waits still is of what is given up here: the steps of what follows do not store it.
            self.checkpointer.give_up(
                live, errors.SessionMoved(f"session {live.id} was reset", cause="reset", client_id="")
            )
            wanted = live.durability
            live.restart(states, incarnation, self.clock())
            self.checkpointer.take_on(live, wanted)

        blank = birth(live.id, live.model.origin, incarnation, live.epoch, self.clock(), states)
        await self.checkpointer.store_instead(live, blank, begin_again)

    async def close(self) -> None:
        """End the writing, and close the store. What is behind by then was to be stored by a drain, or is lost."""
        await self.checkpointer.stop()
        await self.store.close()


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[begin : begin + size] for begin in range(0, len(items), size))


def _is_contended(live: Session[Model] | None) -> bool:
    """Whether calls wait for a session already: it may be busy for long, and no other shall wait for it."""
    return live is not None and live.num_waiting > 0


def _unless_refused(opened: Opened) -> tuple[Session[Model], bool]:
    if isinstance(opened, errors.ServiceError):
        raise opened
    return opened
