"""The core's keeping of sessions without engines, in virtual time: messages are answered when a test says so."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any, cast

from flaky_store import FlakyStore
from house import Notes
from longshort_service import errors
from longshort_service.behind import CheckpointLimits
from longshort_service.checkpointer import Checkpointer
from longshort_service.durability import Durability
from longshort_service.eviction import Evictor, Limits
from longshort_service.keeper import Keeper
from longshort_service.opener import OpenRequest
from longshort_service.session import Answers, Replay
from longshort_service.sessions import SessionTable
from longshort_service.turns import Turns, until_settled
from tables import RecordingOwner, TableModel, finish, rows_of
from virtual import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from longshort_service.batching import Job
    from longshort_service.repository import Model, Repository
    from longshort_service.session import Session
    from longshort_service.stores.base import Store

INTERVAL_S, STEPS, ANSWER_TIMEOUT_S, OUTAGE_S = 1.0, 16, 5.0, 30.0


class Desk:
    """Keeper, evictor and checkpointer over toy models; `loop` has the time."""

    def __init__(
        self,
        store: Store,
        monotonic: Callable[[], float],
        *,
        models: Sequence[TableModel] = (),
        is_unary_sync: bool = True,
        max_sessions: int = 100_000,
        draw_incarnation: Callable[[], int] | None = None,
    ) -> None:
        self.store = store
        self.monotonic = monotonic
        self.models = list(models) or [TableModel(num_rows=64)]
        self.notes = Notes()
        self.turns = Turns()
        self.table: SessionTable[Model] = SessionTable()
        self.num_store_changes = 0
        self.checkpointer = Checkpointer(
            table=self.table,
            store=store,
            turns=self.turns,
            limits=CheckpointLimits(
                interval_s=INTERVAL_S,
                steps=STEPS,
                answer_timeout_s=ANSWER_TIMEOUT_S,
                outage_s=OUTAGE_S,
                is_unary_sync=is_unary_sync,
            ),
            clock=self.clock,
            on_store_change=self._store_changed,
            observer=self.notes,
            monotonic=monotonic,
        )
        self.evictor = Evictor(
            table=self.table,
            store=store,
            turns=self.turns,
            waiters=self.checkpointer.waiters,
            limits=Limits(max_sessions, idle_timeout_s=60, session_ttl_s=86_400, tombstone_ttl_s=86_400),
            clock=self.clock,
            observer=self.notes,
        )
        self.keeper = Keeper(
            table=self.table,
            store=store,
            repository=cast("Repository", self),
            turns=self.turns,
            evictor=self.evictor,
            checkpointer=self.checkpointer,
            durability=Durability.BEHIND,
            clock=self.clock,
            draw_incarnation=draw_incarnation or count(1).__next__,
            observer=self.notes,
        )

    def clock(self) -> float:
        """Return the seconds since 1970."""
        return 1_000.0 + self.monotonic()

    def _store_changed(self) -> None:
        self.num_store_changes += 1

    def get(self, name: str, version: int = 0) -> TableModel:
        """See Repository."""
        for model in self.models:
            if (model.name, version or model.version) == (name, model.version):
                return model
        raise errors.ModelNotFound(f"there is no {name}", model=name)

    async def stop(self) -> None:
        """End the writing; what is kept of sessions must be right then."""
        await self.checkpointer.stop()
        assert [task.exception() for task in self.checkpointer._tasks] == [None] * len(
            self.checkpointer._tasks
        )
        assert self.checkpointer.waiters.sessions() == []
        assert len(self.turns) == 0
        for model in self.models:
            model.arena.check_integrity()
        for session in self.table:
            assert not session.model.columns.is_writing[session.row] or session.is_busy

    async def open(
        self, session_id: str, durability: Durability | None = None, owner: Any = None, **request: Any
    ) -> Session[Model]:
        """Open a session for a stream."""
        owner = owner or RecordingOwner()
        wanted = OpenRequest(
            session_id,
            **({"model": "toy", "client_id": owner.client_id, "durability": durability} | request),
        )
        session, _ = await self.keeper.open(wanted, owner)
        return session

    def leave(self, session: Session[Model]) -> None:
        """End the stream of a session."""
        assert session.owner is not None
        self.keeper.detach([session], session.owner)

    def begin(self, session: Session[Model], value: float = 1, step: int | None = None) -> Job:
        """Take a message: it is in flight from now on."""
        job = session.begin(rows_of(value), step, Answers.ALL, self.clock())
        assert not isinstance(job, Replay)
        return job

    def end(self, session: Session[Model], job: Job) -> None:
        """Apply a message in flight."""
        finish(job, cast("TableModel", session.model))

    def step(self, session: Session[Model], *values: float) -> None:
        """Apply a message a value, at once."""
        for value in values or (1,):
            self.end(session, self.begin(session, value))

    async def answer(
        self, session: Session[Model], value: float = 1, step: int | None = None, *, strictly: bool = False
    ) -> tuple[int, float, bool]:
        """Send a message and return what its caller is told: the step, the answer, and whether it was repeated.

        Raises what refuses it, and what the wait for the store ends with.
        """
        await until_settled(session)
        begun = session.begin(rows_of(value), step, Answers.ALL, self.clock())
        if isinstance(begun, Replay):
            reached, output = begun.step, float(begun.outputs[-1, 0])
        else:
            self.end(session, begun)
            reached, output = session.step, float(begun.outputs[0, -1, 0])
        await self.checkpointer.until_stored(session, reached, strictly=strictly)
        return reached, output, isinstance(begun, Replay)


def play(
    scenario: Callable[[Desk, FlakyStore], Awaitable[Any]], *, is_started: bool = True, **desk: Any
) -> Any:
    """Run a scenario at a desk with a flaky store, in virtual time."""
    loop = VirtualLoop()

    async def played() -> Any:
        store = FlakyStore(loop.time)
        made = Desk(store, loop.time, **desk)
        if is_started:
            made.checkpointer.start()
        try:
            return await scenario(made, store)
        finally:
            await made.stop()
            assert store.overlaps == set()

    return loop.play(played())
