"""How far live sessions are ahead of the store, and from which step their answers wait for it.

Owns the columns `waits_from` and `behind_since_s`. No asyncio; times are of a monotonic clock, in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from longshort_service.durability import NEVER, Durability

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longshort_service.columns import SessionColumns
    from longshort_service.outage import Outage
    from longshort_service.repository import Model
    from longshort_service.session import Session
    from longshort_service.sessions import SessionTable

# A session that is not stored within so many intervals is a laggard: its next answer waits.
LAGGARD_INTERVALS: Final = 2


@dataclass(frozen=True, slots=True)
class CheckpointLimits:
    """How far BEHIND may be behind, and how long is waited for the store."""

    interval_s: float
    steps: int
    answer_timeout_s: float  # an answer that waits longer becomes STORE_UNAVAILABLE
    outage_s: float  # without its store the server goes on for so long
    is_unary_sync: bool = True  # every step of a unary call is stored before it is answered


class Behind:
    """Which sessions of a table are behind. `outage` says how the store is."""

    def __init__(self, table: SessionTable[Model], outage: Outage, limits: CheckpointLimits) -> None:
        self._table = table
        self._outage = outage
        self._interval_s = limits.interval_s
        # By Durability: how many steps may be answered beyond the stored one.
        self._slack = np.array([NEVER, limits.steps, 0], np.int64)
        self.lag_s = 0.0  # how long the session furthest behind has been so

    @staticmethod
    def is_behind(columns: SessionColumns, end: int) -> NDArray[np.bool_]:
        """Return which of the first rows have steps that are to be stored and are not."""
        is_behind: NDArray[np.bool_] = columns.durability[:end] != Durability.NONE
        return is_behind & (columns.step[:end] > columns.durable[:end])

    @staticmethod
    def may_go(session: Session[Model], step: int, *, strictly: bool) -> bool:
        """Return whether an answer at `step` may go; `strictly`: whether that very step is stored."""
        if session.is_ended:
            return False
        columns, row = session.model.columns, session.row
        return columns.durable_of[row] >= step if strictly else step < columns.waits_from_of[row]

    def set_waits(self, model: Model, rows: NDArray[np.intp]) -> None:
        """Work out from which step the answers of rows wait, as things are with the store."""
        columns = model.columns
        durability = columns.durability[rows]
        is_none = durability == Durability.NONE
        if self._outage.is_over_limit:
            columns.waits_from[rows] = np.where(is_none, NEVER, 0)
            return
        slack = self._slack[durability]
        if self._outage.is_away:  # BEHIND goes on in memory
            slack = np.where(durability == Durability.BEHIND, NEVER, slack)
        limit = columns.durable[rows] + 1
        columns.waits_from[rows] = np.where(slack == NEVER, NEVER, limit + np.minimum(slack, NEVER - limit))

    def set_all_waits(self) -> None:
        """Do so for all sessions: the store has gone, come back, or been away too long."""
        for model, index in self._table.by_model():
            self.set_waits(model, np.arange(index.num_rows))

    def look(self, now_s: float) -> None:
        """Note since when sessions are behind; the answers of laggards wait from now on."""
        oldest_s = now_s
        for model, index in self._table.by_model():
            columns, end = model.columns, index.num_rows
            is_behind = self.is_behind(columns, end)
            since_s = columns.behind_since_s[:end]
            since_s[~is_behind] = 0
            since_s[is_behind & (since_s == 0)] = now_s
            if is_behind.any():
                oldest_s = min(oldest_s, float(since_s[is_behind].min()))
            if not self._outage.is_away:
                overdue_s = now_s - LAGGARD_INTERVALS * self._interval_s
                columns.waits_from[:end][is_behind & (since_s < overdue_s)] = 0
        self.lag_s = now_s - oldest_s

    def stored(
        self, model: Model, rows: NDArray[np.intp], steps: NDArray[np.int64], copied_s: float, now_s: float
    ) -> None:
        """Note that rows are stored up to steps, as they were at `copied_s`; `now_s` is since 1970."""
        columns = model.columns
        columns.durable[rows] = np.maximum(columns.durable[rows], steps)
        columns.behind_since_s[rows] = np.where(columns.step[rows] > columns.durable[rows], copied_s, 0)
        columns.written_s[rows] = now_s
        self.set_waits(model, rows)
