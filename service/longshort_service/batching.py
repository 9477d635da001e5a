"""Forming a batch from what waits: policy only. No asyncio, no engine, no memory.

A Job is one message on its way through the engine. A batch takes the job that has waited longest and whatever else
can share its run; long jobs go piece by piece and queue again behind the others after each, so that a long message
does not hold up live sessions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from longshort_service.arena import Slot


class JobOwner(Protocol):
    """Who is told when a job has ended, in the same breath in which its state moved."""

    def settled(self, job: Job) -> None:
        """Note that the job has ended; its steps are in the row where `is_applied` says so. Must not raise."""


class Job:
    """One message: `values` `[time, features] f32` to be run from the state in `slot`.

    `scratch` is a second row, needed where the job takes more than one run or must not move the session; state
    that is not final goes there. `feedback` is None, or the output columns that make the next step's values: then
    `values` is filled as the job proceeds and each piece is one step. `owner` is None for a job that moves nothing.
    """

    __slots__ = (
        "enqueued_s",
        "failure",
        "feedback",
        "has_ended",
        "num_done",
        "outputs",
        "owner",
        "scratch",
        "slot",
        "values",
        "waiter",
        "withdrawn",
    )

    def __init__(
        self,
        values: NDArray[np.float32],
        slot: Slot,
        *,
        scratch: Slot | None = None,
        owner: JobOwner | None = None,
        feedback: list[int] | None = None,
    ) -> None:
        self.values = values
        self.slot = slot
        self.scratch = scratch
        self.owner = owner
        self.feedback = feedback
        self.outputs: NDArray[np.float32] | None = None  # [time, outputs] f32, filled piece by piece
        self.num_done = 0
        self.withdrawn = False
        self.has_ended = False
        self.failure: Exception | None = None
        self.enqueued_s = 0.0
        self.waiter: Any = None  # whatever the scheduler wakes

    @property
    def num_steps(self) -> int:
        """The number of steps of the whole job."""
        return len(self.values)

    @property
    def is_applied(self) -> bool:
        """Whether every step has been run and is in the row."""
        return self.failure is None and self.num_done == self.num_steps

    @property
    def source(self) -> Slot:
        """The row that the next piece starts from."""
        return self.slot if self.num_done == 0 or self.scratch is None else self.scratch

    def target(self, num_steps: int) -> Slot | None:
        """Return the row that a piece of `num_steps` ends in, None where its state is not needed."""
        is_last = self.num_done + num_steps == self.num_steps
        if not is_last:
            return self.scratch
        return self.slot if self.owner is not None else None


@dataclass(frozen=True, slots=True)
class RunCost:
    """What a run costs, in seconds: `fixed + steps * (each_step + rows * each_row_step)`. Measured at warm-up."""

    fixed: float
    each_step: float
    each_row_step: float

    def run(self, num_rows: int, num_steps: int) -> float:
        """Return the expected duration of one run."""
        return self.fixed + num_steps * (self.each_step + num_rows * self.each_row_step)


@dataclass(frozen=True, slots=True)
class Batch:
    """Pieces that share a run: `counts[k]` steps of `jobs[k]`, padded to `num_steps`."""

    jobs: list[Job]
    counts: list[int]
    num_steps: int


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """The limits of a batch. `can_pad` says whether the model takes rows of unequal length."""

    max_rows: int
    piece_steps: int
    can_pad: bool
    cost: RunCost


def form_batch(queue: deque[Job], policy: BatchPolicy, drop: Callable[[Job], None]) -> Batch | None:
    """Take the next batch off the queue; None where nothing waits. What stays keeps its order.

    Withdrawn jobs are taken off and given to `drop`. The first job of the queue is always part of the batch.
    """
    candidates: list[Job] = []
    while queue and len(candidates) < policy.max_rows:
        job = queue.popleft()
        if job.withdrawn:
            drop(job)
        else:
            candidates.append(job)
    if not candidates:
        return None
    counts = [_piece(job, policy.piece_steps) for job in candidates]
    if min(counts) == max(counts):
        return Batch(candidates, counts, counts[0])
    lengths = _lengths_that_share(counts, policy)
    taken = [k for k, count in enumerate(counts) if count in lengths]
    left = [candidates[k] for k, count in enumerate(counts) if count not in lengths]
    queue.extendleft(reversed(left))
    return Batch([candidates[k] for k in taken], [counts[k] for k in taken], max(lengths))


def _piece(job: Job, piece_steps: int) -> int:
    if job.feedback is not None:
        return 1  # the next values are this step's answer
    return min(job.num_steps - job.num_done, piece_steps)


def _lengths_that_share(counts: list[int], policy: BatchPolicy) -> set[int]:
    """Choose the piece lengths that run together with the first job's.

    A shorter length joins a longer one where its padding costs less than the run it saves. Starting from the first
    job's length, neighbours are taken in while that holds, shorter ones first.
    """
    chosen = {counts[0]}
    if not policy.can_pad:
        return chosen
    rows_of: dict[int, int] = {}
    for count in counts:
        rows_of[count] = rows_of.get(count, 0) + 1
    cost = policy.cost
    for length in sorted(set(counts) - chosen, key=lambda length: abs(length - counts[0])):
        longest = max(*chosen, length)
        together = sum(rows_of[other] for other in chosen) + rows_of[length]
        current = cost.run(together - rows_of[length], max(chosen))
        if cost.run(together, longest) < current + cost.run(rows_of[length], length):
            chosen.add(length)
    return chosen
