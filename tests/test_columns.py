"""What is known of sessions: columns move as one session after the other would, and say what was sent and answered."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from longshort_service.arena import Slots
from longshort_service.batching import Job
from longshort_service.columns import Moves, SessionColumns, as_bytes
from longshort_service.errors import EngineDead
from longshort_service.protocol import MessageIdentity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

NUM_ROWS, FEATURES, OUTPUTS = 6, 2, 3


def new_columns(*, repeats_last: bool = False) -> SessionColumns:
    columns = SessionColumns(NUM_ROWS, FEATURES, OUTPUTS, repeats_last=repeats_last)
    columns.clear_many(np.arange(NUM_ROWS))
    return columns


def values_of(num_rows: int, num_steps: int, begin: float = 0.0) -> NDArray[np.float32]:
    """Return values `[rows, time, features]` that are all different."""
    shape = (num_rows, num_steps, FEATURES)
    return np.float32(begin) + np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def answers_to(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what the engine says here: each answer repeats ten times its first value."""
    with np.errstate(over="ignore"):
        return np.repeat(10 * values[:, :, :1], OUTPUTS, axis=2)


def job_of(
    columns: SessionColumns,
    rows: Sequence[int],
    values: NDArray[np.float32],
    answer_rows: Sequence[int] | int = 1,
    *,
    sent: NDArray[np.float32] | None = None,
) -> Job:
    """Return a job whose every run has ended, of sessions that are busy with it."""
    num_rows, num_steps = values.shape[:2]
    crcs = None
    if num_steps > 1:
        crcs = np.array([zlib.crc32(message.tobytes()) for message in values], np.uint32)
    moves = Moves(
        columns,
        values[:, -1] if sent is None else sent,
        crcs,
        np.broadcast_to(np.array(answer_rows, np.int32), num_rows),
    )
    job = Job(values, Slots(np.array(rows, np.intp), np.ones(num_rows, np.int64)), owner=moves)
    columns.is_busy[job.slots.rows] = True
    job.outputs = answers_to(values)
    job.num_done = num_steps
    return job


def settle(job: Job) -> None:
    assert job.owner is not None
    job.owner.settled(job)


def identity_of(first_step: int, message: NDArray[np.float32]) -> MessageIdentity:
    return MessageIdentity(first_step, len(message), zlib.crc32(message.tobytes()))


def answer_in(columns: SessionColumns, row: int) -> list[list[float]] | None:
    answer = columns.last_answer(row)
    return None if answer is None else answer.tolist()


# -- moving -----


def test_row_that_was_cleared_is_that_of_a_session_at_step_0():
    columns = new_columns()
    settle(job_of(columns, [1, 2, 3], values_of(3, 2), 2))
    columns.is_gapless[:] = False
    columns.is_busy[:] = True
    columns.clear(1)
    columns.clear_many(np.array([3, 5]))
    for row in (1, 3):
        assert (columns.step[row], columns.is_gapless[row], columns.is_busy[row]) == (0, True, False)
        assert columns.last_message(row) is None
        assert columns.last_answer(row) is None
    assert (columns.step[2], columns.is_gapless[2], columns.is_busy[2]) == (2, False, True)
    assert columns.last_answer(2) is not None
    assert list(columns._long_answers) == [2]  # what was said to those that were cleared is kept no longer


def test_job_of_many_rows_moves_each_session_by_its_own_message():
    columns = new_columns()
    settle(job_of(columns, [4, 0], values_of(2, 1)))
    job = job_of(columns, [5, 4, 1], values_of(3, 2, begin=100), [2, 1, 0])
    columns.is_gapless[:] = False
    settle(job)
    assert columns.step.tolist() == [1, 2, 0, 0, 3, 2]
    assert not columns.is_busy.any()
    assert columns.is_gapless.tolist() == [False, True, False, False, True, True]
    assert columns.last_message(5) == identity_of(0, job.values[0])
    assert columns.last_message(4) == identity_of(1, job.values[1])
    assert columns.last_message(1) == identity_of(0, job.values[2])
    assert answer_in(columns, 5) == [[1000] * 3, [1020] * 3]  # all of it
    assert answer_in(columns, 4) == [[1060] * 3]  # the last row
    assert answer_in(columns, 1) == []  # none was wanted
    assert columns.output[[5, 4, 1], 0].tolist() == [1020, 1060, 1100]
    assert columns.sent[5].tolist() == [102, 103]
    assert columns.last_message(3) is None
    assert columns.last_message(0) == identity_of(0, values_of(2, 1)[1])  # nobody's neighbour is touched


def test_rows_that_failed_stay_where_they_were_and_the_others_move():
    columns = new_columns()
    first = job_of(columns, range(4), values_of(4, 2), 2)
    settle(first)
    job = job_of(columns, range(4), values_of(4, 3, begin=50), 3)
    job.failed = np.array([False, True, False, True])
    settle(job)
    assert columns.step[:4].tolist() == [5, 2, 5, 2]
    assert not columns.is_busy.any()
    assert columns.last_message(1) == identity_of(0, first.values[1])
    assert answer_in(columns, 1) == first.outputs[1].tolist()
    assert columns.output[1].tolist() == first.outputs[1, -1].tolist()
    assert columns.sent[1].tolist() == first.values[1, -1].tolist()
    assert columns.last_message(2) == identity_of(2, job.values[2])
    assert answer_in(columns, 2) == job.outputs[2].tolist()


@pytest.mark.parametrize("end", ["all rows failed", "the engine died", "withdrawn between two pieces"])
def test_job_that_comes_to_nothing_moves_nothing_and_frees_its_rows(end: str):
    columns = new_columns()
    settle(job_of(columns, [0, 1], values_of(2, 1)))
    job = job_of(columns, [0, 1], values_of(2, 3, begin=9), 3)
    if end == "all rows failed":
        job.failed = np.array([True, True])
    elif end == "the engine died":
        job.failure = EngineDead("it failed")
    else:
        job.num_done = 2
    settle(job)
    assert columns.step.tolist() == [1, 1, 0, 0, 0, 0]
    assert not columns.is_busy.any()
    assert answer_in(columns, 0) == [[0] * 3]


MESSAGES = st.lists(
    st.tuples(
        st.lists(st.integers(0, NUM_ROWS - 1), min_size=1, max_size=NUM_ROWS, unique=True),  # rows
        st.integers(1, 3),  # steps
        st.integers(0, 2),  # how much of the answer: none, the last row, all
        st.sets(st.integers(0, NUM_ROWS - 1)),  # rows that fail
    ),
    max_size=12,
)


@dataclass
class Plain:
    """One session, as anyone would write it."""

    step: int = 0
    message: MessageIdentity | None = None
    answer: list[list[float]] | None = None


@given(MESSAGES)
def test_columns_say_what_sessions_kept_one_by_one_would(
    messages: list[tuple[list[int], int, int, set[int]]],
):
    columns, plain = new_columns(), [Plain() for _ in range(NUM_ROWS)]
    for number, (rows, num_steps, wanted, failing) in enumerate(messages):
        answer_rows = (0, 1, num_steps)[wanted]
        job = job_of(columns, rows, values_of(len(rows), num_steps, begin=1000 * number), answer_rows)
        failed = np.array([row in failing for row in rows])
        job.failed = failed if failed.any() else None
        settle(job)
        for place, row in enumerate(rows):
            if row not in failing:
                session = plain[row]
                session.message = identity_of(session.step, job.values[place])
                session.step += num_steps
                session.answer = job.outputs[place, num_steps - answer_rows :].tolist()
    for row, session in enumerate(plain):
        assert columns.step_of[row] == session.step
        assert columns.last_message(row) == session.message
        assert answer_in(columns, row) == session.answer
    is_long = [session.answer is not None and len(session.answer) > 1 for session in plain]
    assert sorted(columns._long_answers) == [row for row in range(NUM_ROWS) if is_long[row]]


@pytest.mark.parametrize("repeats_last", [True, False])
@pytest.mark.parametrize("answer_rows", [0, 1])
def test_one_row_is_settled_as_a_job_of_one_is(answer_rows: int, *, repeats_last: bool):
    alone, together = (new_columns(repeats_last=repeats_last) for _ in range(2))
    for number in range(3):
        for columns in (alone, together):
            settle(job_of(columns, [1, 2], values_of(2, 2), 2))  # so that there is a long answer to drop
        job = job_of(together, [1], values_of(1, 1, begin=number), answer_rows)
        settle(job)
        alone.is_busy[1] = True
        alone.is_gapless[1] = False
        alone.settle_one(1, job.values[0, 0], job.outputs[0, 0], answer_rows)
        for name in ("step", "is_gapless", "is_busy", "output", "sent", "seen"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(together, name))
        for row in (1, 2):
            assert alone.last_message(row) == together.last_message(row)
            assert answer_in(alone, row) == answer_in(together, row)
        assert list(alone._long_answers) == [2]


def test_one_row_that_failed_stays_where_it_was_and_whoever_waits_is_told():
    columns = new_columns()
    settle(job_of(columns, [1], values_of(1, 2), 2))
    columns.is_busy[1] = True
    told: list[bool] = []
    columns.when_settled(1, lambda: told.append(columns.is_busy_of[1]))
    columns.settle_one(1, np.ones(FEATURES, np.float32), None, 1)
    assert told == [False]
    assert columns.step[1] == 2
    assert answer_in(columns, 1) == [[0] * 3, [20] * 3]


# -- what was sent -----

FLOAT_BITS = st.lists(st.integers(0, 2**32 - 1), min_size=FEATURES, max_size=FEATURES)


@given(FLOAT_BITS)
def test_checksum_of_one_step_is_worked_out_from_what_was_sent_to_the_last_bit(bits: list[int]):
    columns = new_columns()
    values = (
        np.array(bits, np.uint32).view(np.float32).reshape(1, 1, FEATURES)
    )  # NaN payloads, -0.0, anything
    settle(job_of(columns, [3], values))
    assert columns.last_message(3) == MessageIdentity(0, 1, zlib.crc32(values.tobytes()))


def test_checksum_is_of_the_values_as_they_were_sent_not_as_missing_ones_were_filled():
    columns = new_columns(repeats_last=True)
    sent = np.array([[np.nan, 8.0]], np.float32)
    settle(job_of(columns, [0], np.array([[[7.0, 8.0]]], np.float32), sent=sent))
    assert columns.last_message(0) == MessageIdentity(0, 1, zlib.crc32(sent.tobytes()))
    assert columns.seen[0].tolist() == [7, 8]  # what the next missing value repeats
    assert np.isnan(columns.sent[0, 0])


def test_values_are_kept_once_where_none_are_filled():
    columns = new_columns(repeats_last=False)
    assert columns.seen is columns.sent


def test_message_put_into_a_row_keeps_its_checksum_until_the_next_one():
    columns = new_columns()
    columns.step[2] = 5
    columns.set_last_message(2, MessageIdentity(4, 1, 77), np.ones((1, OUTPUTS), np.float32))
    columns.output[2] = 1
    assert columns.last_message(2) == MessageIdentity(4, 1, 77)
    assert answer_in(columns, 2) == [[1] * 3]
    values = values_of(1, 1)
    settle(job_of(columns, [2], values))
    assert columns.last_message(2) == identity_of(5, values[0])


def test_long_answer_put_into_a_row_is_dropped_with_the_message_it_belongs_to():
    columns = new_columns()
    columns.step[2] = 5
    long = np.arange(6, dtype=np.float32).reshape(2, OUTPUTS)
    columns.set_last_message(2, MessageIdentity(3, 2, 77), long)
    assert answer_in(columns, 2) == long.tolist()
    columns.set_last_message(2, None, None)
    assert columns.last_message(2) is None
    assert columns.last_answer(2) is None
    columns.set_last_message(2, MessageIdentity(3, 2, 77), long[:0])
    assert answer_in(columns, 2) == []


def test_message_without_its_answer_cannot_be_repeated():
    columns = new_columns()
    settle(job_of(columns, [2], values_of(1, 1)))
    columns.set_last_message(2, MessageIdentity(0, 1, 77), None)
    assert columns.last_message(2) is None


# -- what was answered -----


def test_stored_answers_are_no_views_of_a_batch():
    columns = new_columns()
    job = job_of(columns, [0, 1, 2], values_of(3, 2), [2, 1, 2])
    expected = job.outputs.tolist()
    settle(job)
    job.outputs.fill(np.nan)
    job.values.fill(np.nan)
    assert answer_in(columns, 0) == expected[0]
    assert answer_in(columns, 1) == expected[1][1:]
    assert columns.sent[1].tolist() == [6, 7]
    given_away = columns.last_answer(1)
    assert given_away is not None
    given_away.fill(0)
    assert answer_in(columns, 1) == expected[1][1:]


def test_long_answer_is_dropped_when_the_next_message_has_come():
    columns = new_columns()
    settle(job_of(columns, [0, 1], values_of(2, 4), 4))
    settle(job_of(columns, [1], values_of(1, 1)))
    assert list(columns._long_answers) == [0]
    assert len(answer_in(columns, 0) or []) == 4
    settle(job_of(columns, [0, 1], values_of(2, 4), 1))
    assert not columns._long_answers


def test_bytes_of_rows_are_those_of_each_row():
    rows = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    assert as_bytes(rows) == [rows[0].tobytes(), rows[1].tobytes()]
    turned = rows.swapaxes(1, 2)  # not contiguous
    assert as_bytes(turned) == [turned[0].tobytes(), turned[1].tobytes()]
    assert as_bytes(rows[:0]) == []


# -- waiting -----


def test_whoever_waits_for_a_row_is_told_once_and_finds_it_moved():
    columns = new_columns()
    job = job_of(columns, [0, 1], values_of(2, 1))
    told: list[tuple[str, int, bool]] = []

    def note(name: str) -> None:
        told.append((name, columns.step_of[1], columns.is_busy_of[1]))

    columns.when_settled(1, lambda: note("first"))
    columns.when_settled(1, lambda: note("second"))
    columns.when_settled(5, lambda: note("another row's"))
    assert [columns.num_waiting(row) for row in (0, 1, 5)] == [0, 2, 1]
    settle(job)
    assert told == [("first", 1, False), ("second", 1, False)]
    settle(job_of(columns, [1], values_of(1, 1)))
    assert len(told) == 2
    assert [columns.num_waiting(row) for row in (0, 1, 5)] == [0, 0, 1]


def test_whoever_waits_for_a_write_is_told_once_when_it_has_ended():
    columns, told = new_columns(), []
    columns.is_writing[[1, 3]] = True
    columns.when_written(lambda: told.append(columns.is_writing.tolist()))
    columns.end_writing(np.array([1]))
    columns.end_writing(np.array([3]))
    assert told == [[False, False, False, True, False, False]]


def test_last_messages_of_rows_are_copies_and_those_of_each():
    columns = new_columns()
    settle(job_of(columns, [0, 1], values_of(2, 1)))
    settle(job_of(columns, [2, 4], values_of(2, 3), 3))
    rows = np.array([4, 0, 3])
    before = columns.last_messages(rows)
    settle(job_of(columns, rows.tolist(), values_of(3, 2)))
    assert before.num_steps.tolist() == [3, 1, 0]
    assert before.has_crc[:2].tolist() == [True, False]
    assert set(before.long_answers) == {4}
    assert len(before.long_answers[4]) == 3 * OUTPUTS * 4
    assert columns.last_messages(np.array([3])).num_steps.tolist() == [2]
