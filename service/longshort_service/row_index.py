"""The live sessions of one model by their row: the way back from the columns to the sessions.

Answers from the columns which sessions are idle and which were unused longest, looking at all rows at once. Knows no
ids and no other model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic

import numpy as np

from longshort_service.served_model import ModelT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from longshort_service.columns import SessionColumns
    from longshort_service.session import Session

# Rows whose last use is looked at to guess how old the longest idle are. Sorting a million rows would hold the loop
# for 20 ms (np.argpartition); guessing an age and taking what is older takes 0.5 ms.
SAMPLE_ROWS: Final = 4096


class RowIndex(Generic[ModelT]):
    """Sessions by row. A session is idle where its row's `is_idle` says so; who is idle is the table's affair."""

    def __init__(self, columns: SessionColumns) -> None:
        self._columns = columns
        self._sessions: list[Session[ModelT] | None] = []  # grows to the highest row that was ever used
        self.num_sessions = 0

    def add(self, sessions: Sequence[Session[ModelT]]) -> None:
        """Take in new sessions of the model."""
        known = self._sessions
        for session in sessions:
            row = session.row
            if row >= len(known):
                known.extend([None] * (row + 1 - len(known)))
            known[row] = session
        self.num_sessions += len(sessions)

    def remove(self, sessions: Sequence[Session[ModelT]]) -> None:
        """Forget sessions that end."""
        for session in sessions:
            self._sessions[session.row] = None
        self.num_sessions -= len(sessions)

    @property
    def num_rows(self) -> int:
        """The number of rows up to the highest that was ever used: as much of the columns is worth looking at."""
        return len(self._sessions)

    def at(self, rows: NDArray[np.intp]) -> list[Session[ModelT]]:
        """Return the sessions in those of the rows that have one."""
        found = [self._sessions[row] for row in rows.tolist()]
        return [session for session in found if session is not None]

    def idle_since(self, before_s: float, limit: int) -> list[Session[ModelT]]:
        """Return up to `limit` idle sessions last used before `before_s`, whichever come first by row."""
        used_s = self._columns.used_s[: len(self._sessions)]
        rows = np.flatnonzero(self._may_leave() & (used_s < before_s))[:limit]
        return self.at(rows[np.argsort(used_s[rows], kind="stable")])

    def longest_idle(self, count: int) -> list[Session[ModelT]]:
        """Return the `count` sessions that were unused longest, or all that are idle where they are fewer."""
        used_s = self._columns.used_s[: len(self._sessions)]
        may_leave = self._may_leave()
        before_s = self._guess_age(used_s, may_leave, count)
        older = np.flatnonzero(may_leave & (used_s < before_s))
        while len(older) < count and before_s < np.inf:
            # Many may have been used at the very same time: as many of them as are needed.
            ties = np.flatnonzero(may_leave & (used_s == before_s))
            if len(older) + len(ties) >= count:
                older = np.concatenate([older, ties[: count - len(older)]])
                break
            before_s = np.inf
            older = np.flatnonzero(may_leave)
        return self.at(older[np.argsort(used_s[older], kind="stable")[:count]])

    def _guess_age(self, used_s: NDArray[np.float64], may_leave: NDArray[np.bool_], count: int) -> float:
        """Return a time before or at which about `count` sessions or more were used last, by a sample of the rows."""
        stride = max(len(used_s) // SAMPLE_ROWS, 1)
        sample = used_s[::stride][may_leave[::stride]]
        place = 2 * count // stride + 1  # twice as far as needed, as a sample may mislead
        return float(np.partition(sample, place)[place]) if place < len(sample) else np.inf

    def _may_leave(self) -> NDArray[np.bool_]:
        num_rows = len(self._sessions)
        is_quiet: NDArray[np.bool_] = self._columns.is_idle[:num_rows] & ~self._columns.is_busy[:num_rows]
        return is_quiet
