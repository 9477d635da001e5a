"""What goes into frames: rows one by one, and whole parts of array calls.

It owns how long values are cut into messages. It does not know sessions' states, or frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from longshort.gateway.calls import StepCall

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from longshort.gateway.calls import ArrayCall, Sink
    from longshort.gateway.doubts import Waiter


@dataclass(slots=True, eq=False)
class Row:
    """Values of one session that wait for their turn, or for their answer, apart from others.

    `count` is the length of its message that was sent and not answered, which is sent again unchanged; 0 where
    there is none. `first_step` is the number of that message, or before it the one that the caller gave.
    """

    slot: int
    sink: Sink | None  # None: answered before, sent again for a server that has forgotten
    index: int
    values: NDArray[np.float32]  # [time, features] f32
    start: int = 0  # the steps of it that were answered
    count: int = 0
    first_step: int | None = None
    is_taken: bool = False  # the server has said that it took the message

    @property
    def is_begun(self) -> bool:
        """Whether any of it was sent."""
        return self.count > 0 or self.start > 0

    @property
    def is_idle(self) -> bool:
        """Whether nobody awaits it."""
        return self.sink is not None and self.sink.is_gone(self.index)

    def next_count(self, max_steps: int) -> int:
        """Return the number of steps of its next message."""
        return self.count or min(len(self.values) - self.start, max_steps)

    def answered(self, count: int) -> int:
        """Take that its message was answered; return how many steps are left."""
        self.start += count
        self.count = 0
        self.first_step = None
        self.is_taken = False
        return len(self.values) - self.start


@dataclass(slots=True, eq=False)
class ForecastRow:
    """A wish to look ahead from one session; it may be asked any number of times."""

    slot: int
    sink: Sink
    index: int
    horizon: int
    known: list[float] = field(default_factory=list)  # flat, [rows, known features]

    @property
    def is_idle(self) -> bool:
        """Whether nobody awaits it."""
        return self.sink.is_gone(self.index)


@dataclass(slots=True, eq=False)
class FlushRow:
    """A wish to have one session stored, with all that was answered before; it may be asked any number of times."""

    slot: int
    sink: Sink | None  # None: the gateway's own, to keep less
    index: int

    @property
    def is_idle(self) -> bool:
        """Whether nobody awaits it."""
        return self.sink is not None and self.sink.is_gone(self.index)


@dataclass(slots=True, eq=False)
class OpenRow:
    """A wish to know that one session is open; nothing is sent for it but the opening, if that is needed."""

    slot: int
    sink: Sink
    index: int

    @property
    def is_idle(self) -> bool:
        """Whether nobody awaits it."""
        return self.sink.is_gone(self.index)


@dataclass(slots=True, eq=False)
class CloseRow:
    """A wish to give one session's handle back, after all that was asked before."""

    slot: int
    waiter: Waiter

    @property
    def is_idle(self) -> bool:
        """Whether nobody awaits it."""
        return self.waiter.done()


@dataclass(slots=True, eq=False)
class Part:
    """Rows of an array call whose sessions are all free: they go together, as columns.

    `start` is the number of steps that were answered, `count` the length of the piece that was sent.
    """

    call: ArrayCall
    values: NDArray[np.float32]  # [n of the call, time, features] f32
    rows: NDArray[np.intp]  # [rows] into the call's
    slots: NDArray[np.intp]  # [rows]
    start: int = 0
    count: int = 0

    @property
    def num_left(self) -> int:
        """The steps of each row that were not answered."""
        return len(self.values[0]) - self.start

    def cut(self, max_frame_steps: int, max_row_steps: int) -> Part | None:
        """Set the length of the next piece. Return the rows that have to go in another frame, if there are any."""
        rest = None
        if len(self.rows) > max_frame_steps:
            rows, slots = self.rows, self.slots
            rest = Part(self.call, self.values, rows[max_frame_steps:], slots[max_frame_steps:], self.start)
            self.rows, self.slots = rows[:max_frame_steps], slots[:max_frame_steps]
        self.count = min(self.num_left, max_row_steps, max(max_frame_steps // len(self.rows), 1))
        return rest

    def piece(self) -> NDArray[np.float32]:
        """Return the values of the piece, [rows, count, features] f32."""
        end = self.start + self.count
        if len(self.rows) == len(self.values):
            return self.values[:, self.start : end]  # all rows are in order: no copy
        return self.values[self.rows, self.start : end]

    def row_at(self, place: int, first_step: int | None) -> Row:
        """Return one of its rows by itself; with `first_step` as one whose piece was sent."""
        index = int(self.rows[place])
        count = 0 if first_step is None else self.count
        return Row(
            int(self.slots[place]), self.call, index, self.values[index], self.start, count, first_step
        )


Item = StepCall | Row | ForecastRow | FlushRow | CloseRow | Part


def is_withdrawn(item: Item | OpenRow) -> bool:
    """Return whether nobody awaits it and nothing of it was sent."""
    if isinstance(item, StepCall):
        return item.done() and not item.is_sent
    if isinstance(item, Part):
        return item.call.is_abandoned and item.start == 0
    if isinstance(item, Row):
        return item.is_idle and not item.is_begun
    return item.is_idle


def call_of(item: Item | OpenRow) -> Sink | None:
    """Return the call that it is of, if any."""
    if isinstance(item, StepCall):
        return item
    if isinstance(item, Part):
        return item.call
    return None if isinstance(item, CloseRow) else item.sink
