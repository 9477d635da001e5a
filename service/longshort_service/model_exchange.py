"""Taking a live session from one model's row to another's. Off the path of a value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longshort_service.model_change import carried_over, is_same_file, model_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshort_service.checkpointer import Checkpointer
    from longshort_service.opener import OpenRequest
    from longshort_service.repository import Model, Repository
    from longshort_service.session import Session
    from longshort_service.sessions import SessionTable


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

    async def take_over(self, request: OpenRequest, live: Session[Model]) -> tuple[Session[Model], bool]:
        """Return a session on the model that its opening asks for, and whether it began anew there.

        The caller has its turn, and has taken it from its stream. It may be that very session, where nothing was to
        be changed; otherwise that one has ended. Raises ModelNotFound, ModelChanged, SessionsExhausted or
        StoreUnavailable, and then nothing has changed.
        """
        if is_same_file(model_for(request, live.model.origin, self._repository).origin, live.model.origin):
            return live, False
        # Answers that wait for the store wait for the session as it is: they go first.
        await self._checkpointer.store(live)
        await self._checkpointer.until_free(live)  # a unary call may have come between
        model = model_for(request, live.model.origin, self._repository)  # it may have been unloaded meanwhile
        record = carried_over(request, live.record(), model)
        session = self._table.exchange(live, model, self._clock())
        if record is None:
            session.incarnation = self._draw_incarnation()
            session.created_by = request.client_id
        else:
            session.put(record)
        return session, record is None
