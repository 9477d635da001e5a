"""The SQLite store where its file is locked, read-only, full, torn, foreign, restored, copied or gone."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from longshort_service import errors
from longshort_service.record import encode
from longshort_service.stores.backend import StoreConfigError
from longshort_service.stores.base import Found, OpenMode
from longshort_service.stores.opening import make_store
from longshort_service.stores.sqlite import SqliteBackend
from longshort_service.stores.sqlite_file import default_path
from longshort_service.stores.sqlite_health import find_damage
from longshort_service.stores.threaded import ThreadedStore
from store_records import NOW_S, asks, created, opened, record_of, same, stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[..., object]


class Sqlite(ThreadedStore):
    """A store whose connection a test may reach."""

    def __init__(self, path: Path) -> None:
        self.backend = SqliteBackend(path, 1_000_000)
        super().__init__(self.backend)

    @property
    def connection(self) -> sqlite3.Connection:
        return self.backend._connection


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "sessions.db"


@pytest.fixture
def store(path: Path, run: Run) -> Iterator[Sqlite]:
    made = Sqlite(path)
    yield made
    run(made.close())


# -- the file -----


def test_file_and_folder_are_the_user_s_alone(store: Sqlite, path: Path, run: Run):
    run(stored(store, "s"))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    modes = {name.name: stat.S_IMODE(name.stat().st_mode) for name in path.parent.iterdir()}
    assert modes == {"sessions.db": 0o600, "sessions.db-wal": 0o600, "sessions.db-shm": 0o600}


def test_commits_are_on_the_disk_when_they_return(store: Sqlite):
    assert store.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store.connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_default_path_is_in_the_user_s_folder_for_state(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "linux")
    assert default_path({"XDG_STATE_HOME": "/state"}) == Path("/state/longshort/sessions.db")
    assert default_path({"HOME": "/home/u"}) == Path("/home/u/.local/state/longshort/sessions.db")
    monkeypatch.setattr(sys, "platform", "darwin")
    home = Path("/Users/u/Library/Application Support/longshort/sessions.db")
    assert default_path({"HOME": "/Users/u"}) == home


def test_urls_name_relative_absolute_and_default_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
):
    monkeypatch.chdir(tmp_path)
    urls = ("sqlite:///a/s.db", f"sqlite:///{tmp_path}/b/s.db", "sqlite://")
    for url in urls:
        run(make_store(url, max_entries=9, environ={"XDG_STATE_HOME": str(tmp_path)}).close())
    assert [(tmp_path / name).exists() for name in ("a/s.db", "b/s.db", "longshort/sessions.db")] == [
        True
    ] * 3


def test_sessions_are_there_after_a_restart(path: Path, run: Run):
    async def scenario() -> None:
        first = Sqlite(path)
        record = await stored(first, "s")
        await first.close()
        second = Sqlite(path)
        assert second.num_records() == 1
        opening = await opened(second, "s", OpenMode.OPEN)
        assert same(opening.record, record)
        assert opening.epoch > record.epoch
        await second.close()

    run(scenario())


KILLED = """
import asyncio, os, signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from longshort_service.stores.opening import make_store
from store_records import stored

async def main():
    store = make_store("sqlite:///" + sys.argv[1], max_entries=9, environ={})
    await stored(store, "s")
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_what_was_written_before_sigkill_is_there(path: Path, run: Run):
    support = str(Path(__file__).parent / "support")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), support], timeout=60, check=False)
    assert done.returncode == -9
    store = Sqlite(path)
    record = run(store.read("s"))
    assert record is not None
    assert record.step == 5
    run(store.close())


# -- what is refused at the start -----


def test_database_of_another_program_is_refused(path: Path):
    path.parent.mkdir()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    with pytest.raises(StoreConfigError, match="is a database of another program"):
        Sqlite(path)


@pytest.mark.parametrize(
    ("version", "problem"),
    [
        (3, "a newer longshort .schema 3, this one knows 2"),
        (1, "an older longshort .schema 1, this one needs 2"),
    ],
)
def test_file_of_another_longshort_is_refused(path: Path, run: Run, version: int, problem: str):
    store = Sqlite(path)
    store.connection.execute(f"PRAGMA user_version = {version}")
    run(store.close())
    with pytest.raises(StoreConfigError, match=problem):
        Sqlite(path)


def test_file_that_is_no_database_is_refused(path: Path):
    path.parent.mkdir()
    path.write_bytes(b"some other file\n" * 100)
    with pytest.raises(StoreConfigError, match="is no SQLite database: restore a backup"):
        Sqlite(path)


def test_truncated_database_is_refused(path: Path, run: Run):
    async def scenario() -> None:
        store = Sqlite(path)
        for k in range(40):
            await stored(store, f"s{k}")
        await store.close()

    run(scenario())
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(StoreConfigError, match="is damaged: restore a backup"):
        Sqlite(path)


def test_path_that_cannot_be_made_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreConfigError, match="cannot be made or opened: "):
        Sqlite(tmp_path / "file" / "sessions.db")


@pytest.mark.parametrize("place", ["/dev/full", "/dev"])
def test_path_that_is_no_file_is_refused(place: str):
    with pytest.raises(StoreConfigError, match="is no file"):
        Sqlite(Path(place))


def test_home_folder_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run(make_store("sqlite:///~/s.db", max_entries=9, environ={}).close())
    assert (tmp_path / "home" / "s.db").exists()
    with pytest.raises(StoreConfigError, match="no such home folder"):
        make_store("sqlite:///~nobody-of-this-name/s.db", max_entries=9, environ={})


def test_place_of_the_file_and_what_it_holds_are_logged(
    path: Path, run: Run, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    first = Sqlite(path)
    run(stored(first, "s"))
    run(first.close())
    run(Sqlite(path).close())
    assert [(each.getMessage(), each.fields) for each in caplog.records] == [
        ("a new session store begins empty", {"path": str(path)}),
        ("sessions are kept in a file", {"path": str(path), "sessions": 0}),
        ("sessions are kept in a file", {"path": str(path), "sessions": 1}),
    ]


def test_pages_that_were_overwritten_are_found_at_the_start(path: Path, run: Run):
    async def scenario() -> None:
        store = Sqlite(path)
        for k in range(40):
            await stored(store, f"s{k}")
        await store.close()

    run(scenario())
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT rootpage FROM sqlite_schema WHERE name = 'sessions'"
        (page,) = connection.execute(query).fetchone()
    with path.open("r+b") as file:
        file.seek(page * 4096)  # the one after the table's root
        file.write(b"\xff" * 4096)
    with pytest.raises(StoreConfigError, match="it is damaged: restore a backup"):
        Sqlite(path)


def test_check_that_takes_too_long_is_given_up(store: Sqlite, caplog: pytest.LogCaptureFixture):
    """Where the check is done before its time the interrupt must not hit what comes next."""
    for _ in range(50):
        assert find_damage(store.connection, timeout_s=0.0) == ""
        store.connection.execute("SELECT count(*) FROM sessions").fetchone()
    assert {each.levelname for each in caplog.records} <= {"WARNING"}


def test_existing_file_in_a_folder_that_is_read_only_is_refused(path: Path, run: Run):
    if os.geteuid() == 0:
        return  # modes do not bind the superuser
    run(Sqlite(path).close())
    path.parent.chmod(0o500)
    with pytest.raises(StoreConfigError):
        Sqlite(path)


def test_folder_that_is_read_only_is_refused(path: Path):
    if os.geteuid() == 0:
        return  # modes do not bind the superuser
    path.parent.mkdir(mode=0o500)
    with pytest.raises(StoreConfigError, match="Permission denied"):
        Sqlite(path)


def test_servers_that_start_at_once_make_the_tables_once(path: Path):
    for _ in range(5):
        with ThreadPoolExecutor(8) as threads:
            made = list(threads.map(lambda _: SqliteBackend(path, 9), range(8)))
        for backend in made:
            backend.ping()
        for backend in made:
            backend.close()
        assert [name.name for name in path.parent.iterdir()] == [path.name]
        path.unlink()


def test_empty_file_is_refused(path: Path):
    path.parent.mkdir()
    path.touch()
    with pytest.raises(StoreConfigError, match="of another program"):
        Sqlite(path)


def test_database_without_our_tables_is_refused(path: Path, run: Run):
    store = Sqlite(path)
    store.connection.execute("DROP TABLE sessions")
    run(store.close())
    with pytest.raises(StoreConfigError, match="no such table"):
        Sqlite(path)


def test_bug_in_a_statement_is_no_outage(store: Sqlite, run: Run):
    store.connection.execute("DROP TABLE tombstones")
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        run(store.forget_tombstones(1.0))
    assert store.away_since_s is None


# -- a store that goes away and comes back -----


LOCKER = """
import sqlite3, sys
held = sqlite3.connect(sys.argv[1], isolation_level=None)
held.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


def test_file_locked_by_another_process_is_away_and_comes_back(
    store: Sqlite, path: Path, run: Run, caplog: pytest.LogCaptureFixture
):
    record = run(stored(store, "s"))
    command = [sys.executable, "-c", LOCKER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as locker:
        assert locker.stdout is not None
        assert locker.stdout.readline() == b"held\n"
        begin_s = time.monotonic()
        with pytest.raises(errors.StoreUnavailable, match="another process has held it locked for 2 s"):
            run(store.write([record]))
        assert time.monotonic() - begin_s < 2.6
        assert store.away_since_s is not None
        begin_s = time.monotonic()
        for _ in range(3):
            with pytest.raises(errors.StoreUnavailable, match="is away"):
                run(opened(store, "s"))
        assert time.monotonic() - begin_s < 0.5
        with pytest.raises(errors.StoreUnavailable):
            run(store.ping())
        locker.communicate()
    run(store.ping())
    assert store.away_since_s is None
    assert run(store.write([record])) == [None]
    logged = [each.getMessage() for each in caplog.records]
    assert [text.partition(":")[0] for text in logged if "away" in text] == ["the session store is away"]
    assert sum("is back after" in text for text in logged) == 1


def test_file_that_becomes_read_only_is_away_and_keeps_nothing(store: Sqlite, run: Run):
    record = run(stored(store, "s"))
    store.connection.execute("PRAGMA query_only = ON")
    with pytest.raises(errors.StoreUnavailable, match="it is read-only: check its mode"):
        run(store.write([record_of("s", record.epoch, step=6)]))
    with pytest.raises(errors.StoreUnavailable):
        run(store.ping())
    store.connection.execute("PRAGMA query_only = OFF")
    run(store.ping())
    assert same(run(store.read("s")), record)


def test_full_disk_is_away_and_a_batch_is_stored_whole_or_not_at_all(store: Sqlite, run: Run):
    async def scenario() -> None:
        epochs = {name: await created(store, name) for name in ("a", "b")}
        (num_pages,) = store.connection.execute("PRAGMA page_count").fetchone()
        store.connection.execute(f"PRAGMA max_page_count = {num_pages}")
        small = record_of("a", epochs["a"])
        large = dataclasses.replace(record_of("b", epochs["b"]), states=(np.ones(100_000, np.float32),))
        with pytest.raises(errors.StoreUnavailable, match="the disk is full: make room"):
            await store.write([small, large])
        with pytest.raises(errors.StoreUnavailable):
            await store.ping()  # a little does not fit either
        store.connection.execute("PRAGMA max_page_count = 1000000")
        await store.ping()
        found = await store.read("a")
        assert found is not None
        assert found.step == 0
        assert store.num_records() == 2
        assert await store.write([small]) == [None]

    run(scenario())


FULL = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from longshort_service import errors
from longshort_service.stores.base import Found
from longshort_service.stores.opening import make_store
from store_records import NOW_S, asks, opened

async def main():
    store = make_store("sqlite:////mnt/s.db", max_entries=9999, environ={})
    names = []
    try:
        while True:
            more = [f"s{len(names) + k}" for k in range(20)]
            await store.open_many([asks(name) for name in more], NOW_S)
            names += more
    except errors.StoreUnavailable as error:
        assert "disk is full" in str(error)
    assert all(await store.delete_many([(name, None) for name in names]))
    assert store.num_records() == 0
    await store.ping()
    assert (await opened(store, "s")).found is Found.CREATED

asyncio.run(main())
"""
MOUNT = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
TMPFS = "mount -t tmpfs -o size=400k none /mnt && "


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*MOUNT, f"{TMPFS}true"], check=False).returncode != 0,
    reason="no disk can be mounted here",
)
def test_sessions_end_on_a_disk_that_is_full_to_the_last_byte():
    support = str(Path(__file__).parent / "support")
    command = [*MOUNT, f'{TMPFS}exec "$@"', "sh", sys.executable, "-c", FULL, support]
    subprocess.run(command, check=True, timeout=60)


def test_database_torn_while_it_is_used_is_away(store: Sqlite, path: Path, run: Run):
    async def scenario() -> None:
        for k in range(40):
            await stored(store, f"s{k}")

    run(scenario())
    store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    store.connection.execute("PRAGMA shrink_memory")
    with pytest.raises(errors.StoreUnavailable, match="it is damaged: restore a backup"):
        run(store.list_ids("", "", 99))


def test_deleted_file_takes_nothing_more(store: Sqlite, path: Path, run: Run):
    record = run(stored(store, "s"))
    path.rename(path.with_name("moved.db"))
    with pytest.raises(errors.StoreUnavailable, match="was deleted or replaced while it was in use"):
        run(store.write([record]))
    path.with_name("moved.db").rename(path)
    run(store.ping())
    assert run(store.write([record])) == [None]


# -- damaged and foreign records -----


def test_torn_record_is_told_and_never_loaded(store: Sqlite, run: Run):
    record = run(stored(store, "s"))
    data = bytearray(encode(record))
    data[-3] ^= 1
    store.connection.execute("UPDATE sessions SET record = ?", (bytes(data),))
    with pytest.raises(errors.RecordDamaged, match="checksum does not fit; delete it"):
        run(store.read("s"))
    (opening, other) = run(store.open_many([asks("s"), asks("t")], NOW_S))
    assert isinstance(opening, errors.RecordDamaged)
    assert other.found is Found.CREATED  # its neighbour does not notice
    assert run(store.write([record]))[0] is not None  # its epoch was raised
    assert run(store.delete_many([("s", None)])) == [True]
    assert run(opened(store, "s")).found is Found.CREATED


@pytest.mark.parametrize("data", [b"", b"foreign", encode(record_of("another", 1))])
def test_foreign_record_is_told_and_never_loaded(store: Sqlite, run: Run, data: bytes):
    run(stored(store, "s"))
    store.connection.execute("UPDATE sessions SET record = ?", (data,))
    with pytest.raises(errors.RecordDamaged):
        run(store.read("s"))


# -- epochs and backups -----


def test_epochs_are_microseconds_and_go_on_where_the_clock_goes_back(store: Sqlite, run: Run):
    async def scenario() -> list[int]:
        return [(await opened(store, "s", now_s=now_s)).epoch for now_s in (50.0, 60.0, 10.0, 60.0, 70.0)]

    assert run(scenario()) == [50_000_000, 60_000_000, 60_000_001, 60_000_002, 70_000_000]


def test_backup_restored_knows_nothing_of_later_epochs_and_draws_none_of_them(
    store: Sqlite, tmp_path: Path, run: Run
):
    async def scenario() -> None:
        await opened(store, "s", now_s=100.0)
        store.connection.execute("VACUUM INTO ?", (str(tmp_path / "backup.db"),))
        later = await opened(store, "s", now_s=200.0)
        restored = Sqlite(tmp_path / "backup.db")
        again = await opened(restored, "s", now_s=201.0)
        assert again.epoch > later.epoch
        assert again.previous_epoch < later.epoch
        await restored.close()

    run(scenario())


def _by_vacuum(source: Path, target: Path) -> None:
    connection = sqlite3.connect(source)
    connection.execute("VACUUM INTO ?", (str(target),))
    connection.close()


def _by_backup(source: Path, target: Path) -> None:
    """Do what the shell's `.backup` does."""
    connection, copy = sqlite3.connect(source), sqlite3.connect(target)
    connection.backup(copy, pages=8, sleep=0.001)
    connection.close()
    copy.close()


@pytest.mark.parametrize("back_up", [_by_vacuum, _by_backup])
def test_backup_taken_while_sessions_are_written_is_a_store(
    store: Sqlite, path: Path, tmp_path: Path, run: Run, back_up: Callable[[Path, Path], None]
):
    async def scenario() -> None:
        names = [f"s{k}" for k in range(200)]
        epochs = [await created(store, name) for name in names]
        thread = threading.Thread(target=back_up, args=(path, tmp_path / "backup.db"))
        thread.start()
        step = 0
        while thread.is_alive() or step == 0:
            step += 1
            records = [record_of(name, epoch, step=step) for name, epoch in zip(names, epochs, strict=True)]
            assert await store.write(records) == [None] * 200
        thread.join()
        copy = Sqlite(tmp_path / "backup.db")
        steps = set()
        for name in names:
            record = await copy.read(name)
            assert record is not None
            steps.add(record.step)
        assert len(steps) == 1  # a batch is one transaction: the copy is of one moment
        await copy.close()

    run(scenario())
