"""A durable store made of two dictionaries: the contract in its shortest form, to hold the others against."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from longshort_service import errors
from longshort_service.stores.backend import Accepted
from longshort_service.stores.base import Found, OpenMode, Refusal, StoreOpening
from longshort_service.stores.reading import born_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from longshort_service.record import SessionRecord
    from longshort_service.stores.base import StoreRequest


@dataclass
class Entry:
    """What is kept of one session."""

    epoch: int
    client_id: str
    record: SessionRecord
    owner: FakeBackend  # whose opening drew the epoch
    owned_since: int  # the first epoch of the owner's run of openings


@dataclass
class Kept:
    """What several servers share, whose calls do not overlap."""

    greatest: int = 0
    entries: dict[str, Entry] = field(default_factory=dict)
    tombstones: dict[str, float] = field(default_factory=dict)


@dataclass(eq=False)
class FakeBackend:
    """One server's way to what is kept."""

    kept: Kept
    num_threads: int = 1

    def open_many(
        self, requests: Sequence[StoreRequest], now_s: float
    ) -> list[StoreOpening | errors.ServiceError]:
        return [self._open(request, now_s) for request in requests]

    def _open(self, request: StoreRequest, now_s: float) -> StoreOpening:
        name, mode = request.session_id, request.mode
        entry = self.kept.entries.get(name)
        if entry is not None:
            if mode is OpenMode.CREATE:
                return StoreOpening(Found.EXISTS, client_id="" if entry.record.step else entry.client_id)
            epoch, since = self._draw(now_s), self._owned_since(entry)
            unmarked = dataclasses.replace(entry.record, is_gapless=False)
            self.kept.entries[name] = Entry(epoch, request.client_id, unmarked, self, since or epoch)
            return StoreOpening(
                Found.OPENED, entry.epoch, epoch, entry.record, is_settled=True, owned_since=since
            )
        if name in self.kept.tombstones and mode is not OpenMode.CREATE:
            return StoreOpening(Found.EXPIRED)
        if mode is OpenMode.OPEN or request.birth is None:
            return StoreOpening(Found.ABSENT)
        self.kept.tombstones.pop(name, None)
        epoch = self._draw(now_s)
        born = dataclasses.replace(born_of(name, request.birth, now_s), epoch=epoch, is_gapless=False)
        self.kept.entries[name] = Entry(epoch, request.client_id, born, self, epoch)
        return StoreOpening(Found.CREATED, 0, epoch)

    def _owned_since(self, entry: Entry) -> int:
        return entry.owned_since if entry.owner is self else 0

    def _draw(self, now_s: float) -> int:
        self.kept.greatest = max(self.kept.greatest + 1, int(now_s * 1e6))
        return self.kept.greatest

    def write(self, records: Sequence[SessionRecord]) -> Accepted:
        return Accepted([self._write(record) for record in records])

    def _write(self, record: SessionRecord) -> Refusal | None:
        entry = self.kept.entries.get(record.session_id)
        if entry is None:
            return Refusal(is_gone=True)
        if entry.epoch != record.epoch:
            since = self._owned_since(entry)
            return Refusal(is_gone=False, client_id=entry.client_id, epoch=entry.epoch, owned_since=since)
        entry.record = record
        return None

    def settle(self) -> str:
        return ""

    def read(self, session_id: str) -> SessionRecord | None:
        if session_id in self.kept.tombstones:
            raise errors.SessionExpired(f"session {session_id} has expired")
        entry = self.kept.entries.get(session_id)
        return None if entry is None else entry.record

    def delete_many(self, entries: Sequence[tuple[str, int | None]]) -> list[bool]:
        return [self._delete(name, epoch) for name, epoch in entries]

    def _delete(self, name: str, epoch: int | None) -> bool:
        entry = self.kept.entries.get(name)
        if entry is None or epoch not in (None, entry.epoch):
            return False
        del self.kept.entries[name]
        return True

    def bury_many(self, entries: Sequence[tuple[str, int]], before_s: float, now_s: float) -> list[bool]:
        return [self._bury(name, epoch, before_s, now_s) for name, epoch in entries]

    def _bury(self, name: str, epoch: int, before_s: float, now_s: float) -> bool:
        entry = self.kept.entries.get(name)
        if entry is None or entry.epoch != epoch or entry.record.last_used_s >= before_s:
            return False
        del self.kept.entries[name]
        self.kept.tombstones[name] = now_s
        return True

    def list_ids(self, prefix: str, after: str, limit: int) -> list[str]:
        return sorted(name for name in self.kept.entries if name.startswith(prefix) and name > after)[:limit]

    def idle_since(self, before_s: float, limit: int) -> list[tuple[str, int]]:
        idle = [
            (name, entry) for name, entry in self.kept.entries.items() if entry.record.last_used_s < before_s
        ]
        return [(name, entry.epoch) for name, entry in idle[:limit]]

    def forget_tombstones(self, before_s: float) -> int:
        old = [name for name, made_s in self.kept.tombstones.items() if made_s < before_s]
        for name in old:
            del self.kept.tombstones[name]
        return len(old)

    def has_records_of(self, model: str, version: int) -> bool:
        return any(
            (each.record.model, each.record.version) == (model, version)
            for each in self.kept.entries.values()
        )

    def num_records(self) -> int:
        return len(self.kept.entries)

    def ping(self) -> None:
        pass

    def close(self) -> None:
        pass
