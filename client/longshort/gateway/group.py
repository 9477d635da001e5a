"""Ids that are asked together, looked up once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from longshort import errors
from longshort.gateway.shares import Share, lane_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from longshort.gateway.table import SessionTable


class Group:
    """Ids in the order of the rows of an array call, each once. Made by `Gateway.group`, for repeated use."""

    def __init__(self, ids: Iterable[str], numbers: Sequence[int] | None = None) -> None:
        """`numbers` are those of the ids where they are part of a longer list: what errors name."""
        if isinstance(ids, str):
            raise errors.InvalidRequest(f"ids is a sequence of ids, not {ids!r}", reason="INVALID_OPTION")
        self.ids = tuple(ids)
        self._numbers = numbers
        self._shares: tuple[int, tuple[Share, ...]] = (0, ())  # of how many lanes, and what each has
        # Of which table and when, and the slots; each is set at once, as gateways of several threads may share a group.
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
                numbers = self._numbers or range(len(self.ids))
                found = [_slot_at(table, *pair) for pair in zip(numbers, self.ids, strict=True)]
            slots = np.array(found, np.intp)
            self._found = (table.generation, slots)
        return slots

    def shares(self, num_lanes: int) -> tuple[Share, ...]:
        """Return what belongs to each of so many lanes, where there is any; of an empty group a share without rows."""
        if num_lanes == 1 or not self.ids:
            return (
                Share(0, slice(None), self),
            )  # not kept: a group that holds itself has to wait for a collection
        known_lanes, shares = self._shares
        if known_lanes != num_lanes:
            shares = tuple(self._split(num_lanes))
            self._shares = (num_lanes, shares)
        return shares

    def _split(self, num_lanes: int) -> Iterator[Share]:
        rows: dict[int, list[int]] = {}
        for row, session_id in enumerate(self.ids):
            rows.setdefault(lane_of(session_id, num_lanes), []).append(row)
        for lane, own in sorted(rows.items()):
            yield Share(lane, np.array(own, np.intp), Group([self.ids[row] for row in own], own))


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
