"""Sessions in an SQLite file: embedded, durable at commit. Plain blocking code for one thread.

Owns the statements. Several servers may share a file on one machine: a call is one transaction.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import secrets
import sqlite3
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, TypeVar

from longshort_service import errors
from longshort_service.record import encode
from longshort_service.stores import sqlite_file
from longshort_service.stores.backend import Accepted, BackendError
from longshort_service.stores.base import Found, OpenMode, Refusal, StoreOpening
from longshort_service.stores.reading import born_of, exhausted, exists, expired, read_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from longshort_service.record import SessionRecord
    from longshort_service.stores.base import StoreRequest

logger = logging.getLogger(__name__)

T = TypeVar("T")

# The model is in two indices' way: where it is as before, as nearly always, it is not written again.
_WRITE: Final = """UPDATE sessions SET record = ?, is_gapless = ?, used_s = ?
    WHERE id = ? AND epoch = ? AND model = ? AND version = ?"""
_WRITE_MODEL: Final = """UPDATE sessions SET record = ?, is_gapless = ?, used_s = ?, model = ?, version = ?
    WHERE id = ?"""
_CREATE: Final = """INSERT INTO sessions
    (id, epoch, client_id, owner, owned_since, is_gapless, model, version, used_s, record)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_FIND: Final = "SELECT epoch, is_gapless, record, client_id, owner, owned_since FROM sessions WHERE id = ?"
_READ: Final = """SELECT is_gapless, record FROM sessions WHERE id = :id
    UNION ALL SELECT NULL, NULL FROM tombstones WHERE id = :id"""
_RAISE: Final = """UPDATE sessions SET epoch = ?, client_id = ?, owner = ?, owned_since = ?, is_gapless = 0
    WHERE id = ?"""
_OWNER: Final = "SELECT epoch, client_id, owner, owned_since FROM sessions WHERE id = ?"
_IS_TOMBSTONE: Final = "SELECT 1 FROM tombstones WHERE id = ?"
# Ids are printable ASCII: all that begin with a prefix come before the prefix and DEL.
_LIST: Final = "SELECT id FROM sessions WHERE id >= ? AND id > ? AND id < ? ORDER BY id LIMIT ?"
# A ping takes pages and gives them back: a disk that is full shows itself.
_PAD_BYTES: Final = 65536


class SqliteBackend:
    """Keeps sessions in the file at `path`, at most `max_entries`. StoreConfigError where it cannot be used.

    The number of entries is counted here: where several servers share a file, `max_entries` holds for what each of
    them has found at its start and made since.
    """

    num_threads = 1  # SQLite has one writer at a time

    def __init__(self, path: Path, max_entries: int) -> None:
        self._path = path.absolute()
        self._max_entries = max_entries
        self._server_id = secrets.token_hex(8)  # of this process
        opened = sqlite_file.open_file(self._path)
        self._connection, self._num_entries, self._reserve = opened
        self._file = self._path.stat()
        logger.info(
            "sessions are kept in a file",
            extra={"fields": {"path": str(self._path), "sessions": self._num_entries}},
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Do what is done in the block wholly, durably at its end, or not at all."""
        self._refuse_another_file()
        with sqlite_file.explained(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            num_entries = self._num_entries
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                self._num_entries = num_entries
                # SQLite has ended the transaction by itself after some errors.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _refuse_another_file(self) -> None:
        """Raise where the path is no longer this file: what goes into a deleted file is not kept."""
        try:
            is_same = os.path.samestat(self._path.stat(), self._file)
        except OSError:
            is_same = False
        if not is_same:
            raise BackendError(
                "its file was deleted or replaced while it was in use: start the service again",
                place=str(self._path),
            )

    def _make_room(self, work: Callable[[], T]) -> T:
        """Do what makes room in a transaction, on a full disk with the room that was kept back for it.

        A ping takes that room again.
        """
        try:
            with self._transaction():
                return work()
        except BackendError as error:
            if not error.is_full:
                raise
        self._reserve.give_back()
        # The WAL begins anew, so that the deletion finds room in it. Without that it may fit all the same.
        with suppress(sqlite3.OperationalError):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        with self._transaction():
            return work()

    def open_many(
        self, requests: Sequence[StoreRequest], now_s: float
    ) -> list[StoreOpening | errors.ServiceError]:
        """See Store.open_many."""
        with self._transaction():
            (greatest,) = self._connection.execute("SELECT greatest FROM epochs").fetchone()
            # The clock is there for a file that was restored from a backup: it does not know the epochs drawn since.
            epochs = itertools.count(max(greatest + 1, int(now_s * 1e6)))
            openings = [self._open(request, epochs, now_s) for request in requests]
            self._connection.execute("UPDATE epochs SET greatest = ?", (next(epochs) - 1,))
        return openings

    def _open(
        self, request: StoreRequest, epochs: Iterator[int], now_s: float
    ) -> StoreOpening | errors.ServiceError:
        entry = self._connection.execute(_FIND, (request.session_id,)).fetchone()
        if entry is None:
            return self._open_unknown(request, epochs, now_s)
        previous_epoch, is_gapless, data, client_id, owner, owned_since = entry
        if request.mode is OpenMode.CREATE:
            return exists(request.session_id, data, client_id)
        epoch = next(epochs)
        is_ours = owner == self._server_id
        run = (self._server_id, owned_since if is_ours else epoch)
        self._connection.execute(_RAISE, (epoch, request.client_id, *run, request.session_id))
        try:
            record = read_record(request.session_id, data, is_gapless=bool(is_gapless))
        except errors.RecordDamaged as damaged:
            return damaged
        return StoreOpening(
            Found.OPENED,
            previous_epoch,
            epoch,
            record,
            is_settled=True,
            owned_since=owned_since if is_ours else 0,
        )

    def _open_unknown(
        self, request: StoreRequest, epochs: Iterator[int], now_s: float
    ) -> StoreOpening | errors.SessionsExhausted:
        if request.mode is not OpenMode.CREATE and self._has_tombstone(request.session_id):
            return StoreOpening(Found.EXPIRED)
        if request.mode is OpenMode.OPEN or request.birth is None:
            return StoreOpening(Found.ABSENT)
        if self._num_entries >= self._max_entries:
            return exhausted(self._num_entries, self._max_entries)
        born = dataclasses.replace(born_of(request.session_id, request.birth, now_s), epoch=next(epochs))
        self._create(born, request.client_id)
        return StoreOpening(Found.CREATED, 0, born.epoch)

    def _create(self, born: SessionRecord, client_id: str) -> None:
        self._connection.execute("DELETE FROM tombstones WHERE id = ?", (born.session_id,))
        # Not gapless: its owner may be gone with the first values before it has stored any.
        opening = (born.session_id, born.epoch, client_id, self._server_id, born.epoch)
        values = (0, born.model, born.version, born.last_used_s, encode(born))
        self._connection.execute(_CREATE, (*opening, *values))
        self._num_entries += 1

    def _has_tombstone(self, session_id: str) -> bool:
        return self._connection.execute(_IS_TOMBSTONE, (session_id,)).fetchone() is not None

    def write(self, records: Sequence[SessionRecord]) -> Accepted:
        """See Store.write. All in one transaction: it is one wait for the disk. None arrives late: one thread."""
        rows = [
            (
                encode(each),
                each.is_gapless,
                each.last_used_s,
                each.session_id,
                each.epoch,
                each.model,
                each.version,
            )
            for each in records
        ]
        with self._transaction():
            num_written = self._connection.executemany(_WRITE, rows).rowcount if rows else 0
            if num_written == len(rows):
                return Accepted([None] * len(rows))
            return Accepted([self._write(record) for record in records])

    def _write(self, record: SessionRecord) -> Refusal | None:
        """Say why a record was not written, or write it whatever its model was before."""
        entry = self._connection.execute(_OWNER, (record.session_id,)).fetchone()
        if entry is None:
            return Refusal(is_gone=True)
        epoch, client_id, owner, owned_since = entry
        if epoch != record.epoch:
            since = owned_since if owner == self._server_id else 0
            return Refusal(is_gone=False, client_id=client_id, epoch=epoch, owned_since=since)
        values = (encode(record), record.is_gapless, record.last_used_s, record.model, record.version)
        self._connection.execute(_WRITE_MODEL, (*values, record.session_id))
        return None

    def settle(self) -> str:
        """See Backend.settle: a commit is durable."""
        return ""

    def read(self, session_id: str) -> SessionRecord | None:
        """See Store.read."""
        with sqlite_file.explained(self._path):
            entry = self._connection.execute(_READ, {"id": session_id}).fetchone()
        if entry is None:
            return None
        is_gapless, data = entry
        if data is None:
            raise expired(session_id)
        return read_record(session_id, data, is_gapless=bool(is_gapless))

    def delete_many(self, entries: Sequence[tuple[str, int | None]]) -> list[bool]:
        """See Store.delete_many."""
        condition = "id = ? AND epoch = coalesce(?, epoch)"
        return self._make_room(lambda: [self._delete(condition, *entry) for entry in entries])

    def _delete(self, condition: str, *values: object) -> bool:
        cursor = self._connection.execute(f"DELETE FROM sessions WHERE {condition}", values)  # noqa: S608  ours
        self._num_entries -= cursor.rowcount
        return cursor.rowcount > 0

    def bury_many(self, entries: Sequence[tuple[str, int]], before_s: float, now_s: float) -> list[bool]:
        """See Store.bury_many."""
        return self._make_room(
            lambda: [self._bury(session_id, epoch, before_s, now_s) for session_id, epoch in entries]
        )

    def _bury(self, session_id: str, epoch: int, before_s: float, now_s: float) -> bool:
        if not self._delete("id = ? AND epoch = ? AND used_s < ?", session_id, epoch, before_s):
            return False
        self._connection.execute("REPLACE INTO tombstones VALUES (?, ?)", (session_id, now_s))
        return True

    def list_ids(self, prefix: str, after: str, limit: int) -> list[str]:
        """See Store.list_ids."""
        with sqlite_file.explained(self._path):
            rows = self._connection.execute(_LIST, (prefix, after, f"{prefix}\x7f", limit))
            return [session_id for (session_id,) in rows]

    def idle_since(self, before_s: float, limit: int) -> list[tuple[str, int]]:
        """See Store.idle_since."""
        with sqlite_file.explained(self._path):
            query = "SELECT id, epoch FROM sessions WHERE used_s < ? LIMIT ?"
            return list(self._connection.execute(query, (before_s, limit)))

    def forget_tombstones(self, before_s: float) -> int:
        """See Store.forget_tombstones."""
        query = "DELETE FROM tombstones WHERE made_s < ?"
        return self._make_room(lambda: int(self._connection.execute(query, (before_s,)).rowcount))

    def has_records_of(self, model: str, version: int) -> bool:
        """See Store.has_records_of."""
        with sqlite_file.explained(self._path):
            query = "SELECT 1 FROM sessions WHERE model = ? AND version = ? LIMIT 1"
            row = self._connection.execute(query, (model, version)).fetchone()
        return row is not None

    def num_records(self) -> int:
        """See Store.num_records."""
        return self._num_entries

    def ping(self) -> None:
        """See Backend.ping."""
        self._take_reserve()
        with self._transaction():
            pad = ("\x7f", 0, "", "", 0, 0, "", 0, 0.0, bytes(_PAD_BYTES))  # an id that no session can have
            self._connection.execute(_CREATE, pad)
            self._connection.execute("DELETE FROM sessions WHERE id = ?", pad[:1])
            self._connection.execute("UPDATE epochs SET greatest = greatest")

    def _take_reserve(self) -> None:
        """Raise where the room of the last deletions on a full disk cannot be kept back again."""
        if self._reserve.is_whole:
            return
        with sqlite_file.explained(self._path):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._reserve.fill()
        if not self._reserve.is_whole:
            raise BackendError("the disk is full: make room", place=str(self._path), is_full=True)

    def close(self) -> None:
        """See Backend.close."""
        self._connection.close()
        self._reserve.close()
