"""One session: a message moves it whole or not at all, and what is left of the last one."""

from __future__ import annotations

import numpy as np
import pytest
from longshort_service import errors
from longshort_service.batching import Job
from longshort_service.protocol import MessageIdentity
from longshort_service.session import Answers, Replay
from longshort_service.signature import MissingValue
from tables import (
    HIDDEN,
    NOW_S,
    RecordingOwner,
    TableModel,
    fill_row,
    finish,
    move,
    new_session,
    rows_of,
    signature_of,
)


def test_message_moves_step_and_stored_answer_together():
    _, session = new_session(TableModel())
    job = session.begin(rows_of(1, 2), 0, Answers.ALL, NOW_S)
    assert isinstance(job, Job)
    assert session.in_flight is job
    assert (session.step, session.last_message, session.last_answer) == (0, None, None)
    finish(job)
    assert (session.step, session.in_flight) == (2, None)
    assert session.last_answer is not None
    assert session.last_answer.tolist() == [[2], [4]]
    assert session.last_output is not None
    assert session.last_output.tolist() == [4]


def test_message_that_fails_moves_nothing():
    _, session = new_session(TableModel())
    move(session, rows_of(1), 0)
    job = session.begin(rows_of(2), 1, Answers.ALL, NOW_S)
    assert isinstance(job, Job)
    job.outputs = rows_of(9)
    job.num_done = 1
    job.failure = errors.NonFiniteResult("x")
    session.settled(job)
    assert (session.step, session.in_flight) == (1, None)
    assert session.last_message is not None
    assert session.last_message.first_step == 0
    assert isinstance(session.begin(rows_of(1), 0, Answers.ALL, NOW_S), Replay)


def test_message_withdrawn_after_some_of_its_pieces_moves_nothing():
    model = TableModel(piece_steps=2)
    _, session = new_session(model)
    job = session.begin(rows_of(1, 2, 3), 0, Answers.ALL, NOW_S)
    assert isinstance(job, Job)
    job.outputs = rows_of(2, 4, 0)
    job.num_done = 2
    session.settled(job)
    assert (session.step, session.last_answer) == (0, None)


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
    assert session.step == 3
    assert session.in_flight is None


def test_stored_values_and_output_are_never_views_of_a_message():
    _, session = new_session(TableModel())
    move(session, rows_of(1, 2, 3), 0, Answers.LAST)
    for kept in (session.last_values, session.last_output, session.last_answer):
        assert kept is not None
        assert kept.base is None


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
    assert (session.step, session.in_flight) == (1, None)
    assert move(session, rows_of(2), 1).tolist() == [[4]]


def test_session_restored_with_a_gap_takes_no_unnumbered_values_until_a_numbered_message():
    _, session = new_session(TableModel())
    session.is_gapless = False
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
    session.is_gapless = False
    session.restart([np.zeros((1, HIDDEN), np.float32)], 8, NOW_S + 5)
    assert (session.step, session.incarnation, session.last_used_s) == (0, 8, NOW_S + 5)
    assert session.owner is owner
    assert model.arena.read(session.slot)[0].tolist() == [[0] * HIDDEN]
    assert session.last_values is None
    assert session.last_output is None
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
    session.last_answer = None
    with pytest.raises(errors.InternalError, match="stored answer"):
        session.begin(rows_of(1), 0, Answers.ALL, NOW_S)


def test_long_message_works_on_a_scratch_row_and_a_short_one_does_not():
    model = TableModel(piece_steps=2)
    _, session = new_session(model)
    short = session.begin(rows_of(1, 2), 0, Answers.ALL, NOW_S)
    assert isinstance(short, Job)
    assert short.scratch is None
    session.abandon(short)
    long = session.begin(rows_of(1, 2, 3), 0, Answers.ALL, NOW_S)
    assert isinstance(long, Job)
    assert long.scratch is not None
    assert long.scratch.row != session.slot.row
    session.abandon(long)
    assert model.arena.num_held == 1  # the scratch row is back


def test_long_message_without_a_row_to_work_on_is_refused_and_moves_nothing():
    model = TableModel(num_rows=1, piece_steps=2)
    _, session = new_session(model)
    with pytest.raises(errors.SessionsExhausted):
        session.begin(rows_of(1, 2, 3), 0, Answers.ALL, NOW_S)
    assert session.in_flight is None
    move(session, rows_of(1), 0)


def test_whoever_waits_is_told_once_when_the_message_has_settled():
    _, session = new_session(TableModel())
    job = session.begin(rows_of(1), 0, Answers.ALL, NOW_S)
    assert isinstance(job, Job)
    told: list[int] = []
    session.when_settled(lambda: told.append(session.step))
    assert session.num_waiting == 1
    finish(job)
    assert session.num_waiting == 0
    move(session, rows_of(1), 1)
    assert told == [1]


def test_last_message_of_a_session_is_what_identifies_it():
    _, session = new_session(TableModel())
    move(session, rows_of(1, 2), 0)
    assert session.last_message is not None
    assert (session.last_message.first_step, session.last_message.num_steps) == (0, 2)
    assert isinstance(session.last_message, MessageIdentity)
