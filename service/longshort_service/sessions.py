"""The session table: which sessions are live, who has them open, which were unused longest.

Owns every live session and its row. Knows no gRPC, no onnxruntime, no asyncio and no store: what is loaded and what
is spilled goes in and out as SessionRecord. Time is an argument, in seconds since 1970.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic

from longshort_service import errors
from longshort_service.served_model import ModelT, allocate_row, check_fit
from longshort_service.session import Session, StreamOwner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from longshort_service.record import SessionRecord


class SessionTable(Generic[ModelT]):
    """All live sessions by id."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session[ModelT]] = {}
        # Sessions that no stream has open, by model, the longest unused first.
        self._idle: dict[ModelT, dict[str, Session[ModelT]]] = {}
        self.num_idle = 0

    def __len__(self) -> int:
        """Return the number of live sessions, idle ones included."""
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session[ModelT]]:
        """Iterate over the live sessions; the table must not change meanwhile."""
        return iter(self._sessions.values())

    def get(self, session_id: str) -> Session[ModelT] | None:
        """Return a live session; None where it is not live here."""
        return self._sessions.get(session_id)

    def create(
        self, session_id: str, model: ModelT, *, epoch: int, incarnation: int, now_s: float
    ) -> Session[ModelT]:
        """Add a session at step 0 in the model's initial state. Raises SessionsExhausted."""
        session = Session(session_id, model, allocate_row(model), epoch, incarnation)
        self._add(session, now_s)
        return session

    def restore(self, record: SessionRecord, model: ModelT, *, epoch: int, now_s: float) -> Session[ModelT]:
        """Add a session as it was recorded. Raises SessionsExhausted, or ModelChanged where the state is another's."""
        check_fit(record, model)
        session = Session(record.session_id, model, allocate_row(model), epoch, record.incarnation)
        session.put(record)
        self._add(session, now_s)
        return session

    def attach(self, session: Session[ModelT], owner: StreamOwner, now_s: float) -> None:
        """Give a session to a stream. A stream that had it before must have been ended by the caller."""
        if session.owner is None:
            self._leave_idle(session)
        session.owner = owner
        session.last_used_s = now_s

    def detach(self, session: Session[ModelT], owner: StreamOwner, now_s: float) -> None:
        """Take a session back from a stream that ends; nothing happens where another stream has it by now."""
        if session.owner is owner:
            session.owner = None
            session.last_used_s = now_s
            if not session.is_ended:
                self._enter_idle(session)

    def touch(self, session: Session[ModelT], now_s: float) -> None:
        """Note that a session was used without a stream."""
        session.last_used_s = now_s
        if session.owner is None:
            self._leave_idle(session)
            self._enter_idle(session)

    def remove(self, session: Session[ModelT]) -> None:
        """Take a session off the table and free its row. The caller has waited until nothing is in flight."""
        if session.is_busy:
            raise errors.InternalError(f"session {session.id} was removed with a message in flight")
        if session.owner is None:
            self._leave_idle(session)
        session.is_ended = True
        del self._sessions[session.id]
        session.model.arena.free(session.slot)

    def longest_idle(self, is_free: Callable[[str], bool] = lambda _id: True) -> Session[ModelT] | None:
        """Return the session that was unused longest and that may be spilled; None where there is none.

        `is_free` says of an id whether nobody is at that session.
        """
        heads = (
            next(
                (session for session in idle.values() if not session.is_busy and is_free(session.id)),
                None,
            )
            for idle in self._idle.values()
        )
        found = [session for session in heads if session is not None]
        return min(found, key=lambda session: session.last_used_s, default=None)

    def idle_since(self, before_s: float, limit: int) -> list[Session[ModelT]]:
        """Return up to `limit` idle sessions last used before `before_s`."""
        found: list[Session[ModelT]] = []
        for idle in self._idle.values():
            for session in idle.values():
                if session.last_used_s >= before_s or len(found) == limit:
                    break
                if not session.is_busy:
                    found.append(session)
        return found

    def num_sessions_of(self, model: ModelT) -> int:
        """Return how many live sessions a model has."""
        return sum(session.model is model for session in self._sessions.values())

    def _add(self, session: Session[ModelT], now_s: float) -> None:
        session.last_used_s = now_s
        self._sessions[session.id] = session
        self._enter_idle(session)

    def _enter_idle(self, session: Session[ModelT]) -> None:
        self._idle.setdefault(session.model, {})[session.id] = session
        self.num_idle += 1

    def _leave_idle(self, session: Session[ModelT]) -> None:
        of_model = self._idle[session.model]
        del of_model[session.id]
        if not of_model:
            del self._idle[session.model]  # so that an unloaded model is not held
        self.num_idle -= 1
