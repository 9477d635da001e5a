"""The queue of every model, its batches, and handing answers back. Knows no stores and no gRPC.

Batching is continuous: when the engine is free, whatever waits goes next, with no added delay. A turn of the event
loop runs one batch, so that between two batches the loop reads and writes. Runs that are expected to be short happen
on the loop itself; longer ones go to one engine thread, so that health checks and keepalives are answered meanwhile
(docs/design/0004-inline-or-thread.md has the measurements).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from longshort_service import errors
from longshort_service.batching import Batch, Job, form_batch
from longshort_service.few_steps import MAX_FEW, run_few
from longshort_service.lane import Lane, RunResult, run_batch
from longshort_service.singles import Single

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from longshort_service.arena import Slot
    from longshort_service.singles import SingleWaiter

logger = logging.getLogger(__name__)


class Scheduler:
    """Runs the jobs of all lanes. Belongs to one event loop."""

    def __init__(
        self,
        *,
        inline_run_limit_s: float,
        max_queued_steps: int,
        on_engine_death: Callable[[Lane], None],
    ) -> None:
        self._inline_run_limit_s = inline_run_limit_s
        self._max_queued_steps = max_queued_steps
        self._on_engine_death = on_engine_death
        self._waiting_lanes: deque[Lane] = deque()
        self._is_turn_due = False
        self._engine_thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._runs: set[asyncio.Task[None]] = set()

    def submit(self, lane: Lane, job: Job) -> None:
        """Queue a job; its owner and then its `on_end` are told in one breath once its states have moved.

        Raises QueueFull or EngineDead at once, and then the caller still owns the job's scratch rows; otherwise they
        are freed here. A job may end with rows that `failed` (their results are not finite; nothing has moved there)
        or with a `failure` of all of it (EngineDead).
        """
        self._admit(lane, job.num_rows * job.num_steps)
        job.enqueued_s = time.perf_counter()
        lane.queue.append(job)
        self._wake(lane)

    async def complete(self, lane: Lane, job: Job) -> None:
        """Queue a job and wait until it has ended; it is withdrawn where the caller is cancelled.

        Raises what `submit` raises.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake(_job: Job) -> None:
            if not waiter.done():
                waiter.set_result(None)

        job.on_end = wake
        self.submit(lane, job)
        try:
            await waiter
        except asyncio.CancelledError:
            self.withdraw(job)
            raise

    def submit_single(
        self, lane: Lane, slot: Slot, values: Sequence[float], answer_rows: int, waiter: SingleWaiter
    ) -> None:
        """Queue one step of one session, as Singles.add has it. Raises QueueFull or EngineDead at once."""
        self._admit(lane, 1)
        lane.singles.add(Single(slot.row, slot.generation, values, answer_rows, waiter, time.perf_counter()))
        self._wake(lane)

    def _admit(self, lane: Lane, num_steps: int) -> None:
        if lane.is_dead:
            raise errors.EngineDead(f"the engine of {lane.name} has failed", model=lane.name)
        if lane.num_queued_steps + num_steps > self._max_queued_steps and lane.num_queued_steps:
            raise errors.QueueFull(
                f"{lane.num_queued_steps} steps wait for {lane.name} already: wait and send again",
                num_queued_steps=lane.num_queued_steps,
            )
        lane.num_queued_steps += num_steps

    @staticmethod
    def withdraw(job: Job) -> None:
        """Give up a job whose caller has left: nothing moves, unless its last run is under way."""
        job.withdrawn = True

    async def close(self) -> None:
        """Wait for runs under way and stop the engine thread."""
        if self._runs:
            await asyncio.wait(self._runs)
        self._engine_thread.shutdown()

    # -- turns ---------------------------------------------------------------------------------------------------

    def _wake(self, lane: Lane) -> None:
        if lane.is_running or lane.is_waiting or not (lane.queue or lane.singles):
            return
        lane.is_waiting = True
        self._waiting_lanes.append(lane)
        self._schedule_turn()

    def _schedule_turn(self) -> None:
        """Have a turn run once what is ready now has been handled, unless one is due already."""
        if not self._is_turn_due:
            self._is_turn_due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Run one batch of the lane whose turn it is."""
        self._is_turn_due = False
        lane = self._waiting_lanes.popleft()
        lane.is_waiting = False
        num_singles = len(lane.singles)
        has_run = (
            0 < num_singles <= MAX_FEW
            and not lane.queue
            and lane.can_run_few
            and self._runs_inline(lane, num_singles, 1)
            and self._has_run_few(lane)
        )
        if not has_run:
            self._run_next_batch(lane)
        self._wake(lane)
        if self._waiting_lanes:
            self._schedule_turn()

    def _runs_inline(self, lane: Lane, num_rows: int, num_steps: int) -> bool:
        return lane.policy.cost.run(num_rows, num_steps) <= self._inline_run_limit_s

    @staticmethod
    def _has_run_few(lane: Lane) -> bool:
        """Run the few that wait; where that fails nothing has moved, and a batch finds out what was wrong."""
        try:
            run_few(lane)
        except Exception:  # noqa: BLE001  onnxruntime's exceptions share no base but Exception
            return False
        return True

    def _run_next_batch(self, lane: Lane) -> None:
        _queue_singles(lane)
        batch = form_batch(lane.queue, lane.policy, lambda job: self._end(lane, job))
        if batch is not None:
            lane.is_running = True
            now_s = time.perf_counter()
            lane.observer.batch_formed(batch.num_rows, [job.waits_s(now_s) for job in batch.jobs])
            if self._runs_inline(lane, batch.num_rows, batch.num_steps):
                self._run_inline(lane, batch)
            else:
                self._start_in_thread(lane, batch)

    def _run_inline(self, lane: Lane, batch: Batch) -> None:
        try:
            result = run_batch(lane, batch, finds_fault=False)
        except Exception as error:  # noqa: BLE001  as above
            if lane.resident is None:
                # Whose fault it was may take twice as many runs as it has rows: not on the loop.
                self._start_in_thread(lane, batch)
            else:
                self._die(lane, batch.jobs, error)
            return
        try:
            self._finish(lane, batch, result)
        except Exception as error:  # noqa: BLE001  as above
            self._die(lane, batch.jobs, error)

    def _start_in_thread(self, lane: Lane, batch: Batch) -> None:
        task = asyncio.get_running_loop().create_task(self._run_in_thread(lane, batch))
        self._runs.add(task)
        task.add_done_callback(self._runs.discard)

    async def _run_in_thread(self, lane: Lane, batch: Batch) -> None:
        loop = asyncio.get_running_loop()
        try:
            result = await loop.run_in_executor(self._engine_thread, run_batch, lane, batch)
            self._finish(lane, batch, result)
        except Exception as error:  # noqa: BLE001  as above
            self._die(lane, batch.jobs, error)
        self._wake(lane)

    # -- the ends of a batch -------------------------------------------------------------------------------------

    def _finish(self, lane: Lane, batch: Batch, result: RunResult) -> None:
        """Tell owners and waiters; what has steps left queues again behind the others."""
        unfinished: list[Job] = []
        num_applied = begin = 0
        for job, count in zip(batch.jobs, batch.counts, strict=True):
            positions = slice(begin, begin + job.num_rows)
            begin += job.num_rows
            if result.finite is not None:
                _note_failed(job, ~result.finite[positions])
                _note_refused(job, result.refusals, positions.start)
            _collect(job, result.answers[positions, :count], count)
            if job.withdrawn or job.is_done or (job.failed is not None and job.failed.all()):
                self._end(lane, job)
                num_applied += job.num_applied * job.num_steps if job.owner is not None else 0
            else:
                unfinished.append(job)
        now_s = time.perf_counter()
        for job in unfinished:
            job.enqueued_s = now_s
        lane.queue.extend(unfinished)
        lane.is_running = False
        lane.observer.batch_done(num_applied, result.gather_s, result.run_s, result.scatter_s)

    @staticmethod
    def _end(lane: Lane, job: Job) -> None:
        """Take a job out: give back its scratch rows, tell its owner, wake its waiter."""
        job.has_ended = True
        lane.num_queued_steps -= job.num_rows * job.num_steps
        if job.scratch is not None:
            lane.arena.free(job.scratch)
            job.scratch = None
        if job.owner is not None:
            job.owner.settled(job)
        if job.on_end is not None:
            job.on_end(job)

    def _die(self, lane: Lane, running: list[Job], error: Exception) -> None:
        """Fail everything that waits for a lane whose engine raised; nothing that is failed has moved."""
        logger.critical("the engine failed", exc_info=error, extra={"fields": {"model": lane.name}})
        lane.is_running = False
        lane.is_dead = True
        _queue_singles(lane)
        waiting = [*running, *lane.queue]
        lane.queue.clear()
        for job in waiting:
            if not job.has_ended:  # what was answered stays so; what has steps left may be in both
                job.failure = errors.EngineDead(f"the engine of {lane.name} has failed", model=lane.name)
                self._end(lane, job)
        self._on_engine_death(lane)


def _queue_singles(lane: Lane) -> None:
    """Make jobs of what came one by one, and queue each by when its first came."""
    while lane.singles:
        job = lane.singles.take(lane.policy.max_rows)
        place = len(lane.queue)
        while place and lane.queue[place - 1].enqueued_s > job.enqueued_s:
            place -= 1
        lane.queue.insert(place, job)


def _note_failed(job: Job, failed: NDArray[np.bool_]) -> None:
    """Note which rows of a job came to nothing; they run on for nobody, and none of their states is kept."""
    if failed.any():
        job.failed = failed if job.failed is None else job.failed | failed


def _note_refused(job: Job, refusals: dict[int, errors.ServiceError], begin: int) -> None:
    """Note which of a job's rows the model's graph failed on: of a batch in which its first row is at `begin`."""
    own = {row - begin: error for row, error in refusals.items() if begin <= row < begin + job.num_rows}
    if own:
        job.refusals = {**own, **(job.refusals or {})}


def _collect(job: Job, answers: NDArray[np.float32], count: int) -> None:
    """Keep the piece's answers `[rows, time, outputs]`; in a forecast they make the next values."""
    if count == job.num_steps:
        job.outputs = answers
    else:
        if not job.num_done:
            job.outputs = np.empty((job.num_rows, job.num_steps, answers.shape[2]), np.float32)
        job.outputs[:, job.num_done : job.num_done + count] = answers
    job.num_done += count
    if job.feedback is not None and not job.is_done:
        sources, targets = job.feedback
        job.values[:, job.num_done, targets] = answers[:, -1, sources]
