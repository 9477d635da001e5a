"""Looking at sessions and managing them: get, list, reset, fork, export, import, delete.

Every call acts between two messages of a session. Reads raise no epoch: live state where the session is live, the
stored record elsewhere. Does not know gRPC.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from longshort_service import errors
from longshort_service import record as records
from longshort_service.beginning import begin_again
from longshort_service.opener import refuse_unfound
from longshort_service.stores.base import OpenMode, StoreRequest, open_one
from longshort_service.turns import until_free

if TYPE_CHECKING:
    from longshort_service.keeper import Keeper
    from longshort_service.record import SessionRecord
    from longshort_service.repository import Model
    from longshort_service.session import Session

# Ids read at a time, and how often in one call: a listing must not hold the loop, nor last for minutes.
LIST_BATCH: Final = 1000
MAX_LIST_ROUNDS: Final = 20


@dataclass(frozen=True, slots=True)
class SessionView:
    """What there is to say of a session, with its state rows where they were asked for."""

    record: SessionRecord
    durable_step: int
    is_live: bool
    is_streaming: bool
    idle_s: float


class Management:
    """The calls of the session service on the core's side."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._table = keeper.table
        self._store = keeper.store

    async def get(self, session_id: str, min_step: int = 0) -> SessionView:
        """Describe a session. Raises SessionNotFound, SessionExpired, or Stale below `min_step`."""
        try:
            view = await self._look(session_id)
        except errors.SessionNotFound:
            async with self._keeper.turns.of(session_id):  # it may just be between table and store
                view = await self._look(session_id)
        if view.record.step < min_step:
            raise errors.Stale(
                f"session {session_id} is at step {view.record.step} here, below {min_step}",
                step=view.record.step,
            )
        return view

    async def _look(self, session_id: str) -> SessionView:
        """Describe a session that nobody opens or ends meanwhile: the caller has its turn, or asks again."""
        live = self._table.get(session_id)
        if live is not None:
            await self._keeper.until_settled(live)
            if not live.is_ended:
                return self._view(live.record(), live)
        stored = await self._store.read(session_id)
        if stored is None:
            raise errors.SessionNotFound(f"there is no session {session_id}", session_id=session_id)
        return self._view(self._with_states(stored), None)

    def _with_states(self, stored: SessionRecord) -> SessionRecord:
        """Return a stored session with the states that it begins in, where it has not begun and its model is here."""
        if stored.states:
            return stored
        try:
            model = self._model_of(stored)
        except errors.ModelNotFound:
            return stored
        return dataclasses.replace(stored, states=tuple(model.arena.memory.initial_row()))

    async def list(self, *, prefix: str, after: str, limit: int, model: str) -> tuple[list[SessionView], str]:
        """Return a page of sessions in the order of their ids, and the id to go on after; "" at the end.

        A page may be shorter than `limit`, where few of very many sessions fit.
        """
        views: list[SessionView] = []
        for _ in range(MAX_LIST_ROUNDS):
            ids = await self._store.list_ids(prefix, after, LIST_BATCH)
            for session_id in ids:
                after = session_id
                try:
                    view = await self.get(session_id)
                except (errors.SessionNotFound, errors.SessionExpired):
                    continue  # it ended while the list was made
                if not model or view.record.model == model:
                    views.append(view)
                if len(views) == limit:
                    return views, after
            if len(ids) < LIST_BATCH:
                return views, ""
        return views, after  # few fit what was asked for: the caller goes on from here

    async def reset(self, session_id: str) -> SessionView:
        """Put a session back to step 0 with a new incarnation, where it is; its stream is ended.

        Raises SessionNotFound, SessionExpired, ModelNotFound, ConstantMissing or StoreUnavailable, and then nothing has
        changed, or SessionMoved where it was opened elsewhere meanwhile. A stored state of another model file is no
        obstacle, unless the model needs constants that it does not hold.
        """
        return await self._keeper.turns.through(session_id, lambda: self._reset(session_id))

    async def _reset(self, session_id: str) -> SessionView:
        before = (await self._look(session_id)).record
        model = self._model_of(before)
        live = self._table.get(session_id)
        states = begin_again(model, before.states)
        if live is not None:
            await self._keeper.restart(live, states, lambda: self._end_stream(live, "reset"))
            return self._view(live.record(), live)
        now_s = self._keeper.clock()
        opening = await open_one(self._store, StoreRequest(session_id, OpenMode.OPEN), now_s)
        refuse_unfound(opening, session_id, None)
        blank = records.birth(
            session_id, model.origin, self._keeper.draw_incarnation(), opening.epoch, now_s, states
        )
        (refusal,) = await self._store.write([blank])
        if refusal is not None:
            raise errors.SessionMoved(
                f"session {session_id} was opened while it was reset: reset it again",
                cause="opened",
                client_id=refusal.client_id,
            )
        return self._view(self._with_states(blank), None)

    async def fork(self, session_id: str, fork_id: str, min_step: int) -> SessionView:
        """Copy a session under another id, as of now. Raises SessionExists where that id is in use."""
        source = (await self.get(session_id, min_step)).record
        copy = dataclasses.replace(source, session_id=fork_id, last_message=None, last_answer=None)
        model = self._model_of(copy)
        return await self._keeper.turns.through(fork_id, lambda: self._create(fork_id, copy, model))

    async def export(self, session_id: str, min_step: int) -> tuple[bytes, int]:
        """Return a session as bytes, and its step."""
        view = await self.get(session_id, min_step)
        return records.encode(view.record), view.record.step

    async def import_(self, session_id: str, data: bytes) -> SessionView:
        """Make a session from exported bytes. Raises InvalidRecord, ModelChanged, ModelNotFound, SessionExists."""
        record = records.decode(data)
        model, new_id = self._model_of(record), session_id or record.session_id
        return await self._keeper.turns.through(new_id, lambda: self._create(new_id, record, model))

    async def delete(self, session_id: str) -> None:
        """End a session; its stream is ended. Raises SessionNotFound or SessionExpired."""
        await self._keeper.turns.through(session_id, lambda: self._delete(session_id))

    async def _delete(self, session_id: str) -> None:
        live = self._table.get(session_id)
        if live is not None:
            await until_free(live)  # who waits for what is on its way to the store has an answer
        (was_there,) = await self._store.delete_many([(session_id, None)])
        if live is not None:
            self._end_stream(live, "deleted")
            await until_free(live)
            if not live.is_ended:
                self._table.remove(live)
        if not was_there and live is None:
            await self._look(session_id)  # says whether it was ever there

    def _end_stream(self, live: Session[Model], cause: str) -> None:
        """End the stream that has the session, which is idle from then on."""
        owner = live.owner
        if owner is not None:
            moved = errors.SessionMoved(f"session {live.id} was {cause}", cause=cause, client_id="")
            owner.lose(live.id, moved)
            self._table.detach(live, owner, self._keeper.clock())

    async def _create(self, session_id: str, record: SessionRecord, model: Model) -> SessionView:
        """Make a live session of a record, with an epoch and an incarnation of its own."""
        session = await self._keeper.create_from(dataclasses.replace(record, session_id=session_id), model)
        return self._view(session.record(), session)

    def _model_of(self, record: SessionRecord) -> Model:
        return self._keeper.repository.get(record.model, record.version)

    def _view(self, record: SessionRecord, live: Session[Model] | None) -> SessionView:
        is_streaming = live is not None and live.owner is not None
        stored_step = record.step if self._store.is_durable else 0
        return SessionView(
            record=record,
            durable_step=stored_step if live is None else live.durable_step,
            is_live=live is not None,
            is_streaming=is_streaming,
            idle_s=0.0 if is_streaming else max(self._keeper.clock() - record.last_used_s, 0.0),
        )
