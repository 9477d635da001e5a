"""One model version on its way through the scheduler: its engine, its rows, its queue, and one run of a batch."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longshort_service.arena import Arena, States
    from longshort_service.batching import Batch, BatchPolicy, Job
    from longshort_service.engine import Engine


class LaneObserver(Protocol):
    """Who is told how long things took, all in seconds."""

    def batch_formed(self, num_rows: int, waited_s: list[float]) -> None:
        """Note that a batch of `num_rows` rows starts; `waited_s` is how long each has waited."""

    def batch_done(self, num_applied: int, gather_s: float, run_s: float, scatter_s: float) -> None:
        """Note that a batch has run and its waiters are told; `num_applied` steps of sessions are complete by it."""


@dataclass(slots=True, eq=False)
class Lane:
    """One model version on its way through the scheduler: its engine, its rows, its queue."""

    name: str
    engine: Engine
    arena: Arena
    policy: BatchPolicy
    observer: LaneObserver
    queue: deque[Job] = field(default_factory=deque)
    num_queued_steps: int = 0
    is_running: bool = False  # a batch of it is in the engine
    is_waiting: bool = False  # it stands in line for a turn
    is_dead: bool = False


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run gave and how long its parts took, in seconds."""

    answers: NDArray[np.float32]  # [batch, time, outputs] f32
    states: States
    gather_s: float
    run_s: float
    ended_s: float  # on the performance counter


def run_batch(lane: Lane, batch: Batch) -> RunResult:
    """Gather, run. Touches rows only to read them: in the engine thread the rows of a batch are nobody else's."""
    begin_s = time.perf_counter()
    jobs = batch.jobs
    if batch.num_steps == 1:
        values = np.stack([job.values[job.num_done : job.num_done + 1] for job in jobs])
        counts = None
    else:
        values = np.zeros((len(jobs), batch.num_steps, jobs[0].values.shape[1]), np.float32)
        for row, (job, count) in enumerate(zip(jobs, batch.counts, strict=True)):
            values[row, :count] = job.values[job.num_done : job.num_done + count]
        counts = np.array(batch.counts, np.int32)
    states = lane.arena.gather([job.source for job in jobs])
    gathered_s = time.perf_counter()
    answers, new_states = lane.engine.run(values, counts, states)
    ended_s = time.perf_counter()
    return RunResult(answers, new_states, gathered_s - begin_s, ended_s - gathered_s, ended_s)


def finite_rows(lane: Lane, result: RunResult) -> NDArray[np.bool_] | None:
    """Return which rows' answers and states are finite; None where all are.

    A sum is finite only where all its terms are, so that one pass without a mask clears a batch that is well.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if all(np.isfinite(array.sum()) for array in (result.answers, *result.states)):
            return None
    rows = np.isfinite(result.answers).reshape(len(result.answers), -1)
    finite: NDArray[np.bool_] = rows.all(axis=1) & lane.arena.finite_rows(result.states)
    return finite
