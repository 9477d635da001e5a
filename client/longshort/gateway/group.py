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
        # Of which table and when, and the slots; set at once, as gateways of several threads may share a group.
        self._found: tuple[object, NDArray[np.intp]] = (None, np.empty(0, np.intp))
        if not self.ids or len(set(self.ids)) < len(self.ids):
            raise errors.InvalidRequest(
                "ids is at least one id, and each only once: a session takes one row a call",
                reason="INVALID_OPTION",
            )

    def __len__(self) -> int:
        return len(self.ids)

    def slots(self, table: SessionTable) -> NDArray[np.intp]:
        """Return the slots, looked up again in another table, and where a session was closed since."""
        generation, slots = self._found
        if generation is not table.generation:
            found = [table.slots.get(session_id, -1) for session_id in self.ids]
            if min(found) < 0:
                found = [table.slot_of(session_id) for session_id in self.ids]
            slots = np.array(found, np.intp)
            self._found = (table.generation, slots)
        return slots
