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
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from longshort_service import errors
from longshort_service.batching import Batch, Job, form_batch
from longshort_service.lane import Lane, RunResult, finite_rows, run_batch
from longshort_service.pacing import WAIT_S, OpeningPace

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

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
        self._pace = OpeningPace()
        self._waiting_lanes: deque[Lane] = deque()
        self._is_turn_due = False
        self._timer: asyncio.TimerHandle | None = (
            None  # the next turn, where it waits for streams being opened
        )
        self._engine_thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._runs: set[asyncio.Task[None]] = set()

    def submit(self, lane: Lane, job: Job) -> asyncio.Future[NDArray[np.float32]]:
        """Queue a job; the future holds its answers `[time, outputs] f32` once its state has moved.

        Raises QueueFull or EngineDead at once, and then the caller still owns the job's scratch row; otherwise it is
        freed here. The future fails with NonFiniteResult (nothing has moved) or EngineDead.
        """
        if lane.is_dead:
            raise errors.EngineDead(f"the engine of {lane.name} has failed", model=lane.name)
        if lane.num_queued_steps + job.num_steps > self._max_queued_steps and lane.num_queued_steps:
            raise errors.QueueFull(
                f"{lane.num_queued_steps} steps wait for {lane.name} already: wait and send again",
                num_queued_steps=lane.num_queued_steps,
            )
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[NDArray[np.float32]] = loop.create_future()
        job.waiter = waiter
        job.enqueued_s = time.perf_counter()
        lane.queue.append(job)
        lane.num_queued_steps += job.num_steps
        self._wake(lane, loop)
        return waiter

    @staticmethod
    def withdraw(job: Job) -> None:
        """Give up a job whose caller has left: nothing moves, unless its last run is under way."""
        job.withdrawn = True

    async def close(self) -> None:
        """Wait for runs under way and stop the engine thread."""
        if self._runs:
            await asyncio.wait(self._runs)
        self._engine_thread.shutdown()

    def stream_arrived(self) -> None:
        """Note that a stream was taken: batches leave room for those that may follow it."""
        self._pace.arrived(time.perf_counter())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._schedule_turn(asyncio.get_running_loop())

    # -- turns ---------------------------------------------------------------------------------------------------

    def _wake(self, lane: Lane, loop: asyncio.AbstractEventLoop) -> None:
        if lane.is_running or lane.is_waiting or not lane.queue:
            return
        lane.is_waiting = True
        self._waiting_lanes.append(lane)
        self._schedule_turn(loop)

    def _schedule_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have a turn run once what is ready now has been handled, unless one is due already."""
        if not self._is_turn_due and self._timer is None:
            self._is_turn_due = True
            loop.call_soon(self._turn, loop)

    def _turn_after_wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._pace.waited()
        self._turn(loop)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run one batch of the lane whose turn it is."""
        self._is_turn_due = False
        self._timer = None
        now_s = time.perf_counter()
        max_rows = self._pace.max_rows(now_s)
        if max_rows == 0:
            self._timer = loop.call_later(WAIT_S, self._turn_after_wait, loop)
            return
        lane = self._waiting_lanes.popleft()
        lane.is_waiting = False
        policy = lane.policy
        if max_rows is not None and max_rows < policy.max_rows:
            policy = replace(policy, max_rows=max_rows)
        batch = form_batch(lane.queue, policy, lambda job: self._end(lane, job))
        if batch is not None:
            self._pace.batch_formed(len(batch.jobs))
            lane.is_running = True
            lane.observer.batch_formed(len(batch.jobs), [now_s - job.enqueued_s for job in batch.jobs])
            if lane.policy.cost.run(len(batch.jobs), batch.num_steps) <= self._inline_run_limit_s:
                self._run_inline(lane, batch)
            else:
                task = loop.create_task(self._run_in_thread(lane, batch, loop))
                self._runs.add(task)
                task.add_done_callback(self._runs.discard)
        self._wake(lane, loop)
        if self._waiting_lanes:
            self._schedule_turn(loop)

    def _run_inline(self, lane: Lane, batch: Batch) -> None:
        try:
            self._finish(lane, batch, run_batch(lane, batch))
        except Exception as error:  # noqa: BLE001  whatever is raised, nobody may be left waiting
            self._die(lane, batch, error)

    async def _run_in_thread(self, lane: Lane, batch: Batch, loop: asyncio.AbstractEventLoop) -> None:
        try:
            result = await loop.run_in_executor(self._engine_thread, run_batch, lane, batch)
            self._finish(lane, batch, result)
        except Exception as error:  # noqa: BLE001  as above
            self._die(lane, batch, error)
        self._wake(lane, loop)

    # -- the ends of a batch -------------------------------------------------------------------------------------

    @staticmethod
    def _scatter(lane: Lane, batch: Batch, result: RunResult) -> None:
        """Put the new states into their rows, all but those of rows that failed or are not needed."""
        finite = finite_rows(lane, result)
        targets, positions = [], []
        for position, (job, count) in enumerate(zip(batch.jobs, batch.counts, strict=True)):
            if finite is not None and not finite[position]:
                job.failure = errors.NonFiniteResult(
                    "the model's answer to these values is not finite; the session has not moved",
                    model=lane.name,
                )
                continue
            target = job.target(count)
            if target is not None:
                targets.append(target)
                positions.append(position)
        if targets:
            everyone = len(targets) == len(batch.jobs)
            lane.arena.scatter(targets, result.states, None if everyone else positions)

    def _finish(self, lane: Lane, batch: Batch, result: RunResult) -> None:
        """Scatter, tell owners and waiters; what has steps left queues again behind the others."""
        self._scatter(lane, batch, result)
        unfinished: list[Job] = []
        num_applied = 0
        for position, (job, count) in enumerate(zip(batch.jobs, batch.counts, strict=True)):
            if job.failure is None:
                self._collect(job, result.answers[position, :count], count)
            if job.failure is not None or job.withdrawn or job.is_applied:
                self._end(lane, job)
                num_applied += job.num_steps if job.is_applied and job.owner is not None else 0
            else:
                unfinished.append(job)
        now_s = time.perf_counter()
        for job in unfinished:
            job.enqueued_s = now_s
        lane.queue.extend(unfinished)
        lane.is_running = False
        lane.observer.batch_done(num_applied, result.gather_s, result.run_s, now_s - result.ended_s)

    @staticmethod
    def _collect(job: Job, answers: NDArray[np.float32], count: int) -> None:
        """Keep the piece's answers; in a forecast they make the next values."""
        if count == job.num_steps:
            job.outputs = answers.copy()  # a view would keep the whole batch alive
        else:
            if job.outputs is None:
                job.outputs = np.empty((job.num_steps, answers.shape[1]), np.float32)
            job.outputs[job.num_done : job.num_done + count] = answers
        job.num_done += count
        if job.feedback is not None and job.num_done < job.num_steps:
            job.values[job.num_done] = answers[-1, job.feedback]

    @staticmethod
    def _end(lane: Lane, job: Job) -> None:
        """Take a job out, once: give back its scratch row, tell its owner, wake its waiter."""
        if job.has_ended:
            return
        job.has_ended = True
        lane.num_queued_steps -= job.num_steps
        if job.scratch is not None:
            lane.arena.free(job.scratch)
            job.scratch = None
        if job.owner is not None:
            job.owner.settled(job)
        if job.waiter.done():
            return  # whoever waited has left
        if job.failure is not None:
            job.waiter.set_exception(job.failure)
        elif job.is_applied:
            job.waiter.set_result(job.outputs)
        else:
            job.waiter.cancel()  # withdrawn

    def _die(self, lane: Lane, batch: Batch, error: Exception) -> None:
        """Fail everything that waits for a lane whose engine raised; nothing of the batch has moved."""
        logger.critical("the engine failed", exc_info=error, extra={"fields": {"model": lane.name}})
        lane.is_running = False
        lane.is_dead = True
        waiting = [*batch.jobs, *lane.queue]
        lane.queue.clear()
        for job in waiting:
            if job.has_ended:
                continue
            job.failure = errors.EngineDead(f"the engine of {lane.name} has failed", model=lane.name)
            self._end(lane, job)
        self._on_engine_death(lane)
