"""Forming a batch from what waits: policy only. No asyncio, no engine, no memory.

A Job is one message, or many of equal length, on the way through the engine. A batch takes the job that has waited
longest and whatever else can share its run; long jobs go piece by piece and queue again behind the others after each,
so that a long message does not hold up live sessions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from numpy.typing import NDArray

    from longshort_service.arena import Slots
    from longshort_service.errors import ServiceError


class JobOwner(Protocol):
    """Who is told when a job has ended, in the same breath in which its state moved."""

    def settled(self, job: Job) -> None:
        """Note that the job has ended; its steps are in the rows where `applied` says so. Must not raise."""


class Job:
    """Messages of equal length on their way through the engine, each of another session.

    `values` `[rows, time, features] f32` are run from the states in `slots`. `scratch` are as many rows again,
    needed where the job takes more than one run or must not move a session: state that is not final goes there.
    `feedback` is None, or columns of the answers and columns of the next step's values that are made of them: then
    `values` is filled as the job proceeds and each piece is one step. `owner` is None for a job that moves nothing.
    `on_end` is called once, after the owner.
    """

    __slots__ = (
        "arrivals_s",
        "enqueued_s",
        "failed",
        "failure",
        "feedback",
        "has_ended",
        "num_done",
        "on_end",
        "outputs",
        "owner",
        "refusals",
        "scratch",
        "slots",
        "values",
        "withdrawn",
    )

    def __init__(
        self,
        values: NDArray[np.float32],
        slots: Slots,
        *,
        scratch: Slots | None = None,
        owner: JobOwner | None = None,
        feedback: tuple[list[int], list[int]] | None = None,
        on_end: Callable[[Job], None] | None = None,
    ) -> None:
        self.values = values
        self.slots = slots
        self.scratch = scratch
        self.owner = owner
        self.feedback = feedback
        self.on_end = on_end
        self.outputs: NDArray[np.float32] = NO_OUTPUTS  # [rows, time, outputs] f32, filled piece by piece
        self.num_done = 0
        self.withdrawn = False
        self.has_ended = False
        self.failed: NDArray[np.bool_] | None = None  # [rows] whose result is not finite; None: no row's
        self.refusals: dict[int, ServiceError] | None = (
            None  # by row, of those that failed for another reason
        )
        self.failure: ServiceError | None = None  # of all rows
        self.enqueued_s = 0.0
        self.arrivals_s: NDArray[np.float64] | None = None  # [rows] where its messages came one by one

    @property
    def num_rows(self) -> int:
        """The number of its messages."""
        return len(self.slots.rows)

    @property
    def num_steps(self) -> int:
        """The number of steps of each message."""
        num_steps: int = self.values.shape[1]
        return num_steps

    @property
    def is_done(self) -> bool:
        """Whether every step has been run."""
        return self.num_done == self.num_steps

    @property
    def applied(self) -> NDArray[np.bool_] | None:
        """Of which rows every step has been run and is in the row, `[rows]`; None: of all."""
        if self.failure is not None or not self.is_done:
            return np.zeros(self.num_rows, np.bool_)
        return None if self.failed is None else ~self.failed

    @property
    def num_applied(self) -> int:
        """The number of messages that were applied."""
        applied = self.applied
        return self.num_rows if applied is None else int(np.count_nonzero(applied))

    def waits_s(self, now_s: float) -> tuple[NDArray[np.float64], int]:
        """Return waiting times, and of how many messages each is."""
        if self.arrivals_s is None:
            return np.array([now_s - self.enqueued_s]), self.num_rows
        return now_s - self.arrivals_s, 1

    @property
    def source(self) -> Slots:
        """The rows that the next piece starts from."""
        return self.slots if self.num_done == 0 or self.scratch is None else self.scratch

    def target(self, num_steps: int) -> Slots | None:
        """Return the rows that a piece of `num_steps` ends in, None where its state is not needed."""
        if self.num_done + num_steps < self.num_steps:
            return self.scratch
        return self.slots if self.owner is not None else None


NO_OUTPUTS: Final = np.empty((0, 0, 0), np.float32)


@dataclass(frozen=True, slots=True)
class RunCost:
    """What a run costs, in seconds: `fixed + steps * (each_step + rows * each_row_step)`. Measured at warm-up."""

    fixed: float
    each_step: float
    each_row_step: float

    def run(self, num_rows: int, num_steps: int) -> float:
        """Return the expected duration of one run."""
        return self.fixed + num_steps * (self.each_step + num_rows * self.each_row_step)

    def steps_within(self, seconds: float, num_rows: int) -> int:
        """Return how many steps of so many rows a run of `seconds` can take; possibly 0."""
        return int((seconds - self.fixed) / max(self.each_step + num_rows * self.each_row_step, 1e-9))


@dataclass(frozen=True, slots=True)
class Batch:
    """Pieces that share a run: `counts[k]` steps of `jobs[k]`, padded to `num_steps`; `num_rows` of all together."""

    jobs: list[Job]
    counts: list[int]
    num_steps: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """The limits of a batch. `can_pad` says whether the model takes rows of unequal length.

    A message longer than `piece_steps`, or one of many rows whose run would take longer than `piece_s`, is cut.
    """

    max_rows: int
    piece_steps: int
    can_pad: bool
    cost: RunCost
    piece_s: float = 0.002

    def piece(self, num_rows: int) -> int:
        """Return how many steps of so many rows go into one run."""
        # At least as long as its fixed cost: in a slow model a piece of one step would be all overhead.
        seconds = max(self.piece_s, 2 * self.cost.run(num_rows, 1))
        return max(1, min(self.piece_steps, self.cost.steps_within(seconds, num_rows)))

    def rows_together(self) -> int:
        """Return how many rows a job may have that goes step by step, so that each of its runs is a short one."""
        seconds = max(self.piece_s, 2 * self.cost.run(1, 1))
        rows = (seconds - self.cost.fixed - self.cost.each_step) / max(self.cost.each_row_step, 1e-9)
        return max(1, min(self.max_rows, int(rows)))


def form_batch(queue: deque[Job], policy: BatchPolicy, drop: Callable[[Job], None]) -> Batch | None:
    """Take the next batch off the queue; None where nothing waits. What stays keeps its order.

    Withdrawn jobs are taken off and given to `drop`. The first job of the queue is always part of the batch.
    """
    candidates: list[Job] = []
    num_rows = 0
    while queue and num_rows < policy.max_rows:
        job = queue[0]
        if job.withdrawn:
            drop(queue.popleft())
            continue
        if candidates and num_rows + job.num_rows > policy.max_rows:
            break
        candidates.append(queue.popleft())
        num_rows += job.num_rows
    if not candidates:
        return None
    counts = [_piece(job, policy) for job in candidates]
    lengths = {counts[0]}
    if min(counts) < max(counts):
        lengths = _lengths_that_share(candidates, counts, policy)
    taken = _within_time(
        [k for k, count in enumerate(counts) if count in lengths], candidates, counts, policy
    )
    if len(taken) < len(candidates):
        left = sorted(set(range(len(candidates))) - set(taken), reverse=True)
        queue.extendleft(candidates[k] for k in left)
    jobs, counts = [candidates[k] for k in taken], [counts[k] for k in taken]
    return Batch(jobs, counts, max(counts), sum(job.num_rows for job in jobs))


def _within_time(taken: list[int], jobs: list[Job], counts: list[int], policy: BatchPolicy) -> list[int]:
    """Return as many of the first of `taken` as a run of bounded length holds: many that warm up are many runs.

    The limit is twice a piece, or four times what a single row would take: a slow model is batched too.
    """
    longest = max(counts[k] for k in taken)
    limit_s = max(2 * policy.piece_s, 4 * policy.cost.run(1, longest))
    num_rows = 0
    for place, k in enumerate(taken):
        num_rows += jobs[k].num_rows
        if place and policy.cost.run(num_rows, longest) > limit_s:
            return taken[:place]
    return taken


def _piece(job: Job, policy: BatchPolicy) -> int:
    if job.feedback is not None:
        return 1  # the next values are this step's answer
    return min(job.num_steps - job.num_done, policy.piece(job.num_rows))


def _lengths_that_share(jobs: list[Job], counts: list[int], policy: BatchPolicy) -> set[int]:
    """Choose the piece lengths that run together with the first job's.

    A shorter length joins a longer one where its padding costs less than the run it saves. Starting from the first
    job's length, neighbours are taken in while that holds, shorter ones first.
    """
    chosen = {counts[0]}
    if not policy.can_pad:
        return chosen
    rows_of: dict[int, int] = {}
    for job, count in zip(jobs, counts, strict=True):
        rows_of[count] = rows_of.get(count, 0) + job.num_rows
    cost = policy.cost
    for length in sorted(set(counts) - chosen, key=lambda length: abs(length - counts[0])):
        longest = max(*chosen, length)
        together = sum(rows_of[other] for other in chosen) + rows_of[length]
        current = cost.run(together - rows_of[length], max(chosen))
        if cost.run(together, longest) < current + cost.run(rows_of[length], length):
            chosen.add(length)
    return chosen
