"""The rows of a frame become jobs, or are refused one by one, and nothing else moves."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
from frame_tables import MAX_STEPS, ToyStream, frame, outcomes
from longshort_service import errors
from longshort_service.frames import MAX_ROWS
from longshort_service.ports import Port
from longshort_service.session import Answers
from longshort_service.signature import MissingValue
from tables import NOW_S, TableModel, finish, last_answer, rows_of, signature_of

if TYPE_CHECKING:
    from longshort_service.frame_work import Frame, FrameWork

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def stream() -> ToyStream:
    """Handles 0, 1, 2 of one model, at steps 0, 1, 2."""
    made, model = ToyStream(), TableModel(num_rows=8)
    for handle in range(3):
        made.open(handle, model, *range(handle))
    return made


def assert_nothing_moved(stream: ToyStream) -> None:
    sessions = [stream.handles.get(handle) for handle in range(3)]
    assert [session.step for session in sessions] == [0, 1, 2]
    assert not any(session.is_busy for session in stream.table)
    (model,) = {session.model for session in sessions}
    model.arena.check_integrity()
    assert model.arena.num_held == 3


# -- what fits -----


def test_frame_of_one_step_each_is_one_job_of_busy_rows(stream: ToyStream):
    work = stream.begin(frame([2, 0, 1], [5, 6, 7], steps=[2, 0, 1]))
    (part,) = work.parts
    assert part.job.values.tolist() == [[[5]], [[6]], [[7]]]
    assert part.job.slots.rows.tolist() == [stream.handles.get(handle).row for handle in (2, 0, 1)]
    assert part.job.scratch is None
    assert (work.failures, work.replays) == ({}, {})
    assert all(session.is_busy and session.last_used_s == NOW_S + 1 for session in stream.table)
    finish(part.job, part.model)
    assert not any(session.is_busy for session in stream.table)
    assert outcomes(work) == {2: (3, [10]), 0: (1, [12]), 1: (2, [14])}


def test_unnumbered_rows_are_applied_as_they_come(stream: ToyStream):
    for round_number in range(1, 3):
        assert stream.play(frame([0, 1], [5, 6])) == {0: (round_number, [10]), 1: (1 + round_number, [12])}


def test_empty_frame_comes_to_nothing(stream: ToyStream):
    assert stream.play(frame([], [])) == {}
    assert ToyStream().play(frame([], [])) == {}
    assert_nothing_moved(stream)


def test_rows_of_unequal_length_are_grouped_and_answered_in_the_frame_s_order(stream: ToyStream):
    work = stream.begin(frame([0, 1, 2], [1, 2, 3, 4, 5], counts=[2, 1, 2], steps=[0, 1, 2]))
    assert sorted(part.job.values[:, :, 0].tolist() for part in work.parts) == [[[1, 2], [4, 5]], [[3]]]
    for part in work.parts:
        finish(part.job, part.model)
    assert list(outcomes(work)) == [0, 1, 2]
    assert outcomes(work) == {0: (2, [2, 4]), 1: (2, [6]), 2: (4, [8, 10])}


def test_counts_that_are_all_equal_make_one_job(stream: ToyStream):
    work = stream.begin(frame([0, 1], [1, 2, 3, 4], counts=[2, 2], steps=[0, 1]))
    assert [part.job.values[:, :, 0].tolist() for part in work.parts] == [[[1, 2], [3, 4]]]


def test_models_of_different_width_share_a_stream(stream: ToyStream):
    wide = TableModel(signature=signature_of(features=3))
    stream.open(9, wide)
    stream.open(8, wide)
    came = stream.play(frame([9, 1, 8, 0], [1, 2, 3, 4, 5, 6, 7, 8], steps=[0, 1, 0, 0]))
    assert came == {9: (1, [2]), 1: (2, [8]), 8: (1, [10]), 0: (1, [16])}
    assert stream.handles.get(9).record().last_values is not None
    assert wide.columns.sent[stream.handles.get(8).row].tolist() == [5, 6, 7]
    came = stream.play(frame([0, 9], [1, 1, 2, 3, 4, 5, 6], counts=[1, 2]))
    assert came == {0: (2, [2]), 9: (3, [2, 8])}


def test_more_rows_than_a_batch_are_several_jobs(stream: ToyStream):
    model = stream.handles.models[0]
    for handle in (3, 4):
        stream.open(handle, model)
    work = stream.begin(frame([0, 1, 2, 3, 4], [1, 2, 3, 4, 5], steps=[0, 9, 2, 0, 0]))
    assert [part.positions.tolist() for part in work.parts] == [[0, 2], [3, 4]]
    for part in work.parts:
        finish(part.job, part.model)
    assert outcomes(work) == {0: (1, [2]), 1: "STEP_GAP", 2: (3, [6]), 3: (1, [8]), 4: (1, [10])}


@pytest.mark.parametrize(
    ("answers", "expected"), [(Answers.ALL, [2, 4, 6]), (Answers.LAST, [6]), (Answers.NONE, [])]
)
def test_answers_that_are_wanted_go_back_and_are_stored(
    stream: ToyStream, answers: Answers, expected: list[float]
):
    sent = frame([0, 1], [1, 2, 3, 9], counts=[3, 1], steps=[0, 1], answers=answers)
    came = stream.play(sent)
    assert came == {0: (3, expected), 1: (2, [] if answers is Answers.NONE else [18])}
    assert last_answer(stream.handles.get(0)).ravel().tolist() == expected
    again = stream.begin(sent)
    assert (again.parts, list(again.replays)) == ([], [0])
    assert [repeats.positions.tolist() for repeats in again.repeats] == [[1]]
    assert outcomes(again) == came


def test_long_rows_run_on_scratch_rows_that_go_back(stream: ToyStream):
    model = stream.handles.models[0]
    work = stream.begin(frame([0, 1], [1, 2, 3, 4, 5, 6], counts=[3, 3], steps=[0, 1]))
    (part,) = work.parts
    assert part.job.scratch is not None
    assert len(part.job.scratch) == 2
    assert model.arena.num_held == 5
    finish(part.job, part.model)
    assert model.arena.num_held == 3
    assert outcomes(work) == {0: (3, [2, 4, 6]), 1: (4, [8, 10, 12])}
    # What the message is known by is the checksum of all of its values.
    assert stream.play(frame([0], [1, 2, 3], counts=[3], steps=[0])) == {0: (3, [2, 4, 6])}
    assert stream.play(frame([0], [1, 7, 3], counts=[3], steps=[0])) == {0: "VALUES_DIFFER"}


def test_rows_that_find_no_scratch_rows_are_refused_alone():
    stream, model = ToyStream(), TableModel(num_rows=4)
    for handle in range(3):
        stream.open(handle, model)
    came = stream.play(frame([0, 1, 2], [1, 2, 3, 4, 5, 6, 9], counts=[3, 3, 1], steps=[0, 0, 0]))
    assert came == {0: "SESSIONS_EXHAUSTED", 1: "SESSIONS_EXHAUSTED", 2: (1, [18])}
    assert model.arena.num_held == 3
    assert [session.is_busy for session in stream.table] == [False] * 3


# -- columns that do not fit one another -----


@pytest.mark.parametrize(
    "sent",
    [
        frame([0, 1], [1]),
        frame([0, 1], [1, 2, 3]),
        frame([0, 1], [1, 2, 3], counts=[1, 3]),
        frame([0, 1], [1, 2], counts=[1]),
        frame([0, 1], [1, 2], counts=[1, 1, 1]),
        frame([0, 1], [1, 2], steps=[0]),
        frame([], [1]),
        frame([], [], steps=[0]),
        frame([], [], counts=[1]),
        frame([0], [1], counts=[2**32 - 1]),
        frame([7, 0], [1]),
        frame([0] * (MAX_ROWS + 1), [1] * (MAX_ROWS + 1)),
    ],
)
def test_columns_that_do_not_fit_one_another_refuse_the_frame(stream: ToyStream, sent: Frame):
    with pytest.raises(errors.InvalidMessage):
        stream.begin(sent)
    assert_nothing_moved(stream)


def test_unknown_handle_among_models_of_different_width_refuses_the_frame(stream: ToyStream):
    stream.open(9, TableModel(signature=signature_of(features=3)))
    with pytest.raises(errors.InvalidMessage, match="cannot be told"):
        stream.begin(frame([0, 77], [1, 2]))


# -- handles -----


def test_handle_twice_fails_all_of_its_rows_and_no_other(stream: ToyStream):
    work = stream.begin(frame([0, 1, 0, 2, 0], [1, 2, 3, 4, 5], steps=[0, 1, 1, 2, 2]))
    assert {position: error.reason for position, error in work.failures.items()} == dict.fromkeys(
        [0, 2, 4], "HANDLE_TWICE"
    )
    assert work.failures[2].metadata == {"handle": "0"}
    for part in work.parts:
        finish(part.job, part.model)
    assert outcomes(work) == {0: "HANDLE_TWICE", 1: (2, [4]), 2: (3, [8])}
    assert stream.handles.get(0).step == 0


@pytest.mark.parametrize("stranger", [3, 5000, 2**32 - 1])
def test_unknown_handle_fails_its_row_and_no_other(stream: ToyStream, stranger: int):
    assert stream.play(frame([stranger, 0, stranger], [1, 2, 3])) == {stranger: "UNKNOWN_HANDLE", 0: (1, [4])}


@pytest.mark.parametrize("values", [[1, 2], [1, 2, 3, 4, 5, 6], [1], []])
def test_frame_of_unknown_handles_alone_fails_by_row_whatever_their_width(values: list[float]):
    """As where all openings of the frame were refused: nobody knows how wide their values were to be."""
    expected = {4: "UNKNOWN_HANDLE", 5: "UNKNOWN_HANDLE"}
    stream = ToyStream()
    assert stream.play(frame([4, 5], values)) == expected
    for handle, features in enumerate((1, 3)):
        stream.open(handle, TableModel(signature=signature_of(features=features)))
    assert stream.play(frame([4, 5], values)) == expected


def test_every_row_of_two_models_may_fail(stream: ToyStream):
    stream.open(9, TableModel(signature=signature_of(features=3)))
    came = stream.play(frame([0, 0, 9, 9], range(8)))
    assert came == {0: "HANDLE_TWICE", 9: "HANDLE_TWICE"}


def test_lost_handle_is_refused_by_what_lost_it_and_its_values_are_skipped(stream: ToyStream):
    wide = TableModel(signature=signature_of(features=3))
    moved = errors.SessionMoved("opened elsewhere", cause="opened", client_id="other")
    stream.handles.lose(stream.open(9, wide), moved)
    work = stream.begin(frame([9, 0], [1, 2, 3, 4], steps=[0, 0]))
    assert work.failures == {0: moved}
    assert [part.job.values.tolist() for part in work.parts] == [[[[4]]]]


# -- counts, values and steps of one row -----


def test_counts_out_of_bounds_fail_their_rows(stream: ToyStream):
    sent = frame([0, 1, 2], [1] * (MAX_STEPS + 2), counts=[0, 1, MAX_STEPS + 1], steps=[0, 1, 2])
    work = stream.begin(sent)
    assert work.failures[2].metadata == {"num_steps": "7", "max_steps": "6"}
    for part in work.parts:
        finish(part.job, part.model)
    assert outcomes(work) == {0: "EMPTY_VALUES", 1: (2, [2]), 2: "TOO_MANY_STEPS"}


@pytest.mark.parametrize(
    ("missing", "fresh", "begun"),
    [
        (MissingValue.REJECT, "VALUE_MISSING", "VALUE_MISSING"),
        (MissingValue.REPEAT_LAST, "VALUE_MISSING", (2, [8.0])),
        (MissingValue.PASS, (1, [NAN]), (2, [NAN])),
    ],
)
def test_missing_value_is_what_the_signature_says(missing: MissingValue, fresh: object, begun: object):
    stream, model = ToyStream(), TableModel(signature=signature_of(missing=missing))
    for handle, values in enumerate([[], [4.0], [1.0]]):
        stream.open(handle, model, *values)
    came = stream.play(frame([0, 1, 2], [NAN, NAN, 7], steps=[0, 1, 1]))
    assert repr([came[handle] for handle in range(3)]) == repr([fresh, begun, (2, [14.0])])  # NaN is not NaN


def test_infinite_value_fails_its_row(stream: ToyStream):
    assert stream.play(frame([0, 1], [INF, 1])) == {0: "VALUE_NOT_FINITE", 1: (2, [2])}


def test_each_row_is_judged_by_its_step(stream: ToyStream):
    model = stream.handles.models[0]
    for handle in range(3, 8):
        stream.open(handle, model, 1, 2)
    sent = frame(
        [0, 3, 4, 5, 6, 7],
        [9, 2, 8, 1, 3, 3],
        steps=[0, 1, 1, 0, 3, 2],  # in place; again; again but other; before the last; beyond; in place
    )
    work = stream.begin(sent)
    assert list(work.replays) == [1]
    refused = {
        position: (error.reason, error.metadata["expected_step"]) for position, error in work.failures.items()
    }
    assert refused == {2: ("VALUES_DIFFER", "2"), 3: ("STEP_CONFLICT", "2"), 4: ("STEP_GAP", "2")}
    for part in work.parts:
        finish(part.job, part.model)
    came = outcomes(work)
    assert {handle: came[handle] for handle in (0, 3, 7)} == {0: (1, [18]), 3: (2, [4]), 7: (3, [6])}
    assert [stream.handles.get(handle).step for handle in (3, 4, 5, 6, 7)] == [2, 2, 2, 2, 3]


@pytest.mark.parametrize("step", [2**63 - 1, 2**63, 2**64 - 1])
def test_step_of_64_bits_is_a_gap_and_no_number_below_zero(stream: ToyStream, step: int):
    work = stream.begin(frame([0, 1], [1, 2], steps=[step, 1]))
    assert work.failures[0].reason == "STEP_GAP"
    assert f"starts at step {step}," in work.failures[0].message


def test_unnumbered_row_of_a_session_with_a_gap_needs_a_step(stream: ToyStream):
    session = stream.handles.get(1)
    session.model.columns.is_gapless[session.row] = False
    assert stream.play(frame([0, 1], [1, 2])) == {0: (1, [2]), 1: "STEP_REQUIRED"}
    assert stream.play(frame([0, 1], [1, 2], steps=[1, 1])) == {0: (2, [2]), 1: (2, [4])}
    assert stream.play(frame([0, 1], [1, 2])) == {0: (3, [2]), 1: (3, [4])}  # nothing is missing from now on


# -- what somebody else is moving, and what the scheduler does not take -----


def test_sessions_that_somebody_else_moves_are_named(stream: ToyStream):
    wide = TableModel(signature=signature_of(features=3))
    stream.open(9, wide)
    assert stream.reader.busy_sessions(frame([0, 1, 2, 9, 77], range(7))) == []
    jobs = [(handle, stream.handles.get(handle)) for handle in (1, 9)]
    for _, session in jobs:
        session.begin(
            np.ones((1, len(session.model.signature.features)), np.float32), None, Answers.ALL, NOW_S
        )
    busy = stream.reader.busy_sessions(frame([0, 1, 1, 9, 77], range(7)))
    assert busy == [session for _, session in jobs]
    assert stream.reader.busy_sessions(frame([0, 2], [1, 2])) == []


def test_parts_that_are_given_up_are_unharmed_and_their_rows_free(stream: ToyStream):
    model = stream.handles.models[0]
    for handle in (3, 4):
        stream.open(handle, model)
    work = stream.begin(frame([0, 1, 2, 3, 4], [1, 2, 3, 4, 5], steps=[0, 1, 2, 0, 0]))
    taken, refused = work.parts
    full = errors.QueueFull("too many wait")
    work.give_up(refused, full)
    assert work.parts == [taken]
    assert work.failures == {3: full, 4: full}
    assert [stream.handles.get(handle).is_busy for handle in range(5)] == [True] * 3 + [False] * 2
    finish(taken.job, model)
    came = outcomes(work)
    assert (came[3], came[4], came[0]) == ("QUEUE_FULL", "QUEUE_FULL", (1, [2]))
    assert stream.play(frame([3, 4], [4, 5], steps=[0, 0])) == {3: (1, [8]), 4: (1, [10])}


def test_scratch_rows_of_what_is_given_up_go_back(stream: ToyStream):
    work = stream.begin(frame([0, 1], [1, 2, 3, 4, 5, 6], counts=[3, 3], steps=[0, 1]))
    (part,) = work.parts
    work.give_up(part, errors.QueueFull("too many wait"))
    assert outcomes(work) == {0: "QUEUE_FULL", 1: "QUEUE_FULL"}
    assert_nothing_moved(stream)


def test_row_of_an_ended_session_is_refused(stream: ToyStream):
    """Its stream hears of the end first; were it ever not so, no row of another may be moved."""
    session = stream.handles.get(1)
    session.is_ended = True
    assert stream.play(frame([1], [1], steps=[5])) == {1: "SESSION_MOVED"}


def test_rows_keep_nothing_of_their_frame():
    """What is kept of a row would keep the whole frame alive as a view."""
    stream, model = ToyStream(), TableModel()
    stream.open(0, model)
    sent = frame([0], [1, 2], counts=[2], steps=[0])
    stream.play(sent)
    sent.values[:] = 99
    assert stream.play(frame([0], [1, 2], counts=[2], steps=[0])) == {0: (2, [2, 4])}
    session = stream.handles.get(0)
    assert session.record().last_values == rows_of(2)[0]


# -- the same sessions again -----


def same_again(stream: ToyStream) -> ToyStream:
    """Send a frame of handles 2, 0, 1, so that the next of them may be known."""
    assert stream.reader.begin_again(frame([2, 0, 1], [1, 1, 1], steps=[2, 0, 1]), NOW_S) is None
    stream.play(frame([2, 0, 1], [1, 1, 1], steps=[2, 0, 1]))
    return stream


@pytest.mark.parametrize("steps", [None, [3, 1, 2]])
def test_frame_of_the_same_sessions_is_begun_without_being_looked_up(
    stream: ToyStream, steps: list[int] | None
):
    same_again(stream)
    work = stream.reader.begin_again(
        frame([2, 0, 1], [5, 6, 7], steps=steps, answers=Answers.NONE), NOW_S + 9
    )
    assert work is not None
    assert [part.positions.tolist() for part in work.parts] == [[0, 1, 2]]
    assert all(session.is_busy and session.last_used_s == NOW_S + 9 for session in stream.table)
    finish(work.parts[0].job, work.parts[0].model)
    assert outcomes(work) == {2: (4, []), 0: (2, []), 1: (3, [])}
    assert stream.play(frame([0, 1, 2], [6, 7, 5], steps=[1, 2, 3])) == {0: (2, []), 1: (3, []), 2: (4, [])}


@pytest.mark.parametrize(
    "sent",
    [
        frame([0, 1, 2], [5, 6, 7], steps=[1, 2, 3]),
        frame([2, 0], [5, 6], steps=[3, 1]),
        frame([2, 0, 1], [5, 6, 7], steps=[3, 1, 2], counts=[1, 1, 1]),
        frame([2, 0, 1], [5, 6, 7], steps=[3, 1, 1]),
        frame([2, 0, 1], [5, 6, 7], steps=[3, 1, 9]),
        frame([2, 0, 1], [5, 6, 7], steps=[3, 1]),
        frame([2, 0, 1], [5, 6], steps=[3, 1, 2]),
        frame([2, 0, 1], [5, 6, 7, 8], steps=[3, 1, 2]),
        frame([2, 0, 1], [5, NAN, 7], steps=[3, 1, 2]),
        frame([2, 0, 1], [5, INF, 7]),
        frame([], []),
    ],
)
def test_frame_that_is_not_right_in_every_respect_is_looked_at_closely(stream: ToyStream, sent: Frame):
    same_again(stream)
    assert stream.reader.begin_again(sent, NOW_S) is None
    assert not any(session.is_busy for session in stream.table)


@pytest.mark.parametrize("what", ["lost", "closed", "given to another", "busy", "has a gap"])
def test_sessions_that_are_not_as_they_were_are_looked_up(stream: ToyStream, what: str):
    same_again(stream)
    session = stream.handles.get(0)
    if what == "lost":
        stream.handles.lose(session, errors.SessionMoved("elsewhere", cause="opened", client_id=""))
    elif what == "closed":
        stream.handles.close(0)
    elif what == "given to another":
        stream.open(0, session.model)
    elif what == "busy":
        session.begin(rows_of(1), None, Answers.ALL, NOW_S)
    else:
        session.model.columns.is_gapless[session.row] = False
    assert stream.reader.begin_again(frame([2, 0, 1], [5, 6, 7]), NOW_S) is None


def test_frame_with_a_failure_or_of_several_jobs_is_not_taken_for_one_that_is_known(stream: ToyStream):
    model = stream.handles.models[0]
    stream.open(3, model)
    for handles in ([2, 0, 77], [2, 0, 0], [0, 1, 2, 3]):
        stream.play(frame(handles, [1] * len(handles)))
        assert stream.reader.begin_again(frame(handles, [1] * len(handles)), NOW_S) is None


# -- numbers of other dtypes -----


WHOLE = dataclasses.replace(signature_of(features=2), inputs=(Port("n", (2,), "int64"),))


def whole_stream() -> ToyStream:
    """Handles 0, 1, 2 of a model whose two numbers are integers."""
    made, model = ToyStream(), TableModel(num_rows=8, signature=WHOLE)
    for handle in range(3):
        made.open(handle, model)
    return made


def integers(work: FrameWork[TableModel]) -> list[list[int]]:
    (part,) = work.parts
    (tensor,) = WHOLE.value_row.unpack(part.job.values)
    return [row.ravel().tolist() for row in tensor]


def test_numbers_become_rows_of_the_model_s_dtype():
    stream = whole_stream()
    work = stream.begin(frame([2, 0], [5, -1, 2**40, 0]))
    assert integers(work) == [[5, -1], [2**40, 0]]
    finish(work.parts[0].job, work.parts[0].model)
    # The same sessions again: their numbers are looked at each time.
    assert stream.reader.begin_again(frame([2, 0], [1, 2, 3, 4]), NOW_S + 1) is None


@pytest.mark.parametrize("count", [1, 2])
def test_number_that_is_no_integer_fails_its_own_row(count: int):
    values = [1.0, 2.0] * count * 3
    values[2 * count] = 0.5  # the second row's
    work = whole_stream().begin(frame([0, 1, 2], values, counts=[count] * 3))
    assert [type(error) for error in work.failures.values()] == [errors.WrongShape]
    assert list(work.failures) == [1]
    assert integers(work) == [[1, 2] * count] * 2


def test_frame_of_which_no_row_is_a_number_of_the_dtype_makes_no_job():
    work = whole_stream().begin(frame([0, 1], [0.5, 1, NAN, 1]))
    assert (list(work.failures), work.parts) == ([0, 1], [])
