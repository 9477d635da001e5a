"""What the jobs of a frame came to, as the columns of its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from frame_tables import ToyStream, frame, outcomes
from longshort_service import errors
from longshort_service.frame_answer import collect
from tables import TableModel, finish, move, rows_of, signature_of

if TYPE_CHECKING:
    from longshort_service.batching import Job


@pytest.fixture
def stream() -> ToyStream:
    """Handles 0, 1, 2 of one model, at steps 0, 1, 2."""
    made, model = ToyStream(), TableModel(num_rows=8)
    for handle in range(3):
        made.open(handle, model, *range(handle))
    return made


def end(job: Job, failure: errors.ServiceError | None = None) -> None:
    """End a job as the scheduler does, without a run."""
    job.failure = failure
    assert job.owner is not None
    job.owner.settled(job)


def test_answers_of_a_whole_frame_are_its_job_s():
    stream, model = ToyStream(), TableModel()
    for handle in range(2):
        stream.open(handle, model)
    work = stream.begin(frame([1, 0], [1, 2, 3, 4], counts=[2, 2]))
    finish(work.parts[0].job, model)
    answer = collect(work)
    assert answer.handles is work.frame.handles
    assert (answer.counts.tolist(), answer.steps.tolist()) == ([2, 2], [2, 2])
    assert answer.values.tolist() == [2, 4, 6, 8]
    assert answer.replayed.tolist() == []


def test_replays_stand_in_the_frame_s_order_and_are_named(stream: ToyStream):
    sent = frame([2, 0, 1], [3, 4, 5, 6], counts=[2, 1, 1], steps=[2, 0, 1])
    first = stream.play(sent)
    move(stream.handles.get(0), rows_of(7))
    work = stream.begin(frame([2, 0, 1], [3, 4, 8, 6], counts=[2, 1, 1], steps=[2, 2, 1]))
    finish(work.parts[0].job, work.parts[0].model)
    answer = collect(work)
    assert answer.handles.tolist() == [2, 0, 1]
    assert answer.replayed.tolist() == [2, 1]
    assert outcomes(work) == first | {0: (3, [16])}


def test_rows_whose_result_is_not_finite_fail_alone(stream: ToyStream):
    work = stream.begin(frame([0, 1, 2], [1, 2, 3]))
    (part,) = work.parts
    part.job.failed = np.array([False, True, False])
    finish(part.job, part.model)
    assert outcomes(work) == {0: (1, [2]), 1: "NON_FINITE_RESULT", 2: (3, [6])}
    assert work.failures[1].metadata == {"model": "toy"}
    assert stream.handles.get(1).step == 1


def test_job_whose_rows_all_failed_before_its_last_piece_answers_nobody(stream: ToyStream):
    work = stream.begin(frame([0, 1], [1, 2, 3, 4, 5, 6], counts=[3, 3]))
    job = work.parts[0].job
    job.outputs, job.num_done = np.zeros((2, 3, 1), np.float32), 1
    job.failed = np.array([True, True])
    end(job)
    assert outcomes(work) == {0: "NON_FINITE_RESULT", 1: "NON_FINITE_RESULT"}


@pytest.mark.parametrize("num_done", [0, 1, 3])
def test_engine_s_death_fails_all_rows_whatever_has_run_of_them(stream: ToyStream, num_done: int):
    work = stream.begin(frame([0, 1, 2], [1, 2, 3, 4, 5, 6, 9], counts=[3, 3, 1]))
    parts = {part.job.num_steps: part for part in work.parts}
    finish(parts[1].job, parts[1].model)
    job = parts[3].job
    if num_done:
        job.outputs, job.num_done = np.zeros((2, 3, 1), np.float32), num_done
    end(job, errors.EngineDead("it has failed", model="toy"))
    assert outcomes(work) == {0: "ENGINE_DEAD", 1: "ENGINE_DEAD", 2: (3, [18])}


def test_answered_step_is_that_of_the_row_whatever_happens_before_the_frame_is_answered(stream: ToyStream):
    """A frame waits for its longest row; meanwhile its other sessions are free for others, or gone."""
    work = stream.begin(frame([0, 1, 2], [1, 2, 3, 4], counts=[1, 1, 2]))
    parts = {part.job.num_steps: part for part in work.parts}
    finish(parts[1].job, parts[1].model)
    move(stream.handles.get(0), rows_of(5))
    gone = stream.handles.get(1)
    stream.handles.close(1)
    stream.table.remove(gone)
    heir = stream.table.create("heir", gone.model, epoch=1, incarnation=8, now_s=0)
    assert heir.row == gone.row
    finish(parts[2].job, parts[2].model)
    assert outcomes(work) == {0: (1, [2]), 1: (2, [4]), 2: (4, [6, 8])}


def test_models_of_different_outputs_are_laid_out_row_by_row(stream: ToyStream):
    signature = signature_of(features=2)
    double = TableModel(signature=signature)
    stream.open(9, double)
    work = stream.begin(frame([9, 0, 2], [1, 2, 3, 4], steps=[0, 0, 2]))
    for part in work.parts:
        finish(part.job, part.model)
        if part.model is double:
            part.job.outputs = np.concatenate([part.job.outputs, 10 * part.job.outputs], axis=2)
    answer = collect(work)
    assert answer.handles.tolist() == [9, 0, 2]
    assert answer.counts.tolist() == [1, 1, 1]
    assert answer.values.tolist() == [2, 20, 6, 8]


def test_row_that_was_applied_and_not_stored_fails_alone(stream: ToyStream):
    """Also one that was repeated: its answer is not said to be stored either."""
    stream.play(frame([2], [7], steps=[2]))
    for unstored, answered in (({0}, [1, 2]), ({0, 2}, [1]), ({1, 2}, [0])):
        work = stream.begin(
            frame([0, 1, 2], [1, 2, 7], steps=[stream.handles.get(0).step, stream.handles.get(1).step, 2])
        )
        for part in work.parts:
            finish(part.job, part.model)
        work.unstored.update(dict.fromkeys(unstored, errors.StoreUnavailable("away")))
        answer = collect(work)
        assert answer.handles.tolist() == answered
        assert answer.replayed.tolist() == ([2] if 2 in answered else [])
        assert {position: error.reason for position, error in work.failures.items()} == dict.fromkeys(
            sorted(unstored), "STORE_UNAVAILABLE"
        )


def test_steps_that_a_frame_reached_are_those_of_the_rows_that_have_an_answer(stream: ToyStream):
    """Applied, repeated by its values, repeated by its checksum, and none for what failed."""
    stream.play(frame([1, 2], [1, 2, 3, 4], counts=[1, 3], steps=[1, 2]))
    work = stream.begin(frame([0, 1, 2, 9], [8, 1, 2, 3, 4, 5], counts=[1, 1, 3, 1], steps=[0, 1, 2, 0]))
    for part in work.parts:
        finish(part.job, part.model)
    reached = {
        int(position): (int(row), int(step))
        for _, rows, positions, steps in work.reached()
        for row, position, step in zip(rows, positions, steps, strict=True)
    }
    assert reached == {
        handle: (stream.handles.get(handle).row, stream.handles.get(handle).step) for handle in (0, 1, 2)
    }


def test_row_whose_run_failed_has_reached_no_step(stream: ToyStream):
    work = stream.begin(frame([0, 1], [1, 2]))
    job = work.parts[0].job
    job.outputs = np.array([[[1.0]], [[np.nan]]], np.float32)
    job.failed = np.array([False, True])
    job.num_done = 1
    end(job)
    ((_, rows, positions, steps),) = work.reached()
    assert (rows.tolist(), positions.tolist(), steps.tolist()) == ([stream.handles.get(0).row], [0], [1])
