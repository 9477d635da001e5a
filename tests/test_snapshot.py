"""Copies of many sessions: the records made of them are those that each session makes of itself."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from longshort_service.record import SessionRecord, encode
from longshort_service.session import Answers
from longshort_service.sessions import SessionTable
from longshort_service.signature import MissingValue
from longshort_service.snapshot import Snapshot
from tables import NOW_S, TableModel, fill_row, finish, move, rows_of, signature_of

if TYPE_CHECKING:
    from longshort_service.session import Session

NUM_KINDS = 9


def sessions_of_every_kind(model: TableModel, table: SessionTable[Any]) -> list[Session[Any]]:
    """Return sessions whose last messages are of every kind."""
    sessions = [
        table.create(f"s{k}", model, epoch=2**63 + k, incarnation=2**64 - 1 - k, now_s=NOW_S + k)
        for k in range(NUM_KINDS)
    ]
    for k, session in enumerate(sessions):
        fill_row(model, session.slot, k / 3)
    _blank, one, many, last, none, none_of_many, loaded, loaded_long, forked = sessions
    move(one, rows_of(1.5))
    move(many, rows_of(1, 2, 3), 0)
    move(last, rows_of(1, 2), answers=Answers.LAST)
    move(none, rows_of(4), answers=Answers.NONE)
    move(none_of_many, rows_of(4, 5), answers=Answers.NONE)
    loaded.put(one.record())
    loaded_long.put(many.record())
    forked.put(dataclasses.replace(many.record(), last_message=None, last_answer=None))
    return sessions


def assert_same(made: SessionRecord, expected: SessionRecord) -> None:
    for field in dataclasses.fields(SessionRecord):
        one, other = getattr(made, field.name), getattr(expected, field.name)
        if isinstance(other, tuple) and field.name == "states":
            assert len(one) == len(other)
            assert all(np.array_equal(a, b) and a.shape == b.shape for a, b in zip(one, other, strict=True))
        elif isinstance(other, np.ndarray):
            assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
        else:
            assert one == other, field.name
    assert encode(made) == encode(expected)


@pytest.mark.parametrize("missing", [MissingValue.REJECT, MissingValue.REPEAT_LAST])
def test_records_are_those_of_the_sessions(missing: MissingValue):
    model, table = TableModel(num_rows=16, signature=signature_of(missing=missing)), SessionTable[Any]()
    sessions = sessions_of_every_kind(model, table)
    if missing is MissingValue.REPEAT_LAST:  # then what was sent is not what was seen
        move(sessions[1], rows_of(float("nan")))
        assert np.isnan(model.columns.sent[sessions[1].row, 0])
    snapshot = Snapshot(sessions, np.ones(NUM_KINDS, np.bool_))
    assert len(snapshot) == NUM_KINDS
    assert snapshot.steps.tolist() == [session.step for session in sessions]
    assert snapshot.epochs.tolist() == [session.epoch for session in sessions]
    for made, session in zip(snapshot, sessions, strict=True):
        assert_same(made, session.record())


def test_records_are_of_the_moment_of_the_copy():
    model, table = TableModel(num_rows=16), SessionTable[Any]()
    sessions = sessions_of_every_kind(model, table)
    expected = [session.record() for session in sessions]
    snapshot = Snapshot(sessions, np.ones(NUM_KINDS, np.bool_))
    for session in sessions:
        session.epoch += 1
        fill_row(model, session.slot, 99)
        move(session, rows_of(7, 8, 9, 10, 11))
    for session in sessions:
        table.remove(session)
    for made, before in zip(snapshot, expected, strict=True):
        assert_same(made, before)


def test_message_is_known_by_the_snapshot_as_it_is_by_the_session_also_after_a_batch():
    """Of a message of one step its values are kept, of a longer one its checksum; a batch has both."""
    model, table = TableModel(num_rows=8), SessionTable[Any]()
    sessions = [table.create(f"s{k}", model, epoch=k + 1, incarnation=7, now_s=NOW_S) for k in range(3)]
    for session in sessions:
        session.model.columns.settle_one(session.row, [2.5], np.array([5], np.float32), 1)
    job = sessions[1].begin(rows_of(1, 2), 1, Answers.ALL, NOW_S)
    finish(job, model)
    for made, session in zip(Snapshot(sessions, np.ones(3, np.bool_)), sessions, strict=True):
        assert_same(made, session.record())


def test_mark_is_set_where_nothing_can_be_missing_and_the_session_knows_of_no_gap():
    model, table = TableModel(), SessionTable[Any]()
    sessions = [table.create(f"s{k}", model, epoch=1, incarnation=7, now_s=NOW_S) for k in range(4)]
    model.columns.is_gapless[sessions[1].row] = model.columns.is_gapless[sessions[3].row] = False
    snapshot = Snapshot(sessions, np.array([True, True, False, False]))
    assert [record.is_gapless for record in snapshot] == [True, False, False, False]


def test_records_are_found_from_both_ends_and_in_slices():
    model, table = TableModel(num_rows=16), SessionTable[Any]()
    sessions = sessions_of_every_kind(model, table)
    snapshot = Snapshot(sessions, np.ones(NUM_KINDS, np.bool_))
    ids = [record.session_id for record in snapshot]
    assert ids == [session.id for session in sessions]
    for index in range(-NUM_KINDS, NUM_KINDS):
        assert_same(snapshot[index], sessions[index].record())
    assert [record.session_id for record in snapshot[1:-1:2]] == ids[1:-1:2]
    for index in (NUM_KINDS, -NUM_KINDS - 1):
        with pytest.raises(IndexError):
            snapshot[index]
