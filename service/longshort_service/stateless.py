"""Running rows that belong to no session: each from the model's initial state, and nothing of them is kept.

They share runs with everybody else's steps. Does not know gRPC.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np

from longshort_service import errors
from longshort_service.arena import Slot
from longshort_service.batching import Job
from longshort_service.beginning import begin_states
from longshort_service.served_model import allocate_scratch, failure_of
from longshort_service.values import check_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from longshort_service.arena import Slots
    from longshort_service.repository import Model
    from longshort_service.stepper import Stepper


async def run_alone(
    stepper: Stepper, model: Model, rows: NDArray[np.float32], given: Mapping[str, NDArray[Any]]
) -> NDArray[np.float32]:
    """Return the answers `[rows, time, width]` to rows of values `[rows, time, width]`, all beginning in `given`.

    Raises ValueMissing, ValueNotFinite, what `begin_states` raises, SessionsExhausted, what Scheduler.submit raises,
    and NonFiniteResult or ValuesRefused where any row's run failed: then there is no answer to the others either. A
    caller that is cancelled withdraws the rows.
    """
    states = begin_states(model, given)
    values = np.stack([check_values(row, model.signature, None) for row in rows])
    slots = allocate_scratch(model, len(values))
    if states is None:
        model.arena.memory.initialise(slots.rows)
    else:
        for slot in _each(slots):
            model.arena.write(slot, states)
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(_job: Job) -> None:
        if not waiter.done():
            waiter.set_result(None)

    job = Job(values, slots, scratch=slots, on_end=wake)
    try:
        stepper.submit(model, job)
    except (errors.QueueFull, errors.EngineDead):
        model.arena.free(slots)
        raise
    try:
        await waiter
    except asyncio.CancelledError:
        job.withdrawn = True
        raise
    applied = job.applied
    if applied is not None and not applied.all():
        raise failure_of(job, int(np.argmin(applied)), model.name)
    return job.outputs.copy()  # a view would keep the whole batch alive


def _each(slots: Slots) -> list[Slot]:
    return [
        Slot(row, generation)
        for row, generation in zip(slots.rows.tolist(), slots.generations.tolist(), strict=True)
    ]
