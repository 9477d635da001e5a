"""The store that is no store: everything stays in this process and goes with it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter
from typing import TYPE_CHECKING

from longshort_service import errors
from longshort_service.sharded_dict import ShardedDict
from longshort_service.stores.base import Found, OpenMode, Refusal, StoreOpening

if TYPE_CHECKING:
    from collections.abc import Sequence

    from longshort_service.record import SessionRecord
    from longshort_service.stores.base import StoreRequest


class MemoryStore:
    """Keeps epochs in one dictionary and records in another: of a live session there is an epoch and nothing else.

    At most `max_entries` sessions, in rows or here, and as many tombstones, the oldest of which make room.
    """

    is_durable = False
    away_since_s: float | None = None

    def __init__(self, max_entries: int = 1_000_000) -> None:
        self._max_entries = max_entries
        self._num_records_of: Counter[tuple[str, int]] = Counter()
        self._entries: ShardedDict[int] = ShardedDict()  # the epoch of each session
        self._num_entries = 0
        # Of those that were written, in each shard the oldest write first.
        self._records: ShardedDict[SessionRecord] = ShardedDict()
        self._tombstones: dict[str, float] = {}  # when each was made, the oldest first
        self._epochs = itertools.count(1)

    async def open_many(
        self,
        requests: Sequence[StoreRequest],
        now_s: float,  # noqa: ARG002  its epochs are counted: they end with it
    ) -> list[StoreOpening | errors.ServiceError]:
        """See Store.open_many. A record is handed over: nothing durable is lost with it, no state is held twice.

        So the record of a birth stays with who gave it. No reply is lost, and there is no other process.
        """
        return [self._open(request) for request in requests]

    def _open(self, request: StoreRequest) -> StoreOpening | errors.SessionsExhausted:
        session_id, mode = request.session_id, request.mode
        entries = self._entries.of(session_id)
        previous_epoch = entries.get(session_id)
        if previous_epoch is not None:
            if mode is OpenMode.CREATE:
                return StoreOpening(Found.EXISTS)
            epoch = entries[session_id] = next(self._epochs)
            return StoreOpening(Found.OPENED, previous_epoch, epoch, self._take_record(session_id))
        if session_id in self._tombstones and mode is not OpenMode.CREATE:
            return StoreOpening(Found.EXPIRED)
        if mode is OpenMode.OPEN or request.birth is None:
            return StoreOpening(Found.ABSENT)
        if self._num_entries >= self._max_entries:
            return errors.SessionsExhausted(
                f"{self._num_entries} sessions are kept, the most that this server keeps: "
                "delete some, or raise max_stored_sessions",
                max_stored_sessions=self._max_entries,
            )
        self._tombstones.pop(session_id, None)
        self._num_entries += 1
        epoch = entries[session_id] = next(self._epochs)
        return StoreOpening(Found.CREATED, 0, epoch)

    async def write(
        self,
        records: Sequence[SessionRecord],
        *,
        settled: bool = True,  # noqa: ARG002  it is there or it is gone
    ) -> list[Refusal | None]:
        """See Store.write."""
        return [self._write(record) for record in records]

    def _write(self, record: SessionRecord) -> Refusal | None:
        epoch = self._entries.of(record.session_id).get(record.session_id)
        if epoch != record.epoch:
            return Refusal(is_gone=epoch is None)
        self._take_record(record.session_id)  # its place in the order of writes is given up
        self._records.of(record.session_id)[record.session_id] = record
        self._num_records_of[record.model, record.version] += 1
        return None

    def _take_record(self, session_id: str) -> SessionRecord | None:
        record = self._records.of(session_id).pop(session_id, None)
        if record is not None:
            self._num_records_of[record.model, record.version] -= 1
        return record

    async def read(self, session_id: str) -> SessionRecord | None:
        """See Store.read."""
        if session_id in self._tombstones:
            raise errors.SessionExpired(f"session {session_id} was ended because nobody used it")
        return self._records.of(session_id).get(session_id)

    async def delete_many(self, entries: Sequence[tuple[str, int | None]]) -> list[bool]:
        """See Store.delete_many."""
        return [
            epoch in (None, self._entries.of(session_id).get(session_id)) and self._delete(session_id)
            for session_id, epoch in entries
        ]

    def _delete(self, session_id: str) -> bool:
        self._take_record(session_id)
        was_there = self._entries.of(session_id).pop(session_id, None) is not None
        self._num_entries -= was_there
        return was_there

    async def bury_many(
        self, entries: Sequence[tuple[str, int]], before_s: float, now_s: float
    ) -> list[bool]:
        """See Store.bury_many."""
        buried = [
            self._is_old(session_id, epoch, before_s) and self._delete(session_id)
            for session_id, epoch in entries
        ]
        ids = [session_id for session_id, _ in entries]
        self._tombstones.update(dict.fromkeys(itertools.compress(ids, buried), now_s))
        num_over = len(self._tombstones) - self._max_entries
        for session_id in list(itertools.islice(self._tombstones, max(num_over, 0))):
            del self._tombstones[session_id]
        return buried

    def _is_old(self, session_id: str, epoch: int, before_s: float) -> bool:
        """Whether an entry has an epoch and was unused since; one without a record is of a live session."""
        record = self._records.of(session_id).get(session_id)
        is_same = self._entries.of(session_id).get(session_id) == epoch
        return is_same and record is not None and record.last_used_s < before_s

    async def list_ids(self, prefix: str, after: str, limit: int) -> list[str]:
        """See Store.list_ids. The loop goes on between shards: all of it takes long with a million sessions."""
        wanted: list[str] = []
        for shard in self._entries.shards:
            fitting = (name for name in shard if name > after and name.startswith(prefix))
            wanted = heapq.nsmallest(limit, itertools.chain(wanted, fitting))
            await asyncio.sleep(0)
        return wanted

    async def idle_since(self, before_s: float, limit: int) -> list[tuple[str, int]]:
        """See Store.idle_since."""
        idle = itertools.chain.from_iterable(
            itertools.takewhile(lambda record: record.last_used_s < before_s, shard.values())
            for shard in self._records.shards
        )
        return [(record.session_id, record.epoch) for record in itertools.islice(idle, limit)]

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
        return len(self._records)

    async def ping(self) -> None:
        """See Store.ping."""

    async def close(self) -> None:
        """See Store.close."""
