"""The states of all rows in host memory: one array a state, in the model's own layout.

Owns the memory. Does not know who holds a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from longshort_service.signature import with_batch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from longshort_service.arena import States
    from longshort_service.signature import Signature


@dataclass(frozen=True, slots=True)
class StateLayout:
    """One state's shape, with -1 at its batch axis, and what a row starts with: a number, or an array of its own."""

    shape: tuple[int, ...]
    batch_axis: int
    initial: float | NDArray[Any] = 0.0
    dtype: str = "float32"

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one session's part."""
        return self.shape[: self.batch_axis] + self.shape[self.batch_axis + 1 :]

    def initial_row(self) -> NDArray[Any]:
        """Return one session's part as it starts."""
        return np.array(np.broadcast_to(np.asarray(self.initial, self.dtype), self.row_shape))

    def with_batch(self, num_rows: int) -> tuple[int, ...]:
        """Return the shape for `num_rows` sessions."""
        return with_batch(self.shape, self.batch_axis, num_rows)


def layouts_of(signature: Signature, initials: Mapping[str, NDArray[Any]] | None = None) -> list[StateLayout]:
    """Return the layouts of a model's states; `initials` holds by input what they start with that is no number."""
    return [
        StateLayout(
            state.shape, state.batch_axis, (initials or {}).get(state.input, state.initial), state.dtype
        )
        for state in signature.states
    ]


class HostStates:
    """Rows of state as arrays, allocated at once.

    The operating system makes a page real when it is first touched, so that unused rows cost address space only and
    the first row of a million costs no more than any other.
    """

    def __init__(self, layouts: Sequence[StateLayout], num_rows: int) -> None:
        self._states = [_State(layout, num_rows) for layout in layouts]
        self.row_bytes = sum(layout.initial_row().nbytes for layout in layouts)

    def initial_row(self) -> States:
        """Return what a row starts with, without the batch axis."""
        return [state.layout.initial_row() for state in self._states]

    def initialise(self, rows: int | NDArray[np.intp]) -> None:
        """Put the initial state into rows."""
        for state in self._states:
            state.initialise(rows)

    def read(self, row: int) -> States:
        """Return copies of one row's states, without the batch axis."""
        return [state.row(row).copy() for state in self._states]

    def read_many(self, rows: NDArray[np.intp]) -> States:
        """Return copies of many rows' states, `[..., rows, ...]`."""
        return self.gather(rows)

    def write(self, row: int, states: States) -> None:
        """Put states, as `read` returns them, into a row. Raises ValueError for other shapes or dtypes."""
        rows = [state.row(row) for state in self._states]
        if [(row.shape, row.dtype) for row in rows] != [(state.shape, state.dtype) for state in states]:
            raise ValueError("the states do not have the shapes and dtypes of this arena's rows")
        for target, state in zip(rows, states, strict=True):
            target[...] = state

    def views(self, row: int) -> States:
        """Return one row's states as a batch of one, `[..., 1, ...]`, in place: they are this memory."""
        return [state.view(row) for state in self._states]

    def gather(self, rows: slice | NDArray[np.intp]) -> States:
        """Return many rows as the model takes them, `[..., batch, ...]`: copies, of a slice the memory itself."""
        return [state.gather(rows) for state in self._states]

    def scatter(self, rows: slice | NDArray[np.intp], states: States) -> None:
        """Copy the states of a batch, `[..., batch, ...]`, into as many rows."""
        for state, batch in zip(self._states, states, strict=True):
            state.scatter(rows, batch)

    def select(self, states: States, positions: NDArray[np.intp]) -> States:
        """Return some rows of a batch."""
        return [
            batch.take(positions, axis=state.layout.batch_axis)
            for state, batch in zip(self._states, states, strict=True)
        ]

    def finite_rows(self, states: States, places: Sequence[int]) -> NDArray[np.bool_]:
        """Return for each row of a batch whether all of its states at `places` are finite."""
        masks = [
            np.isfinite(np.moveaxis(states[place], self._states[place].layout.batch_axis, 0))
            .reshape(states[place].shape[self._states[place].layout.batch_axis], -1)
            .all(axis=1)
            for place in places
        ]
        result: NDArray[np.bool_] = np.logical_and.reduce(masks)
        return result


class _State:
    """One state of all rows.

    A row's elements behind the batch axis lie together, and are moved as one item each: NumPy copies items of
    256 bytes twice as fast as 64 numbers picked by the same indices.
    """

    __slots__ = ("_array", "_before", "_initial", "_items", "_lead", "_width", "layout")

    def __init__(self, layout: StateLayout, num_rows: int) -> None:
        self.layout = layout
        self._array = np.zeros(layout.with_batch(num_rows), layout.dtype)
        self._initial = np.expand_dims(layout.initial_row(), layout.batch_axis)
        self._before = (slice(None),) * layout.batch_axis
        self._lead = int(np.prod(layout.shape[: layout.batch_axis], dtype=np.int64))
        self._width = int(np.prod(layout.shape[layout.batch_axis + 1 :], dtype=np.int64))
        self._items = self._as_items(self._array, num_rows)  # [lead, rows] of one item a row

    def _as_items(self, array: NDArray[Any], num_rows: int) -> NDArray[np.void]:
        flat = np.ascontiguousarray(array).reshape(self._lead, num_rows, self._width)
        return flat.view(np.dtype((np.void, flat.itemsize * self._width)))[:, :, 0]

    def initialise(self, rows: int | NDArray[np.intp]) -> None:
        index = slice(rows, rows + 1) if isinstance(rows, int) else rows
        self._array[(*self._before, index)] = self._initial

    def row(self, row: int) -> NDArray[Any]:
        """Return a view of one row; the ellipsis makes an array also of a row that is a single number."""
        index: tuple[Any, ...] = (*self._before, row, ...)
        view: NDArray[Any] = self._array[index]
        return view

    def view(self, row: int) -> NDArray[Any]:
        """Return a view of one row that keeps the batch axis."""
        view: NDArray[Any] = self._array[(*self._before, slice(row, row + 1))]
        return view

    def gather(self, rows: slice | NDArray[np.intp]) -> NDArray[Any]:
        if isinstance(rows, slice):
            view: NDArray[Any] = self._array[(*self._before, rows)]
            return view
        batch = np.empty((self._lead, len(rows), self._width), self._array.dtype)
        items = batch.view(self._items.dtype)[:, :, 0]
        for source, target in zip(self._items, items, strict=True):
            np.take(source, rows, out=target, mode="clip")
        return batch.reshape(self.layout.with_batch(len(rows)))

    def scatter(self, rows: slice | NDArray[np.intp], batch: NDArray[Any]) -> None:
        if isinstance(rows, slice):
            self._array[(*self._before, rows)] = batch
            return
        for target, source in zip(self._items, self._as_items(batch, len(rows)), strict=True):
            target[rows] = source
