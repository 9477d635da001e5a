"""The queue and its batches on a real engine: who runs with whom, who waits, and that nobody waits for ever."""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from graphs import FATAL, make_mortal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inside import Gate, until
from lanes import PIECE_STEPS, Observer, lane_of_model
from longshort_service import errors
from longshort_service.arena import Slot, Slots
from longshort_service.batching import Job
from longshort_service.columns import Moves
from longshort_service.engine import Engine
from longshort_service.scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from longshort_service.host_states import HostStates
    from longshort_service.lane import Lane

    Run = Callable[..., Any]

ALWAYS_INLINE, ALWAYS_THREAD = 1e9, -1.0
NUM_ROWS = 32


class Owner:
    """Remembers which jobs have ended, in order."""

    def __init__(self, log: list[Job]) -> None:
        self._log = log

    def settled(self, job: Job) -> None:
        self._log.append(job)


class Waiter:
    """Waits for the answer to one value."""

    def __init__(self, name: str, log: list[str]) -> None:
        self._name = name
        self._log = log
        self.outcome: asyncio.Future[tuple[float, int] | errors.ServiceError] = asyncio.Future()

    def answered(self, outputs: bytes, step: int) -> None:
        self._log.append(self._name)
        self.outcome.set_result((float(np.frombuffer(outputs, "<f4")[0]), step))

    def failed(self, error: errors.ServiceError) -> None:
        self._log.append(self._name)
        self.outcome.set_result(error)


class Bench:
    """A scheduler with one lane of the adder, its jobs and what has become of them."""

    def __init__(self, adders: Path, *, inline_run_limit_s: float = ALWAYS_THREAD, **limits: int) -> None:
        self.deaths: list[Lane] = []
        self.settled: list[Job] = []
        self.told: list[str] = []  # names of jobs and singles in the order in which they ended
        self.max_rows = limits.get("max_rows", 8)
        self.scheduler = Scheduler(
            inline_run_limit_s=inline_run_limit_s,
            max_queued_steps=limits.get("max_queued_steps", 1000),
            on_engine_death=self.deaths.append,
        )
        self._path = adders / "adder" / "1" / "model.onnx"
        self.observer = Observer()
        self.lane = self.new_lane("adder", self.observer)

    def new_lane(self, name: str, observer: Observer) -> Lane:
        engine = Engine(self._path, provider="cpu", intra_op_num_threads=1)
        return lane_of_model(engine, num_rows=NUM_ROWS, max_rows=self.max_rows, observer=observer, name=name)

    @property
    def memory(self) -> HostStates:
        """Where the states of its first lane are."""
        assert self.lane.states is not None
        return self.lane.states

    def slots(self, count: int, lane: Lane | None = None) -> Slots:
        """Return rows of their own for so many sessions, as new."""
        lane = lane or self.lane
        slots = lane.arena.allocate_many(count)
        lane.arena.memory.initialise(slots.rows)
        lane.columns.clear_many(slots.rows)
        return slots

    def job(self, *values: float, lane: Lane | None = None) -> Job:
        """Return a job of one message, with a row of its own, and a scratch row where it is long."""
        return self.job_of([list(values)], lane=lane)

    def job_of(
        self, messages: list[list[float]], *, slots: Slots | None = None, lane: Lane | None = None
    ) -> Job:
        """Return a job of messages of equal length, each of a session of its own."""
        lane = lane or self.lane
        values = np.array(messages, np.float32)[:, :, None]
        slots = slots or self.slots(len(messages), lane)
        is_long = values.shape[1] > lane.policy.piece(len(messages))
        scratch = lane.arena.allocate_many(len(messages)) if is_long else None
        return Job(values, slots, scratch=scratch, owner=Owner(self.settled))

    def totals(self, job: Job) -> list[float]:
        """Return the states in a job's rows."""
        return [float(total) for total in self.memory.gather(job.slots.rows)[0].ravel()]

    def submit(self, job: Job, name: str = "", *, lane: Lane | None = None) -> asyncio.Future[None]:
        """Queue a job; the result is there when it has ended."""
        ended: asyncio.Future[None] = asyncio.Future()

        def on_end(_job: Job) -> None:
            self.told.append(name)
            ended.set_result(None)

        job.on_end = on_end
        self.scheduler.submit(lane or self.lane, job)
        return ended

    async def answers(self, job: Job) -> list[list[float]]:
        """Run a job and return the answers to each of its messages."""
        await self.submit(job)
        if job.failure is not None:
            raise job.failure
        return job.outputs[:, :, 0].tolist()

    def submit_single(self, slots: Slots, value: float, name: str = "", *, place: int = 0) -> Waiter:
        """Queue one value of one session."""
        waiter = Waiter(name, self.told)
        slot = Slot(int(slots.rows[place]), int(slots.generations[place]))
        self.scheduler.submit_single(self.lane, slot, [value], 1, waiter)
        return waiter


def play(run: Run, bench: Bench, scenario: Any) -> None:
    async def limited() -> None:
        try:
            async with asyncio.timeout(20):
                await scenario()
        finally:
            await bench.scheduler.close()

    run(limited())
    lane = bench.lane
    lane.arena.check_integrity()
    assert lane.num_queued_steps == 0
    assert not lane.queue
    assert not lane.singles
    assert not lane.columns.is_busy.any()


@pytest.fixture(params=[ALWAYS_INLINE, ALWAYS_THREAD], ids=["inline", "thread"])
def bench(request: pytest.FixtureRequest, adders: Path) -> Bench:
    return Bench(adders, inline_run_limit_s=request.param)


# -- answers -----


def test_jobs_are_answered_and_their_rows_hold_the_new_state(run: Run, bench: Bench):
    async def scenario() -> None:
        jobs = [bench.job(k, k) for k in range(5)]
        answers = await asyncio.gather(*map(bench.answers, jobs))
        assert answers == [[[k, 2 * k]] for k in range(5)]
        assert [bench.totals(job) for job in jobs] == [[0], [2], [4], [6], [8]]
        assert bench.settled == jobs
        assert bench.observer.rows == [5]
        assert bench.observer.num_done == 1
        assert bench.observer.num_applied == 10

    play(run, bench, scenario)


def test_job_of_many_rows_is_one_run_and_each_row_goes_its_own_way(run: Run, bench: Bench):
    async def scenario() -> None:
        many, mate = bench.job_of([[1, 2], [10, 20], [100, 200]]), bench.job(5, 5)
        answers = await asyncio.gather(bench.answers(many), bench.answers(mate))
        assert answers == [[[1, 3], [10, 30], [100, 300]], [[5, 10]]]
        assert bench.totals(many) == [3, 30, 300]
        assert bench.totals(mate) == [10]
        assert bench.observer.rows == [4]
        assert bench.observer.num_applied == 8

    play(run, bench, scenario)


def test_long_job_runs_in_pieces_and_gives_its_scratch_row_back(run: Run, bench: Bench):
    async def scenario() -> None:
        job = bench.job(*[1] * 10)
        assert await bench.answers(job) == [list(range(1, 11))]
        assert bench.totals(job) == [10]
        assert job.scratch is None
        assert bench.lane.arena.num_held == 1
        assert bench.observer.rows == [1, 1, 1]
        assert bench.observer.num_applied == 10

    play(run, bench, scenario)


def test_long_job_of_many_rows_runs_in_pieces_and_gives_its_scratch_rows_back(run: Run, bench: Bench):
    async def scenario() -> None:
        job = bench.job_of([[row] * 10 for row in range(3)])
        assert job.scratch is not None
        assert await bench.answers(job) == [[row * step for step in range(1, 11)] for row in range(3)]
        assert bench.totals(job) == [0, 10, 20]
        assert bench.lane.arena.num_held == 3
        assert bench.observer.rows == [3, 3, 3]

    play(run, bench, scenario)


def test_forecast_feeds_answers_back_and_moves_nothing(run: Run, bench: Bench):
    async def scenario() -> None:
        scratch = bench.slots(2)
        values = np.array([[3, 0, 0], [5, 0, 0]], np.float32)[:, :, None]
        job = Job(values, scratch, scratch=scratch, feedback=([0], [0]))
        assert await bench.answers(job) == [[3, 6, 12], [5, 10, 20]]
        assert bench.lane.arena.num_held == 0
        assert bench.observer.num_applied == 0  # nobody's steps

    play(run, bench, scenario)


def test_row_that_overflows_fails_alone_and_stays_where_it_was(run: Run, bench: Bench):
    async def scenario() -> None:
        good, bad, other = bench.job(1, 2), bench.job(3e38, 3e38), bench.job(5, 5)
        answers = await asyncio.gather(*map(bench.answers, (good, bad, other)))
        assert (answers[0], answers[2]) == ([[1, 3]], [[5, 10]])
        assert [job.applied is None for job in (good, bad, other)] == [True, False, True]
        assert [bench.totals(job) for job in (good, bad, other)] == [[3], [0], [10]]
        assert len(bench.settled) == 3
        assert bench.observer.num_applied == 4

    play(run, bench, scenario)


def test_long_job_that_overflows_late_stays_where_it_was(run: Run, bench: Bench):
    async def scenario() -> None:
        job = bench.job(*[0] * 8, 3e38, 3e38)
        await bench.submit(job)
        assert job.failed is not None
        assert bench.totals(job) == [0]
        assert bench.lane.arena.num_held == 1

    play(run, bench, scenario)


def test_row_that_overflows_in_the_middle_of_a_long_job_has_not_moved_at_its_end(run: Run, bench: Bench):
    """Its later pieces are finite again, for they run on from where the row was before the one that failed."""

    async def scenario() -> None:
        mates = [1.0] * 12
        job = bench.job_of([mates, [1, 1, 1, 1, 3e38, 3e38, 1, 1, 1, 1, 1, 1], mates])
        await bench.submit(job)
        assert bench.observer.rows == [3, 3, 3]  # nobody is left out of a later piece
        assert np.isfinite(job.outputs[1, 8:]).all()
        assert job.applied is not None
        assert job.applied.tolist() == [True, False, True]
        assert bench.totals(job) == [12, 0, 12]
        assert job.outputs[[0, 2], :, 0].tolist() == [list(range(1, 13))] * 2
        assert bench.lane.arena.num_held == 3
        assert bench.observer.num_applied == 24

    play(run, bench, scenario)


def test_long_job_all_of_whose_rows_have_failed_is_not_run_to_its_end(run: Run, bench: Bench):
    async def scenario() -> None:
        late, early = [1.0] * 4 + [3e38] * 8, [3e38] * 12
        job = bench.job_of([late, early])
        await bench.submit(job)
        assert bench.observer.rows == [2, 2]
        assert bench.totals(job) == [0, 0]
        assert bench.lane.arena.num_held == 2
        assert bench.observer.num_applied == 0

    play(run, bench, scenario)


# -- one by one -----


def test_values_that_come_one_by_one_are_one_run(run: Run, bench: Bench):
    async def scenario() -> None:
        slots = bench.slots(5)
        waiters = [bench.submit_single(slots, k, place=k) for k in range(5)]
        assert bench.lane.num_queued_steps == 5
        assert bench.lane.columns.is_busy[slots.rows].all()
        assert [await waiter.outcome for waiter in waiters] == [(k, 1) for k in range(5)]
        waiters = [bench.submit_single(slots, 1, place=k) for k in range(5)]
        assert [await waiter.outcome for waiter in waiters] == [(k + 1, 2) for k in range(5)]
        assert bench.observer.rows == [5, 5]
        assert (bench.observer.num_applied, bench.observer.num_answered) == (10, 10)

    play(run, bench, scenario)


def test_one_value_that_overflows_fails_alone(run: Run, bench: Bench):
    async def scenario() -> None:
        slots = bench.slots(3)
        await bench.submit_single(slots, 3e38, place=1).outcome
        waiters = [bench.submit_single(slots, value, place=k) for k, value in enumerate([1, 3e38, 3])]
        one, failure, other = [await waiter.outcome for waiter in waiters]
        assert (one, other) == ((1, 1), (3, 1))
        assert isinstance(failure, errors.NonFiniteResult)
        assert bench.lane.columns.step[slots.rows].tolist() == [1, 1, 1]
        assert bench.memory.gather(slots.rows)[0].ravel().tolist() == [1, np.float32(3e38), 3]

    play(run, bench, scenario)


def test_more_values_than_a_batch_takes_are_several_runs(run: Run, adders: Path):
    bench = Bench(adders, max_rows=3)

    async def scenario() -> None:
        slots = bench.slots(7)
        waiters = [bench.submit_single(slots, k, place=k) for k in range(7)]
        assert [await waiter.outcome for waiter in waiters] == [(k, 1) for k in range(7)]
        assert bench.observer.rows == [3, 3, 1]

    play(run, bench, scenario)


def test_values_one_by_one_and_jobs_are_served_in_the_order_in_which_they_came(run: Run, adders: Path):
    """Two rows go in a run here. A job of values that came one by one stands where the first of them came."""
    bench = Bench(adders, max_rows=2)

    async def scenario() -> None:
        gate = Gate.before(bench.lane)
        slots = bench.slots(5)
        ends: list[asyncio.Future[Any]] = [bench.submit(bench.job(1), "first")]
        await gate.arrival()
        ends.append(bench.submit(bench.job(1), "a"))
        for k, name in enumerate("bcdef"):
            ends.append(
                bench.submit(bench.job(1), name)
                if name == "e"
                else bench.submit_single(slots, 1, name, place=k).outcome
            )
        gate.open()
        await asyncio.gather(*ends)
        assert bench.told == ["first", "a", "b", "c", "d", "f", "e"]  # b, c and d, f are a job each
        assert gate.batches == [1, 1, 2, 2, 1]

    play(run, bench, scenario)


# -- order -----


def test_what_waits_while_the_engine_is_busy_goes_together_next(run: Run, adders: Path):
    bench = Bench(adders, max_rows=3)

    async def scenario() -> None:
        gate = Gate.before(bench.lane)
        ends = [bench.submit(bench.job(1))]
        await gate.arrival()
        ends += [bench.submit(bench.job(1)) for _ in range(4)]
        gate.open()
        await asyncio.gather(*ends)
        assert gate.batches == [1, 3, 1]

    play(run, bench, scenario)


@pytest.mark.parametrize("num_rows", [1, 3])
def test_short_job_does_not_wait_for_a_long_one_to_end(run: Run, bench: Bench, num_rows: int):
    async def scenario() -> None:
        long, short = bench.job_of([[1.0] * 28] * num_rows), bench.job(1)
        end = bench.submit(long)
        await until(lambda: long.num_done > 0, pause_s=0)
        await bench.submit(short)
        assert not end.done()
        waiter = bench.submit_single(bench.slots(1), 1)
        await waiter.outcome
        assert not end.done()
        await end
        assert bench.settled == [short, long]

    play(run, bench, scenario)


def test_lanes_take_turns(run: Run, adders: Path):
    bench = Bench(adders, inline_run_limit_s=ALWAYS_INLINE)
    other = bench.new_lane("other", Observer())

    async def scenario() -> None:
        long, mate = bench.job(*[1] * 20), bench.job(*[1] * 20, lane=other)
        first = bench.submit(long)
        second = bench.submit(mate, lane=other)
        await until(lambda: mate.num_done > 0, pause_s=0)
        assert abs(long.num_done - mate.num_done) <= PIECE_STEPS
        await asyncio.gather(first, second)

    play(run, bench, scenario)
    other.arena.check_integrity()


def test_turn_of_the_loop_runs_one_batch(run: Run, adders: Path):
    """Between two batches the loop reads and writes: others are not kept from it by those who have much to run."""
    bench = Bench(adders, inline_run_limit_s=ALWAYS_INLINE, max_rows=2)

    async def scenario() -> None:
        ends = [bench.submit(bench.job(1)) for _ in range(8)]
        turns = []
        while not all(end.done() for end in ends):
            turns.append(len(bench.observer.rows))
            await asyncio.sleep(0)
        assert max(after - before for before, after in itertools.pairwise(turns)) == 1

    play(run, bench, scenario)


# -- the door -----


def test_full_queue_refuses_at_once_and_leaves_the_job_to_its_caller(run: Run, adders: Path):
    bench = Bench(adders, max_queued_steps=5)

    async def scenario() -> None:
        gate = Gate.before(bench.lane)
        ends = [bench.submit(bench.job_of([[1], [1], [1]]))]  # steps of every row count
        ends.append(bench.submit(bench.job(1, 1)))
        refused = bench.job(*[1] * 5)
        for job in (refused, bench.job(1)):
            with pytest.raises(errors.QueueFull) as caught:
                bench.submit(job)
            assert caught.value.metadata == {"num_queued_steps": "5"}
        assert refused.scratch is not None
        bench.lane.arena.free(refused.scratch)
        assert bench.lane.num_queued_steps == 5
        gate.open()
        await asyncio.gather(*ends)
        await bench.submit(bench.job(1))  # there is room again

    play(run, bench, scenario)


def test_full_queue_refuses_one_value_and_its_session_is_not_busy(run: Run, adders: Path):
    bench = Bench(adders, max_queued_steps=2)

    async def scenario() -> None:
        slots = bench.slots(3)
        waiters = [bench.submit_single(slots, 1, place=k) for k in range(2)]
        with pytest.raises(errors.QueueFull):
            bench.submit_single(slots, 1, place=2)
        assert not bench.lane.columns.is_busy[slots.rows[2]]
        assert [await waiter.outcome for waiter in waiters] == [(1, 1), (1, 1)]
        assert await bench.submit_single(slots, 1, place=2).outcome == (1, 1)

    play(run, bench, scenario)


def test_job_larger_than_the_limit_is_taken_where_nothing_waits(run: Run, adders: Path):
    bench = Bench(adders, max_queued_steps=5)

    async def scenario() -> None:
        assert await bench.answers(bench.job(*[1] * 9)) == [list(range(1, 10))]

    play(run, bench, scenario)


# -- leaving -----


def test_job_withdrawn_before_its_run_moves_nothing(run: Run, adders: Path):
    bench = Bench(adders)

    async def scenario() -> None:
        gate = Gate.before(bench.lane)
        busy, leaver = bench.job(1), bench.job_of([[2], [3]])
        ends = [bench.submit(busy)]
        await gate.arrival()
        ends.append(bench.submit(leaver))
        bench.scheduler.withdraw(leaver)
        gate.open()
        await asyncio.gather(*ends)
        assert leaver.num_applied == 0
        assert bench.totals(leaver) == [0, 0]
        assert gate.batches == [1]
        assert bench.settled == [busy, leaver]

    play(run, bench, scenario)


@pytest.mark.parametrize("num_rows", [1, 3])
def test_long_job_withdrawn_between_its_pieces_moves_nothing_and_frees_its_scratch_rows(
    run: Run, adders: Path, num_rows: int
):
    bench = Bench(adders)

    async def scenario() -> None:
        gate = Gate.before(bench.lane)
        job = bench.job_of([[1.0] * 10] * num_rows)
        end = bench.submit(job)
        await gate.arrival()
        gate.let_through()
        await gate.arrival()  # in its second piece of three
        bench.scheduler.withdraw(job)
        gate.open()
        await end
        assert job.num_applied == 0
        assert gate.batches == [num_rows, num_rows]
        assert bench.totals(job) == [0] * num_rows
        assert bench.lane.arena.num_held == num_rows

    play(run, bench, scenario)


def test_job_withdrawn_in_its_last_run_is_applied(run: Run, adders: Path):
    bench = Bench(adders)

    async def scenario() -> None:
        gate = Gate.before(bench.lane)
        job, mate = bench.job(7), bench.job(8)
        ends = [bench.submit(each) for each in (job, mate)]
        await gate.arrival()
        bench.scheduler.withdraw(job)
        gate.open()
        await asyncio.gather(*ends)
        assert mate.outputs.tolist() == [[[8]]]
        assert (job.applied, job.num_applied) == (None, 1)
        assert bench.totals(job) == [7]
        assert gate.batches == [2]

    play(run, bench, scenario)


def test_closing_waits_for_the_run_under_way(run: Run, adders: Path):
    bench = Bench(adders)

    async def scenario() -> None:
        gate = Gate.before(bench.lane)
        job = bench.job(7)
        end = bench.submit(job)
        await gate.arrival()
        closing = asyncio.ensure_future(bench.scheduler.close())
        await asyncio.sleep(0.02)
        assert not closing.done()
        gate.open()
        await closing
        await end
        assert job.outputs.tolist() == [[[7]]]

    play(run, bench, scenario)


# -- a dead engine -----


def test_dead_engine_fails_all_that_wait_and_all_that_come(run: Run, bench: Bench):
    async def scenario() -> None:
        jobs = [bench.job(1), bench.job_of([[1], [FATAL]]), bench.job(1, 1), bench.job(*[1] * 9)]
        slots = bench.slots(2)
        make_mortal(bench.lane.engine)
        ends = [bench.submit(job) for job in jobs]
        waiters = [bench.submit_single(slots, 1, place=k) for k in range(2)]
        outcomes = await asyncio.gather(*(waiter.outcome for waiter in waiters))
        await asyncio.gather(*ends)
        assert all(isinstance(end, errors.EngineDead) for end in [*outcomes, *(job.failure for job in jobs)])
        assert [bench.totals(job) for job in jobs] == [
            [0],
            [0, 0],
            [0],
            [0],
        ]  # nothing of the batch has moved
        assert bench.deaths == [bench.lane]
        assert bench.lane.arena.num_held == 5 + 2
        with pytest.raises(errors.EngineDead):
            bench.submit(bench.job(1))
        with pytest.raises(errors.EngineDead):
            bench.submit_single(slots, 1)

    play(run, bench, scenario)


def test_values_that_the_graph_fails_on_are_failed_and_their_batch_mates_do_not_notice(
    run: Run, bench: Bench
):
    async def scenario() -> None:
        jobs = [bench.job(1), bench.job_of([[1], [FATAL], [3]]), bench.job(7)]
        await asyncio.gather(*[bench.submit(job) for job in jobs])
        assert [bench.totals(job) for job in jobs] == [[1], [1, 0, 3], [7]]
        assert [job.failure for job in jobs] == [None] * 3
        assert list(jobs[1].refusals or ()) == [1]
        waiter = bench.submit_single(bench.slots(1), FATAL)
        assert isinstance(await waiter.outcome, errors.ValuesRefused)
        assert bench.deaths == []

    play(run, bench, scenario)


def test_value_that_kills_the_engine_alone_is_failed(run: Run, bench: Bench):
    async def scenario() -> None:
        slots = bench.slots(2)
        assert await bench.submit_single(slots, 5).outcome == (5, 1)
        make_mortal(bench.lane.engine)
        waiter = bench.submit_single(slots, FATAL, place=1)
        assert isinstance(await waiter.outcome, errors.EngineDead)
        assert bench.deaths == [bench.lane]
        assert bench.memory.gather(slots.rows)[0].ravel().tolist() == [5, 0]

    play(run, bench, scenario)


def test_value_that_comes_alone_while_the_engine_dies_is_failed_too(run: Run, adders: Path):
    bench = Bench(adders)

    async def scenario() -> None:
        make_mortal(bench.lane.engine)
        gate = Gate.before(bench.lane)
        end = bench.submit(bench.job(FATAL))
        await gate.arrival()
        waiter = bench.submit_single(bench.slots(1), 1)
        gate.open()
        assert isinstance(await waiter.outcome, errors.EngineDead)
        await end

    play(run, bench, scenario)


def test_row_that_was_freed_under_a_job_is_a_dead_engine_and_its_next_holder_keeps_its_state(
    run: Run, bench: Bench
):
    """A bug of ours must end loudly, and never hand one session's memory to another."""

    async def scenario() -> None:
        job, mate = bench.job(5), bench.job(6)
        ends = [bench.submit(job), bench.submit(mate)]
        bench.lane.arena.free(job.slots)
        heir = bench.slots(1)
        assert heir.rows.tolist() == job.slots.rows.tolist()
        await asyncio.gather(*ends)
        assert isinstance(mate.failure, errors.EngineDead)
        assert bench.totals(mate) == [0]
        assert bench.memory.gather(heir.rows)[0].tolist() == [[0]]

    play(run, bench, scenario)


def test_bug_after_the_answers_kills_the_lane_and_tells_nobody_twice(
    run: Run, bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    async def scenario() -> None:
        short, long = bench.job(5, 5, 5, 5), bench.job(*[1] * 9)
        monkeypatch.setattr(bench.observer, "batch_done", None)  # calling it raises
        await asyncio.gather(bench.submit(short), bench.submit(long))
        await until(lambda: bench.deaths)
        assert (short.failure, short.num_applied) == (None, 1)
        assert isinstance(long.failure, errors.EngineDead)
        assert bench.settled == [short, long]
        assert bench.totals(long) == [0]

    play(run, bench, scenario)


def test_job_that_nobody_waits_for_is_run_as_well(run: Run, bench: Bench):
    async def scenario() -> None:
        job = bench.job(5)
        bench.scheduler.submit(bench.lane, job)
        await until(lambda: job.has_ended)
        assert bench.totals(job) == [5]

    play(run, bench, scenario)


def test_dead_lane_does_not_take_the_others_along(run: Run, bench: Bench):
    other = bench.new_lane("other", Observer())

    async def scenario() -> None:
        make_mortal(bench.lane.engine)
        dying, living = bench.job(FATAL), bench.job(3, lane=other)
        ends = [bench.submit(dying), bench.submit(living, lane=other)]
        await asyncio.gather(*ends)
        assert isinstance(dying.failure, errors.EngineDead)
        assert living.outputs.tolist() == [[[3]]]

    play(run, bench, scenario)


# -- anything at once -----

NUM_SESSIONS = 6
VALUES = st.lists(st.integers(-9, 9), min_size=1, max_size=12)
ACT = st.one_of(
    st.tuples(st.just("message"), st.integers(0, NUM_SESSIONS - 1), VALUES, st.booleans()),
    st.tuples(st.just("single"), st.integers(0, NUM_SESSIONS - 1), st.integers(-9, 9)),
    st.tuples(st.just("frame"), st.sets(st.integers(0, NUM_SESSIONS - 1), min_size=1), VALUES),
)


class Crowd:
    """Sessions that are moved by messages, by single values and by frames at once; each turn is taken in order."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._slots = bench.slots(NUM_SESSIONS)
        self.totals = [0] * NUM_SESSIONS
        self.steps = [0] * NUM_SESSIONS
        self._turns = [
            asyncio.Lock() for _ in self.totals
        ]  # one message of a session in flight: the caller's duty

    async def message(self, session: int, values: list[int], leaves: bool) -> None:  # noqa: FBT001
        async with self._turns[session]:
            job = self._job([session], values)
            end = self._bench.submit(job)
            if leaves:
                await asyncio.sleep(0)
                self._bench.scheduler.withdraw(job)
            await end
            assert leaves or job.num_applied
            self._expect(job, [session], values)

    async def single(self, session: int, value: int) -> None:
        async with self._turns[session]:
            outcome = await self._bench.submit_single(self._slots, value, place=session).outcome
            self.totals[session] += value
            self.steps[session] += 1
            assert outcome == (self.totals[session], self.steps[session])

    async def frame(self, sessions: set[int], values: list[int]) -> None:
        order = sorted(sessions)
        for session in order:
            await self._turns[session].acquire()
        job = self._job(order, values)
        await self._bench.submit(job)
        self._expect(job, order, values)
        for session in order:
            self._turns[session].release()

    def _job(self, sessions: list[int], values: list[int]) -> Job:
        """Return a job of the values, times one more for each session of it."""
        messages = [[(place + 1) * value for value in values] for place in range(len(sessions))]
        job = self._bench.job_of(messages, slots=self._slots.part(np.array(sessions)))
        columns = self._bench.lane.columns
        columns.is_busy[job.slots.rows] = True
        num_rows = len(sessions)
        crcs, answer_rows = np.zeros(num_rows, np.uint32), np.full(num_rows, len(values), np.int32)
        job.owner = Moves(columns, job.values[:, -1], crcs, answer_rows)
        return job

    def _expect(self, job: Job, sessions: list[int], values: list[int]) -> None:
        for place, session in enumerate(sessions):
            if job.num_applied:
                expected = self.totals[session] + (place + 1) * np.cumsum(values)
                assert job.outputs[place, :, 0].tolist() == expected.tolist()
                self.totals[session] = int(expected[-1])
                self.steps[session] += len(values)
        assert self._bench.totals(job) == [self.totals[session] for session in sessions]

    def check(self) -> None:
        lane = self._bench.lane
        assert self._bench.memory.gather(self._slots.rows)[0].ravel().tolist() == self.totals
        assert lane.columns.step[self._slots.rows].tolist() == self.steps
        assert lane.arena.num_held == NUM_SESSIONS


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(acts=st.lists(ACT, min_size=1, max_size=40), is_inline=st.booleans(), max_rows=st.integers(1, 6))
def test_rows_add_up_whatever_is_submitted_and_withdrawn(
    run: Run, adders: Path, *, acts: list[tuple[Any, ...]], is_inline: bool, max_rows: int
):
    limit_s = ALWAYS_INLINE if is_inline else ALWAYS_THREAD
    bench = Bench(adders, inline_run_limit_s=limit_s, max_rows=max_rows)

    async def scenario() -> None:
        crowd = Crowd(bench)
        await asyncio.gather(*(getattr(crowd, kind)(*how) for kind, *how in acts))
        crowd.check()

    play(run, bench, scenario)


def test_whose_values_the_graph_fails_on_is_not_found_out_on_the_loop(
    run: Run, bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    engine = bench.lane.engine
    sound_run, threads = engine.run, []

    def failing_run(values: Any, counts: Any, states: Any) -> Any:
        threads.append(threading.current_thread())
        if (values == 7).any():
            raise RuntimeError("7 is beyond the table")
        return sound_run(values, counts, states)

    async def scenario() -> None:
        monkeypatch.setattr(engine, "run", failing_run)
        job = bench.job_of([[1], [7], [3], [7]])
        await bench.submit(job)
        assert job.failure is None
        assert job.refusals is not None
        assert sorted(job.refusals) == [1, 3]
        assert bench.totals(job) == [1, 0, 3, 0]
        assert threads.count(threading.main_thread()) <= 1
        assert len(threads) > 4
        assert not bench.deaths

    play(run, bench, scenario)


def test_raise_of_an_engine_with_its_states_on_a_device_is_its_end(run: Run, bench: Bench):
    class Failing:
        num_runs = 0

        def run(self, *_: object) -> None:
            self.num_runs += 1
            raise RuntimeError("the device is gone")

    async def scenario() -> None:
        resident: Any = Failing()
        bench.lane.resident = resident
        with pytest.raises(errors.EngineDead):
            await bench.answers(bench.job(1))
        assert bench.deaths == [bench.lane]
        assert resident.num_runs == 1

    play(run, bench, scenario)
