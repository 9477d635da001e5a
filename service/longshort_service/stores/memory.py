"""The store that is no store: everything stays in this process and goes with it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from longshort_service import errors
from longshort_service.stores.base import Found, OpenMode, StoreOpening

if TYPE_CHECKING:
    from collections.abc import Sequence

    from longshort_service.record import SessionRecord


@dataclass(slots=True)
class _Entry:
    epoch: int
    record: SessionRecord | None = None


class MemoryStore:
    """Keeps entries in a dictionary, in the order of their last write: the longest idle come first.

    At most `max_entries` sessions, in rows or here, and as many tombstones, the oldest of which make room.
    """

    is_durable = False

    def __init__(self, max_entries: int = 1_000_000) -> None:
        self._max_entries = max_entries
        self._num_records_of: Counter[tuple[str, int]] = Counter()
        self._entries: dict[str, _Entry] = {}
        self._written: dict[str, None] = {}  # ids that have a record, the oldest write first
        self._tombstones: dict[str, float] = {}  # when each was made, the oldest first
        self._epochs = itertools.count(1)

    async def open(self, session_id: str, mode: OpenMode) -> StoreOpening:
        """See Store.open. The record is handed over: nothing durable is lost with it, and no state is held twice."""
        entry = self._entries.get(session_id)
        if entry is not None:
            if mode is OpenMode.CREATE:
                return StoreOpening(Found.EXISTS)
            previous_epoch, entry.epoch = entry.epoch, next(self._epochs)
            record = self._take_record(session_id, entry)
            return StoreOpening(Found.OPENED, previous_epoch, entry.epoch, record)
        if session_id in self._tombstones and mode is not OpenMode.CREATE:
            return StoreOpening(Found.EXPIRED)
        if mode is OpenMode.OPEN:
            return StoreOpening(Found.ABSENT)
        if len(self._entries) >= self._max_entries:
            raise errors.SessionsExhausted(
                f"{len(self._entries)} sessions are kept, the most that this server keeps: "
                "delete some, or raise max_stored_sessions",
                max_stored_sessions=self._max_entries,
            )
        self._tombstones.pop(session_id, None)
        entry = self._entries[session_id] = _Entry(next(self._epochs))
        return StoreOpening(Found.CREATED, 0, entry.epoch)

    async def write(self, records: Sequence[SessionRecord]) -> list[bool]:
        """See Store.write."""
        return [self._write(record) for record in records]

    def _write(self, record: SessionRecord) -> bool:
        entry = self._entries.get(record.session_id)
        if entry is None or entry.epoch != record.epoch:
            return False
        self._take_record(record.session_id, entry)
        entry.record = record
        self._num_records_of[record.model, record.version] += 1
        self._written[record.session_id] = None
        return True

    def _take_record(self, session_id: str, entry: _Entry) -> SessionRecord | None:
        record, entry.record = entry.record, None
        if record is not None:
            del self._written[session_id]
            self._num_records_of[record.model, record.version] -= 1
        return record

    async def read(self, session_id: str) -> SessionRecord | None:
        """See Store.read."""
        if session_id in self._tombstones:
            raise errors.SessionExpired(f"session {session_id} was ended because nobody used it")
        entry = self._entries.get(session_id)
        return None if entry is None else entry.record

    async def delete(self, session_id: str) -> bool:
        """See Store.delete."""
        entry = self._entries.pop(session_id, None)
        if entry is None:
            return False
        self._take_record(session_id, entry)
        return True

    async def bury(self, session_id: str, epoch: int, now_s: float) -> bool:
        """See Store.bury."""
        entry = self._entries.get(session_id)
        if entry is None or entry.epoch != epoch:
            return False
        await self.delete(session_id)
        self._tombstones[session_id] = now_s
        if len(self._tombstones) > self._max_entries:
            del self._tombstones[next(iter(self._tombstones))]
        return True

    async def list_ids(self, prefix: str, after: str, limit: int) -> list[str]:
        """See Store.list_ids. Sorting goes to a thread: it takes long with a million sessions."""
        ids = list(self._entries)
        wanted = (name for name in ids if name > after and name.startswith(prefix))
        return await asyncio.to_thread(heapq.nsmallest, limit, wanted)

    async def idle_since(self, before_s: float, limit: int) -> list[SessionRecord]:
        """See Store.idle_since."""
        idle: list[SessionRecord] = []
        for session_id in itertools.islice(self._written, limit):
            record = self._entries[session_id].record
            if record is None or record.last_used_s >= before_s:
                break
            idle.append(record)
        return idle

    async def forget_tombstones(self, before_s: float) -> int:
        """See Store.forget_tombstones."""
        old = list(itertools.takewhile(lambda name: self._tombstones[name] < before_s, self._tombstones))
        for session_id in old:
            del self._tombstones[session_id]
        return len(old)

    async def has_records_of(self, model: str, version: int) -> bool:
        """See Store.has_records_of."""
        return self._num_records_of[model, version] > 0

    def num_records(self) -> int:
        """See Store.num_records."""
        return len(self._written)

    async def close(self) -> None:
        """See Store.close."""
