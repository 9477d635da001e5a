"""Ids that are asked together, looked up once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from longshort import errors

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from longshort.gateway.table import SessionTable


class Group:
    """Ids in the order of the rows of an array call, each once. Made by `Gateway.group`, for repeated use."""

    def __init__(self, ids: Iterable[str]) -> None:
        if isinstance(ids, str):
            raise errors.InvalidRequest(f"ids is a sequence of ids, not {ids!r}", reason="INVALID_OPTION")
        self.ids = tuple(ids)
        self._slots: NDArray[np.intp] = np.empty(0, np.intp)
        self._generation = -1
        if not self.ids or len(set(self.ids)) < len(self.ids):
            raise errors.InvalidRequest(
                "ids is at least one id, and each only once: a session takes one row a call",
                reason="INVALID_OPTION",
            )

    def __len__(self) -> int:
        return len(self.ids)

    def slots(self, table: SessionTable) -> NDArray[np.intp]:
        """Return the slots, looked up again where a session was closed since."""
        if self._generation != table.generation:
            found = [table.slots.get(session_id, -1) for session_id in self.ids]
            if min(found) < 0:
                found = [table.slot_of(session_id) for session_id in self.ids]
            self._slots = np.array(found, np.intp)
            self._generation = table.generation
        return self._slots
