"""A durable store in memory whose delays, failures and refusals are the test's to choose; and another server at it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from longshort_service import errors
from longshort_service.record import birth
from longshort_service.stores.base import Found, OpenMode, Refusal, StoreOpening, StoreRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from longshort_service.record import SessionRecord


@dataclass
class Entry:
    """What is kept of one session."""

    epoch: int
    client_id: str
    record: SessionRecord
    owned_since: int  # of this process's run of openings; 0: another did last


@dataclass
class FlakyStore:
    """A Store by its contract: from its first failure on everything fails at once, until a ping goes well.

    A call takes effect in the middle of `delay_s`.
    """

    monotonic: Callable[[], float] = time.monotonic
    is_durable: bool = True
    away_since_s: float | None = None
    delay_s: float = 0.0
    is_down: bool = False
    is_full: bool = False  # its queue of calls: refuses, and is not away
    is_shared: bool = False  # by several servers of a test: no opening is known as one's own
    loses_replies: bool = False  # what it is asked for is done, and nobody hears of it
    fault: Exception | None = None  # what a write raises, by a bug
    written: list[dict[str, int]] = field(default_factory=list)  # each write: the steps it was given, by id
    stored: list[SessionRecord] = field(default_factory=list)  # all that was ever accepted by a write
    calls: Counter[str] = field(default_factory=Counter)
    entries: dict[str, Entry] = field(default_factory=dict)
    tombstones: dict[str, float] = field(default_factory=dict)
    overlaps: set[tuple[str, int]] = field(default_factory=set)  # what two writes of were under way at once
    _greatest: int = 0
    _held: dict[str, asyncio.Event] = field(default_factory=dict)
    _in_hand: set[tuple[str, int]] = field(default_factory=set)

    # -- what a test does to it -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def held(self, operation: str) -> Iterator[None]:
        """Keep the calls of one kind from taking effect within the block."""
        self._held[operation] = asyncio.Event()
        try:
            yield
        finally:
            self._held.pop(operation).set()

    async def open_elsewhere(self, session_id: str, client_id: str = "thief") -> StoreOpening:
        """Open a session as another server does, whatever this one is told of the store."""
        opening = self._open(StoreRequest(session_id, OpenMode.OPEN, client_id), 0.0)
        assert isinstance(opening, StoreOpening)
        if session_id in self.entries:
            self.entries[session_id].owned_since = 0
        return opening

    def step_of(self, session_id: str) -> int | None:
        """Return the stored step of a session; None where there is none."""
        entry = self.entries.get(session_id)
        return None if entry is None else entry.record.step

    def is_clean(self, session_id: str) -> bool:
        """Return the stored mark of a session."""
        return self.entries[session_id].record.is_gapless

    @asynccontextmanager
    async def _call(self, operation: str) -> AsyncIterator[None]:
        self.calls[operation] += 1
        if self.is_full or (self.away_since_s is not None and operation != "ping"):
            raise errors.StoreUnavailable("the store takes nothing now")
        await self._pause()
        while operation in self._held:
            await self._held[operation].wait()
        self._fail_if(self.is_down)
        yield
        await self._pause()
        self._fail_if(self.is_down or self.loses_replies)
        self.away_since_s = None

    async def _pause(self) -> None:
        await asyncio.sleep(self.delay_s / 2)

    def _fail_if(self, fails: bool) -> None:  # noqa: FBT001  reads as a sentence
        if fails:
            self.away_since_s = self.away_since_s or self.monotonic()
            raise errors.StoreUnavailable("the store does not answer")

    # -- Store ----------------------------------------------------------------------------------------------------

    async def open_many(
        self, requests: Sequence[StoreRequest], now_s: float
    ) -> list[StoreOpening | errors.ServiceError]:
        async with self._call("open"):
            return [self._open(request, now_s) for request in requests]

    def _open(self, request: StoreRequest, now_s: float) -> StoreOpening:
        session_id, entry = request.session_id, self.entries.get(request.session_id)
        epoch = max(self._greatest + 1, int(now_s * 1e6))
        if entry is not None:
            if request.mode is OpenMode.CREATE:
                return StoreOpening(Found.EXISTS, client_id="" if entry.record.step else entry.client_id)
            self._greatest = epoch
            # What another opening took is not clean any more: the mark was for who came first.
            unmarked = dataclasses.replace(entry.record, is_gapless=False, epoch=epoch)
            since = 0 if self.is_shared else entry.owned_since
            self.entries[session_id] = Entry(epoch, request.client_id, unmarked, since or epoch)
            return StoreOpening(
                Found.OPENED, entry.epoch, epoch, entry.record, is_settled=True, owned_since=since
            )
        if session_id in self.tombstones and request.mode is not OpenMode.CREATE:
            return StoreOpening(Found.EXPIRED)
        if request.mode is OpenMode.OPEN or request.birth is None:
            return StoreOpening(Found.ABSENT)
        self._greatest = epoch
        self.tombstones.pop(session_id, None)
        record = request.birth.record or birth(
            session_id, request.birth.origin, request.birth.incarnation, epoch, now_s
        )
        record = dataclasses.replace(record, session_id=session_id, epoch=epoch, is_gapless=False)
        self.entries[session_id] = Entry(epoch, request.client_id, record, epoch)
        return StoreOpening(Found.CREATED, 0, epoch)

    async def write(
        self,
        records: Sequence[SessionRecord],
        *,
        settled: bool = True,  # noqa: ARG002  what it holds is durable at once
    ) -> list[Refusal | None]:
        # By epoch too: two servers that believe in a session may both write it, and one of them is refused.
        ids = {(record.session_id, record.epoch) for record in records}
        assert len(ids) == len(records)
        self.overlaps |= self._in_hand & ids
        self._in_hand |= ids
        try:
            async with self._call("write"):
                if self.fault is not None:
                    raise self.fault
                self.written.append({record.session_id: record.step for record in records})
                return [self._write(record) for record in records]
        finally:
            self._in_hand -= ids

    def _write(self, record: SessionRecord) -> Refusal | None:
        entry = self.entries.get(record.session_id)
        if entry is None or entry.epoch != record.epoch:
            if entry is None:
                return Refusal(is_gone=True)
            since = 0 if self.is_shared else entry.owned_since
            return Refusal(is_gone=False, client_id=entry.client_id, epoch=entry.epoch, owned_since=since)
        entry.record = record
        self.stored.append(record)
        return None

    async def read(self, session_id: str) -> SessionRecord | None:
        async with self._call("read"):
            if session_id in self.tombstones:
                raise errors.SessionExpired(f"session {session_id} was ended because nobody used it")
            entry = self.entries.get(session_id)
            return None if entry is None else entry.record

    async def delete_many(self, entries: Sequence[tuple[str, int | None]]) -> list[bool]:
        async with self._call("delete"):
            return [self._delete(session_id, epoch) for session_id, epoch in entries]

    def _delete(self, session_id: str, epoch: int | None) -> bool:
        entry = self.entries.get(session_id)
        if entry is None or epoch not in (None, entry.epoch):
            return False
        del self.entries[session_id]
        return True

    async def bury_many(
        self, entries: Sequence[tuple[str, int]], before_s: float, now_s: float
    ) -> list[bool]:
        async with self._call("bury"):
            old = [
                session_id in self.entries
                and self.entries[session_id].epoch == epoch
                and self.entries[session_id].record.last_used_s < before_s
                for session_id, epoch in entries
            ]
            for (session_id, _), is_old in zip(entries, old, strict=True):
                if is_old:
                    del self.entries[session_id]
                    self.tombstones[session_id] = now_s
            return old

    async def list_ids(self, prefix: str, after: str, limit: int) -> list[str]:
        async with self._call("list"):
            return sorted(name for name in self.entries if name.startswith(prefix) and name > after)[:limit]

    async def idle_since(self, before_s: float, limit: int) -> list[tuple[str, int]]:
        async with self._call("idle"):
            idle = [
                (name, entry.epoch)
                for name, entry in self.entries.items()
                if entry.record.last_used_s < before_s
            ]
            return idle[:limit]

    async def forget_tombstones(self, before_s: float) -> int:
        async with self._call("forget"):
            old = [name for name, made_s in self.tombstones.items() if made_s < before_s]
            for name in old:
                del self.tombstones[name]
            return len(old)

    async def has_records_of(self, model: str, version: int) -> bool:
        async with self._call("has"):
            return any((e.record.model, e.record.version) == (model, version) for e in self.entries.values())

    def num_records(self) -> int:
        return len(self.entries)

    async def ping(self) -> None:
        async with self._call("ping"):
            pass

    async def close(self) -> None:
        pass
