"""Keeper, table, store and repository with real engines, without gRPC; time stands still unless it is moved."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from longshort_service.arena import Arena
from longshort_service.batching import BatchPolicy, RunCost
from longshort_service.behind import CheckpointLimits
from longshort_service.checkpointer import Checkpointer
from longshort_service.columns import SessionColumns
from longshort_service.durability import Durability
from longshort_service.engine import Engine
from longshort_service.errors import ServiceError
from longshort_service.eviction import Evictor, Limits
from longshort_service.explain_file import can_explain
from longshort_service.forecaster import Ahead
from longshort_service.host_states import HostStates, StateLayout
from longshort_service.keeper import Keeper
from longshort_service.lane import Lane
from longshort_service.management import Management
from longshort_service.opener import OpenRequest
from longshort_service.repository import Model, ReloadResult, Repository
from longshort_service.scheduler import Scheduler
from longshort_service.session import Answers, Session
from longshort_service.sessions import SessionTable
from longshort_service.signature import MissingValue
from longshort_service.stepper import Stepper
from longshort_service.stores.memory import MemoryStore
from longshort_service.turns import Turns
from longshort_service.version_folder import MODEL_FILE, promise_of
from tables import RecordingOwner

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from longshort_service.record import SessionRecord
    from longshort_service.stores.base import Refusal, Store, StoreOpening, StoreRequest

ROWS = 8


class SlowStore(MemoryStore):
    """A store whose calls take a few turns of the loop, as those of a store over a network do."""

    async def _pause(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    async def open_many(
        self, requests: Sequence[StoreRequest], now_s: float
    ) -> list[StoreOpening | ServiceError]:
        await self._pause()
        openings = await super().open_many(requests, now_s)
        await self._pause()
        return openings

    async def write(self, records: Sequence[SessionRecord], *, settled: bool = True) -> list[Refusal | None]:
        await self._pause()
        refusals = await super().write(records, settled=settled)
        await self._pause()
        return refusals

    async def read(self, session_id: str) -> SessionRecord | None:
        await self._pause()
        return await super().read(session_id)


@dataclass
class Notes:
    """Takes what observers are told, as (name, arguments)."""

    seen: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return lambda *told: self.seen.append((name, told))

    def of(self, name: str) -> list[tuple[Any, ...]]:
        """Return the arguments of every telling of one kind."""
        return [told for kind, told in self.seen if kind == name]


class House:
    """The core with a repository of adders."""

    def __init__(
        self,
        models: Path,
        store: Store | None = None,
        max_sessions: int = ROWS,
        durability: Durability = Durability.BEHIND,
    ) -> None:
        self.now_s = 1_000.0
        self.notes = Notes()
        self.store: Store = store if store is not None else MemoryStore()
        self.table: SessionTable[Model] = SessionTable()
        self.repository = Repository(models, self._load, self.notes)
        self.deaths: list[Lane] = []
        self.scheduler = Scheduler(
            inline_run_limit_s=-1.0, max_queued_steps=100, on_engine_death=self.deaths.append
        )
        turns = Turns()
        self.checkpointer = Checkpointer(
            table=self.table,
            store=self.store,
            turns=turns,
            limits=CheckpointLimits(interval_s=0.05, steps=16, answer_timeout_s=1.0, outage_s=1.0),
            clock=lambda: self.now_s,
            on_store_change=lambda: None,
            observer=self.notes,
        )
        self.evictor = Evictor(
            table=self.table,
            store=self.store,
            turns=turns,
            waiters=self.checkpointer.waiters,
            limits=Limits(max_sessions, idle_timeout_s=10, session_ttl_s=100, tombstone_ttl_s=1000),
            clock=lambda: self.now_s,
            observer=self.notes,
        )
        self.keeper = Keeper(
            table=self.table,
            store=self.store,
            repository=self.repository,
            turns=turns,
            evictor=self.evictor,
            checkpointer=self.checkpointer,
            durability=durability,
            clock=lambda: self.now_s,
            draw_incarnation=count(1).__next__,
            observer=self.notes,
        )
        self.management = Management(self.keeper)
        self._explain_thread = ThreadPoolExecutor(1)
        self.stepper = Stepper(self.scheduler, self.notes, lambda: self.now_s, self._explain_thread)

    async def __aenter__(self) -> House:  # noqa: PYI034  nobody derives from it
        await self.reload()
        self.checkpointer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.scheduler.close()
        await self.keeper.close()
        self._explain_thread.shutdown()
        self.check()

    async def reload(self) -> ReloadResult:
        """Look at the repository again, as the service does."""
        return await self.repository.reload(self._is_in_use)

    async def _is_in_use(self, model: Model) -> bool:
        if self.table.num_sessions_of(model) > 0:
            return True
        return await self.store.has_records_of(model.name, model.version)

    def _load(self, name: str, version: int, folder: Path) -> Model:
        path = folder / MODEL_FILE
        engine = Engine(path, provider="cpu", intra_op_num_threads=1)
        signature = engine.signature
        states = HostStates([StateLayout(s.shape, s.batch_axis, s.initial) for s in signature.states], ROWS)
        columns = SessionColumns(
            ROWS,
            len(signature.features),
            len(signature.outputs),
            repeats_last=signature.missing is MissingValue.REPEAT_LAST,
        )
        policy = BatchPolicy(4, 4, signature.sequence_lens is not None, RunCost(1e-5, 1e-6, 1e-6))
        lane = Lane(name, engine, Arena(states, ROWS), states, columns, policy, self.notes)
        return Model(name, version, folder, promise_of(folder), lane, can_explain(path))

    def check(self) -> None:
        """Every row that is held is that of one live session."""
        for model in self.repository.models():
            model.arena.check_integrity()
            assert model.arena.num_held == self.table.num_sessions_of(model)
        assert len(self.keeper.turns) == 0

    async def open(
        self, session_id: str, owner: RecordingOwner | None = None, **request: Any
    ) -> Session[Model]:
        """Open a session for a stream."""
        owner = owner or RecordingOwner()
        wanted = OpenRequest(session_id, **({"model": "adder", "client_id": owner.client_id} | request))
        session, _ = await self.keeper.open(wanted, owner)
        return session

    async def step(self, session: Session[Model], *values: float, step: int | None = None) -> list[float]:
        """Apply values to a session that is live."""
        rows = np.array(values, np.float32)[:, None]
        return [float(y) for y in (await self.stepper.step(session, rows, step, Answers.ALL)).outputs[:, 0]]

    async def forecast(self, session: Session[Model], horizon: int, max_steps: int) -> tuple[Any, int]:
        """Look ahead from a session that is live and settled; return the predictions and the step."""
        record = session.record()
        wanted = Ahead(record, session.model, horizon)
        return await self.stepper.forecast(wanted, max_steps), record.step

    async def explain(self, session: Session[Model], rows: Any) -> tuple[Any, int]:
        """Look inside a session that is live and settled; return the outputs and the step."""
        record = session.record()
        return await self.stepper.explain(record, session.model, rows), record.step

    def leave(self, session: Session[Model]) -> None:
        """End the stream of a session, as a half-close does."""
        assert session.owner is not None
        self.keeper.detach([session], session.owner)

    async def spill(self, session: Session[Model]) -> None:
        """Have a session spilled for being idle, and nothing else."""
        if session.owner is not None:
            self.leave(session)
        self.now_s += 11
        await self.evictor.sweep()
        assert session.is_ended


async def reason_of(call: Any) -> type[ServiceError]:
    """Return the kind of error that a call ends with."""
    try:
        await call
    except ServiceError as error:
        return type(error)
    raise AssertionError("the call was answered")
