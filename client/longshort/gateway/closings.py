"""Giving sessions back: after all that was asked of them, or at once where there is nothing.

It owns what is forgotten of a session. It does not know frames' answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from longshort import errors
from longshort.gateway.rows import CloseRow
from longshort.gateway.table import ENDED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from longshort.gateway.doubts import Waiter
    from longshort.gateway.kept import KeptValues
    from longshort.gateway.openings import Openings
    from longshort.gateway.table import SessionTable
    from longshort.gateway.turns import Turns


class Closings:
    """The closings of one frame stream."""

    def __init__(self, table: SessionTable, turns: Turns, openings: Openings, kept: KeptValues) -> None:
        self._table = table
        self._turns = turns
        self._openings = openings
        self._kept = kept

    def ask(self, closings: Iterable[tuple[str, Waiter]]) -> None:
        """Give handles back after all that was asked of them, in bulk. Each waiter is told of its session."""
        idle = []
        for session_id, waiter in closings:
            slot = self._table.slots.get(session_id)
            if slot is not None and self._table.flag_bytes[slot] not in (0, ENDED):
                self._close_later(CloseRow(slot, waiter))
                continue
            if slot is not None:
                idle.append(slot)
            waiter.set_result(None)
        self._release(idle)

    def _close_later(self, row: CloseRow) -> None:
        try:
            self._turns.enqueue(row)
        except errors.LongshortError as error:
            row.waiter.set_exception(error)

    def done(self, rows: list[CloseRow]) -> None:
        """Take that handles are closed."""
        self._release([row.slot for row in rows])
        for row in rows:
            if not row.waiter.done():
                row.waiter.set_result(None)

    def _release(self, slots: list[int]) -> None:
        """Forget sessions that were closed."""
        if not slots:
            return
        self._kept.forget(np.array(slots))
        for slot in slots:
            waiting = errors.SessionClosed("the session was closed before", reason="CLOSED")
            self._turns.fail_behind(slot, waiting)
            self._openings.forget(slot)
            self._turns.doubts.pop(
                slot, None
            )  # of a row whose call was given up while the session was closed
            self._table.release(slot)
