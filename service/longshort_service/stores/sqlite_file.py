"""The file of an SQLite store: where it lies, opening it, its tables, and what its errors mean.

Owns the schema and its version. Does not know what a session is.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
import tempfile
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from longshort_service.stores.backend import BackendError, StoreConfigError
from longshort_service.stores.reserve import Reserve
from longshort_service.stores.sqlite_health import find_damage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

logger = logging.getLogger(__name__)

# How long another process may hold the file; a call of ours waits no longer before the store counts as away.
BUSY_S: Final = 2.0
_APPLICATION_ID: Final = 0x4C530001  # in the file's header: `file` and SQLite's tools show whose it is
_SCHEMA_VERSION: Final = 2
# A long run of writes leaves a WAL that is kept for reuse; beyond this it is cut.
_WAL_BYTES: Final = 64 * 1024 * 1024

_TABLES: Final = """
CREATE TABLE sessions (
    id TEXT PRIMARY KEY NOT NULL,
    epoch INTEGER NOT NULL,
    client_id TEXT NOT NULL,      -- of the opening that drew the epoch
    owner TEXT NOT NULL,          -- the process that did
    owned_since INTEGER NOT NULL, -- the first epoch that it drew, with no other process between
    is_gapless INTEGER NOT NULL,  -- of the record; an opening clears it
    model TEXT NOT NULL,
    version INTEGER NOT NULL,
    used_s REAL NOT NULL,         -- seconds since 1970
    record BLOB NOT NULL
);
CREATE INDEX sessions_used ON sessions (used_s);
CREATE INDEX sessions_model ON sessions (model, version);
CREATE TABLE tombstones (id TEXT PRIMARY KEY NOT NULL, made_s REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX tombstones_made ON tombstones (made_s);
CREATE TABLE epochs (greatest INTEGER NOT NULL);  -- one row: the greatest ever drawn
INSERT INTO epochs VALUES (0);
"""

# What the codes of SQLite mean to who runs the service. Any other code is a bug of ours.
_CAUSES: Final = {
    sqlite3.SQLITE_PERM: "it may not be used: check its owner and mode",
    sqlite3.SQLITE_BUSY: f"another process has held it locked for {BUSY_S:g} s: end that process, or wait for it",
    sqlite3.SQLITE_LOCKED: "it is locked: wait for who holds it",
    sqlite3.SQLITE_NOMEM: "SQLite has no memory: give the service more",
    sqlite3.SQLITE_READONLY: "it is read-only: check its mode, that of its folder, and how the disk is mounted",
    sqlite3.SQLITE_IOERR: "reading or writing it failed: check the disk",
    sqlite3.SQLITE_CORRUPT: "it is damaged: restore a backup",
    sqlite3.SQLITE_FULL: "the disk is full: make room",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: check that its folder is there and may be written",
    sqlite3.SQLITE_PROTOCOL: "its locks do not work: keep it on a local disk",
    sqlite3.SQLITE_NOTADB: "it is no SQLite database: restore a backup",
}


def default_path(environ: Mapping[str, str]) -> Path:
    """Return where the store lies unless told otherwise: in the user's folder for state."""
    home = Path(environ.get("HOME") or Path.home())
    if sys.platform == "darwin":
        folder = home / "Library" / "Application Support"
    else:
        folder = Path(environ.get("XDG_STATE_HOME") or home / ".local" / "state")
    return folder / "longshort" / "sessions.db"


class OpenedFile(NamedTuple):
    """A store's file in use: how many sessions it held, and the room kept back beside it."""

    connection: sqlite3.Connection
    num_sessions: int
    reserve: Reserve


def open_file(path: Path) -> OpenedFile:
    """Open a store's file, making it and its folder where they are not there.

    Raises StoreConfigError.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _make(path)
        if not path.is_file():
            raise StoreConfigError(f"{path}: is no file: give the path of one")
        with _closing_on_error(_connect(path)) as connection:
            _check(connection, path)
            connection.execute("PRAGMA synchronous = FULL")  # a commit is on the disk when it returns
            connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
            connection.execute("UPDATE epochs SET greatest = greatest")  # what is read-only is found out now
            damage = find_damage(connection)
            if damage:
                raise StoreConfigError(f"{path}: it is damaged: restore a backup ({damage})")
            (num_sessions,) = connection.execute("SELECT count(*) FROM sessions").fetchone()
            reserve = Reserve(path.parent)  # shows, too, that the folder may be written
    except OSError as error:
        raise StoreConfigError(f"{path}: cannot be made or opened: {error.strerror}") from error
    except sqlite3.Error as error:
        cause = _CAUSES.get(_code(error), "cannot be used")
        raise StoreConfigError(f"{path}: {cause} ({error})") from error
    return OpenedFile(connection, num_sessions, reserve)


def _connect(path: Path | str) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)


def _make(path: Path) -> None:
    """Make a file with empty tables, readable to its owner only. It gets its name when it is whole.

    Another server that starts at the same moment may be faster: its file stays.
    """
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    os.close(descriptor)
    try:
        with closing(_connect(name)) as connection:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise StoreConfigError(
                    f"{path}: SQLite's WAL does not work there: give a path on a local disk"
                )
            connection.executescript(
                f"BEGIN; {_TABLES} PRAGMA application_id = {_APPLICATION_ID};"
                f"PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;"
            )
        with suppress(FileExistsError):
            os.link(name, path)
            logger.info("a new session store begins empty", extra={"fields": {"path": str(path)}})
    finally:
        Path(name).unlink()


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """Raise StoreConfigError where a file is not ours, or is of another longshort."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application_id != _APPLICATION_ID:
        raise StoreConfigError(f"{path}: is a database of another program: give another path")
    if version > _SCHEMA_VERSION:
        raise StoreConfigError(
            f"{path}: was written by a newer longshort (schema {version}, this one knows {_SCHEMA_VERSION}): "
            "install that one, or give another path"
        )
    if version < _SCHEMA_VERSION:
        raise StoreConfigError(
            f"{path}: was written by an older longshort (schema {version}, this one needs {_SCHEMA_VERSION}): "
            "give another path"
        )


@contextmanager
def _closing_on_error(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Close a connection where what is done with it at first goes wrong."""
    try:
        yield connection
    except BaseException:
        connection.close()
        raise


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise what goes wrong with the file, and is no bug, as BackendError."""
    try:
        yield
    except sqlite3.Error as error:
        if _code(error) not in _CAUSES:
            raise
        raise BackendError(
            _CAUSES[_code(error)],
            place=str(path),
            detail=str(error),
            is_full=_code(error) == sqlite3.SQLITE_FULL,
        ) from error


def _code(error: sqlite3.Error) -> int:
    """Return SQLite's primary code; 0 where the error is of Python's own making."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
