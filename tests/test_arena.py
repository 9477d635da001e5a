"""State rows: a property against a dictionary, and that a freed slot is dead for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from longshort_service.arena import Arena, ArenaFull, DeadSlot, Slot, StateLayout

if TYPE_CHECKING:
    from numpy.typing import NDArray

# As an LSTM has it (batch in the middle), as a cache has it (batch first), and a scalar; not all start at 0.
LAYOUTS = (
    StateLayout((2, -1, 3), 1, 0.0),
    StateLayout((-1, 2, 2), 0, 1.5),
    StateLayout((-1,), 0, -1.0),
)
ROW_SHAPES = ((2, 3), (2, 2), ())


def initial_row() -> list[NDArray[np.float32]]:
    return [
        np.full(shape, layout.initial, np.float32) for shape, layout in zip(ROW_SHAPES, LAYOUTS, strict=True)
    ]


def row_of(number: float) -> list[NDArray[np.float32]]:
    """Return a row whose every element is different, and different from other numbers' rows."""
    return [
        np.float32(number) + np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 64
        for shape in ROW_SHAPES
    ]


def batch_of(rows: list[list[NDArray[np.float32]]]) -> list[NDArray[np.float32]]:
    return [np.stack([row[k] for row in rows], axis=layout.batch_axis) for k, layout in enumerate(LAYOUTS)]


def assert_same(have: list[NDArray[np.float32]], want: list[NDArray[np.float32]]) -> None:
    assert [array.shape for array in have] == [array.shape for array in want]
    assert all(np.array_equal(one, other) for one, other in zip(have, want, strict=True))


class ArenaMachine(RuleBasedStateMachine):
    """An arena beside a dictionary of slots; slots that were freed are kept to be tried again."""

    @initialize(num_rows=st.integers(1, 8))
    def start(self, num_rows: int) -> None:
        self.arena = Arena(LAYOUTS, num_rows)
        self.held: dict[Slot, list[NDArray[np.float32]]] = {}
        self.dead: list[Slot] = []
        self.number = 0.0

    def _next_row(self) -> list[NDArray[np.float32]]:
        self.number += 1
        return row_of(self.number)

    @rule()
    def allocate(self) -> None:
        if len(self.held) == self.arena.num_rows:
            with pytest.raises(ArenaFull):
                self.arena.allocate()
            return
        slot = self.arena.allocate()
        assert slot not in self.held
        assert slot not in self.dead
        self.held[slot] = initial_row()

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        if self.held:
            slot = data.draw(st.sampled_from(list(self.held)))
            self.arena.free(slot)
            del self.held[slot]
            self.dead.append(slot)

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        if self.held:
            slot = data.draw(st.sampled_from(list(self.held)))
            row = self._next_row()
            self.arena.write(slot, row)
            self.held[slot] = row

    @rule(data=st.data(), whole=st.booleans())
    def scatter(self, data: st.DataObject, *, whole: bool) -> None:
        if not self.held:
            return
        slots = data.draw(st.lists(st.sampled_from(list(self.held)), min_size=1, unique=True))
        rows = [self._next_row() for _ in slots]
        if whole:
            self.arena.scatter(slots, batch_of(rows))
        else:  # the batch has a row more, and the slots want their rows in another order
            batch = [self._next_row(), *rows[::-1]]
            self.arena.scatter(slots, batch_of(batch), list(range(len(rows), 0, -1)))
        self.held.update(zip(slots, rows, strict=True))

    @rule(data=st.data())
    def gather(self, data: st.DataObject) -> None:
        if self.held:
            slots = data.draw(st.lists(st.sampled_from(list(self.held)), min_size=1, unique=True))
            states = self.arena.gather(slots)
            assert_same(states, batch_of([self.held[slot] for slot in slots]))
            for state in states:  # copies: what happens to a batch does not reach the rows
                state.fill(np.nan)

    @rule(data=st.data())
    def use_a_dead_slot(self, data: st.DataObject) -> None:
        if not self.dead:
            return
        slot = data.draw(st.sampled_from(self.dead))
        mates = [*self.held, slot]
        for attempt in (
            lambda: self.arena.free(slot),
            lambda: self.arena.read(slot),
            lambda: self.arena.write(slot, row_of(-1)),
            lambda: self.arena.gather(mates),
            lambda: self.arena.scatter(mates, batch_of([row_of(-1) for _ in mates])),
        ):
            with pytest.raises(DeadSlot):
                attempt()

    @invariant()
    def books_balance(self) -> None:
        self.arena.check_integrity()
        assert self.arena.num_held == len(self.held)

    @invariant()
    def rows_hold_what_was_put_there(self) -> None:
        for slot, row in self.held.items():
            assert self.arena.holds(slot)
            assert_same(self.arena.read(slot), row)
        assert not any(self.arena.holds(slot) for slot in self.dead)


ArenaMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestArenaAgainstADictionary = ArenaMachine.TestCase


def test_row_bytes_counts_every_state():
    assert Arena(LAYOUTS, 3).row_bytes == 4 * (6 + 4 + 1)


def test_layout_puts_the_batch_at_its_axis():
    assert [layout.with_batch(5) for layout in LAYOUTS] == [(2, 5, 3), (5, 2, 2), (5,)]


def test_slot_of_a_reused_row_does_not_reach_its_next_holder():
    arena = Arena(LAYOUTS, 1)
    first = arena.allocate()
    arena.write(first, row_of(1))
    arena.free(first)
    second = arena.allocate()
    assert second.row == first.row
    assert_same(arena.read(second), initial_row())
    with pytest.raises(DeadSlot):
        arena.scatter([first], batch_of([row_of(1)]))
    assert_same(arena.read(second), initial_row())


def test_scatter_to_a_dead_slot_writes_nothing_at_all():
    arena = Arena(LAYOUTS, 2)
    alive, dead = arena.allocate(), arena.allocate()
    arena.free(dead)
    with pytest.raises(DeadSlot):
        arena.scatter([alive, dead], batch_of([row_of(1), row_of(2)]))
    assert_same(arena.read(alive), initial_row())


@pytest.mark.parametrize(
    "states",
    [
        [],
        row_of(1)[:2],
        [np.zeros((3, 2), np.float32), *row_of(1)[1:]],
        [*row_of(1)[:2], np.zeros(1, np.float32)],
    ],
)
def test_states_of_another_shape_are_refused_and_change_nothing(states: list[NDArray[np.float32]]):
    arena = Arena(LAYOUTS, 1)
    slot = arena.allocate()
    with pytest.raises(ValueError, match="shapes"):
        arena.write(slot, states)
    assert_same(arena.read(slot), initial_row())


def test_finite_rows_tells_rows_apart():
    batch = batch_of([row_of(1), row_of(2), row_of(3), row_of(4)])
    batch[0][1, 1, 2] = np.nan
    batch[1][2, 0, 1] = np.inf
    batch[2][3] = -np.inf
    assert Arena(LAYOUTS, 1).finite_rows(batch).tolist() == [True, False, False, False]


def test_integrity_check_notices_a_row_that_is_free_twice():
    arena = Arena(LAYOUTS, 2)
    slot = arena.allocate()
    arena.free(slot)
    arena._free_rows.append(slot.row)
    with pytest.raises(AssertionError, match="free twice"):
        arena.check_integrity()


def test_integrity_check_notices_a_lost_row():
    arena = Arena(LAYOUTS, 2)
    arena.free(arena.allocate())
    arena._free_rows.clear()
    with pytest.raises(AssertionError, match="lost"):
        arena.check_integrity()
