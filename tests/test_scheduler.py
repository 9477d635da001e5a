"""The queue and its batches on a real engine: who runs with whom, who waits, and that nobody waits for ever."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from graphs import FATAL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inside import Gate, until
from longshort_service import errors
from longshort_service.arena import Arena, StateLayout
from longshort_service.batching import BatchPolicy, Job, RunCost
from longshort_service.engine import Engine
from longshort_service.lane import Lane
from longshort_service.pacing import ROWS_PER_OPENING
from longshort_service.scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Any]

ALWAYS_INLINE, ALWAYS_THREAD = 1e9, -1.0


@dataclass
class Observer:
    """Remembers what it is told."""

    rows: list[int] = field(default_factory=list)
    num_done: int = 0
    num_applied: int = 0

    def batch_formed(self, num_rows: int, waited_s: list[float]) -> None:
        assert len(waited_s) == num_rows
        assert all(seconds >= 0 for seconds in waited_s)
        self.rows.append(num_rows)

    def batch_done(self, num_applied: int, gather_s: float, run_s: float, scatter_s: float) -> None:
        assert min(gather_s, run_s, scatter_s) >= 0
        self.num_applied += num_applied
        self.num_done += 1


class Owner:
    """Remembers which jobs have ended, in order."""

    def __init__(self, log: list[Job]) -> None:
        self._log = log

    def settled(self, job: Job) -> None:
        self._log.append(job)


class Bench:
    """A scheduler with one lane of the adder, its jobs and what has become of them."""

    def __init__(self, adders: Path, *, inline_run_limit_s: float = ALWAYS_THREAD, **limits: int) -> None:
        self.deaths: list[Lane] = []
        self.settled: list[Job] = []
        self.max_rows = limits.get("max_rows", 8)
        self.scheduler = Scheduler(
            inline_run_limit_s=inline_run_limit_s,
            max_queued_steps=limits.get("max_queued_steps", 1000),
            on_engine_death=self.deaths.append,
        )
        self._path = adders / "adder" / "1" / "model.onnx"
        self.lane = self.new_lane("adder")

    def new_lane(self, name: str) -> Lane:
        engine = Engine(self._path, provider="cpu", intra_op_num_threads=1)
        layouts = [
            StateLayout(state.shape, state.batch_axis, state.initial) for state in engine.signature.states
        ]
        policy = BatchPolicy(self.max_rows, 4, can_pad=False, cost=RunCost(1e-5, 1e-6, 1e-6))
        return Lane(name, engine, Arena(layouts, 32), policy, Observer())

    def job(self, *values: float, lane: Lane | None = None) -> Job:
        """Return a job with a row of its own, and a scratch row where it is long."""
        arena = (lane or self.lane).arena
        rows = np.array(values, np.float32)[:, None]
        scratch = arena.allocate() if len(values) > 4 else None
        return Job(rows, arena.allocate(), scratch=scratch, owner=Owner(self.settled))

    def total(self, job: Job) -> float:
        """Return the state in a job's row."""
        return float(self.lane.arena.read(job.slot)[0][0])

    async def submit(self, job: Job) -> list[float]:
        answers = await self.scheduler.submit(self.lane, job)
        return [float(answer) for answer in answers[:, 0]]


def play(run: Run, bench: Bench, scenario: Any) -> None:
    async def limited() -> None:
        try:
            async with asyncio.timeout(20):
                await scenario()
        finally:
            await bench.scheduler.close()

    run(limited())
    for lane in (bench.lane,):
        lane.arena.check_integrity()
        assert lane.num_queued_steps == 0
        assert not lane.queue


@pytest.fixture(params=[ALWAYS_INLINE, ALWAYS_THREAD], ids=["inline", "thread"])
def bench(request: pytest.FixtureRequest, adders: Path) -> Bench:
    return Bench(adders, inline_run_limit_s=request.param)


# -- answers -----


def test_jobs_are_answered_and_their_rows_hold_the_new_state(run: Run, bench: Bench):
    async def scenario() -> None:
        jobs = [bench.job(k, k) for k in range(5)]
        answers = await asyncio.gather(*map(bench.submit, jobs))
        assert answers == [[k, 2 * k] for k in range(5)]
        assert [bench.total(job) for job in jobs] == [0, 2, 4, 6, 8]
        assert bench.settled == jobs
        assert bench.lane.observer.rows == [5]  # type: ignore[attr-defined]
        assert bench.lane.observer.num_done == 1  # type: ignore[attr-defined]

    play(run, bench, scenario)


def test_long_job_runs_in_pieces_and_gives_its_scratch_row_back(run: Run, bench: Bench):
    async def scenario() -> None:
        job = bench.job(*[1] * 10)
        assert await bench.submit(job) == list(range(1, 11))
        assert bench.total(job) == 10
        assert job.scratch is None
        assert bench.lane.arena.num_held == 1
        assert bench.lane.observer.rows == [1, 1, 1]  # type: ignore[attr-defined]

    play(run, bench, scenario)


def test_forecast_feeds_answers_back_and_moves_nothing(run: Run, bench: Bench):
    async def scenario() -> None:
        scratch = bench.lane.arena.allocate()
        job = Job(np.array([[3], [0], [0]], np.float32), scratch, scratch=scratch, feedback=[0])
        assert await bench.submit(job) == [3, 6, 12]
        assert bench.lane.arena.num_held == 0

    play(run, bench, scenario)


def test_row_that_overflows_fails_alone_and_stays_where_it_was(run: Run, bench: Bench):
    async def scenario() -> None:
        good, bad, other = bench.job(1, 2), bench.job(3e38, 3e38), bench.job(5, 5)
        results = await asyncio.gather(*map(bench.submit, (good, bad, other)), return_exceptions=True)
        assert results[0] == [1, 3]
        assert isinstance(results[1], errors.NonFiniteResult)
        assert results[2] == [5, 10]
        assert [bench.total(job) for job in (good, bad, other)] == [3, 0, 10]
        assert len(bench.settled) == 3

    play(run, bench, scenario)


def test_long_job_that_overflows_late_stays_where_it_was(run: Run, bench: Bench):
    async def scenario() -> None:
        job = bench.job(*[0] * 8, 3e38, 3e38)
        with pytest.raises(errors.NonFiniteResult):
            await bench.submit(job)
        assert bench.total(job) == 0
        assert bench.lane.arena.num_held == 1

    play(run, bench, scenario)


# -- order -----


def test_what_waits_while_the_engine_is_busy_goes_together_next(run: Run, adders: Path):
    bench = Bench(adders, max_rows=3)

    async def scenario() -> None:
        gate = Gate.before(bench.lane)
        waiters = [bench.scheduler.submit(bench.lane, bench.job(1))]
        await gate.arrival()
        waiters += [bench.scheduler.submit(bench.lane, bench.job(1)) for _ in range(4)]
        gate.open()
        await asyncio.gather(*waiters)
        assert gate.batches == [1, 3, 1]

    play(run, bench, scenario)


def test_short_job_does_not_wait_for_a_long_one_to_end(run: Run, bench: Bench):
    async def scenario() -> None:
        long, short = bench.job(*[1] * 28), bench.job(1)
        waiter = bench.scheduler.submit(bench.lane, long)
        await until(lambda: long.num_done > 0, pause_s=0)
        await bench.submit(short)
        assert not waiter.done()
        await waiter
        assert bench.settled == [short, long]

    play(run, bench, scenario)


def test_lanes_take_turns(run: Run, adders: Path):
    bench = Bench(adders, inline_run_limit_s=ALWAYS_INLINE)
    other = bench.new_lane("other")

    async def scenario() -> None:
        long, mate = bench.job(*[1] * 20), bench.job(*[1] * 20, lane=other)
        first = bench.scheduler.submit(bench.lane, long)
        second = bench.scheduler.submit(other, mate)
        await until(lambda: mate.num_done > 0, pause_s=0)
        assert abs(long.num_done - mate.num_done) <= 4
        await asyncio.gather(first, second)

    play(run, bench, scenario)
    other.arena.check_integrity()


def test_batches_are_small_while_streams_arrive_and_everyone_is_answered(run: Run, bench: Bench):
    async def scenario() -> None:
        bench.scheduler.stream_arrived()
        waiters = [bench.scheduler.submit(bench.lane, bench.job(1)) for _ in range(7)]
        await until(waiters[ROWS_PER_OPENING - 1].done, pause_s=0)
        await until(lambda: bench.scheduler._timer is not None, pause_s=0)
        bench.scheduler.stream_arrived()  # while the others wait for more openings
        await asyncio.gather(*waiters)
        rows = bench.lane.observer.rows  # type: ignore[attr-defined]
        assert rows[:2] == [ROWS_PER_OPENING, ROWS_PER_OPENING]
        assert sum(rows) == 7

    play(run, bench, scenario)


# -- the door -----


def test_full_queue_refuses_at_once_and_leaves_the_job_to_its_caller(run: Run, adders: Path):
    bench = Bench(adders, max_queued_steps=5)

    async def scenario() -> None:
        gate = Gate.before(bench.lane)
        waiters = [bench.scheduler.submit(bench.lane, bench.job(1, 1, 1))]
        waiters.append(bench.scheduler.submit(bench.lane, bench.job(1, 1)))
        refused = bench.job(*[1] * 5)
        with pytest.raises(errors.QueueFull) as caught:
            bench.scheduler.submit(bench.lane, refused)
        assert caught.value.metadata == {"num_queued_steps": "5"}
        assert refused.scratch is not None
        bench.lane.arena.free(refused.scratch)
        gate.open()
        await asyncio.gather(*waiters)
        await bench.submit(bench.job(1))  # there is room again

    play(run, bench, scenario)


def test_job_larger_than_the_limit_is_taken_where_nothing_waits(run: Run, adders: Path):
    bench = Bench(adders, max_queued_steps=5)

    async def scenario() -> None:
        assert len(await bench.submit(bench.job(*[1] * 9))) == 9

    play(run, bench, scenario)


# -- leaving -----


def test_job_withdrawn_before_its_run_moves_nothing(run: Run, adders: Path):
    bench = Bench(adders)

    async def scenario() -> None:
        gate = Gate.before(bench.lane)
        busy, leaver = bench.job(1), bench.job(2)
        waiters = [bench.scheduler.submit(bench.lane, busy)]
        await gate.arrival()
        waiters.append(bench.scheduler.submit(bench.lane, leaver))
        bench.scheduler.withdraw(leaver)
        gate.open()
        results = await asyncio.gather(*waiters, return_exceptions=True)
        assert isinstance(results[1], asyncio.CancelledError)
        assert bench.total(leaver) == 0
        assert gate.batches == [1]
        assert bench.settled == [busy, leaver]

    play(run, bench, scenario)


def test_long_job_withdrawn_between_its_pieces_moves_nothing_and_frees_its_scratch_row(
    run: Run, adders: Path
):
    bench = Bench(adders)

    async def scenario() -> None:
        gate = Gate.before(bench.lane)
        job = bench.job(*[1] * 10)
        waiter = bench.scheduler.submit(bench.lane, job)
        await gate.arrival()
        gate.let_through()
        await gate.arrival()  # in its second piece of three
        bench.scheduler.withdraw(job)
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert gate.batches == [1, 1]
        assert bench.total(job) == 0
        assert bench.lane.arena.num_held == 1

    play(run, bench, scenario)


def test_job_withdrawn_in_its_last_run_is_applied(run: Run, adders: Path):
    bench = Bench(adders)

    async def scenario() -> None:
        gate = Gate.before(bench.lane)
        job, mate = bench.job(7), bench.job(8)
        waiter, mates_waiter = (bench.scheduler.submit(bench.lane, each) for each in (job, mate))
        await gate.arrival()
        bench.scheduler.withdraw(job)
        waiter.cancel()  # as the caller's task does when it is cancelled
        gate.open()
        assert (await mates_waiter)[0, 0] == 8
        assert job.is_applied
        assert bench.total(job) == 7
        assert gate.batches == [2]

    play(run, bench, scenario)


def test_closing_waits_for_the_run_under_way(run: Run, adders: Path):
    bench = Bench(adders)

    async def scenario() -> None:
        gate = Gate.before(bench.lane)
        waiter = bench.scheduler.submit(bench.lane, bench.job(7))
        await gate.arrival()
        closing = asyncio.ensure_future(bench.scheduler.close())
        await asyncio.sleep(0.02)
        assert not closing.done()
        gate.open()
        await closing
        assert (await waiter)[0, 0] == 7

    play(run, bench, scenario)


# -- a dead engine -----


def test_dead_engine_fails_all_that_wait_and_all_that_come(run: Run, bench: Bench):
    async def scenario() -> None:
        jobs = [bench.job(1), bench.job(FATAL), bench.job(1, 1), bench.job(*[1] * 9)]
        results = await asyncio.gather(*map(bench.submit, jobs), return_exceptions=True)
        assert all(isinstance(result, errors.EngineDead) for result in results)
        assert [bench.total(job) for job in jobs] == [0, 0, 0, 0]  # nothing of the batch has moved
        assert bench.deaths == [bench.lane]
        assert bench.lane.arena.num_held == len(jobs)
        with pytest.raises(errors.EngineDead):
            bench.scheduler.submit(bench.lane, bench.job(1))

    play(run, bench, scenario)


def test_dead_lane_does_not_take_the_others_along(run: Run, bench: Bench):
    other = bench.new_lane("other")

    async def scenario() -> None:
        dying = bench.scheduler.submit(bench.lane, bench.job(FATAL))
        living = bench.scheduler.submit(other, bench.job(3, lane=other))
        with pytest.raises(errors.EngineDead):
            await dying
        assert (await living)[0, 0] == 3

    play(run, bench, scenario)


# -- anything at once -----

MESSAGE = st.tuples(st.integers(0, 5), st.lists(st.integers(-9, 9), min_size=1, max_size=12), st.booleans())


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    messages=st.lists(MESSAGE, min_size=1, max_size=40), is_inline=st.booleans(), max_rows=st.integers(1, 6)
)
def test_rows_add_up_whatever_is_submitted_and_withdrawn(
    run: Run, adders: Path, *, messages: list[tuple[int, list[int], bool]], is_inline: bool, max_rows: int
):
    limit_s = ALWAYS_INLINE if is_inline else ALWAYS_THREAD
    bench = Bench(adders, inline_run_limit_s=limit_s, max_rows=max_rows)

    async def scenario() -> None:
        arena = bench.lane.arena
        slots = [arena.allocate() for _ in range(6)]
        totals = [0] * 6
        turns = [asyncio.Lock() for _ in slots]  # one step of a row in flight: the caller's duty

        async def message(row: int, values: list[int], *, leaves: bool) -> None:
            async with turns[row]:
                scratch = arena.allocate() if len(values) > 4 else None
                rows = np.array(values, np.float32)[:, None]
                job = Job(rows, slots[row], scratch=scratch, owner=Owner(bench.settled))
                waiter = bench.scheduler.submit(bench.lane, job)
                if leaves:
                    await asyncio.sleep(0)
                    bench.scheduler.withdraw(job)
                try:
                    answers = await waiter
                except asyncio.CancelledError:
                    assert leaves
                else:
                    assert answers[:, 0].tolist() == list(totals[row] + np.cumsum(values))
                    totals[row] += sum(values)
                assert float(arena.read(slots[row])[0][0]) == totals[row]

        await asyncio.gather(*(message(row, values, leaves=leaves) for row, values, leaves in messages))
        assert len(bench.settled) == len(messages)
        assert arena.num_held == 6

    play(run, bench, scenario)
