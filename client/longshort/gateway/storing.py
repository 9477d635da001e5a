"""What a server must still store: the values kept for it, and when it is asked to store so that fewer need to be.

It owns when that is asked. It does not know the stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from longshort.gateway.kept import KeptValues

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longshort.backoff import Backoff
    from longshort.gateway.frame import Frame
    from longshort.gateway.placing import Placed
    from longshort.gateway.table import SessionTable

MAX_ASKED: Final = 4_096  # sessions a frame; some 40 ms of SQLite


class Storing:
    """The values of one frame stream that are kept, at most about `max_kept_steps` steps."""

    def __init__(self, table: SessionTable, backoff: Backoff, max_kept_steps: int) -> None:
        self.kept = KeptValues(max_kept_steps)
        self._table = table
        self._backoff = backoff
        self._asks_at_s = 0.0

    @property
    def is_full(self) -> bool:
        """Whether no new values may be sent until more is stored."""
        if self.kept.is_full:
            self.kept.compact(self._table.durable_step)
        return self.kept.is_full

    def taken(self, frame: Frame, placed: Placed) -> None:
        """Take that values were taken, before the sessions' positions move: keep them where they may be lost."""
        table = self._table
        if table.keeps_any:
            slots = frame.slots[placed.taken]
            steps = frame.steps[placed.taken]
            is_new = table.keeps[slots] & (steps == table.position[slots])  # not one that was sent again
            is_new &= placed.durable_steps < steps + frame.counts[placed.taken].astype(np.uint64)
            rows = np.zeros(len(frame.slots), np.bool_)
            rows[placed.taken[is_new]] = True
            if rows.any():
                values = frame.values(rows, table.shape.num_features)
                self.kept.append(frame.slots[rows], frame.steps[rows], frame.counts[rows], values)

    def heard(self) -> None:
        """Take that the table's durable steps have moved."""
        if self._table.keeps_any:
            before = self.kept.num_steps
            self.kept.trim(self._table.durable_step)
            if self.kept.num_steps < before:
                self._backoff.reset()
                self._asks_at_s = 0.0

    def wanted(self, now_s: float) -> tuple[NDArray[np.intp], float]:
        """Return the sessions to be stored so that less is kept, if it is time to ask, and when it will be next.

        A refusal, of a flush or of the opening that it needs, must not make a loop: they are asked for with pauses
        that grow until something is stored.
        """
        if now_s < self._asks_at_s:
            return np.empty(0, np.intp), self._asks_at_s
        self.postpone(None, now_s)
        return self.kept.oldest_slots(MAX_ASKED)[:MAX_ASKED], self._asks_at_s

    def postpone(self, at_least_s: float | None, now_s: float) -> None:
        """Ask later, if the server said so after that time."""
        self._asks_at_s = now_s + self._backoff.next_delay_s(at_least_s)
