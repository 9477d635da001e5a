"""Forming batches: every queued job is served once, in order, and padding is paid for only where it pays."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from longshort_service.arena import Slots
from longshort_service.batching import Batch, BatchPolicy, Job, RunCost, form_batch
from longshort_service.errors import EngineDead

SMALL_MODEL = RunCost(fixed=20e-6, each_step=5e-6, each_row_step=1e-6)
FREE_PADDING = RunCost(fixed=1e-3, each_step=0.0, each_row_step=0.0)
DEAR_PADDING = RunCost(fixed=0.0, each_step=0.0, each_row_step=1e-4)


class Owner:
    def settled(self, job: Job) -> None:
        """See JobOwner."""


def slots_of(first_row: int, count: int = 1) -> Slots:
    return Slots(np.arange(first_row, first_row + count), np.ones(count, np.int64))


def job_of(
    num_steps: int, *, row: int = 0, num_rows: int = 1, is_forecast: bool = False, is_long: bool = False
) -> Job:
    values = np.zeros((num_rows, num_steps, 1), np.float32)
    slots = slots_of(row, num_rows)
    if is_forecast:
        return Job(values, slots, scratch=slots, feedback=([0], [0]))
    return Job(values, slots, scratch=slots_of(row + 1000, num_rows) if is_long else None, owner=Owner())


def policy_of(
    max_rows: int = 8, piece_steps: int = 4, cost: RunCost = SMALL_MODEL, *, can_pad: bool = True
) -> BatchPolicy:
    return BatchPolicy(max_rows, piece_steps, can_pad, cost)


def form(queue: deque[Job], policy: BatchPolicy) -> Batch | None:
    return form_batch(queue, policy, lambda _job: pytest.fail("nothing was withdrawn"))


def test_empty_queue_gives_no_batch():
    assert form(deque(), policy_of()) is None


def test_equal_jobs_share_one_run_up_to_the_limit():
    queue = deque(job_of(1, row=k) for k in range(5))
    jobs = list(queue)
    assert form(queue, policy_of(max_rows=3)) == Batch(jobs[:3], [1, 1, 1], 1, num_rows=3)
    assert list(queue) == jobs[3:]


def test_jobs_of_many_rows_share_a_run_up_to_the_limit_of_rows():
    queue = deque(job_of(1, row=10 * k, num_rows=3) for k in range(4))
    jobs = list(queue)
    assert form(queue, policy_of(max_rows=8)) == Batch(jobs[:2], [1, 1], 1, num_rows=6)
    assert list(queue) == jobs[2:]


def test_job_that_does_not_fit_holds_its_place_against_smaller_ones_behind_it():
    queue = deque([job_of(1), job_of(1, row=1, num_rows=8), job_of(1, row=9)])
    jobs = list(queue)
    assert form(queue, policy_of(max_rows=8)) == Batch(jobs[:1], [1], 1, num_rows=1)
    assert list(queue) == jobs[1:]


def test_job_of_more_rows_than_the_limit_runs_alone():
    queue = deque([job_of(1, num_rows=20), job_of(1, row=20)])
    jobs = list(queue)
    assert form(queue, policy_of(max_rows=8)) == Batch(jobs[:1], [1], 1, num_rows=20)
    assert list(queue) == jobs[1:]


def counts_of(job: Job, policy: BatchPolicy) -> list[int]:
    """Return the pieces that a job goes in when it is alone."""
    counts = []
    while not job.is_done:
        batch = form(deque([job]), policy)
        assert batch is not None
        counts += batch.counts
        job.num_done += batch.counts[0]
    return counts


def test_long_job_is_cut_into_pieces():
    assert counts_of(job_of(10, is_long=True), policy_of(piece_steps=4)) == [4, 4, 2]


def test_job_of_many_rows_is_cut_by_what_its_run_would_cost():
    policy = policy_of(max_rows=1024, piece_steps=64)
    (long,) = counts_of(job_of(40, is_long=True), policy)
    assert long == 40
    expected = policy.piece(1024)
    assert 1 <= expected < 40
    limit_s = max(policy.piece_s, 2 * SMALL_MODEL.run(1024, 1))
    assert SMALL_MODEL.run(1024, expected) <= limit_s + 1e-9
    assert SMALL_MODEL.run(1024, expected + 1) > limit_s
    counts = counts_of(job_of(40, num_rows=1024, is_long=True), policy)
    assert set(counts[:-1]) == {expected}
    assert sum(counts) == 40


@pytest.mark.parametrize(
    ("cost", "num_rows", "expected"),
    [
        (SMALL_MODEL, 1, 64),  # the limit of steps comes before that of time
        (SMALL_MODEL, 128, 14),  # (2 ms - 20 us) / (5 us + 128 us)
        (RunCost(0.0, 0.0, 0.0), 1, 64),
        (RunCost(0.0, 0.0, 1.0), 1, 2),  # a run of one step is too long already: twice that is the limit
        (RunCost(0.0, 0.0, 1.0), 512, 2),
        (RunCost(1.0, 0.0, 0.0), 1, 64),  # all of the cost is fixed: pieces would only add to it
        (RunCost(0.45, 0.1, 0.0), 1, 6),  # (1.1 s - 0.45 s) / 0.1 s
    ],
)
def test_piece_is_as_long_as_its_time_allows_and_never_empty(cost: RunCost, num_rows: int, expected: int):
    assert policy_of(1024, 64, cost).piece(num_rows) == expected


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (RunCost(0.0, 0.0, 0.0), 64),  # never more than the limit of rows
        (RunCost(0.0001, 0.0001, 0.0001), 18),  # as many as 2 ms hold
        (RunCost(0.001, 0.0, 0.002), 2),  # in a slow model twice what one takes
        (RunCost(0.0, 0.0, 0.01), 2),
        (RunCost(1.0, 0.0, 1e-6), 64),
    ],
)
def test_job_that_goes_step_by_step_has_as_many_rows_as_make_a_short_run(cost: RunCost, expected: int):
    assert policy_of(64, 64, cost).rows_together() == expected


def test_forecast_goes_one_step_a_run():
    batch = form(deque([job_of(9, is_forecast=True)]), policy_of())
    assert batch is not None
    assert batch.counts == [1]


def test_withdrawn_jobs_are_dropped_and_take_no_place_in_the_batch():
    queue = deque(job_of(1, row=k) for k in range(5))
    jobs = list(queue)
    jobs[0].withdrawn = jobs[2].withdrawn = True
    dropped: list[Job] = []
    batch = form_batch(queue, policy_of(max_rows=2), dropped.append)
    assert batch is not None
    assert batch.jobs == [jobs[1], jobs[3]]
    assert dropped == [jobs[0], jobs[2]]
    assert list(queue) == [jobs[4]]


def test_queue_of_withdrawn_jobs_gives_no_batch():
    queue = deque([job_of(1)])
    queue[0].withdrawn = True
    dropped: list[Job] = []
    assert form_batch(queue, policy_of(), dropped.append) is None
    assert len(dropped) == 1


def test_unequal_lengths_share_a_run_where_padding_costs_less_than_another_run():
    queue = deque([job_of(1), job_of(3), job_of(2)])
    batch = form(queue, policy_of(cost=FREE_PADDING))
    assert batch is not None
    assert (batch.counts, batch.num_steps) == ([1, 3, 2], 3)
    assert not queue


def test_unequal_lengths_are_grouped_where_padding_costs_more_than_another_run():
    queue = deque([job_of(1), job_of(3), job_of(1)])
    long = queue[1]
    batch = form(queue, policy_of(cost=DEAR_PADDING))
    assert batch is not None
    assert batch.counts == [1, 1]
    assert list(queue) == [long]


def test_unequal_lengths_are_grouped_where_the_model_takes_no_padding():
    queue = deque([job_of(2), job_of(1), job_of(2)])
    batch = form(queue, policy_of(cost=FREE_PADDING, can_pad=False))
    assert batch is not None
    assert batch.counts == [2, 2]
    assert len(queue) == 1


def test_one_long_row_among_many_short_ones_does_not_make_them_all_long():
    """FACTS: 127 rows of 1 and one of 64 took 7.0 ms padded, 0.28 ms as two runs."""
    measured = RunCost(fixed=20e-6, each_step=3e-6, each_row_step=0.9e-6)
    queue = deque([*(job_of(1, row=k) for k in range(127)), job_of(64, row=127)])
    batch = form(queue, policy_of(128, 64, measured))
    assert batch is not None
    assert batch.counts == [1] * 127


def test_padding_is_weighed_by_rows_not_by_jobs():
    """One job of many short rows costs as much padding as many jobs of one."""
    cost = RunCost(fixed=100e-6, each_step=0.0, each_row_step=1e-6)
    few, many = deque([job_of(4), job_of(1, row=1)]), deque([job_of(4), job_of(1, row=1, num_rows=127)])
    for queue, expected in ((few, [4, 1]), (many, [4])):
        batch = form(queue, policy_of(1024, 64, cost))
        assert batch is not None
        assert batch.counts == expected


def rows_in(rows: Slots | None) -> list[int] | None:
    return None if rows is None else rows.rows.tolist()


@pytest.mark.parametrize("num_rows", [1, 3])
def test_state_goes_to_the_session_s_row_only_at_the_end_of_its_message(num_rows: int):
    job = job_of(10, num_rows=num_rows, is_long=True)
    own, scratch = list(range(num_rows)), list(range(1000, 1000 + num_rows))
    assert (rows_in(job.source), rows_in(job.target(4))) == (own, scratch)
    job.num_done = 4
    assert (rows_in(job.source), rows_in(job.target(4))) == (scratch, scratch)
    job.num_done = 8
    assert (rows_in(job.source), rows_in(job.target(2))) == (scratch, own)


def test_state_of_a_message_of_one_run_goes_from_the_session_s_row_to_the_session_s_row():
    job = job_of(4, row=7)
    assert (rows_in(job.source), rows_in(job.target(4))) == ([7], [7])


def test_state_of_a_forecast_never_leaves_its_scratch_row():
    job = job_of(2, row=7, is_forecast=True)
    assert rows_in(job.target(1)) == [7]
    job.num_done = 1
    assert rows_in(job.source) == [7]
    assert job.target(1) is None


def applied_rows(job: Job) -> list[bool] | None:
    return None if job.applied is None else job.applied.tolist()


def test_job_is_applied_when_every_step_has_run_where_no_row_failed():
    job = job_of(2, num_rows=3)
    assert (applied_rows(job), job.num_applied) == ([False] * 3, 0)
    job.num_done = 2
    assert (applied_rows(job), job.num_applied) == (None, 3)  # of all rows
    job.failed = np.array([False, True, False])
    assert (applied_rows(job), job.num_applied) == ([True, False, True], 2)
    job.failure = EngineDead("it failed")
    assert (applied_rows(job), job.num_applied) == ([False] * 3, 0)


def test_waiting_times_are_one_for_all_rows_or_each_row_s_own():
    job = job_of(1, num_rows=3)
    job.enqueued_s = 2.0
    seconds, messages = job.waits_s(5.0)
    assert (seconds.tolist(), messages) == ([3.0], 3)
    job.arrivals_s = np.array([2.0, 3.0, 4.5])
    seconds, messages = job.waits_s(5.0)
    assert (seconds.tolist(), messages) == ([3.0, 2.0, 0.5], 1)


COSTS = st.builds(RunCost, *[st.floats(0, 1e-3)] * 3)
ARRIVAL = st.tuples(
    st.integers(1, 12),  # steps
    st.integers(1, 7),  # rows
    st.booleans(),  # a forecast
    st.booleans(),  # withdrawn after the first run that it is not part of
)


@given(
    arrivals=st.lists(st.lists(ARRIVAL, max_size=6), min_size=1, max_size=8),
    max_rows=st.integers(1, 6),
    piece_steps=st.integers(1, 5),
    can_pad=st.booleans(),
    cost=COSTS,
)
def test_every_job_is_served_once_and_in_order_whatever_arrives(
    arrivals: list[list[tuple[int, int, bool, bool]]],
    max_rows: int,
    piece_steps: int,
    cost: RunCost,
    *,
    can_pad: bool,
):
    policy = policy_of(max_rows, piece_steps, cost, can_pad=can_pad)
    queue: deque[Job] = deque()
    everyone: list[Job] = []
    finished: list[Job] = []
    dropped: list[Job] = []
    to_withdraw: list[Job] = []
    pending = deque(arrivals)
    while pending or queue:
        for num_steps, num_rows, is_forecast, is_withdrawn in pending.popleft() if pending else []:
            is_long = num_steps > policy.piece(num_rows)
            job = job_of(num_steps, num_rows=num_rows, is_forecast=is_forecast, is_long=is_long)
            everyone.append(job)
            queue.append(job)
            if is_withdrawn:
                to_withdraw.append(job)
        before = list(queue)
        batch = form_batch(queue, policy, dropped.append)
        if batch is None:
            assert all(job.withdrawn for job in before)
            assert not queue
            continue
        check_batch(batch, before, queue, policy)
        for job, count in zip(batch.jobs, batch.counts, strict=True):
            job.num_done += count
            (finished if job.is_done else queue).append(job)
        for job in to_withdraw:
            job.withdrawn = job not in finished
    assert len(finished) + len(dropped) == len(everyone)
    assert set(finished).isdisjoint(dropped)
    assert set(finished) | set(dropped) == set(everyone)
    assert all(job.num_done == job.num_steps for job in finished)
    assert all(job.withdrawn for job in dropped)


def check_batch(batch: Batch, before: list[Job], queue: deque[Job], policy: BatchPolicy) -> None:
    waiting = [job for job in before if not job.withdrawn]
    assert batch.jobs[0] is waiting[0]  # the longest waiting is always served
    assert batch.num_rows == sum(job.num_rows for job in batch.jobs)
    assert batch.num_rows <= policy.max_rows or len(batch.jobs) == 1
    assert len(set(batch.jobs)) == len(batch.jobs)
    places = [before.index(job) for job in batch.jobs]
    assert places == sorted(places)  # a batch keeps the queue's order, and so does what stays
    assert [job for job in queue if not job.withdrawn] == [job for job in waiting if job not in batch.jobs]
    assert batch.num_steps == max(batch.counts)
    for job, count in zip(batch.jobs, batch.counts, strict=True):
        piece = 1 if job.feedback else policy.piece(job.num_rows)
        assert count == min(job.num_steps - job.num_done, piece)
    if len(set(batch.counts)) > 1:
        assert policy.can_pad
        check_that_padding_pays(batch, policy.cost)


def check_that_padding_pays(batch: Batch, cost: RunCost) -> None:
    """One padded run costs no more than a run for each length of its own."""
    together = cost.run(batch.num_rows, batch.num_steps)
    rows_of = dict.fromkeys(batch.counts, 0)
    for job, count in zip(batch.jobs, batch.counts, strict=True):
        rows_of[count] += job.num_rows
    apart = sum(cost.run(num_rows, length) for length, num_rows in rows_of.items())
    assert together <= apart * (1 + 1e-9)


def test_many_that_warm_up_are_many_runs():
    """A run of a thousand long messages would keep live sessions waiting for all of it."""
    policy = policy_of(max_rows=2048, piece_steps=64)
    queue = deque(job_of(64, row=row) for row in range(1000))
    queue.append(job_of(1, row=1000))
    waiting = list(queue)
    batch = form(queue, policy)
    assert batch is not None
    assert batch.jobs == waiting[: len(batch.jobs)]
    assert 1 < len(batch.jobs) < 200
    limit_s = max(2 * policy.piece_s, 4 * SMALL_MODEL.run(1, 64))
    assert SMALL_MODEL.run(batch.num_rows, 64) <= limit_s < SMALL_MODEL.run(batch.num_rows + 1, 64)
    assert list(queue) == waiting[len(batch.jobs) :]


def test_slow_model_is_batched_too():
    slow = RunCost(fixed=0.05, each_step=0.0, each_row_step=0.01)
    queue = deque(job_of(1, row=row) for row in range(100))
    batch = form(queue, policy_of(1024, 64, slow))
    assert batch is not None
    assert len(batch.jobs) == 19  # 4 * (50 ms + 10 ms) = 50 ms + 19 * 10 ms
