"""One session: a message moves it whole or not at all, and what is left of the last one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from longshort_service import errors
from longshort_service.batching import Job
from longshort_service.protocol import MessageIdentity
from longshort_service.record import birth
from longshort_service.session import Answers, Replay, Session, select_answers
from longshort_service.signature import MissingValue
from longshort_service.values import checksum
from tables import (
    HIDDEN,
    NOW_S,
    RecordingOwner,
    TableModel,
    fill_row,
    finish,
    last_answer,
    move,
    new_session,
    rows_of,
    signature_of,
)


def begin(session: Session[TableModel], *values: float, step: int | None = None) -> Job:
    """Return the job that a message comes to."""
    job = session.begin(rows_of(*values), step, Answers.ALL, NOW_S)
    assert isinstance(job, Job)
    return job


def settle(job: Job) -> None:
    assert job.owner is not None
    job.owner.settled(job)


def test_message_moves_step_and_stored_answer_together():
    model = TableModel()
    _, session = new_session(model)
    job = begin(session, 1, 2, step=0)
    assert session.is_busy
    record = session.record()
    assert (record.step, record.last_message, record.last_answer) == (0, None, None)
    finish(job, model)
    assert not session.is_busy
    assert session.step == 2
    assert last_answer(session).tolist() == [[2], [4]]
    record = session.record()
    assert record.last_output is not None
    assert record.last_output.tolist() == [4]
    assert record.last_values is not None
    assert record.last_values.tolist() == [2]


def test_message_whose_result_is_not_finite_moves_nothing():
    model = TableModel()
    _, session = new_session(model)
    move(session, rows_of(1), 0)
    job = begin(session, 2, step=1)
    job.failed = np.array([True])
    finish(job, model)
    assert (session.step, session.is_busy) == (1, False)
    assert session.record().last_message == MessageIdentity(0, 1, checksum(rows_of(1)))
    assert isinstance(session.begin(rows_of(1), 0, Answers.ALL, NOW_S), Replay)


def test_message_whose_engine_died_moves_nothing():
    _, session = new_session(TableModel())
    move(session, rows_of(1), 0)
    job = begin(session, 2, step=1)
    job.failure = errors.EngineDead("x")
    settle(job)
    assert (session.step, session.is_busy) == (1, False)
    assert last_answer(session).tolist() == [[2]]


def test_message_withdrawn_after_some_of_its_pieces_moves_nothing():
    _, session = new_session(TableModel(max_piece_steps=2))
    job = begin(session, 1, 2, 3, step=0)
    job.outputs = rows_of(2, 4, 0)[None]
    job.num_done = 2
    settle(job)
    assert (session.step, session.is_busy) == (0, False)
    assert session.record().last_answer is None


@pytest.mark.parametrize(
    ("answers", "expected"), [(Answers.ALL, [[2], [4], [6]]), (Answers.LAST, [[6]]), (Answers.NONE, [])]
)
def test_stored_answer_is_the_one_that_was_given(answers: Answers, expected: list[list[float]]):
    _, session = new_session(TableModel())
    assert move(session, rows_of(1, 2, 3), 0, answers).tolist() == expected
    for other in Answers:  # what is asked for when it comes again does not matter
        again = session.begin(rows_of(1, 2, 3), 0, other, NOW_S)
        assert isinstance(again, Replay)
        assert again.outputs.tolist() == expected
        assert again.step == 3
    assert session.step == 3
    assert not session.is_busy


@pytest.mark.parametrize(
    ("answers", "expected"), [(Answers.ALL, [[1], [2]]), (Answers.LAST, [[2]]), (Answers.NONE, [])]
)
def test_answers_that_go_back_are_selected_as_asked(answers: Answers, expected: list[list[float]]):
    assert select_answers(rows_of(1, 2), answers).tolist() == expected


def test_stored_values_and_output_are_never_views_of_a_message():
    _, session = new_session(TableModel())
    values = rows_of(1, 2, 3)
    move(session, values, 0, Answers.LAST)
    values.fill(99)
    record = session.record()
    move(session, rows_of(7), 3)  # and a record is a copy: it stays when the session goes on
    for kept, expected in ((record.last_values, 3), (record.last_output, 6), (record.last_answer, 6)):
        assert kept is not None
        assert kept.ravel().tolist() == [expected]


def test_unnumbered_message_may_be_repeated_with_its_number():
    _, session = new_session(TableModel())
    move(session, rows_of(1))
    assert isinstance(session.begin(rows_of(1), 0, Answers.ALL, NOW_S), Replay)


def test_identity_of_a_message_is_that_of_the_values_as_sent_not_as_filled():
    _, session = new_session(TableModel(signature=signature_of(missing=MissingValue.REPEAT_LAST)))
    move(session, rows_of(5), 0)
    assert move(session, rows_of(float("nan")), 1).tolist() == [[10]]
    with pytest.raises(errors.ValuesDiffer):
        session.begin(rows_of(5), 1, Answers.ALL, NOW_S)
    assert isinstance(session.begin(rows_of(float("nan")), 1, Answers.ALL, NOW_S), Replay)


@pytest.mark.parametrize(
    ("values", "step", "error"),
    [
        ((1, float("nan")), 1, errors.ValueMissing),
        ((float("inf"),), 1, errors.ValueNotFinite),
        ((1,), 2, errors.StepGap),
        ((3,), 0, errors.ValuesDiffer),
        ((1, 1), 0, errors.StepConflict),
    ],
)
def test_refused_message_changes_nothing(
    values: tuple[float, ...], step: int, error: type[errors.ServiceError]
):
    _, session = new_session(TableModel())
    move(session, rows_of(1), 0)
    with pytest.raises(error):
        session.begin(rows_of(*values), step, Answers.ALL, NOW_S)
    assert (session.step, session.is_busy) == (1, False)
    assert move(session, rows_of(2), 1).tolist() == [[4]]


def test_session_restored_with_a_gap_takes_no_unnumbered_values_until_a_numbered_message():
    _, session = new_session(TableModel())
    session.model.columns.is_gapless[session.row] = False
    with pytest.raises(errors.StepRequired):
        session.begin(rows_of(1), None, Answers.ALL, NOW_S)
    move(session, rows_of(1), 0)
    move(session, rows_of(2))
    assert session.step == 2


def test_session_that_has_ended_takes_no_message():
    table, session = new_session(TableModel())
    table.remove(session)
    with pytest.raises(errors.SessionMoved):
        session.begin(rows_of(1), 0, Answers.ALL, NOW_S)


def test_restarted_session_has_forgotten_everything_but_its_name_and_stream():
    model = TableModel()
    table, session = new_session(model)
    owner = RecordingOwner()
    table.attach(session, owner, NOW_S)
    move(session, rows_of(1), 0)
    fill_row(model, session.slot, 3)
    session.model.columns.is_gapless[session.row] = False
    session.restart([np.zeros((1, HIDDEN), np.float32)], 8, NOW_S + 5)
    assert (session.step, session.incarnation, session.last_used_s) == (0, 8, NOW_S + 5)
    assert session.owner is owner
    assert model.arena.read(session.slot)[0].tolist() == [[0] * HIDDEN]
    record = session.record()
    assert (record.last_message, record.last_answer, record.last_values, record.last_output) == (None,) * 4
    move(session, rows_of(1), 0)  # applied: nothing is left to be replayed
    move(session, rows_of(1))  # and nothing is missing
    assert session.step == 2


def test_second_message_while_one_is_in_flight_is_our_own_bug():
    _, session = new_session(TableModel())
    session.begin(rows_of(1), 0, Answers.ALL, NOW_S)
    with pytest.raises(errors.InternalError, match="in flight"):
        session.begin(rows_of(1), 1, Answers.ALL, NOW_S)


def test_replay_without_a_stored_answer_is_our_own_bug():
    _, session = new_session(TableModel())
    move(session, rows_of(1), 0)
    session.model.columns.last_answer = lambda _row: None  # type: ignore[method-assign]
    with pytest.raises(errors.InternalError, match="stored answer"):
        session.begin(rows_of(1), 0, Answers.ALL, NOW_S)


def test_long_message_works_on_a_scratch_row_and_a_short_one_does_not():
    model = TableModel(max_piece_steps=2)
    _, session = new_session(model)
    short = session.begin(rows_of(1, 2), 0, Answers.ALL, NOW_S)
    assert isinstance(short, Job)
    assert short.scratch is None
    session.abandon(short)
    long = session.begin(rows_of(1, 2, 3), 0, Answers.ALL, NOW_S)
    assert isinstance(long, Job)
    assert long.scratch is not None
    assert long.scratch.rows.tolist() != [session.row]
    session.abandon(long)
    assert model.arena.num_held == 1  # the scratch row is back


def test_long_message_without_a_row_to_work_on_is_refused_and_moves_nothing():
    model = TableModel(num_rows=1, max_piece_steps=2)
    _, session = new_session(model)
    with pytest.raises(errors.SessionsExhausted):
        session.begin(rows_of(1, 2, 3), 0, Answers.ALL, NOW_S)
    assert not session.is_busy
    move(session, rows_of(1), 0)


def test_whoever_waits_is_told_once_when_the_message_has_settled():
    model = TableModel()
    _, session = new_session(model)
    job = begin(session, 1, step=0)
    told: list[int] = []
    session.when_settled(lambda: told.append(session.step))
    assert session.num_waiting == 1
    finish(job, model)
    assert session.num_waiting == 0
    move(session, rows_of(1), 1)
    assert told == [1]


def test_session_that_has_ended_says_nothing_of_who_has_its_row_now():
    model = TableModel(num_rows=1)
    table, ended = new_session(model)
    table.remove(ended)
    heir = table.create("heir", model, epoch=2, incarnation=8, now_s=NOW_S)
    job = begin(heir, 1)
    heir.when_settled(lambda: None)
    assert heir.row == ended.row
    assert (heir.is_busy, heir.num_waiting) == (True, 1)
    assert (ended.is_busy, ended.num_waiting) == (False, 0)
    finish(job, model)


def test_long_answer_of_a_session_that_has_ended_is_kept_no_longer():
    """It may be 4,096 rows long, and the row may stay free for ever."""
    model = TableModel()
    table, session = new_session(model)
    move(session, rows_of(1, 2, 3), 0)
    assert list(model.columns._long_answers) == [session.row]
    table.remove(session)
    assert not model.columns._long_answers


REPEATING = signature_of(features=2, missing=MissingValue.REPEAT_LAST)
ROW = st.lists(st.floats(-9, 9, width=32) | st.just(float("nan")), min_size=2, max_size=2)
MESSAGES = st.lists(
    st.tuples(st.lists(ROW, min_size=1, max_size=3), st.sampled_from(Answers)), min_size=1, max_size=4
)


@given(messages=MESSAGES)
def test_session_put_back_from_its_record_goes_on_as_if_it_had_never_left(
    messages: list[tuple[list[list[float]], Answers]],
):
    """Its record, the repetition of its last message, and a missing value repeated are what they would have been."""
    model = TableModel(num_rows=2, signature=REPEATING)
    table, stayed = new_session(model)
    move(stayed, np.ones((1, 2), np.float32))
    for values, answers in messages:
        last = np.array(values, np.float32)
        expected = move(stayed, last, None, answers)
    fill_row(model, stayed.slot, 4.5)
    stored = stayed.record()
    left = table.restore(dataclasses.replace(stored, session_id="left"), model, epoch=1, now_s=NOW_S)
    again = left.record()
    for field in dataclasses.fields(stored):
        if field.name != "session_id":
            np.testing.assert_array_equal(getattr(again, field.name), getattr(stored, field.name))
    assert stored.last_message is not None
    assert stored.last_message.crc == checksum(last)
    for session in (stayed, left):
        replay = session.begin(last, stored.last_message.first_step, Answers.ALL, NOW_S)
        assert isinstance(replay, Replay)
        assert replay.outputs.tolist() == expected.tolist()
    missing = np.full((1, 2), np.nan, np.float32)
    assert move(left, missing).tolist() == move(stayed, missing).tolist()
    assert left.record().last_message == stayed.record().last_message


def test_session_put_back_at_step_0_has_seen_nothing():
    model = TableModel(num_rows=2)
    table, session = new_session(model)
    restored = table.restore(
        dataclasses.replace(session.record(), session_id="t"), model, epoch=1, now_s=NOW_S
    )
    record = restored.record()
    assert (record.step, record.last_values, record.last_output, record.last_message) == (0, None, None, None)
    with pytest.raises(errors.ValueMissing):
        restored.begin(rows_of(float("nan")), 0, Answers.ALL, NOW_S)


def test_what_is_known_of_a_session_stands_in_its_row():
    model = TableModel()
    _, session = new_session(model)
    session.epoch, session.incarnation, session.last_used_s = 2**64 - 1, 2**63 + 1, NOW_S + 0.25
    assert (session.epoch, session.incarnation, session.last_used_s) == (2**64 - 1, 2**63 + 1, NOW_S + 0.25)
    assert session.slot.row == session.row
    model.columns.epoch[session.row] = 5
    assert session.epoch == 5


def test_session_put_back_from_its_birth_begins_in_the_initial_state_whatever_the_row_holds():
    _table, session = new_session(TableModel())
    move(session, rows_of(1, 2, 3))
    fill_row(session.model, session.slot, 9)
    session.put(birth("s", session.model.origin, incarnation=7, epoch=1, now_s=NOW_S))
    assert (session.step, session.is_gapless, session.record().last_message) == (0, True, None)
    assert [state.any() for state in session.record().states] == [False]
