"""Forming batches: every queued job is served once, in order, and padding is paid for only where it pays."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from longshort_service.arena import Slot
from longshort_service.batching import Batch, BatchPolicy, Job, RunCost, form_batch

SMALL_MODEL = RunCost(fixed=20e-6, each_step=5e-6, each_row_step=1e-6)
FREE_PADDING = RunCost(fixed=1.0, each_step=0.0, each_row_step=0.0)
DEAR_PADDING = RunCost(fixed=0.0, each_step=0.0, each_row_step=1.0)


class Owner:
    def settled(self, job: Job) -> None:
        """See JobOwner."""


def job_of(num_steps: int, *, row: int = 0, is_forecast: bool = False, is_long: bool = False) -> Job:
    values = np.zeros((num_steps, 1), np.float32)
    slot = Slot(row, 1)
    if is_forecast:
        return Job(values, slot, scratch=slot, feedback=[0])
    return Job(values, slot, scratch=Slot(row + 1000, 1) if is_long else None, owner=Owner())


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
    assert form(queue, policy_of(max_rows=3)) == Batch(jobs[:3], [1, 1, 1], 1)
    assert list(queue) == jobs[3:]


def test_long_job_is_cut_into_pieces():
    job = job_of(10, is_long=True)
    counts = []
    while job.num_done < job.num_steps:
        batch = form(deque([job]), policy_of(piece_steps=4))
        assert batch is not None
        counts += batch.counts
        job.num_done += batch.counts[0]
    assert counts == [4, 4, 2]


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


def test_state_goes_to_the_session_s_row_only_at_the_end_of_its_message():
    job = job_of(10, is_long=True)
    assert (job.source, job.target(4)) == (job.slot, job.scratch)
    job.num_done = 4
    assert (job.source, job.target(4)) == (job.scratch, job.scratch)
    job.num_done = 8
    assert (job.source, job.target(2)) == (job.scratch, job.slot)


def test_state_of_a_forecast_never_leaves_its_scratch_row():
    job = job_of(2, is_forecast=True)
    assert job.target(1) == job.scratch
    job.num_done = 1
    assert job.source == job.scratch
    assert job.target(1) is None


def test_job_is_applied_when_every_step_has_run_and_none_failed():
    job = job_of(2)
    assert not job.is_applied
    job.num_done = 2
    assert job.is_applied
    job.failure = RuntimeError()
    assert not job.is_applied


COSTS = st.builds(RunCost, *[st.floats(0, 1e-3)] * 3)
ARRIVAL = st.tuples(
    st.integers(1, 12),  # steps
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
    arrivals: list[list[tuple[int, bool, bool]]],
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
        for num_steps, is_forecast, is_withdrawn in pending.popleft() if pending else []:
            job = job_of(
                num_steps, row=len(everyone), is_forecast=is_forecast, is_long=num_steps > piece_steps
            )
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
            (finished if job.is_applied else queue).append(job)
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
    assert 1 <= len(batch.jobs) <= policy.max_rows
    assert len(set(batch.jobs)) == len(batch.jobs)
    places = [before.index(job) for job in batch.jobs]
    assert places == sorted(places)  # a batch keeps the queue's order, and so does what stays
    assert [job for job in queue if not job.withdrawn] == [job for job in waiting if job not in batch.jobs]
    assert batch.num_steps == max(batch.counts)
    for job, count in zip(batch.jobs, batch.counts, strict=True):
        assert count == (1 if job.feedback else min(job.num_steps - job.num_done, policy.piece_steps))
    if len(set(batch.counts)) > 1:
        assert policy.can_pad
        check_that_padding_pays(batch, policy.cost)


def check_that_padding_pays(batch: Batch, cost: RunCost) -> None:
    """One padded run costs no more than a run for each length of its own."""
    together = cost.run(len(batch.jobs), batch.num_steps)
    apart = sum(cost.run(batch.counts.count(length), length) for length in set(batch.counts))
    assert together <= apart * (1 + 1e-9)
