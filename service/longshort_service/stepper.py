"""Moving a session by one message, and looking ahead or inside on a copy of its state.

Joins the session's side of a message with its run in the scheduler. Does not know gRPC or where a session came from.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from longshort_service import errors
from longshort_service.forecaster import Forecaster
from longshort_service.served_model import check_fit, failure_of
from longshort_service.session import Answers, Replay, select_answers
from longshort_service.values import check_values

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    from longshort_service.arena import Slot, States
    from longshort_service.batching import Job
    from longshort_service.forecaster import Ahead
    from longshort_service.record import SessionRecord
    from longshort_service.repository import Model
    from longshort_service.scheduler import Scheduler
    from longshort_service.session import Session
    from longshort_service.singles import SingleWaiter

MAX_EXPLAINS_AT_ONCE: Final = 4


class StepObserver(Protocol):
    """Who is told what became of messages."""

    def replay(self, model: str, num_messages: int = 1) -> None:
        """Note that messages were answered from the stored answer."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What a message of values came to."""

    outputs: NDArray[np.float32]  # [rows, outputs] f32
    step: int
    is_replayed: bool


class Stepper:
    """The message path between a session and the scheduler. `until_settled` waits for a message in flight."""

    def __init__(
        self,
        scheduler: Scheduler,
        observer: StepObserver,
        clock: Callable[[], float],
        explain_thread: Executor,
    ) -> None:
        self._scheduler = scheduler
        self._observer = observer
        self._clock = clock
        self._explain_thread = explain_thread
        self._num_explains = 0
        self._forecaster = Forecaster(scheduler)

    def submit(self, model: Model, job: Job) -> None:
        """Queue a job whose `on_end` says when it has ended. Raises what Scheduler.submit raises."""
        self._scheduler.submit(model.lane, job)

    def submit_single(
        self, model: Model, slot: Slot, values: Sequence[float], answer_rows: int, waiter: SingleWaiter
    ) -> None:
        """Queue one step of a session that is not busy; see Singles.add. Raises QueueFull or EngineDead."""
        model.columns.used_s[slot.row] = self._clock()
        self._scheduler.submit_single(model.lane, slot, values, answer_rows, waiter)

    def replayed(self, model: Model, num_messages: int = 1) -> None:
        """Note that messages were answered from the stored answer."""
        self._observer.replay(model.name, num_messages)

    async def step(
        self, session: Session[Model], rows: NDArray[np.float32], step: int | None, answers: Answers
    ) -> Applied:
        """Apply a message of values `[time, features]`; the session moves by all of it or not at all.

        The caller has waited until nothing is in flight. Raises what Session.begin and Scheduler.submit raise. When
        the caller is cancelled the message is withdrawn unless its last run is under way.
        """
        work = session.begin(rows, step, answers, self._clock())
        if isinstance(work, Replay):
            self._observer.replay(session.model.name)
            return Applied(work.outputs, session.step, is_replayed=True)
        reached = session.step + work.num_steps
        try:
            outputs = await self._run(session.model, work)
        except (errors.QueueFull, errors.EngineDead):
            if not work.has_ended:
                session.abandon(work)
            raise
        return Applied(select_answers(outputs, answers), reached, is_replayed=False)

    async def _run(self, model: Model, job: Job) -> NDArray[np.float32]:
        """Return the answers `[time, outputs]` of a job of one row; it is withdrawn where the caller is cancelled.

        Raises what Scheduler.submit raises, NonFiniteResult, ValuesRefused, or what ended the job.
        """
        await self._scheduler.complete(model.lane, job)
        if job.failure is not None:
            raise job.failure
        if job.failed is not None:
            raise failure_of(job, 0, model.name)
        outputs: NDArray[np.float32] = job.outputs[0]
        return outputs.copy()  # a view would keep the whole batch alive

    async def forecast(self, wanted: Ahead, max_steps: int) -> NDArray[np.float32]:
        """Return predictions `[horizon, width]` from a session's record; raises what `Forecaster.forecast` returns."""
        (outcome,) = await self.forecast_many([wanted], max_steps)
        if isinstance(outcome, errors.ServiceError):
            raise outcome
        return outcome

    async def forecast_many(
        self, wanted: Sequence[Ahead], max_steps: int
    ) -> list[NDArray[np.float32] | errors.ServiceError]:
        """Look ahead from many sessions at once; see Forecaster.forecast."""
        return await self._forecaster.forecast(wanted, max_steps)

    async def explain(
        self, record: SessionRecord, model: Model, rows: NDArray[np.float32]
    ) -> dict[str, NDArray[Any]]:
        """Return every output of explain.onnx for rows `[time, width]`, without the batch axis.

        Starts from a session's record; wherever it lives, it does not move. Runs in a thread of its own, a few at
        a time: QueueFull beyond that. Raises ExplainUnavailable, ValueMissing, ValueNotFinite, ModelChanged.
        """
        check_fit(record, model)
        values = check_values(rows, model.signature, record.last_values)
        states = [
            np.expand_dims(state, spec.batch_axis)
            for state, spec in zip(
                record.states or model.arena.memory.initial_row(), model.signature.states, strict=True
            )
        ]
        if self._num_explains >= MAX_EXPLAINS_AT_ONCE:
            raise errors.QueueFull(f"{self._num_explains} explanations are under way: wait and ask again")
        self._num_explains += 1
        try:
            outputs = await asyncio.get_running_loop().run_in_executor(
                self._explain_thread, _explain, model, values, states
            )
        finally:
            self._num_explains -= 1
        return outputs


def _explain(model: Model, values: NDArray[np.float32], states: States) -> dict[str, NDArray[Any]]:
    return model.explain_engine().run_all(values, states)
