"""The state rows of one model: which are taken, by whom, and giving them out.

Owns who holds which row. Does not know sessions, models or time; the memory itself is a StateMemory's. A row is handed
out with a generation: what was freed is dead for ever, so a late writer cannot reach the row's next holder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    States = list[NDArray[Any]]  # of the dtypes that the model has


class ArenaFull(Exception):
    """Every row is taken."""


class DeadSlot(Exception):
    """A row that was freed was used again: a bug of the caller, not of a client."""


@dataclass(frozen=True, slots=True)
class Slot:
    """The right to one row, until it is freed."""

    row: int
    generation: int


@dataclass(frozen=True, slots=True)
class Slots:
    """The right to many rows."""

    rows: NDArray[np.intp]  # [slots]
    generations: NDArray[np.int64]  # [slots]
    span: slice | None = None  # the same rows, where they are known to follow one another

    @property
    def index(self) -> NDArray[np.intp] | slice:
        """What picks the rows out of a column; a slice costs a fraction of what an array of rows does."""
        return self.rows if self.span is None else self.span

    def spanned(self) -> Slots:
        """Return the same, with `span` where the rows follow one another."""
        first, count = int(self.rows[0]), len(self.rows)
        if not (self.rows == np.arange(first, first + count)).all():
            return self
        return Slots(self.rows, self.generations, slice(first, first + count))

    def __len__(self) -> int:
        """Return the number of slots."""
        return len(self.rows)

    @classmethod
    def of(cls, slot: Slot) -> Slots:
        """Return one slot as many."""
        return cls(np.array([slot.row], np.intp), np.array([slot.generation], np.int64))

    def part(self, chosen: slice | NDArray[np.bool_] | NDArray[np.intp]) -> Slots:
        """Return some of them."""
        return Slots(self.rows[chosen], self.generations[chosen])


class StateMemory(Protocol):
    """Where the states of all rows are kept."""

    row_bytes: int

    def initial_row(self) -> States:
        """Return what a row starts with, without the batch axis."""

    def initialise(self, rows: int | NDArray[np.intp]) -> None:
        """Put the initial state into rows."""

    def read(self, row: int) -> States:
        """Return copies of one row's states, without the batch axis."""

    def read_many(self, rows: NDArray[np.intp]) -> States:
        """Return copies of many rows' states, `[..., rows, ...]`."""

    def write(self, row: int, states: States) -> None:
        """Put states, as `read` returns them, into a row. Raises ValueError for other shapes or dtypes."""


class Arena:
    """The rows `0..num_rows` of a StateMemory and who holds them."""

    def __init__(self, memory: StateMemory, num_rows: int) -> None:
        self.memory = memory
        self.num_rows = num_rows
        self.num_held = 0
        self._generations = np.zeros(num_rows, np.int64)  # odd: held, even: free
        self._free_rows: list[int] = []
        self._num_touched = 0  # rows from here on were never handed out

    @property
    def row_bytes(self) -> int:
        """The bytes that one session's states take."""
        return self.memory.row_bytes

    def allocate(self) -> Slot:
        """Hand out a row that holds the initial state. Raises ArenaFull."""
        slots = self.allocate_many(1)
        self.memory.initialise(int(slots.rows[0]))
        return Slot(int(slots.rows[0]), int(slots.generations[0]))

    def allocate_many(self, count: int) -> Slots:
        """Hand out rows that hold anything. Raises ArenaFull, and then none is taken."""
        num_untouched = max(count - len(self._free_rows), 0)
        if self._num_touched + num_untouched > self.num_rows:
            raise ArenaFull(f"{self.num_held} of {self.num_rows} rows are taken, {count} are asked for")
        num_reused = count - num_untouched
        reused = self._free_rows[len(self._free_rows) - num_reused :]
        del self._free_rows[len(self._free_rows) - num_reused :]
        fresh = np.arange(self._num_touched, self._num_touched + num_untouched, dtype=np.intp)
        self._num_touched += num_untouched
        rows = np.concatenate([np.array(reused, np.intp), fresh]) if reused else fresh
        self._generations[rows] += 1
        self.num_held += count
        return Slots(rows, self._generations[rows])

    def free(self, slots: Slot | Slots) -> None:
        """Take rows back. Raises DeadSlot where one was freed before; nothing changes then."""
        if isinstance(slots, Slot):
            slots = Slots.of(slots)
        self.check(slots)
        self._generations[slots.rows] += 1
        self.num_held -= len(slots)
        self._free_rows.extend(slots.rows.tolist())

    def check(self, slots: Slots) -> None:
        """Raise DeadSlot unless all of them are held."""
        if not (self._generations[slots.index] == slots.generations).all():
            raise DeadSlot("a row was used after it was freed")

    def check_row(self, row: int, generation: int) -> None:
        """Raise DeadSlot unless a row is held by whoever was given it with that generation."""
        if self._generations[row] != generation:
            raise DeadSlot(f"row {row} was freed")

    def read(self, slot: Slot) -> States:
        """Return copies of one row's states, without the batch axis. Raises DeadSlot."""
        self.check_row(slot.row, slot.generation)
        return self.memory.read(slot.row)

    def write(self, slot: Slot, states: States) -> None:
        """Put states, as `read` returns them, into a row. Raises DeadSlot, or ValueError for other shapes."""
        self.check_row(slot.row, slot.generation)
        self.memory.write(slot.row, states)

    def check_integrity(self) -> None:
        """Raise AssertionError where the books do not balance. Changes nothing; for tests and idle times."""
        free = set(self._free_rows)
        held = {int(row) for row in np.flatnonzero(self._generations % 2)}
        if len(free) != len(self._free_rows) or free & held or len(held) != self.num_held:
            raise AssertionError("a row is free twice, or free and held")
        if free | held != set(range(self._num_touched)):
            raise AssertionError("a row is lost")
