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
        try:
            is_each_once = len(set(self.ids)) == len(self.ids)
        except TypeError:  # one of them cannot be hashed
            is_each_once = False
        if not is_each_once:
            _refuse(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def slots(self, table: SessionTable) -> NDArray[np.intp]:
        """Return the slots, looked up again in another table, and where a session was closed since."""
        generation, slots = self._found
        if generation is not table.generation:
            found = [table.slots.get(session_id, -1) for session_id in self.ids]
            if -1 in found:
                found = [_slot_at(table, index, session_id) for index, session_id in enumerate(self.ids)]
            slots = np.array(found, np.intp)
            self._found = (table.generation, slots)
        return slots


def _slot_at(table: SessionTable, index: int, session_id: str) -> int:
    try:
        return table.slot_of(session_id)
    except errors.InvalidRequest as error:
        raise errors.InvalidRequest(f"ids[{index}]: {error.message}", reason=error.reason) from None


def _refuse(ids: tuple[str, ...]) -> None:
    """Raise InvalidRequest that names the first id that is none, or was there before."""
    seen = dict[str, int]()
    for index, session_id in enumerate(ids):
        if not isinstance(session_id, str):
            wrong = f"ids[{index}] is text, not {session_id!r}"
            raise errors.InvalidRequest(wrong, reason="INVALID_OPTION")
        if seen.setdefault(session_id, index) < index:
            wrong = f"ids[{index}] is {session_id}, and so is ids[{seen[session_id]}]: a session takes one row a call"
            raise errors.InvalidRequest(wrong, reason="INVALID_OPTION")
