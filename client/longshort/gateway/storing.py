"""What a server must still store: the values kept for it, and those who wait until it has stored them.

Frames have no message that asks for it, so a session's last message is sent again: its stored answer says how far
the session is stored, and nothing moves. It owns when that is asked. It does not know the stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from longshort.gateway.frame import Frame
from longshort.gateway.kept import KeptValues
from longshort.gateway.rows import Row
from longshort.gateway.table import ENDED, OPEN

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longshort.backoff import Backoff
    from longshort.errors import LongshortError
    from longshort.gateway.doubts import Waiter
    from longshort.gateway.placing import Placed
    from longshort.gateway.table import SessionTable

MAX_ASKED = 4_096  # sessions a frame


class Storing:
    """The values of one frame stream that are kept, and the flushes that wait."""

    def __init__(self, table: SessionTable, backoff: Backoff, max_kept_steps: int) -> None:
        self.kept = KeptValues(max_kept_steps)
        self._table = table
        self._backoff = backoff
        self._flushes: list[tuple[Waiter, NDArray[np.intp], NDArray[np.uint64]]] = []
        self._asks_at_s = 0.0

    @property
    def is_full(self) -> bool:
        """Whether no new values may be sent until more is stored."""
        if self.kept.is_full:
            self.kept.compact(self._table.durable_step)
        return self.kept.is_full

    def flush(self, waiter: Waiter, slots: NDArray[np.intp]) -> None:
        """Tell a waiter when all that was answered of these sessions is stored."""
        self._flushes.append((waiter, slots, self._table.position[slots]))
        self._tell()

    def taken(self, frame: Frame, placed: Placed) -> None:
        """Take that values were taken, before the sessions' positions move: keep them where they may be lost."""
        table = self._table
        if table.keeps_any:
            slots = frame.slots[placed.taken]
            steps = frame.steps[placed.taken]
            is_new = table.keeps[slots] & (steps == table.position[slots])  # not one that was sent again
            rows = np.zeros(len(frame.slots), np.bool_)
            rows[placed.taken[is_new]] = True
            if rows.any():
                values = frame.values(rows, table.num_features)
                self.kept.append(frame.slots[rows], frame.steps[rows], frame.counts[rows], values)

    def heard(self) -> None:
        """Take that the table's durable steps have moved."""
        if self._table.keeps_any:
            before = self.kept.num_steps
            self.kept.trim(self._table.durable_step)
            if self.kept.num_steps < before:
                self._backoff.reset()
        self._tell()

    def next_frame(self, now_s: float, *, is_held: bool) -> tuple[Frame | None, float | None]:
        """Return what asks how far sessions are stored, if it is time to ask; else when it will be, if ever.

        `is_held` is whether new values wait because too much is kept.
        """
        slots = self._awaited(is_held=is_held, are_open=True)
        if not len(slots):
            return None, None
        if now_s < self._asks_at_s:
            return None, self._asks_at_s
        frame = Frame()
        for slot in slots[:MAX_ASKED].tolist():
            message = self.kept.last(slot)
            if message is not None:
                row = Row(slot, None, 0, message.rows, 0, len(message.rows), message.first_step)
                frame.rows.append(row)
        self._asks_at_s = now_s + self._backoff.next_delay_s(None)
        return (frame if frame.rows else None), self._asks_at_s

    def unopened(self, *, is_held: bool) -> NDArray[np.intp]:
        """Return the sessions whose storing is awaited and who are not open: opening them says it too."""
        return self._awaited(is_held=is_held, are_open=False)

    def _awaited(self, *, is_held: bool, are_open: bool) -> NDArray[np.intp]:
        """Return the sessions whose storing somebody waits for, those of flushes and those that fill the memory."""
        table = self._table
        found = [slots[self._is_missing(slots, targets)] for _, slots, targets in self._flushes]
        if is_held:
            slots = self.kept.oldest_slots()
            found.append(slots[table.durable_step[slots] < table.position[slots]])
        if not found:
            return np.empty(0, np.intp)
        slots = np.unique(np.concatenate(found))
        awaited: NDArray[np.intp] = slots[(table.flags[slots] & OPEN != 0) == are_open]
        return awaited

    def _is_missing(self, slots: NDArray[np.intp], targets: NDArray[np.uint64]) -> NDArray[np.bool_]:
        table = self._table
        has_ended = table.flags[slots] & ENDED != 0
        missing: NDArray[np.bool_] = table.keeps[slots] & ~has_ended & (table.durable_step[slots] < targets)
        return missing

    def _tell(self) -> None:
        left = []
        for flush in self._flushes:
            waiter, slots, targets = flush
            if waiter.done():
                continue
            if self._is_missing(slots, targets).any():
                left.append(flush)
            else:
                waiter.set_result(None)
        self._flushes = left

    def fail(self, error: LongshortError) -> None:
        """Fail the flushes that wait."""
        flushes, self._flushes = self._flushes, []
        for waiter, _, _ in flushes:
            if not waiter.done():
                waiter.set_exception(error)
