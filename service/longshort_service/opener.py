"""Having sessions live: from memory, from their records, or new; many at once, with one call of the store.

Owns the order in which store and table change at an opening. Whose turn it is at a session and which stream has it
open is the keeper's. Does not know gRPC.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from longshort_service import errors
from longshort_service import record as records
from longshort_service.beginning import begin_states
from longshort_service.model_change import ModelChange, carried_over, model_for
from longshort_service.repository import Model
from longshort_service.served_model import check_fit
from longshort_service.session import Session
from longshort_service.stores.base import Birth, Found, OpenMode, StoreOpening, StoreRequest
from longshort_service.turns import until_settled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from longshort_service.arena import States
    from longshort_service.durability import Durability
    from longshort_service.eviction import Evictor
    from longshort_service.outage import Outage
    from longshort_service.repository import Repository
    from longshort_service.sessions import SessionTable
    from longshort_service.stores.base import Store

# What became of an opening: the session and whether it is new, or why there is none.
Opened: TypeAlias = tuple[Session[Model], bool] | errors.ServiceError


class StoreObserver(Protocol):
    """Who is told how long the store takes."""

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
    durability: Durability | None = None  # None: the server's
    epoch: int = 0  # the greatest that the client has seen of the session
    model_change: ModelChange = ModelChange.REFUSE
    # By the input of a state what the session begins with where this creates it, without the batch axis.
    initial: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Newcomer:
    """An opening that the store has granted and that needs a row."""

    place: int  # among the openings of one call
    request: OpenRequest
    opening: StoreOpening
    incarnation: int  # where it begins anew: the one that is stored already where the opening created it
    states: States | None = None  # that it begins anew in; None: the model's own


class Opener:
    """Brings sessions to rows. Its callers have the turns at all sessions that they ask for, each once."""

    def __init__(
        self,
        *,
        table: SessionTable[Model],
        store: Store,
        repository: Repository,
        evictor: Evictor,
        clock: Callable[[], float],
        draw_incarnation: Callable[[], int],
        outage: Outage,
        observer: StoreObserver,
    ) -> None:
        self._table = table
        self._store = store
        self._repository = repository
        self._evictor = evictor
        self._clock = clock
        self._draw_incarnation = draw_incarnation
        self._outage = outage
        self._observer = observer

    async def bring(self, requests: Sequence[OpenRequest]) -> list[Opened]:
        """Raise the sessions' epochs and have each live; return for each what became of it.

        Those that are live stay with the stream that has them open, and a message of theirs may be in flight. Of an
        opening that is refused nothing is left in the store but its epoch.
        """
        asked = [self._asked(request) for request in requests]
        try:
            openings = await self._ask(asked)
        except errors.StoreUnavailable as error:
            for request in requests:
                live = self._table.get(request.session_id)
                if live is not None:
                    await until_settled(live)
            return [self._without_store(request, error) for request in requests]
        outcomes: dict[int, Opened] = {}
        newcomers = []
        for place, (request, opening) in enumerate(zip(requests, openings, strict=True)):
            if isinstance(opening, errors.ServiceError):
                outcomes[place] = opening
                continue
            try:
                live = await self._find_live(request, opening)
            except errors.ServiceError as error:
                outcomes[place] = error
                continue
            if live is not None:
                outcomes[place] = (live, False)
            else:
                birth = asked[place].birth
                incarnation = self._draw_incarnation() if birth is None else birth.incarnation
                newcomers.append(_Newcomer(place, request, opening, incarnation))
        outcomes.update(await self._admit(newcomers))
        await self._give_back(requests, openings, outcomes)
        return [outcomes[place] for place in range(len(requests))]

    async def _ask(self, asked: Sequence[StoreRequest]) -> list[StoreOpening | errors.ServiceError]:
        """Ask the store for all that may be opened. What it is not asked for leaves no entry that nobody could fill."""
        begin_s = time.perf_counter()
        openings = await self._store.open_many(asked, self._clock())
        self._observer.store_seconds("open", time.perf_counter() - begin_s)
        return openings

    def _without_store(self, request: OpenRequest, error: errors.StoreUnavailable) -> Opened:
        """Open a session from memory for the client that had it open last: nobody can have got further elsewhere.

        Had another server it meanwhile, that client would have seen its epoch.
        """
        live = self._table.get(request.session_id)
        if (
            live is None
            or request.mode is OpenMode.CREATE
            or request.model_change is not ModelChange.REFUSE  # what it says is stored before it is said
            or request.epoch != live.epoch
            or self._outage.is_over_limit
        ):
            return error
        # The mark in the store stays as it is: a step without a number would be missed by nobody after a crash here.
        # What remains: the next numbered message takes this back, also one of the stream that is about to lose the
        # session. Steps without a number that follow it, before anything is written again, are not protected.
        live.model.columns.is_gapless[live.row] = False
        return live, False

    def _asked(self, request: OpenRequest) -> StoreRequest:
        """Return what the store is asked: to create a session only where the model is there to run it."""
        birth = None
        if request.mode is not OpenMode.OPEN:
            try:
                model = self._repository.get(request.model, request.version)
                states = begin_states(model, request.initial)
            except (errors.ModelNotFound, errors.WrongShape, errors.ValueNotFinite, errors.ConstantMissing):
                pass  # it may be there already, and run on another
            else:
                incarnation = self._draw_incarnation()
                begun = None
                if states is not None:
                    now_s = self._clock()
                    begun = records.birth(request.session_id, model.origin, incarnation, 0, now_s, states)
                birth = Birth(model.origin, incarnation, begun)
        return StoreRequest(request.session_id, request.mode, request.client_id, birth)

    async def _find_live(self, request: OpenRequest, opening: StoreOpening) -> Session[Model] | None:
        """Return the live session where it is the newest; None where it is to be made or loaded.

        Raises what refuses the opening before room is made for it.
        """
        live = self._table.get(request.session_id)
        if opening.found is Found.ABSENT and request.mode is not OpenMode.OPEN:
            self._refuse_model(request)
        refuse_unfound(opening, request.session_id, live)
        if live is not None:
            if is_newest(live, opening):
                live.epoch = opening.epoch
                return live
            await until_settled(live)
            if not live.is_ended:  # another server has moved or ended it since; what is here is old
                self._table.give_up(live, superseded(live.id, request.client_id), self._clock())
        if opening.record is None and opening.found is Found.OPENED:
            # The entry's owner has never written it and does not hold it any more.
            raise errors.SessionNotFound(
                f"session {request.session_id} was lost before it was stored: delete it to begin again",
                session_id=request.session_id,
            )
        self._model_of(request, opening)
        return None

    def _refuse_model(self, request: OpenRequest) -> None:
        """Raise what refuses to create a session that is not there: ModelNotFound, or as `begin_states` does."""
        if not request.model:
            known = ", ".join(sorted({model.name for model in self._repository.models()}))
            raise errors.ModelNotFound(
                f"there is no session {request.session_id}: name a model to create it with ({known})",
                model="",
            )
        begin_states(self._repository.get(request.model, request.version), request.initial)

    def _model_of(self, request: OpenRequest, opening: StoreOpening) -> Model:
        """Return the model that a session goes on with. Raises ModelMismatch, ModelChanged or ModelNotFound."""
        if opening.record is None:
            return self._repository.get(request.model, request.version)
        return model_for(request, opening.record.origin, self._repository)

    async def _admit(self, newcomers: Sequence[_Newcomer]) -> dict[int, Opened]:
        """Make room for as many as there may be, those that come first before the others."""
        outcomes: dict[int, Opened] = {}
        while newcomers:
            try:
                num_rooms = await self._evictor.make_room(len(newcomers))
            except errors.SessionsExhausted as error:
                return outcomes | {newcomer.place: error for newcomer in newcomers}
            outcomes |= self._seat(newcomers[:num_rooms])
            newcomers = newcomers[num_rooms:]
        return outcomes

    def _seat(self, newcomers: Sequence[_Newcomer]) -> dict[int, Opened]:
        """Give rows to sessions, those of a model together."""
        outcomes: dict[int, Opened] = {}
        by_model: dict[Model, list[_Newcomer]] = {}
        for newcomer in newcomers:
            try:
                # Asked again: a model that nobody used may have been unloaded while room was made.
                model = self._model_of(newcomer.request, newcomer.opening)
                by_model.setdefault(model, []).append(_fitted(newcomer, model))
            except errors.ServiceError as error:
                outcomes[newcomer.place] = error
        for model, of_model in by_model.items():
            outcomes |= self._add(of_model, model)
        return outcomes

    def _add(self, newcomers: Sequence[_Newcomer], model: Model) -> dict[int, Opened]:
        records = [newcomer.opening.record for newcomer in newcomers]
        try:
            sessions = self._table.create_many(
                [newcomer.request.session_id for newcomer in newcomers],
                model,
                [newcomer.opening.epoch for newcomer in newcomers],
                [
                    newcomer.incarnation if record is None else record.incarnation
                    for newcomer, record in zip(newcomers, records, strict=True)
                ],
                self._clock(),
            )
        except errors.SessionsExhausted as error:
            if len(newcomers) == 1:
                return {newcomers[0].place: error}
            # Work under way holds some of the rows: as many as there are left.
            one_by_one = [self._add([newcomer], model) for newcomer in newcomers]
            return {place: outcome for found in one_by_one for place, outcome in found.items()}
        outcomes: dict[int, Opened] = {}
        for newcomer, record, session in zip(newcomers, records, sessions, strict=True):
            if record is None:
                session.created_by = sys.intern(newcomer.request.client_id)
                if newcomer.states is not None:
                    model.arena.write(session.slot, newcomer.states)
            else:
                session.put(record)
                if newcomer.opening.is_settled:
                    session.durable_step = record.step
            outcomes[newcomer.place] = (session, record is None)
        return outcomes

    async def _give_back(
        self,
        requests: Sequence[OpenRequest],
        openings: Sequence[StoreOpening | errors.ServiceError],
        outcomes: Mapping[int, Opened],
    ) -> None:
        """Undo what refused openings did to the store: their entries, where they made them, and records they took."""
        refused = [
            (requests[place].session_id, opening)
            for place, opening in enumerate(openings)
            if isinstance(opening, StoreOpening) and isinstance(outcomes[place], errors.ServiceError)
        ]
        if not refused:
            return
        records = [
            dataclasses.replace(opening.record, epoch=opening.epoch)
            for _, opening in refused
            if opening.record is not None
        ]
        try:
            await self._store.write(records, settled=False)
            await self._store.delete_many(
                [(name, opening.epoch) for name, opening in refused if opening.found is Found.CREATED]
            )
        except errors.StoreUnavailable:
            pass  # what is left begins at step 0, or has to be opened by number: no harm comes of it


def _fitted(newcomer: _Newcomer, model: Model) -> _Newcomer:
    """Return a newcomer with what its record is on a model, or with the states that it begins anew in.

    Raises ModelChanged, or what `begin_states` raises.
    """
    opening = newcomer.opening
    record = opening.record
    if record is not None:
        record = carried_over(newcomer.request, record, model)
        opening = dataclasses.replace(opening, record=record)
    if record is None:
        states = begin_states(model, newcomer.request.initial)
        return dataclasses.replace(newcomer, opening=opening, states=states)
    check_fit(record, model)
    return dataclasses.replace(newcomer, opening=opening)


def is_newest(live: Session[Model], opening: StoreOpening) -> bool:
    """Whether nobody had a session elsewhere before an opening here, so that what is live is its newest state."""
    # An earlier opening of this process whose reply was lost has raised the epoch in the store alone.
    is_own = 0 < opening.owned_since <= live.epoch
    return opening.found is Found.OPENED and (opening.previous_epoch == live.epoch or is_own)


def superseded(session_id: str, client_id: str) -> errors.SessionMoved:
    """Return what a stream hears whose session was ended elsewhere, when another takes its place here."""
    return errors.SessionMoved(
        f"session {session_id} was deleted or has expired", cause="deleted", client_id=client_id
    )


def refuse_unfound(opening: StoreOpening, session_id: str, live: Session[Model] | None) -> None:
    """Raise SessionNotFound, SessionExpired or SessionExists where the store has not opened a session."""
    if opening.found is Found.ABSENT:
        raise errors.SessionNotFound(f"there is no session {session_id}", session_id=session_id)
    if opening.found is Found.EXPIRED:
        raise errors.SessionExpired(
            f"session {session_id} was ended because nobody used it; create it to begin again",
            session_id=session_id,
        )
    if opening.found is Found.EXISTS:
        # A client whose CREATE succeeded and whose answer was lost knows by this that the session is its own.
        client_id = opening.client_id if live is None else live.created_by
        raise errors.SessionExists(
            f"there is a session {session_id} already: open it, delete it first, or take another id",
            session_id=session_id,
            client_id=client_id,
        )
