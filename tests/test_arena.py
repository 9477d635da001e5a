"""Who holds which row: a property against a dictionary, and that a freed row is dead for ever to who held it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from longshort_service.arena import Arena, ArenaFull, DeadSlot, Slot, Slots
from longshort_service.host_states import HostStates, StateLayout

if TYPE_CHECKING:
    from collections.abc import Iterable

LAYOUTS = (StateLayout((1, -1, 2), 1, 0.5),)
INITIAL = 0.5


def new_arena(num_rows: int) -> Arena:
    return Arena(HostStates(LAYOUTS, num_rows), num_rows)


def write(arena: Arena, slot: Slot, number: float) -> None:
    arena.write(slot, [np.full((1, 2), number, np.float32)])


def read(arena: Arena, slot: Slot) -> float:
    (state,) = arena.read(slot)
    assert state.shape == (1, 2)
    assert state.min() == state.max()
    return float(state[0, 0])


def singly(slots: Slots) -> list[Slot]:
    return [Slot(*pair) for pair in zip(slots.rows.tolist(), slots.generations.tolist(), strict=True)]


def together(slots: Iterable[Slot]) -> Slots:
    rows, generations = zip(*((slot.row, slot.generation) for slot in slots), strict=True)
    return Slots(np.array(rows, np.intp), np.array(generations, np.int64))


class ArenaMachine(RuleBasedStateMachine):
    """An arena beside a dictionary of slots; slots that were freed are kept to be tried again."""

    @initialize(num_rows=st.integers(1, 8))
    def start(self, num_rows: int) -> None:
        self.arena = new_arena(num_rows)
        self.held: dict[Slot, float] = {}
        self.dead: list[Slot] = []
        self.number = 1.0

    def _take(self, slot: Slot, content: float) -> None:
        assert slot not in self.held
        assert slot not in self.dead
        assert slot.row not in {other.row for other in self.held}
        self.held[slot] = content

    @rule()
    def allocate(self) -> None:
        if len(self.held) == self.arena.num_rows:
            with pytest.raises(ArenaFull):
                self.arena.allocate()
            return
        self._take(self.arena.allocate(), INITIAL)

    @rule(count=st.integers(0, 9))
    def allocate_many(self, count: int) -> None:
        if len(self.held) + count > self.arena.num_rows:
            with pytest.raises(ArenaFull):
                self.arena.allocate_many(count)
            return
        slots = self.arena.allocate_many(count)
        assert len(slots) == count
        for slot in singly(slots):
            write(self.arena, slot, self.number)
            self._take(slot, self.number)
            self.number += 1

    @rule(data=st.data(), is_many=st.booleans())
    def free(self, data: st.DataObject, *, is_many: bool) -> None:
        if not self.held:
            return
        if is_many:
            slots = data.draw(st.lists(st.sampled_from(list(self.held)), min_size=1, unique=True))
            self.arena.free(together(slots))
        else:
            slots = [data.draw(st.sampled_from(list(self.held)))]
            self.arena.free(slots[0])
        for slot in slots:
            del self.held[slot]
        self.dead += slots

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        if self.held:
            slot = data.draw(st.sampled_from(list(self.held)))
            write(self.arena, slot, self.number)
            self.held[slot] = self.number
            self.number += 1

    @rule(data=st.data())
    def use_a_dead_slot(self, data: st.DataObject) -> None:
        if not self.dead:
            return
        slot = data.draw(st.sampled_from(self.dead))
        mates = together([*self.held, slot])
        for attempt in (
            lambda: self.arena.free(slot),
            lambda: self.arena.free(mates),
            lambda: self.arena.check(mates),
            lambda: self.arena.read(slot),
            lambda: write(self.arena, slot, -1),
        ):
            with pytest.raises(DeadSlot):
                attempt()

    @invariant()
    def books_balance(self) -> None:
        self.arena.check_integrity()
        assert self.arena.num_held == len(self.held)

    @invariant()
    def rows_hold_what_was_put_there(self) -> None:
        for slot, content in self.held.items():
            self.arena.check(Slots.of(slot))
            assert read(self.arena, slot) == content


ArenaMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestArenaAgainstADictionary = ArenaMachine.TestCase


def test_row_bytes_are_those_of_its_memory():
    assert new_arena(3).row_bytes == 4 * 2


def test_slot_of_a_reused_row_does_not_reach_its_next_holder():
    arena = new_arena(1)
    first = arena.allocate()
    write(arena, first, 1)
    arena.free(first)
    second = arena.allocate()
    assert second.row == first.row
    assert read(arena, second) == INITIAL
    with pytest.raises(DeadSlot):
        write(arena, first, 1)
    assert read(arena, second) == INITIAL


def test_many_rows_are_first_those_that_were_freed_and_then_fresh_ones():
    arena = new_arena(6)
    older = arena.allocate_many(3)
    arena.free(older.part(np.array([True, False, True])))
    slots = arena.allocate_many(4)
    assert sorted(slots.rows[:2].tolist()) == [0, 2]
    assert slots.rows[2:].tolist() == [3, 4]
    assert slots.generations.tolist() == [3, 3, 1, 1]
    assert arena.num_held == 5
    arena.check_integrity()


def test_rows_that_follow_one_another_are_a_span():
    arena = new_arena(6)
    slots = arena.allocate_many(5).part(slice(1, 5))
    spanned = slots.spanned()
    assert (slots.span, spanned.span) == (None, slice(1, 5))
    assert (spanned.index, slots.index is slots.rows) == (slice(1, 5), True)
    assert spanned.rows is slots.rows
    arena.check(spanned)
    for chosen in ([1, 0], [0, 2]):
        assert slots.part(np.array(chosen)).spanned().span is None
    arena.free(slots.part(slice(2, 3)))
    with pytest.raises(DeadSlot):
        arena.check(spanned)


def test_too_many_rows_are_refused_and_none_is_taken():
    arena = new_arena(4)
    older = arena.allocate_many(3)
    arena.free(older.part(slice(0, 1)))
    with pytest.raises(ArenaFull, match="2 of 4 rows are taken, 3 are asked for"):
        arena.allocate_many(3)
    assert arena.num_held == 2
    arena.check_integrity()
    assert sorted(arena.allocate_many(2).rows.tolist()) == [0, 3]


def test_freeing_many_of_which_one_is_dead_frees_none():
    arena = new_arena(3)
    slots = arena.allocate_many(3)
    arena.free(slots.part(np.array([1])))
    with pytest.raises(DeadSlot):
        arena.free(slots)
    assert arena.num_held == 2
    arena.check(slots.part(np.array([0, 2])))
    arena.check_integrity()


def test_states_of_another_shape_are_refused_and_change_nothing():
    arena = new_arena(1)
    slot = arena.allocate()
    with pytest.raises(ValueError, match="shapes"):
        arena.write(slot, [np.zeros((2, 1), np.float32)])
    assert read(arena, slot) == INITIAL


def test_integrity_check_notices_a_row_that_is_free_twice():
    arena = new_arena(2)
    slot = arena.allocate()
    arena.free(slot)
    arena._free_rows.append(slot.row)
    with pytest.raises(AssertionError, match="free twice"):
        arena.check_integrity()


def test_integrity_check_notices_a_lost_row():
    arena = new_arena(2)
    arena.free(arena.allocate())
    arena._free_rows.clear()
    with pytest.raises(AssertionError, match="lost"):
        arena.check_integrity()
