"""Messages that come one by one become one job, and each waiter is told of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from lanes import Waiter
from longshort_service.columns import SessionColumns
from longshort_service.errors import EngineDead, NonFiniteResult
from longshort_service.singles import Single, Singles

if TYPE_CHECKING:
    from longshort_service.batching import Job
    from numpy.typing import NDArray

NUM_ROWS = 8


class Collection:
    """Singles of sessions at step 10 times their row, and whoever waits for them."""

    def __init__(self) -> None:
        self.columns = SessionColumns(NUM_ROWS, 2, 1, repeats_last=False)
        self.columns.clear_many(np.arange(NUM_ROWS))
        self.columns.step[:] = 10 * np.arange(NUM_ROWS)
        self.seconds: list[NDArray[np.float64]] = []
        self.singles = Singles(self.columns, "toy", self.seconds.append)
        self.waiters: list[Waiter] = []

    def add(self, row: int, answer_rows: int = 1) -> None:
        waiter = Waiter()
        self.waiters.append(waiter)
        arrived_s = -float(len(self.waiters))  # long ago on any counter: what is observed is above 0
        self.singles.add(Single(row, 7, [row + 0.25, row + 0.5], answer_rows, waiter, arrived_s))


def end(job: Job) -> None:
    """Do to a job what the scheduler does when its run has ended: answers are twice the first value."""
    if job.failure is None:
        job.outputs = 2 * job.values[:, :, :1]
        job.num_done = 1
    assert job.owner is not None
    assert job.on_end is not None
    job.owner.settled(job)
    job.on_end(job)


def test_what_came_one_by_one_is_one_job_in_the_order_of_arrival():
    collection = Collection()
    for row in (5, 2, 3):
        collection.add(row)
    assert collection.columns.is_busy.tolist() == [row in (2, 3, 5) for row in range(NUM_ROWS)]
    job = collection.singles.take(100)
    assert len(collection.singles) == 0
    assert job.slots.rows.tolist() == [5, 2, 3]
    assert job.slots.generations.tolist() == [7, 7, 7]
    assert job.values.tolist() == [[[5.25, 5.5]], [[2.25, 2.5]], [[3.25, 3.5]]]
    assert job.values.dtype == np.float32
    assert job.scratch is None
    assert job.enqueued_s == -1
    assert job.arrivals_s is not None
    assert job.arrivals_s.tolist() == [-1, -2, -3]


def test_more_than_a_batch_of_them_is_several_jobs():
    collection = Collection()
    for row in range(5):
        collection.add(row)
    jobs = []
    while collection.singles:
        jobs.append(collection.singles.take(2))
    assert [job.slots.rows.tolist() for job in jobs] == [[0, 1], [2, 3], [4]]
    assert [job.enqueued_s for job in jobs] == [-1, -3, -5]
    for job in jobs:
        end(job)
    assert [waiter.answers for waiter in collection.waiters] == [
        [([2 * row + 0.5], 10 * row + 1)] for row in range(5)
    ]


def test_every_waiter_is_told_its_own_answer_and_the_step_after_it():
    collection = Collection()
    for row in (5, 2):
        collection.add(row)
    end(collection.singles.take(100))
    assert [waiter.answers for waiter in collection.waiters] == [[([10.5], 51)], [([4.5], 21)]]
    assert not collection.columns.is_busy.any()
    assert collection.columns.step[[5, 2]].tolist() == [51, 21]
    (seconds,) = collection.seconds
    assert len(seconds) == 2
    assert seconds.min() > 0


def test_waiter_that_wants_no_answer_is_told_the_step_alone():
    collection = Collection()
    collection.add(5)
    collection.add(2, answer_rows=0)
    end(collection.singles.take(100))
    assert [waiter.answers for waiter in collection.waiters] == [[([10.5], 51)], [([], 21)]]
    answer = collection.columns.last_answer(2)
    assert answer is not None
    assert answer.shape == (0, 1)


def test_row_that_failed_is_told_so_and_its_neighbours_are_answered():
    collection = Collection()
    for row in (5, 2, 3):
        collection.add(row)
    job = collection.singles.take(100)
    job.failed = np.array([False, True, False])
    end(job)
    assert [waiter.answers for waiter in collection.waiters] == [[([10.5], 51)], [], [([6.5], 31)]]
    (error,) = collection.waiters[1].failures
    assert isinstance(error, NonFiniteResult)
    assert error.metadata == {"model": "toy"}
    assert collection.waiters[0].failures == collection.waiters[2].failures == []
    assert collection.columns.step[2] == 20
    assert not collection.columns.is_busy.any()


def test_what_waits_can_be_looked_at_and_let_go():
    collection = Collection()
    for row in (5, 2):
        collection.add(row)
    assert [single.row for single in collection.singles.waiting] == [5, 2]
    collection.singles.clear()
    assert len(collection.singles) == 0


@pytest.mark.parametrize("answer_rows", [0, 1])
def test_dead_engine_is_told_to_every_waiter(answer_rows: int):
    collection = Collection()
    for row in (5, 2):
        collection.add(row, answer_rows)
    job = collection.singles.take(100)
    job.failure = EngineDead("it failed")
    end(job)
    assert [waiter.answers for waiter in collection.waiters] == [[], []]
    assert [waiter.failures for waiter in collection.waiters] == [[job.failure], [job.failure]]
    assert not collection.columns.is_busy.any()
