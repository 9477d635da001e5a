"""What every store promises.

A store keeps for each session an entry: its epoch, and a record once one was written. What has expired leaves a
tombstone. Times are arguments, in seconds since 1970. What a call does to one session is atomic, also against other
servers. Calls take many sessions at once, each at most once in a call, so that a store over a network is asked once.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from longshort_service import errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from longshort_service.record import SessionRecord


class OpenMode(enum.Enum):
    """What an opening may find."""

    OPEN_OR_CREATE = enum.auto()
    OPEN = enum.auto()
    CREATE = enum.auto()


class Found(enum.Enum):
    """What an opening found."""

    OPENED = enum.auto()  # the entry was there; its epoch was raised
    CREATED = enum.auto()  # there was none; one was made
    ABSENT = enum.auto()  # there is none and the mode does not create; nothing has changed
    EXPIRED = enum.auto()  # there is a tombstone and the mode is not CREATE; nothing has changed
    EXISTS = enum.auto()  # there is one and the mode is CREATE; nothing has changed


@dataclass(frozen=True, slots=True)
class StoreOpening:
    """What an opening found. `record` is what was stored before the raise, None where nothing was written yet."""

    found: Found
    previous_epoch: int = 0
    epoch: int = 0
    record: SessionRecord | None = None


class Store(Protocol):
    """The contract of a store. Epochs come from one counter and are never used again."""

    is_durable: bool  # whether what is written survives the loss of this server

    async def open_many(
        self, requests: Sequence[tuple[str, OpenMode]]
    ) -> list[StoreOpening | errors.SessionsExhausted]:
        """Raise each session's epoch and return the previous one with the record as of then, or make the entry.

        SessionsExhausted is returned for those whose entry would be one too many.
        """

    async def write(self, records: Sequence[SessionRecord]) -> list[bool]:
        """Store each record whose entry has the record's very epoch; say for each whether it was stored."""

    async def read(self, session_id: str) -> SessionRecord | None:
        """Return the stored record; None where there is none. Raises no epoch. SessionExpired at a tombstone."""

    async def delete_many(self, session_ids: Sequence[str]) -> list[bool]:
        """Remove entries without a tombstone; say for each whether there was one."""

    async def bury_many(self, entries: Sequence[tuple[str, int]], now_s: float) -> list[bool]:
        """Replace each entry that has the given epoch by a tombstone; say for each whether that was done."""

    async def list_ids(self, prefix: str, after: str, limit: int) -> list[str]:
        """Return up to `limit` session ids that begin with `prefix` and come after `after`, in order."""

    async def idle_since(self, before_s: float, limit: int) -> list[SessionRecord]:
        """Return up to `limit` records last used before `before_s`, in no particular order."""

    async def forget_tombstones(self, before_s: float) -> int:
        """Drop the tombstones made before `before_s`; return how many."""

    async def has_records_of(self, model: str, version: int) -> bool:
        """Whether a record of this model version is stored."""

    def num_records(self) -> int:
        """Return how many records are stored, as far as is known without waiting."""

    async def close(self) -> None:
        """Release what the store holds."""


async def open_one(store: Store, session_id: str, mode: OpenMode) -> StoreOpening:
    """Open one session in a store. Raises SessionsExhausted."""
    (opening,) = await store.open_many([(session_id, mode)])
    if isinstance(opening, errors.ServiceError):
        raise opening
    return opening
