"""The preallocated state rows of one model: allocate, gather, scatter, free.

Owns the memory and who holds which row. Does not know sessions, models or time. A row is handed out as a Slot
with a generation: a slot that was freed is dead for ever, so a late writer cannot reach the row's next holder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    States = list[NDArray[np.float32]]


class ArenaFull(Exception):
    """Every row is taken."""


class DeadSlot(Exception):
    """A slot that was freed was used again: a bug of the caller, not of a client."""


@dataclass(frozen=True, slots=True)
class Slot:
    """The right to one row, until it is freed."""

    row: int
    generation: int


@dataclass(frozen=True, slots=True)
class StateLayout:
    """One state's shape, with -1 at its batch axis, and the value each element starts with."""

    shape: tuple[int, ...]
    batch_axis: int
    initial: float

    def with_batch(self, num_rows: int) -> tuple[int, ...]:
        """Return the shape for `num_rows` sessions."""
        return (*self.shape[: self.batch_axis], num_rows, *self.shape[self.batch_axis + 1 :])


class Arena:
    """Rows of state for up to `num_rows` holders; one array a state, in the model's own layout.

    The arrays are allocated at once and zeroed by the operating system when first touched, so that unused rows
    cost address space only.
    """

    def __init__(self, layouts: Sequence[StateLayout], num_rows: int) -> None:
        self._layouts = tuple(layouts)
        self._arrays = [np.zeros(layout.with_batch(num_rows), np.float32) for layout in layouts]
        self._generations = np.zeros(num_rows, np.int64)  # odd: held, even: free
        self._free_rows: list[int] = []
        self._num_touched = 0  # rows from here on were never handed out
        self.num_rows = num_rows
        self.num_held = 0
        self.row_bytes = sum(int(np.prod(layout.with_batch(1))) * 4 for layout in layouts)

    def allocate(self) -> Slot:
        """Hand out a row that holds the initial state. Raises ArenaFull."""
        if self._free_rows:
            row = self._free_rows.pop()
        elif self._num_touched < self.num_rows:
            row = self._num_touched
            self._num_touched += 1
        else:
            raise ArenaFull(f"all {self.num_rows} rows are taken")
        self._generations[row] += 1
        self.num_held += 1
        for layout, array in zip(self._layouts, self._arrays, strict=True):
            array[self._index(layout, row)] = layout.initial
        return Slot(row, int(self._generations[row]))

    def free(self, slot: Slot) -> None:
        """Take a row back. Raises DeadSlot where it was freed before; nothing changes then."""
        self._check(slot)
        self._generations[slot.row] += 1
        self.num_held -= 1
        self._free_rows.append(slot.row)

    def holds(self, slot: Slot) -> bool:
        """Whether the slot still has its row."""
        return bool(self._generations[slot.row] == slot.generation)

    def read(self, slot: Slot) -> States:
        """Return copies of one row's states, without the batch axis. Raises DeadSlot."""
        self._check(slot)
        return [row.copy() for row in self._views(slot)]

    def write(self, slot: Slot, states: States) -> None:
        """Put states, as `read` returns them, into a row. Raises DeadSlot, or ValueError for other shapes."""
        self._check(slot)
        rows = self._views(slot)
        if [row.shape for row in rows] != [state.shape for state in states]:
            raise ValueError("the states do not have the shapes of this arena's rows")
        for row, state in zip(rows, states, strict=True):
            row[...] = state

    def gather(self, slots: Sequence[Slot]) -> States:
        """Return copies of many rows as the model takes them, `[..., batch, ...]`. Raises DeadSlot."""
        rows = self._rows(slots)
        return [
            array.take(rows, axis=layout.batch_axis)
            for layout, array in zip(self._layouts, self._arrays, strict=True)
        ]

    def scatter(self, slots: Sequence[Slot], states: States, positions: Sequence[int] | None = None) -> None:
        """Copy the states of a batch into rows: position `positions[k]` of the batch into `slots[k]`.

        Without positions the batch fits the slots one to one. Raises DeadSlot before anything is written.
        """
        rows = self._rows(slots)
        for layout, array, state in zip(self._layouts, self._arrays, states, strict=True):
            part = state if positions is None else state.take(positions, axis=layout.batch_axis)
            array[self._index(layout, rows)] = part

    def finite_rows(self, states: States) -> NDArray[np.bool_]:
        """Return for each row of a batch whether all of its states are finite."""
        masks = [
            np.isfinite(np.moveaxis(state, layout.batch_axis, 0)).reshape(state.shape[layout.batch_axis], -1)
            for layout, state in zip(self._layouts, states, strict=True)
        ]
        result: NDArray[np.bool_] = np.logical_and.reduce(np.hstack(masks), axis=1)
        return result

    def check_integrity(self) -> None:
        """Raise AssertionError where the books do not balance. Changes nothing; for tests and idle times."""
        free = set(self._free_rows)
        held = {int(row) for row in np.flatnonzero(self._generations % 2)}
        if len(free) != len(self._free_rows) or free & held or len(held) != self.num_held:
            raise AssertionError("a row is free twice, or free and held")
        if free | held != set(range(self._num_touched)):
            raise AssertionError("a row is lost")

    def _rows(self, slots: Sequence[Slot]) -> NDArray[np.intp]:
        rows = np.fromiter((slot.row for slot in slots), np.intp, len(slots))
        generations = np.fromiter((slot.generation for slot in slots), np.int64, len(slots))
        if not (self._generations[rows] == generations).all():
            raise DeadSlot("a slot of the batch was freed while the batch ran")
        return rows

    def _views(self, slot: Slot) -> States:
        """Return one row of every state; the ellipsis makes an array also of a row that is a single number."""
        return [
            array[(*self._index(layout, slot.row), ...)]
            for layout, array in zip(self._layouts, self._arrays, strict=True)
        ]

    def _check(self, slot: Slot) -> None:
        if self._generations[slot.row] != slot.generation:
            raise DeadSlot(f"row {slot.row} was freed")

    @staticmethod
    def _index(
        layout: StateLayout, rows: int | NDArray[np.intp]
    ) -> tuple[slice | int | NDArray[np.intp], ...]:
        return (*(slice(None),) * layout.batch_axis, rows)
