"""Looking ahead from sessions, many at once, on copies of their states; none of them moves.

Those of one model that look equally far share jobs, as many rows as make a short run. Each run of a job is one step, so
that what is live goes between.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from longshort_service import errors
from longshort_service.arena import Slot
from longshort_service.batching import Job
from longshort_service.forecast import check_horizon, rows_ahead
from longshort_service.served_model import allocate_scratch, check_fit, failure_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from longshort_service.record import SessionRecord
    from longshort_service.repository import Model
    from longshort_service.scheduler import Scheduler

Outcome: TypeAlias = "NDArray[np.float32] | errors.ServiceError"


@dataclass(frozen=True, slots=True, eq=False)
class Ahead:
    """A forecast that is asked for: `horizon` steps from a session's record, wherever the session lives."""

    record: SessionRecord
    model: Model
    horizon: int
    known: NDArray[np.float32] = field(
        default_factory=lambda: np.empty(0, np.float32)
    )  # flat, as `rows_ahead` has it


@dataclass(frozen=True, slots=True, eq=False)
class _Start:
    """A forecast that can begin: its place among those asked for, and the rows `[horizon - 1, width]` to be run."""

    place: int
    record: SessionRecord
    first: NDArray[np.float32]  # [width], the session's last prediction
    rows: NDArray[np.float32]


class Forecaster:
    """Rolls models ahead through the scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    async def forecast(self, wanted: Sequence[Ahead], max_steps: int) -> list[Outcome]:
        """Return predictions `[horizon, width]` for each, or why there are none.

        The first row is the session's last prediction; each later one is the model's answer to the one before, fed
        back as its signature says, beside a row of `known`. The errors are those of `check_horizon` and `rows_ahead`,
        SessionEmpty, ModelChanged where the record is of another file, NonFiniteResult, ValuesRefused,
        SessionsExhausted, and what Scheduler.submit raises.
        """
        outcomes: dict[int, Outcome] = {}
        groups: dict[tuple[Model, int], list[_Start]] = {}
        for place, each in enumerate(wanted):
            try:
                start = _start(place, each, max_steps)
            except errors.ServiceError as error:
                outcomes[place] = error
                continue
            if each.horizon == 1:
                outcomes[place] = start.first[None]
            else:
                groups.setdefault((each.model, each.horizon), []).append(start)
        rolls = []
        for (model, _), group in groups.items():
            count = model.lane.policy.rows_together()
            parts = [group[begin : begin + count] for begin in range(0, len(group), count)]
            rolls += [self._roll(model, part) for part in parts]
        for found in await asyncio.gather(*rolls):
            outcomes |= found
        return [outcomes[place] for place in range(len(wanted))]

    async def _roll(self, model: Model, starts: Sequence[_Start]) -> dict[int, Outcome]:
        """Run forecasts of equal horizon together; return their outcomes by place."""
        try:
            scratch = allocate_scratch(model, len(starts))
        except errors.SessionsExhausted as error:
            if len(starts) == 1:
                return {starts[0].place: error}
            # Fewer rows are free than are asked for: one half after the other.
            middle = len(starts) // 2
            return await self._roll(model, starts[:middle]) | await self._roll(model, starts[middle:])
        for start, row, generation in zip(
            starts, scratch.rows.tolist(), scratch.generations.tolist(), strict=True
        ):
            model.arena.write(Slot(row, generation), list(start.record.states))
        values = np.stack([start.rows for start in starts])
        job = Job(values, scratch, scratch=scratch, feedback=model.signature.feedback_words())
        try:
            await self._scheduler.complete(model.lane, job)
        except (errors.QueueFull, errors.EngineDead) as error:
            model.arena.free(scratch)
            return {start.place: error for start in starts}
        return {start.place: _outcome(job, row, start, model.name) for row, start in enumerate(starts)}


def _start(place: int, wanted: Ahead, max_steps: int) -> _Start:
    """Return what a forecast begins with. Raises why it cannot."""
    signature, record = wanted.model.signature, wanted.record
    check_horizon(signature, wanted.horizon, max_steps)
    check_fit(record, wanted.model)
    if record.last_output is None:
        raise errors.SessionEmpty(f"session {record.session_id} has seen no value yet: step it first")
    rows = rows_ahead(signature, record.last_output, wanted.known, wanted.horizon)
    return _Start(place, record, record.last_output, rows)


def _outcome(job: Job, row: int, start: _Start, model_name: str) -> Outcome:
    if job.failure is not None or (job.failed is not None and job.failed[row]):
        return failure_of(job, row, model_name)
    return np.vstack([start.first, job.outputs[row]])
