"""The session table: who may have which session when, and that rows are never lost or shared."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from longshort_service import errors
from longshort_service.batching import Job
from longshort_service.durability import Durability
from longshort_service.session import Answers, Replay, Session
from longshort_service.sessions import SessionTable
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

if TYPE_CHECKING:
    from longshort_service.record import SessionRecord

# -- the table -----


def test_session_that_was_recorded_goes_on_as_if_nothing_had_happened():
    model = TableModel()
    table, session = new_session(model)
    move(session, rows_of(1, 2), 0, Answers.LAST)
    fill_row(model, session.slot, 3.5)
    record = session.record()
    table.remove(session)
    assert len(table) == 0
    fill_row(model, model.arena.allocate(), -1)  # another takes the row meanwhile

    restored = table.restore(record, model, epoch=2, now_s=NOW_S + 1)
    assert (restored.step, restored.incarnation, restored.epoch) == (2, 7, 2)
    assert model.arena.read(restored.slot)[0].tolist() == [[3.5] * HIDDEN]
    again = restored.begin(rows_of(1, 2), 0, Answers.ALL, NOW_S)
    assert isinstance(again, Replay)
    assert again.outputs.tolist() == [[4]]
    expected = dataclasses.replace(record, epoch=2, last_used_s=NOW_S)
    assert str(restored.record()) == str(expected)


def test_record_is_a_copy_that_later_messages_do_not_change():
    model = TableModel()
    _table, session = new_session(model)
    move(session, rows_of(1), 0)
    record = session.record()
    fill_row(model, session.slot, 9)
    move(session, rows_of(2), 1)
    assert record.states[0].tolist() == [[0] * HIDDEN]
    assert record.last_answer is not None
    assert record.last_answer.tolist() == [[2]]
    assert record.step == 1


def test_state_of_another_file_is_never_loaded():
    table, session = new_session(TableModel())
    record = session.record()
    table.remove(session)
    other = TableModel(signature=signature_of(fingerprint="f2"))
    with pytest.raises(errors.ModelChanged):
        table.restore(record, other, epoch=2, now_s=NOW_S)
    assert (len(table), other.arena.num_held) == (0, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"states": (np.zeros((1, HIDDEN + 1), np.float32),)},
        {"states": ()},
        {"last_values": np.zeros(2, np.float32)},
        {"last_values": None},
        {"last_output": np.zeros((1, 1), np.float32)},
        {"last_output": None},
        {"last_answer": np.zeros((1, 2), np.float32)},
        {"last_answer": np.zeros(1, np.float32)},
        {"last_answer": None},
    ],
    ids=str,
)
def test_record_that_does_not_fit_the_model_is_not_loaded(change: dict[str, object]):
    model = TableModel()
    table, session = new_session(model)
    move(session, rows_of(1), 0)
    record = dataclasses.replace(session.record(), **change)  # type: ignore[arg-type]
    table.remove(session)
    with pytest.raises(errors.ModelChanged):
        table.restore(record, model, epoch=2, now_s=NOW_S)
    assert (len(table), model.arena.num_held) == (0, 0)


def test_record_that_may_have_a_gap_behind_it_takes_no_unnumbered_values():
    model = TableModel()
    table, session = new_session(model)
    move(session, rows_of(1), 0)
    record = dataclasses.replace(session.record(), is_gapless=False)
    table.remove(session)
    restored = table.restore(record, model, epoch=2, now_s=NOW_S)
    with pytest.raises(errors.StepRequired):
        move(restored, rows_of(1))
    move(restored, rows_of(1), 1)
    move(restored, rows_of(1))


def test_fork_without_a_stored_answer_can_be_loaded():
    model = TableModel()
    table, session = new_session(model)
    move(session, rows_of(1), 0)
    record = dataclasses.replace(session.record(), session_id="t", last_message=None, last_answer=None)
    assert table.restore(record, model, epoch=2, now_s=NOW_S).step == 1


def test_full_arena_refuses_new_sessions_and_restored_ones():
    model = TableModel(num_rows=1)
    table, session = new_session(model)
    record = dataclasses.replace(session.record(), session_id="t")
    with pytest.raises(errors.SessionsExhausted):
        table.create("t", model, epoch=2, incarnation=1, now_s=NOW_S)
    with pytest.raises(errors.SessionsExhausted):
        table.restore(record, model, epoch=2, now_s=NOW_S)
    assert [live.id for live in table] == ["s"]


def test_removed_session_gives_its_row_back_and_knows_that_it_has_ended():
    model = TableModel()
    table, session = new_session(model)
    owner = RecordingOwner()
    table.attach(session, owner, NOW_S)
    table.remove(session)
    assert session.is_ended
    assert table.get("s") is None
    assert model.arena.num_held == 0
    table.detach(session, owner, NOW_S)  # the stream notices later
    assert table.num_idle == 0


def test_session_is_never_removed_under_a_message_in_flight():
    model = TableModel()
    table, session = new_session(model)
    session.begin(rows_of(1), 0, Answers.ALL, NOW_S)
    with pytest.raises(errors.InternalError, match="in flight"):
        table.remove(session)
    assert model.arena.num_held == 1


def test_stream_that_lost_its_session_does_not_take_it_from_the_next():
    table, session = new_session(TableModel())
    older, newer = RecordingOwner("a"), RecordingOwner("b")
    table.attach(session, older, NOW_S)
    table.attach(session, newer, NOW_S)
    table.detach(session, older, NOW_S)
    assert session.owner is newer
    assert table.num_idle == 0
    table.detach(session, newer, NOW_S)
    assert session.owner is None
    assert table.num_idle == 1


@pytest.mark.parametrize("is_open", [True, False])
def test_session_that_is_another_server_s_ends_and_its_stream_hears_why(is_open: bool):  # noqa: FBT001
    model = TableModel()
    table, session = new_session(model)
    owner = RecordingOwner()
    if is_open:
        table.attach(session, owner, NOW_S)
    moved = errors.SessionMoved("it was opened elsewhere", cause="opened", client_id="you")
    table.give_up(session, moved, NOW_S)
    assert (owner.lost, owner.ends) == (([session.id], [moved]) if is_open else ([], []))
    assert (session.is_ended, len(table), table.num_idle, model.arena.num_held) == (True, 0, 0, 0)


def test_longest_unused_session_goes_first_and_none_that_is_in_use():
    model = TableModel(num_rows=5)
    table, first = new_session(model, "s0", now_s=0)
    sessions = [first] + [
        table.create(f"s{k}", model, epoch=k, incarnation=k, now_s=float(k)) for k in range(1, 5)
    ]
    assert table.longest_idle() == [first]
    table.attach(sessions[0], RecordingOwner(), 10)
    table.touch(sessions[1], 11)
    table.touch(sessions[2], 12)
    sessions[2].begin(rows_of(1), 0, Answers.ALL, 12)
    assert table.longest_idle() == [sessions[3]]
    assert table.longest_idle(2) == [sessions[3], sessions[4]]
    assert table.longest_idle(9) == [sessions[3], sessions[4], sessions[1]]
    assert table.idle_since(4.0, 10) == [sessions[3]]
    assert len(table.idle_since(99, 1)) == 1
    assert table.idle_since(99, 10) == [sessions[3], sessions[4], sessions[1]]


def test_longest_unused_session_is_looked_for_over_all_models():
    table, _ = new_session(TableModel(), "new", now_s=5)
    old = table.create("old", TableModel(version=2), epoch=2, incarnation=2, now_s=1)
    assert [session.id for session in table.longest_idle(2)] == ["old", "new"]
    table.attach(old, RecordingOwner(), NOW_S)
    assert table.longest_idle() == [table.get("new")]
    table.remove(old)
    assert SessionTable[TableModel]().longest_idle() == []


def test_touch_leaves_a_session_that_a_stream_has_open_with_its_stream():
    table, session = new_session(TableModel())
    table.attach(session, RecordingOwner(), NOW_S)
    table.touch(session, NOW_S + 5)
    assert (session.last_used_s, table.num_idle) == (NOW_S + 5, 0)


def test_sessions_of_a_model_are_counted_by_version():
    model, other = TableModel(), TableModel(version=2)
    table, _ = new_session(model)
    table.create("t", other, epoch=2, incarnation=2, now_s=NOW_S)
    assert (table.num_sessions_of(model), table.num_sessions_of(other)) == (1, 1)
    assert len(table) == 2


def test_sessions_added_together_are_as_those_added_one_by_one():
    models = [TableModel(num_rows=6), TableModel(num_rows=6)]
    together, one_by_one = SessionTable[TableModel](), SessionTable[TableModel]()
    names, epochs, incarnations = list("abc"), [3, 1, 2], [2**64 - 1, 0, 2**63]
    for model in models:
        slots = [model.arena.allocate() for _ in range(5)]
        for slot in slots:
            fill_row(model, slot, 9)  # what another has left in a row is no new session's
        for slot in slots:
            model.arena.free(slot)
    sessions = together.create_many(names, models[0], epochs, incarnations, NOW_S)
    for name, epoch, incarnation in zip(names, epochs, incarnations, strict=True):
        one_by_one.create(name, models[1], epoch=epoch, incarnation=incarnation, now_s=NOW_S)
    assert [session.id for session in sessions] == names
    assert sorted(str(session.record()) for session in together) == sorted(
        str(session.record()) for session in one_by_one
    )
    assert (len(together), together.num_idle, together.num_sessions_of(models[0])) == (3, 3, 3)


def test_sessions_that_do_not_fit_together_are_not_added_at_all():
    model = TableModel(num_rows=2)
    table = SessionTable[TableModel]()
    with pytest.raises(errors.SessionsExhausted):
        table.create_many(list("abc"), model, [1, 2, 3], [1, 2, 3], NOW_S)
    assert (len(table), table.num_idle, model.arena.num_held) == (0, 0, 0)


def test_no_session_is_removed_where_one_of_them_has_a_message_in_flight():
    model = TableModel()
    table = SessionTable[TableModel]()
    sessions = table.create_many(list("abc"), model, [1, 2, 3], [1, 2, 3], NOW_S)
    sessions[2].begin(rows_of(1), 0, Answers.ALL, NOW_S)
    with pytest.raises(errors.InternalError, match="in flight"):
        table.remove_many(sessions)
    assert (len(table), model.arena.num_held) == (3, 3)


def test_stream_that_ends_gives_back_what_is_still_its_own_in_all_models():
    model, other = TableModel(), TableModel(version=2)
    table = SessionTable[TableModel]()
    sessions = [
        *table.create_many(list("abc"), model, [1, 2, 3], [1, 2, 3], NOW_S),
        table.create("d", other, epoch=4, incarnation=4, now_s=NOW_S),
    ]
    older, newer = RecordingOwner("a"), RecordingOwner("b")
    table.attach_many(sessions, older, NOW_S + 1)
    assert table.num_idle == 0
    table.attach(sessions[0], newer, NOW_S + 2)
    table.remove(sessions[1])
    table.detach_many(sessions, older, NOW_S + 3)
    assert [session.owner for session in sessions] == [newer, None, None, None]
    assert sorted(session.id for session in table.longest_idle(9)) == ["c", "d"]
    assert {session.id: session.last_used_s - NOW_S for session in table} == {"a": 2, "c": 3, "d": 3}


def test_stream_that_notices_late_does_not_touch_the_next_session_in_the_row():
    model = TableModel(num_rows=1)
    table, session = new_session(model)
    owner = RecordingOwner()
    table.attach(session, owner, NOW_S)
    table.remove(session)
    successor = table.create("t", model, epoch=2, incarnation=2, now_s=NOW_S)
    table.attach(successor, RecordingOwner(), NOW_S)
    table.detach(session, owner, NOW_S + 9)
    assert (successor.last_used_s, table.num_idle) == (NOW_S, 0)


def test_longest_idle_passes_over_those_that_somebody_is_at_however_many_they_are():
    model = TableModel(num_rows=64)
    table = SessionTable[TableModel]()
    for number in range(64):
        table.create(f"s{number}", model, epoch=1, incarnation=1, now_s=float(number))
    free = table.longest_idle(2, lambda name: int(name[1:]) >= 40)
    assert [session.id for session in free] == ["s40", "s41"]
    assert table.longest_idle(2, lambda _name: False) == []


def test_table_does_not_hold_a_model_that_has_no_session_any_more():
    model = TableModel()
    table, session = new_session(model)
    table.remove(session)
    held = weakref.ref(model)
    del model, session
    gc.collect()
    assert held() is None


# -- anything in any order -----


def test_session_that_was_exchanged_goes_on_under_its_name_on_the_other_model():
    table, session = new_session(TableModel())
    other = TableModel()
    table.attach(session, RecordingOwner(), NOW_S)
    move(session, rows_of(1, 2))
    fresh = table.exchange(session, other, NOW_S + 1)
    assert (session.is_ended, table.get("s")) == (True, fresh)
    assert (fresh.model, fresh.step, fresh.epoch, fresh.incarnation) == (other, 0, 1, 7)
    assert (fresh.owner, table.num_idle, session.model.arena.num_held) == (None, 1, 0)


def test_session_is_not_given_up_where_the_other_model_has_no_row():
    table, session = new_session(TableModel())
    full = TableModel(num_rows=1)
    table.create("t", full, epoch=1, incarnation=8, now_s=NOW_S)
    with pytest.raises(errors.SessionsExhausted):
        table.exchange(session, full, NOW_S)
    assert table.get("s") is session
    assert not session.is_ended


def test_models_with_sessions_are_told_with_their_rows():
    table, session = new_session(TableModel())
    ((model, index),) = table.by_model()
    assert (model, index.num_rows, index.num_sessions) == (session.model, session.row + 1, 1)
    table.remove(session)
    assert table.by_model() == []


def test_session_that_has_ended_is_not_behind():
    table, session = new_session(TableModel())
    session.model.columns.durability[session.row] = Durability.SYNC
    session.durable_step = 1
    assert (session.durability, session.durable_step, session.is_writing) == (Durability.SYNC, 1, False)
    session.model.columns.is_writing[session.row] = True
    assert session.is_writing
    table.remove(session)
    assert (session.durability, session.is_writing) == (Durability.NONE, False)


class TableMachine(RuleBasedStateMachine):
    """Sessions opened, stepped, withdrawn, spilled, restored in any order, beside a dictionary of steps."""

    @initialize(piece_steps=st.integers(1, 3))
    def start(self, piece_steps: int) -> None:
        self.model = TableModel(num_rows=4, max_piece_steps=piece_steps)
        self.table: SessionTable[TableModel] = SessionTable()
        self.steps: dict[str, int] = {}
        self.stored: dict[str, SessionRecord] = {}
        self.jobs: dict[str, Job] = {}
        self.owners: dict[str, RecordingOwner] = {}
        self.now_s = 0.0

    @rule(names=st.sets(st.sampled_from("abcdef"), min_size=1))
    def create_many(self, names: set[str]) -> None:
        self.now_s += 1
        new = sorted(name for name in names if name not in self.steps)
        if not new:
            return
        num_free = self.model.num_rows - self.model.arena.num_held
        try:
            numbers = list(range(1, len(new) + 1))
            self.table.create_many(new, self.model, numbers, numbers, self.now_s)
        except errors.SessionsExhausted:
            assert len(new) > num_free
        else:
            self.steps |= dict.fromkeys(new, 0)

    @rule(data=st.data())
    def attach_and_detach_many(self, data: st.DataObject) -> None:
        self.now_s += 1
        live = list(self.table)
        taken = data.draw(st.lists(st.sampled_from(live), unique_by=id)) if live else []
        owner = RecordingOwner()
        self.table.attach_many(taken, owner, self.now_s)
        self.owners |= {session.id: owner for session in taken}
        self.table.detach_many(data.draw(st.lists(st.sampled_from(live))) if live else [], owner, self.now_s)

    @rule()
    def remove_all_that_are_settled(self) -> None:
        settled = [session for session in self.table if not session.is_busy]
        self.stored |= {session.id: session.record() for session in settled}
        self.table.remove_many(settled)
        assert all(session.is_ended for session in settled)

    def _draw(self, data: st.DataObject, *, settled: bool) -> Session[TableModel] | None:
        live = [session for session in self.table if not (settled and session.is_busy)]
        return data.draw(st.sampled_from(live)) if live else None

    @rule(name=st.sampled_from("abcdef"))
    def open(self, name: str) -> None:
        self.now_s += 1
        if self.table.get(name) is not None:
            return
        try:
            if name in self.stored:
                record = self.stored[name]
                self.table.restore(record, self.model, epoch=1, now_s=self.now_s)
                del self.stored[name]
            else:
                self.table.create(name, self.model, epoch=1, incarnation=1, now_s=self.now_s)
                self.steps[name] = 0
        except errors.SessionsExhausted:
            assert self.model.arena.num_held == self.model.num_rows
            assert self.table.get(name) is None

    @rule(data=st.data())
    def attach_or_detach(self, data: st.DataObject) -> None:
        self.now_s += 1
        session = self._draw(data, settled=False)
        if session is not None and session.owner is None:
            self.owners[session.id] = RecordingOwner()
            self.table.attach(session, self.owners[session.id], self.now_s)
        elif session is not None:
            self.table.detach(session, self.owners[session.id], self.now_s)

    @rule(data=st.data(), count=st.integers(1, 4))
    def begin(self, data: st.DataObject, count: int) -> None:
        session = self._draw(data, settled=True)
        if session is None:
            return
        self.now_s += 1
        self.table.touch(session, self.now_s)
        try:
            job = session.begin(rows_of(*range(count)), session.step, Answers.LAST, self.now_s)
        except errors.SessionsExhausted:
            assert count > self.model.max_piece_steps
            return
        assert isinstance(job, Job)
        self.jobs[session.id] = job

    @rule(data=st.data(), ending=st.sampled_from(["applied", "failed", "withdrawn"]))
    def end(self, data: st.DataObject, ending: str) -> None:
        if not self.jobs:
            return
        name = data.draw(st.sampled_from(list(self.jobs)))
        job = self.jobs.pop(name)
        if ending == "applied":
            finish(job, self.model)
            self.steps[name] += job.num_steps
        else:
            job.failure = errors.NonFiniteResult("x") if ending == "failed" else None
            session = self.table.get(name)
            assert session is not None
            session.abandon(job)

    @rule(data=st.data(), is_kept=st.booleans())
    def remove(self, data: st.DataObject, *, is_kept: bool) -> None:
        session = self._draw(data, settled=True)
        if session is None:
            return
        if is_kept:
            self.stored[session.id] = session.record()
        else:
            del self.steps[session.id]
        self.table.remove(session)

    @invariant()
    def rows_are_those_of_live_sessions_and_long_messages(self) -> None:
        self.model.arena.check_integrity()
        num_scratch = sum(job.scratch is not None for job in self.jobs.values())
        assert self.model.arena.num_held == len(self.table) + num_scratch

    @invariant()
    def idle_sessions_are_those_without_a_stream(self) -> None:
        idle = [session for session in self.table if session.owner is None]
        assert self.table.num_idle == len(idle)
        free = [session for session in idle if not session.is_busy]
        found = self.table.idle_since(float("inf"), 10)
        assert sorted(session.id for session in found) == sorted(session.id for session in free)
        used = [session.last_used_s for session in found]
        assert used == sorted(used)
        assert self.table.longest_idle(3) == found[:3]
        for session in self.table:
            assert session.model.columns.is_idle[session.row] == (session.owner is None)

    @invariant()
    def steps_are_those_applied(self) -> None:
        live = {session.id: session.step for session in self.table}
        stored = {name: record.step for name, record in self.stored.items()}
        assert live | stored == self.steps


TableMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTableInAnyOrder = TableMachine.TestCase
