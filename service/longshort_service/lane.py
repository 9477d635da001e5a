"""One model version on its way through the scheduler: its engine, its rows, its queue, and one run of a batch."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from longshort_service.served_model import values_refused
from longshort_service.singles import Singles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longshort_service.arena import Arena, States
    from longshort_service.batching import Batch, BatchPolicy, Job
    from longshort_service.columns import SessionColumns
    from longshort_service.engine import Engine
    from longshort_service.errors import ServiceError
    from longshort_service.host_states import HostStates
    from longshort_service.resident_engine import ResidentEngine
    from longshort_service.small_run import SmallRun


class LaneObserver(Protocol):
    """Who is told how long things took, all in seconds."""

    def batch_formed(self, num_rows: int, waited_s: list[tuple[NDArray[np.float64], int]]) -> None:
        """Note that a batch of `num_rows` rows starts; `waited_s`: waiting times, and of how many messages each is."""

    def answered(self, seconds: NDArray[np.float64]) -> None:
        """Note that messages that came one by one are answered, each so long after it came."""

    def batch_done(self, num_applied: int, gather_s: float, run_s: float, scatter_s: float) -> None:
        """Note that a batch has run and its waiters are told; `num_applied` steps of sessions are complete by it."""

    def few_done(
        self,
        *,
        num_applied: int,
        waited_s: list[float],
        gather_s: float,
        run_s: float,
        scatter_s: float,
        total_s: list[float],
    ) -> None:
        """Note all of that of a few messages that came one by one and were run together."""


@dataclass(slots=True, eq=False)
class Lane:
    """One model version on its way through the scheduler."""

    name: str
    engine: Engine
    arena: Arena
    states: HostStates | None  # None: they are on the device, with `resident`
    columns: SessionColumns
    policy: BatchPolicy
    observer: LaneObserver
    queue: deque[Job] = field(default_factory=deque)
    singles: Singles = field(init=False)  # one-step messages that came one by one
    num_queued_steps: int = 0
    is_running: bool = False  # a batch of it is in the engine
    is_waiting: bool = False  # it stands in line for a turn
    is_dead: bool = False
    resident: ResidentEngine | None = None  # runs in the place of `engine` where states stay on a device
    _small_runs: dict[int, SmallRun] = field(default_factory=dict)

    def small_run(self, num_rows: int) -> SmallRun:
        """Return the run of one step of a few sessions, made when it is first needed."""
        run = self._small_runs.get(num_rows)
        if run is None:
            run = self._small_runs[num_rows] = self.engine.small_run(num_rows)
        return run

    @property
    def can_run_few(self) -> bool:
        """Whether a few steps can go the short way: rows in main memory that the graph takes as they are."""
        return self.states is not None and self.engine.signature.is_plain

    @property
    def provider(self) -> str:
        """What runs it, in onnxruntime's words."""
        return self.engine.provider if self.resident is None else self.resident.provider

    def __post_init__(self) -> None:
        """Make the collector of what comes one by one."""
        self.singles = Singles(self.columns, self.name, self.observer.answered)


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run gave and how long its parts took, in seconds."""

    answers: NDArray[np.float32]  # [batch, time, outputs] f32
    finite: NDArray[np.bool_] | None  # [batch] whose answers and states are there and finite; None: all are
    gather_s: float
    run_s: float
    scatter_s: float
    refusals: dict[int, ServiceError] = field(
        default_factory=dict
    )  # by row, why the model took no such values


def run_batch(lane: Lane, batch: Batch, *, finds_fault: bool = True) -> RunResult:
    """Gather, run, scatter. In the engine thread too: the rows of a batch are nobody else's until it has ended.

    Raises what the engine raises, and then no row has changed: where it does not run at all any more, or, without
    `finds_fault`, at once. With it, runs of a failed batch go on until it is known which rows' values were at fault.
    """
    begin_s = time.perf_counter()
    jobs = batch.jobs
    for job in jobs:
        lane.arena.check(job.slots)
    values, counts = _values(batch)
    if lane.resident is not None:
        sources = np.concatenate([job.source.rows for job in jobs])
        answers, finite = lane.resident.run(values, counts, sources, _targets(batch))
        return RunResult(answers, finite, 0.0, time.perf_counter() - begin_s, 0.0)
    assert lane.states is not None  # noqa: S101  they are either here or there
    is_alone = len(jobs) == 1
    states = lane.states.gather(
        jobs[0].source.index if is_alone else np.concatenate([job.source.rows for job in jobs])
    )
    gathered_s = time.perf_counter()
    refusals: dict[int, ServiceError] = {}
    try:
        answers, new_states = lane.engine.run(values, counts, states)
    except Exception:
        if not (finds_fault and lane.engine.is_alive()):
            raise
        answers, new_states = _run_in_halves(lane, values, counts, states, refusals)
    ended_s = time.perf_counter()
    finite_rows = _finite_rows(lane, counts, answers, new_states)
    if refusals:
        finite_rows = np.ones(len(values), np.bool_) if finite_rows is None else finite_rows
        finite_rows[list(refusals)] = False
    target = jobs[0].target(batch.counts[0])
    if is_alone and target is not None and finite_rows is None and jobs[0].failed is None:
        lane.states.scatter(target.index, new_states)
    else:
        targets = _targets(batch)
        wanted = targets >= 0 if finite_rows is None else (targets >= 0) & finite_rows
        if wanted.all():
            lane.states.scatter(targets, new_states)
        elif wanted.any():
            lane.states.scatter(targets[wanted], lane.states.select(new_states, np.flatnonzero(wanted)))
    return RunResult(
        answers,
        finite_rows,
        gathered_s - begin_s,
        ended_s - gathered_s,
        time.perf_counter() - ended_s,
        refusals,
    )


def _run_in_halves(
    lane: Lane,
    values: NDArray[np.float32],
    counts: NDArray[np.int32] | None,
    states: States,
    refusals: dict[int, ServiceError],
) -> tuple[NDArray[np.float32], States]:
    """Run a batch that has failed in halves, to find whose values the model does not take: an index beyond a table.

    Notes them in `refusals`; their states stay as they were. One bad row among n costs some 2 log n runs.
    """
    signature = lane.engine.signature
    answers = np.zeros((*values.shape[:2], signature.answer_row.width), np.float32)
    new_states = [state.copy() for state in states]
    waiting = [slice(0, len(values))]
    while waiting:
        own = waiting.pop()
        at = [(*(slice(None),) * spec.batch_axis, own) for spec in signature.states]
        part = [np.ascontiguousarray(state[index]) for state, index in zip(states, at, strict=True)]
        try:
            answers[own], moved = lane.engine.run(values[own], None if counts is None else counts[own], part)
        except Exception as reason:  # noqa: BLE001  as above
            if own.stop - own.start == 1:
                refusals[own.start] = values_refused(lane.name, reason)
            else:
                middle = (own.start + own.stop) // 2
                waiting += [slice(middle, own.stop), slice(own.start, middle)]
            continue
        for state, index, array in zip(new_states, at, moved, strict=True):
            state[index] = array
    return answers, new_states


def _values(batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.int32] | None]:
    """Return the values `[batch, time, features]` of a run, and how many steps of each row are real; None: all."""
    jobs = batch.jobs
    pieces = [
        job.values[:, job.num_done : job.num_done + count]
        for job, count in zip(jobs, batch.counts, strict=True)
    ]
    if min(batch.counts) == batch.num_steps:
        return np.ascontiguousarray(pieces[0]) if len(pieces) == 1 else np.concatenate(pieces), None
    values = np.zeros((batch.num_rows, batch.num_steps, pieces[0].shape[2]), np.float32)
    begin = 0
    for piece in pieces:
        values[begin : begin + len(piece), : piece.shape[1]] = piece
        begin += len(piece)
    return values, np.repeat(np.array(batch.counts, np.int32), [job.num_rows for job in jobs])


def _finite_rows(
    lane: Lane, counts: NDArray[np.int32] | None, answers: NDArray[np.float32], states: States
) -> NDArray[np.bool_] | None:
    """Return for each row of a batch whether what came of it is finite; None: of all. Padding is nobody's answer.

    What the graph has not made is not looked at: a window holds values, also missing ones that the model takes.
    """
    signature = lane.engine.signature
    layout, made = signature.answer_row, [k for k, spec in enumerate(signature.states) if spec.output]
    finite_answers = np.isfinite(answers) if layout.is_float32 else layout.are_finite(answers)
    if finite_answers.all() and all(np.isfinite(states[place]).all() for place in made):
        return None
    assert lane.states is not None  # noqa: S101  the caller has looked
    steps = layout.are_finite(answers)  # [batch, time]
    if counts is not None:
        steps |= np.arange(answers.shape[1]) >= counts[:, None]
    finite: NDArray[np.bool_] = steps.all(axis=1) & lane.states.finite_rows(states, made)
    return finite


def _targets(batch: Batch) -> NDArray[np.intp]:
    """Return where the states of each row of a batch go; -1 is nowhere."""
    return np.concatenate(
        [_targets_of(job, count) for job, count in zip(batch.jobs, batch.counts, strict=True)]
    )


def _targets_of(job: Job, count: int) -> NDArray[np.intp]:
    target = job.target(count)
    if target is None:
        return np.full(job.num_rows, -1, np.intp)
    return target.rows if job.failed is None else np.where(job.failed, -1, target.rows)
