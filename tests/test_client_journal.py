"""The values that a client keeps until its server has stored them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from longshort.journal import Journal, Message
from longshort.v1 import types_pb2

ALL = types_pb2.ANSWERS_ALL


def message(first_step: int, count: int) -> Message:
    rows = np.arange(first_step, first_step + count, dtype=np.float32).reshape(-1, 1)
    return Message(first_step, rows, ALL)


@given(
    start=st.integers(0, 5),
    counts=st.lists(st.integers(1, 7), max_size=8),
    durable=st.integers(0, 60),
    step=st.integers(0, 60),
    max_steps=st.integers(1, 9),
)
def test_what_is_kept_brings_a_server_from_any_kept_step_to_the_last_answer(
    start: int, counts: list[int], durable: int, step: int, max_steps: int
):
    journal = Journal(max_steps=100)
    journal.begin(start)
    for count in counts:
        journal.append(message(journal.end_step, count))
    journal.trim(durable)
    assert journal.num_steps == journal.end_step - journal.start_step
    sent = journal.since(step, max_steps)
    if not journal.start_step <= step <= journal.end_step:
        assert sent is None
        return
    assert sent is not None
    position = step
    for piece in sent:
        assert piece.first_step == position
        position = piece.end_step
    assert position == journal.end_step
    values = [value for piece in sent for value in piece.rows[:, 0].tolist()]
    assert values == list(range(step, journal.end_step))
    assert all(len(piece.rows) <= max_steps for piece in sent[:-1])
    assert journal.start_step <= max(durable, start)


def test_stored_messages_are_forgotten_whole_and_others_kept_whole():
    journal = Journal(max_steps=5)
    for first_step in (0, 2, 4):
        journal.append(message(first_step, 2))
    assert journal.is_full
    journal.trim(3)
    assert (journal.start_step, journal.num_steps, journal.is_full) == (2, 4, False)


def test_replayed_message_is_not_kept_twice():
    journal = Journal(max_steps=5)
    journal.append(message(0, 2))
    journal.append(message(0, 2))
    assert journal.num_steps == 2


def test_journal_that_does_not_keep_holds_nothing_and_knows_its_end():
    journal = Journal(max_steps=5)
    journal.append(message(0, 2))
    journal.keeps = False
    journal.append(message(2, 2))
    assert (journal.num_steps, journal.start_step, journal.end_step) == (0, 4, 4)
    assert journal.since(4, 9) == []
    assert journal.since(3, 9) is None
