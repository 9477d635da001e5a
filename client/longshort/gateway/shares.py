"""Which lane a session belongs to, and how the rows of one call are shared out over lanes and put together again.

It owns the way from ids to lanes. It does not know what lanes are made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from longshort import errors
from longshort.gateway.calls import rows_failed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from longshort.errors import LongshortError
    from longshort.gateway.group import Group


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """What one lane has of a call: `rows` are its rows in the caller's order, `group` their ids."""

    lane: int
    rows: slice | NDArray[np.intp]  # a slice: all of them
    group: Group

    def row(self, index: int) -> int:
        """Return which of the caller's rows its row at an index is."""
        return index if isinstance(self.rows, slice) else int(self.rows[index])


def lane_of(session_id: str, num_lanes: int) -> int:
    """Return a session's lane: the same in every process. What is no text gets a lane too, which refuses it."""
    # BLAKE2b for the reasons of `placement`.
    text = str(session_id).encode(errors="replace")
    return int.from_bytes(blake2b(text, digest_size=8).digest()) % num_lanes


def merged(
    ids: Sequence[str], shares: Sequence[Share], outcomes: Sequence[NDArray[np.float32] | errors.RowsFailed]
) -> NDArray[np.float32]:
    """Return the answers of all shares in the caller's order, or raise RowsFailed with the caller's rows."""
    answers: NDArray[np.float32] | None = None
    failures: dict[int, LongshortError] = {}
    for share, outcome in zip(shares, outcomes, strict=True):
        part = outcome.answers if isinstance(outcome, errors.RowsFailed) else outcome
        if isinstance(outcome, errors.RowsFailed):
            failures |= {share.row(index): error for index, error in outcome.errors.items()}
        if part is not None:
            if answers is None:
                answers = np.full((len(ids), *part.shape[1:]), np.nan, np.float32)
            answers[share.rows] = part
    if failures or answers is None:
        raise rows_failed(ids, failures, answers)
    return answers
