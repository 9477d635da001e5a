"""The session table: which sessions are live, who has them open, which were unused longest.

Owns every live session and its row. Knows no gRPC, no onnxruntime, no asyncio and no store: what is loaded and what
is spilled goes in and out as SessionRecord. Time is an argument, in seconds since 1970.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Generic

import numpy as np

from longshort_service import errors
from longshort_service.arena import Slots
from longshort_service.durability import Durability
from longshort_service.row_index import RowIndex
from longshort_service.served_model import ModelT, allocate_row, allocate_scratch, check_fit
from longshort_service.session import Session, StreamOwner
from longshort_service.sharded_dict import ShardedDict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from longshort_service.record import SessionRecord


class SessionTable(Generic[ModelT]):
    """All live sessions by id, and by model and row. A session that no stream has open is idle."""

    def __init__(self) -> None:
        self._sessions: ShardedDict[Session[ModelT]] = ShardedDict()
        self._by_row: dict[ModelT, RowIndex[ModelT]] = {}  # models with sessions only: no other is held
        self.num_idle = 0

    def __len__(self) -> int:
        """Return the number of live sessions, idle ones included."""
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session[ModelT]]:
        """Iterate over the live sessions; the table must not change meanwhile."""
        return itertools.chain.from_iterable(shard.values() for shard in self._sessions.shards)

    def get(self, session_id: str) -> Session[ModelT] | None:
        """Return a live session; None where it is not live here."""
        return self._sessions.of(session_id).get(session_id)

    def create(
        self, session_id: str, model: ModelT, *, epoch: int, incarnation: int, now_s: float
    ) -> Session[ModelT]:
        """Add a session at step 0 in the model's initial state. Raises SessionsExhausted."""
        (session,) = self.create_many([session_id], model, [epoch], [incarnation], now_s)
        return session

    def create_many(
        self,
        session_ids: Sequence[str],
        model: ModelT,
        epochs: Sequence[int],
        incarnations: Sequence[int],
        now_s: float,
    ) -> list[Session[ModelT]]:
        """Add sessions at step 0 in the model's initial state. Raises SessionsExhausted, and then none is added."""
        slots = allocate_scratch(model, len(session_ids))
        rows, columns = slots.rows, model.columns
        model.arena.memory.initialise(rows)
        columns.clear_many(rows)
        columns.epoch[rows] = np.array(epochs, np.uint64)
        columns.incarnation[rows] = np.array(incarnations, np.uint64)
        columns.used_s[rows] = now_s
        columns.is_idle[rows] = True
        places = zip(session_ids, rows.tolist(), slots.generations.tolist(), strict=True)
        sessions = [Session(session_id, model, row, generation) for session_id, row, generation in places]
        for session in sessions:
            self._sessions.of(session.id)[session.id] = session
        self.num_idle += len(sessions)
        if model not in self._by_row:
            self._by_row[model] = RowIndex(columns)
        self._by_row[model].add(sessions)
        return sessions

    def restore(self, record: SessionRecord, model: ModelT, *, epoch: int, now_s: float) -> Session[ModelT]:
        """Add a session as it was recorded. Raises SessionsExhausted, or ModelChanged where the state is another's."""
        check_fit(record, model)
        session = self.create(
            record.session_id, model, epoch=epoch, incarnation=record.incarnation, now_s=now_s
        )
        session.put(record)
        return session

    def attach(self, session: Session[ModelT], owner: StreamOwner, now_s: float) -> None:
        """Give a session to a stream. A stream that had it before must have been ended by the caller."""
        self.attach_many([session], owner, now_s)

    def attach_many(self, sessions: Sequence[Session[ModelT]], owner: StreamOwner, now_s: float) -> None:
        """Give sessions to a stream, as `attach` does."""
        for session in sessions:
            self.num_idle -= session.owner is None
            session.owner = owner
        for model, rows in _rows_by_model(sessions):
            model.columns.is_idle[rows] = False
            model.columns.used_s[rows] = now_s

    def detach(self, session: Session[ModelT], owner: StreamOwner, now_s: float) -> None:
        """Take a session back from a stream that ends; nothing happens where another stream has it by now."""
        self.detach_many([session], owner, now_s)

    def detach_many(self, sessions: Sequence[Session[ModelT]], owner: StreamOwner, now_s: float) -> None:
        """Take sessions back from a stream, as `detach` does."""
        left = []
        for session in sessions:
            if session.owner is owner:
                session.owner = None
                if not session.is_ended:
                    left.append(session)
        self.num_idle += len(left)
        for model, rows in _rows_by_model(left):
            model.columns.is_idle[rows] = True
            model.columns.used_s[rows] = now_s

    def touch(self, session: Session[ModelT], now_s: float) -> None:
        """Note that a session was used without a stream."""
        session.last_used_s = now_s

    def remove(self, session: Session[ModelT]) -> None:
        """Take a session off the table and free its row. The caller has waited until nothing is in flight."""
        self.remove_many([session])

    def remove_many(self, sessions: Sequence[Session[ModelT]]) -> None:
        """Take sessions, each given once, off the table and free their rows, as `remove` does."""
        for session in sessions:
            if session.is_busy:
                raise errors.InternalError(f"session {session.id} was removed with a message in flight")
        for model, rows in _rows_by_model(sessions):
            generations = [session.generation for session in sessions if session.model is model]
            model.arena.free(Slots(rows, np.array(generations, np.int64)))
            model.columns.is_idle[rows] = False
            model.columns.durability[rows] = Durability.NONE  # it is not behind any more
            model.columns.forget_long_answers(rows)
            index = self._by_row[model]
            index.remove([session for session in sessions if session.model is model])
            if not index.num_sessions:
                del self._by_row[model]
        for session in sessions:
            self.num_idle -= session.owner is None
            session.is_ended = True
            del self._sessions.of(session.id)[session.id]

    def give_up(self, session: Session[ModelT], error: errors.ServiceError, now_s: float) -> None:
        """Take a session off the table that is no longer ours; the stream that has it open hears why.

        The caller has waited until nothing is in flight. Left to that stream, its row would be used when it is
        another's.
        """
        owner = session.owner
        if owner is not None:
            owner.lose(session.id, error)
            self.detach(session, owner, now_s)
        self.remove(session)

    def exchange(self, session: Session[ModelT], model: ModelT, now_s: float) -> Session[ModelT]:
        """Give a session up for one of the same name, epoch and incarnation at step 0 on another model; it is idle.

        The caller has waited until nothing is in flight. Raises SessionsExhausted, and then nothing has changed.
        """
        model.arena.free(allocate_row(model))  # there is a row: the session that is given up is not lost
        epoch, incarnation = session.epoch, session.incarnation
        self.remove(session)
        return self.create(session.id, model, epoch=epoch, incarnation=incarnation, now_s=now_s)

    def longest_idle(
        self, count: int = 1, is_free: Callable[[str], bool] = lambda _id: True
    ) -> list[Session[ModelT]]:
        """Return up to `count` sessions that may be spilled, those unused longest first; none where there is none.

        `is_free` says of an id whether nobody is at that session.
        """
        num_looked_at = count
        while True:
            oldest = [
                session for index in self._by_row.values() for session in index.longest_idle(num_looked_at)
            ]
            oldest.sort(key=lambda session: session.last_used_s)
            free = [session for session in oldest[:num_looked_at] if is_free(session.id)]
            if free or num_looked_at >= self.num_idle:
                return free[:count]
            num_looked_at *= 8  # somebody is at all of these

    def idle_since(self, before_s: float, limit: int) -> list[Session[ModelT]]:
        """Return up to `limit` idle sessions last used before `before_s`."""
        found: list[Session[ModelT]] = []
        for index in self._by_row.values():
            found += index.idle_since(before_s, limit - len(found))
        return found

    def by_model(self) -> list[tuple[ModelT, RowIndex[ModelT]]]:
        """Return the models that have sessions, each with its sessions by row."""
        return list(self._by_row.items())

    def num_sessions_of(self, model: ModelT) -> int:
        """Return how many live sessions a model has."""
        index = self._by_row.get(model)
        return 0 if index is None else index.num_sessions


def by_model(sessions: Iterable[Session[ModelT]]) -> list[list[Session[ModelT]]]:
    """Return sessions in parts of one model each."""
    parts: dict[ModelT, list[Session[ModelT]]] = {}
    for session in sessions:
        parts.setdefault(session.model, []).append(session)
    return list(parts.values())


def _rows_by_model(sessions: Sequence[Session[ModelT]]) -> Iterator[tuple[ModelT, NDArray[np.intp]]]:
    for part in by_model(sessions):
        yield part[0].model, np.array([session.row for session in part], np.intp)
