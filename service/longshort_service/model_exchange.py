"""Taking live sessions from one model's rows to another's. Off the path of a value."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from longshort_service import errors
from longshort_service.beginning import begin_states
from longshort_service.model_change import ModelChange, carried_over, is_same_file, model_for
from longshort_service.turns import until_free

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from longshort_service.checkpointer import Checkpointer
    from longshort_service.opener import Opened, OpenRequest
    from longshort_service.repository import Model, Repository
    from longshort_service.session import Session
    from longshort_service.sessions import SessionTable

# Unary calls that are waited for. One whose answer waits for the store after these gets SESSION_MOVED, and its answer
# when it sends the same again.
MAX_BETWEEN: Final = 3


class ModelExchange:
    """Moves and resets live sessions as openings ask. `clock` returns seconds since 1970."""

    def __init__(
        self,
        *,
        table: SessionTable[Model],
        repository: Repository,
        checkpointer: Checkpointer,
        clock: Callable[[], float],
        draw_incarnation: Callable[[], int],
    ) -> None:
        self._table = table
        self._repository = repository
        self._checkpointer = checkpointer
        self._clock = clock
        self._draw_incarnation = draw_incarnation

    async def take_over(self, requests: Sequence[OpenRequest], opened: Sequence[Opened]) -> list[Opened]:
        """Return what was opened on the models that the openings ask for, each with whether it began anew there.

        The caller has the turns at all of them, and has taken them from their streams. A session that was exchanged
        has ended. One that could not be (ModelNotFound, ModelChanged, WrongShape, ValueNotFinite, ConstantMissing,
        SessionsExhausted, StoreUnavailable) is as it was, and its error returned.
        """
        taken = list(opened)
        leaving: dict[int, Session[Model]] = {}  # by place
        for place, (request, one) in enumerate(zip(requests, opened, strict=True)):
            if not isinstance(one, errors.ServiceError) and request.model_change is not ModelChange.REFUSE:
                try:
                    if self._is_to_leave(request, one[0]):
                        leaving[place] = one[0]
                except errors.ServiceError as error:
                    taken[place] = error
        # Answers that wait for the store wait for the session as it is: they go first.
        failures = await self._checkpointer.store_many(list(leaving.values()))
        for (place, session), failure in zip(leaving.items(), failures, strict=True):
            taken[place] = failure or await self._leave(requests[place], session)
        return taken

    async def _leave(self, request: OpenRequest, session: Session[Model]) -> Opened:
        try:
            await self._settle(session)
            return self._exchanged(request, session)
        except errors.ServiceError as error:
            return error

    async def _settle(self, session: Session[Model]) -> None:
        """Let unary calls that have come between have their answers, a few of them."""
        for _ in range(MAX_BETWEEN):
            await until_free(session)
            if session.is_ended or session.durable_step >= session.step:
                return
            await self._checkpointer.store(session)
        await until_free(session)

    def _is_to_leave(self, request: OpenRequest, session: Session[Model]) -> bool:
        origin = session.model.origin
        return not is_same_file(model_for(request, origin, self._repository).origin, origin)

    def _exchanged(self, request: OpenRequest, session: Session[Model]) -> tuple[Session[Model], bool]:
        """Move or restart a session that is settled."""
        # Asked again: the model may have been unloaded meanwhile.
        model = model_for(request, session.model.origin, self._repository)
        record = carried_over(request, session.record(), model)
        states = begin_states(model, request.initial) if record is None else None
        fresh = self._table.exchange(session, model, self._clock())
        if record is None:
            fresh.incarnation = self._draw_incarnation()
            fresh.created_by = sys.intern(request.client_id)
            if states is not None:
                model.arena.write(fresh.slot, states)
        else:
            fresh.put(record)
        return fresh, record is None
