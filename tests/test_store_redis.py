"""The Redis store on a real Valkey: away, frozen, full, restarted, replaced; and what is durable when."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import valkey
from longshort_service import errors
from longshort_service.stores import redis_link
from longshort_service.stores.backend import BackendError, StoreConfigError
from longshort_service.stores.base import Found, OpenMode, Refusal
from longshort_service.stores.opening import make_store
from longshort_service.stores.redis import RedisBackend
from longshort_service.stores.redis_address import parse_address
from longshort_service.stores.redis_link import ServerSettings, explained, find_problem, inspect, refused
from redis import exceptions
from store_records import NOW_S, asks, created, opened, record_of, same, stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from longshort_service.stores.base import Store
    from valkey import Valkey

    Run = Callable[..., object]
    Start = Callable[..., Valkey]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Valkey] = []

    def one(*options: str, **settings: object) -> Valkey:
        started.append(valkey.start(tmp_path / f"v{len(started)}", 0, *options, **settings))
        return started[-1]

    yield one
    for server in started:
        server.thaw()
        server.kill()


def open_store(server: Valkey, url: str = "") -> Store:
    return make_store(url or server.url, max_entries=1_000, environ={})


# -- what is refused at the start -----


def test_server_that_may_evict_is_refused(start: Start):
    server = start("--maxmemory-policy", "allkeys-lru", maxmemory="100mb")
    with pytest.raises(
        StoreConfigError, match="maxmemory-policy is allkeys-lru, which drops sessions: set it to"
    ):
        open_store(server)


def test_cluster_is_refused(start: Start):
    with pytest.raises(StoreConfigError, match="it is a cluster"):
        open_store(start("--cluster-enabled", "yes", "--cluster-port", str(valkey.free_port())))


def test_wrong_password_is_told_and_no_password_is_shown(start: Start):
    server = start("--requirepass", "right")
    for url in (server.url, f"redis://:wrong@127.0.0.1:{server.port}"):
        with pytest.raises(StoreConfigError, match="wants another user or password") as caught:
            open_store(server, url)
        assert "wrong@" not in str(caught.value)
    open_store(server, f"redis://:right@127.0.0.1:{server.port}/3")


def test_database_number_that_does_not_exist_is_told(start: Start):
    server = start()
    with pytest.raises(StoreConfigError, match="it has no database of this number"):
        open_store(server, f"{server.url}/99")


def test_whatever_a_server_says_at_first_is_one_line(start: Start, monkeypatch: pytest.MonkeyPatch):
    def refuse(_connection: object) -> None:
        raise exceptions.ResponseError("unheard of")

    monkeypatch.setattr(redis_link, "inspect", refuse)
    with pytest.raises(StoreConfigError, match=r"cannot be used \(unheard of\)"):
        open_store(start())


def test_server_without_tls_is_told(start: Start):
    server = start()
    with pytest.raises(StoreConfigError, match="whether it speaks TLS there"):
        open_store(server, f"rediss://127.0.0.1:{server.port}")


def test_sentinel_that_names_no_primary_is_told_in_clean_words(start: Start, tmp_path: Path):
    primary = start()
    sentinel = valkey.start_sentinel(tmp_path / "sentinel", primary)
    url = f"redis+sentinel://127.0.0.1:{sentinel.port}"
    try:
        with pytest.raises(StoreConfigError, match="its sentinels know no primary of this name"):
            open_store(primary, f"{url}/another")
        sentinel.call("CONFIG", "SET", "requirepass", "x")
        sentinel.call("ACL", "SETUSER", "default", "resetpass", ">x")
        with pytest.raises(StoreConfigError, match="its sentinels want another user or password") as caught:
            open_store(primary, f"{url}/longshort")
        assert "<" not in str(caught.value)
    finally:
        sentinel.kill()
    with pytest.raises(StoreConfigError, match="its sentinels cannot be reached"):
        open_store(primary, f"{url}/longshort")


def test_server_that_is_not_there_is_told(tmp_path: Path):
    port = valkey.free_port()
    with pytest.raises(
        StoreConfigError, match=f"127.0.0.1:{port}: it cannot be reached: see whether it runs"
    ):
        make_store(f"redis://127.0.0.1:{port}", max_entries=9, environ={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("info", "problem"),
    [
        ({"redis_version": "7.2.4"}, ""),
        ({"redis_version": "8.0.0", "maxmemory": "0", "maxmemory_policy": "allkeys-lru"}, ""),
        ({"redis_version": "7.2.0", "maxmemory": "9", "maxmemory_policy": "noeviction"}, ""),
        ({"redis_version": "7.0.15"}, "it is Redis 7.0.15: give Redis 7.2 or newer, or Valkey"),
        ({}, "it is Redis 0: give Redis 7.2 or newer, or Valkey"),
    ],
)
def test_server_is_judged_by_its_info(info: dict[str, str], problem: str):
    assert find_problem(info) == problem


def test_append_only_file_off_is_warned_of_once(start: Start, run: Run, caplog: pytest.LogCaptureFixture):
    store = open_store(start())
    run(stored(store, "s"))
    assert run(opened(store, "s")).is_settled  # no more can be had
    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "has appendonly off" in warnings[0]
    run(store.close())


class LoadingServer:
    """A connection to a server that reads its append-only file, which says then that it has none."""

    def send_command(self, *words: str) -> None:
        assert words == ("INFO",)

    def read_response(self) -> bytes:
        return b"redis_version:7.2.4\r\nloading:1\r\naof_enabled:0\r\n"


def test_server_that_reads_its_file_is_not_judged_by_what_it_says_meanwhile():
    with pytest.raises(exceptions.BusyLoadingError):
        inspect(LoadingServer())


def test_service_without_redis_py_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "longshort_service.stores.redis", None)
    with pytest.raises(StoreConfigError, match="pip install 'longshort-server"):
        make_store("redis://127.0.0.1:1", max_entries=9, environ={})


# -- addresses -----


def test_addresses_are_read():
    address = parse_address("redis://host")
    assert (address.hosts, address.service, address.database) == ((("host", 6379),), "", 0)
    address = parse_address("rediss://u:p%40ss@[::1]:7000/2?ssl_ca_certs=ca.pem")
    assert (address.hosts, address.database, address.is_tls) == ((("::1", 7000),), 2, True)
    assert (address.username, address.password, address.options) == ("u", "p@ss", {"ssl_ca_certs": "ca.pem"})
    address = parse_address("redis+sentinel://:p@a:1,b/main/3?sentinel_password=q")
    assert (address.hosts, address.service, address.database) == ((("a", 1), ("b", 26379)), "main", 3)
    assert (address.password, address.sentinel_options) == ("p", {"password": "q"})
    assert str(address) == "a:1,b:26379 (main)"


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://a,b",
        "redis://host:port",
        "redis://host:99999",
        "redis://host/x",
        "redis://host/0/1",
        "redis://host#x",
        "redis://host?socket_timeout=9",
        "redis://host?ssl_ca_certs=x",
        "redis+sentinel://a:1",
        "redis+sentinel:///main",
    ],
)
def test_address_of_another_form_is_refused(url: str):
    with pytest.raises(StoreConfigError, match="store: "):
        parse_address(url)


def test_what_is_wrong_in_an_address_is_named():
    with pytest.raises(StoreConfigError, match=r"redis:// has no option foo; it has none at all"):
        parse_address("redis://host?foo=1")
    with pytest.raises(StoreConfigError, match=r"abc is no number of a database"):
        parse_address("redis://host/abc")


# -- a store that goes away and comes back -----


def test_killed_server_is_away_and_comes_back_with_what_was_durable(start: Start, run: Run):
    server = start(appendonly=True, appendfsync="always")
    store = open_store(server)
    record = run(stored(store, "s"))
    server.kill()
    with pytest.raises(errors.StoreUnavailable, match="it cannot be reached: see whether it runs"):
        run(store.write([record]))
    with pytest.raises(errors.StoreUnavailable, match="is away"):
        run(opened(store, "s"))
    with pytest.raises(errors.StoreUnavailable):
        run(store.ping())
    server.restart()
    run(store.ping())
    assert store.away_since_s is None
    assert same(run(opened(store, "s", OpenMode.OPEN)).record, record)
    run(store.close())


def test_restart_between_calls_is_not_noticed(start: Start, run: Run):
    server = start(appendonly=True)
    store = open_store(server)
    record = run(stored(store, "s"))
    server.restart()
    assert run(store.write([record])) == [None]
    run(store.close())


def test_frozen_server_is_away_within_its_timeout(start: Start, run: Run):
    server = start()
    store = open_store(server)
    record = run(stored(store, "s"))
    server.freeze()
    begin_s = time.monotonic()
    with pytest.raises(errors.StoreUnavailable, match="did not answer within 2 s"):
        run(store.write([record]))
    assert time.monotonic() - begin_s < 3.0
    begin_s = time.monotonic()
    with pytest.raises(errors.StoreUnavailable, match="is away"):
        run(store.read("s"))
    assert time.monotonic() - begin_s < 0.2
    server.thaw()
    run(store.ping())
    assert run(store.write([record])) == [None]
    run(store.close())


def test_server_out_of_memory_is_away_until_there_is_room(start: Start, run: Run):
    server = start(maxmemory="100mb")
    store = open_store(server)
    record = run(stored(store, "s"))
    server.call("CONFIG", "SET", "maxmemory", "1mb")
    large = dataclasses.replace(record, states=(np.ones(500_000, np.float32),))
    with pytest.raises(errors.StoreUnavailable, match="it is out of memory: raise its maxmemory"):
        run(store.write([large]))
    with pytest.raises(errors.StoreUnavailable):
        run(store.ping())
    server.call("CONFIG", "SET", "maxmemory", "100mb")
    run(store.ping())
    assert run(store.write([record])) == [None]
    run(store.close())


def test_sessions_end_in_a_server_without_memory(start: Start, run: Run):
    """What makes room must go on where there is none: the server would stay full."""
    server = start(maxmemory="100mb")
    store = open_store(server)

    async def scenario() -> None:
        record, other = await stored(store, "a"), await stored(store, "b")
        server.call("CONFIG", "SET", "maxmemory", "1kb")
        with pytest.raises(errors.StoreUnavailable, match="out of memory"):
            await store.write([record])
        since_s = store.away_since_s
        assert await store.delete_many([("a", None)]) == [True]
        assert await store.idle_since(1e12, 9) == [("b", other.epoch)]
        assert await store.bury_many([("b", other.epoch)], 1e12, NOW_S) == [True]
        assert await store.forget_tombstones(1e12) == 1
        assert store.away_since_s == since_s
        with pytest.raises(errors.StoreUnavailable, match="is away"):
            await store.read("a")
        server.call("CONFIG", "SET", "maxmemory", "100mb")
        await store.ping()
        assert store.away_since_s is None

    run(scenario())
    run(store.close())


def test_server_that_begins_to_evict_is_away_from_the_next_connection_on(start: Start, run: Run):
    server = start(maxmemory="100mb")
    store = open_store(server)
    run(stored(store, "s"))
    server.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    server.call("CLIENT", "KILL", "TYPE", "normal")
    with pytest.raises(errors.StoreUnavailable, match="maxmemory-policy is allkeys-lru"):
        run(store.read("s"))
    run(store.close())


def test_replica_takes_no_writes(start: Start, run: Run):
    primary, replica = start(), start()
    store = open_store(replica)
    replica.call("REPLICAOF", "127.0.0.1", str(primary.port))
    with pytest.raises(errors.StoreUnavailable, match="it is a replica, which takes no writes"):
        run(created(store, "s"))
    run(store.close())


@pytest.mark.parametrize("missing", ["-eval", "-time", "-info"])
def test_user_without_the_rights_is_told(start: Start, run: Run, missing: str):
    server = start()
    server.call("ACL", "SETUSER", "weak", "on", ">p", "~*", "+@all", missing)
    with pytest.raises(
        (StoreConfigError, errors.StoreUnavailable), match="its user may not do what is needed"
    ):
        run(created(open_store(server, f"redis://weak:p@127.0.0.1:{server.port}"), "s"))


def test_foreign_keys_are_told(start: Start, run: Run):
    server = start()
    store = open_store(server)
    server.call("SET", "longshort:ids", "theirs")
    with pytest.raises(errors.StoreUnavailable, match="are not longshort's"):
        run(created(store, "s"))
    run(store.close())


# -- records -----


def test_torn_record_is_told_and_never_loaded(start: Start, run: Run):
    server = start()
    store = open_store(server)
    record = run(stored(store, "s"))
    server.call("HSET", "longshort:s:s", "r", "torn")
    with pytest.raises(errors.RecordDamaged, match="delete it to begin again"):
        run(store.read("s"))
    opening, other = run(store.open_many([asks("s"), asks("t")], NOW_S))
    assert isinstance(opening, errors.RecordDamaged)
    assert other.found is Found.CREATED
    (refusal,) = run(store.write([record]))  # its epoch was raised, by this very process
    assert refusal == Refusal(is_gone=False, client_id="me", epoch=refusal.epoch, owned_since=record.epoch)
    server.call("HDEL", "longshort:s:s", "r")
    with pytest.raises(errors.RecordDamaged):
        run(store.read("s"))
    run(store.close())


def test_epochs_are_microseconds_of_the_server_and_above_all_that_it_knows(start: Start, run: Run):
    server = start()
    store = open_store(server)
    assert run(created(store, "s")) == pytest.approx(time.time() * 1e6, abs=60e6)
    ahead = int(time.time() * 1e6) + 10**12
    server.call("SET", "longshort:epoch", str(ahead))
    assert [run(created(store, name)) for name in "ab"] == [ahead + 1, ahead + 2]
    run(store.close())


# -- what is durable when -----


def test_settled_write_waits_until_it_is_on_the_disk_and_many_wait_together(start: Start, run: Run):
    server = start(appendonly=True, appendfsync="everysec")
    store = open_store(server)

    async def scenario() -> None:
        names = [f"s{k}" for k in range(8)]
        records = [record_of(name, await created(store, name)) for name in names]
        begin_s = time.monotonic()
        assert await asyncio.gather(*(store.write([record]) for record in records)) == [[None]] * 8
        assert time.monotonic() - begin_s < 4.0  # one or two waits for the disk, not eight
        assert not (await opened(store, "s0")).is_settled

    run(scenario())
    run(store.close())


@pytest.fixture
def backend(start: Start) -> Iterator[RedisBackend]:
    server = start(appendonly=True, appendfsync="everysec")
    made = RedisBackend(parse_address(server.url), 100)
    yield made
    made.close()


def test_place_of_a_write_is_the_server_that_ran_then(backend: RedisBackend):
    opening = backend.open_many([asks("s")], NOW_S)[0]
    accepted = backend.write([record_of("s", opening.epoch)])
    assert accepted.refusals == [None]
    assert accepted.place
    assert backend.settle() == accepted.place


def test_without_waitaof_a_write_is_durable_two_seconds_later(backend: RedisBackend):
    opening = backend.open_many([asks("s")], NOW_S)[0]
    place = backend.write([record_of("s", opening.epoch)]).place
    backend._note_settings(ServerSettings(is_append_only=True, is_always_fsynced=False, has_waitaof=False))
    begin_s = time.monotonic()
    assert backend.settle() == place
    assert time.monotonic() - begin_s >= 2.0


def test_server_without_waitaof_and_config_is_found_out(
    start: Start, run: Run, caplog: pytest.LogCaptureFixture
):
    server = start(appendonly=True)
    server.call("ACL", "SETUSER", "weak", "on", ">p", "~*", "+@all", "-config", "-waitaof")
    store = open_store(server, f"redis://weak:p@127.0.0.1:{server.port}")
    begin_s = time.monotonic()
    run(stored(store, "s"))
    assert time.monotonic() - begin_s >= 2.0
    assert "does not allow WAITAOF" in caplog.text
    run(store.close())


def test_write_accepted_before_a_restart_is_not_called_durable(start: Start, run: Run):
    """The server that says that all is on its disk is not the one that has accepted."""
    server = start(appendonly=True)
    store = open_store(server)
    record = run(stored(store, "s"))
    accept = store._backend.write

    def accept_and_restart(records: object) -> object:
        accepted = accept(records)
        server.restart()
        return accepted

    store._backend.write = accept_and_restart
    with pytest.raises(errors.StoreUnavailable, match="was restarted or replaced"):
        run(store.write([record]))
    run(store.close())


def test_settings_that_are_changed_while_the_server_runs_are_seen_at_the_next_write(
    start: Start, caplog: pytest.LogCaptureFixture
):
    server = start(appendonly=True, appendfsync="always")
    backend = RedisBackend(parse_address(server.url), 100)
    (opening,) = backend.open_many([asks("s")], NOW_S)
    record = record_of("s", opening.epoch)
    assert backend.write([record]).place == ""
    server.call("CONFIG", "SET", "appendfsync", "everysec")
    assert backend.write([record]).place != ""
    server.call("CONFIG", "SET", "appendonly", "no")
    with pytest.raises(BackendError, match="its appendonly was set to no while it ran"):
        backend.settle()
    assert "has appendonly off" not in caplog.text
    assert backend.write([record]).place == ""  # no more can be had
    assert "has appendonly off" in caplog.text
    server.call("CONFIG", "SET", "appendonly", "yes")
    assert backend.write([record]).place == backend.settle()
    backend.close()


def test_command_that_a_server_refuses_for_a_reason_unheard_of_is_no_bug():
    address, error = parse_address("redis://host"), exceptions.ResponseError("unheard of")
    with pytest.raises(BackendError, match=r"it refuses WAITAOF \(unheard of\)"), explained(address):
        raise refused("WAITAOF", error)
    with pytest.raises(exceptions.ResponseError), explained(address):
        raise refused("EVAL", error)


# -- what arrives late -----


def test_write_that_was_given_up_and_arrives_late_changes_nothing(backend: RedisBackend):
    """Its bytes lie in a connection that is closed here and not yet read there."""
    opening, other = backend.open_many([asks("s"), asks("t")], NOW_S)
    late, send = [], backend._run

    def hold(commands: list[tuple[object, ...]]) -> list[object]:
        late.append(commands)
        raise BackendError("it did not answer")

    backend._run = hold
    with pytest.raises(BackendError):
        backend.write([record_of("s", opening.epoch, step=10), record_of("t", other.epoch, step=10)])
    backend._run = send
    assert backend.write([record_of("s", opening.epoch, step=12)]).refusals == [None]
    send(late[0])
    assert [backend.read(name).step for name in "st"] == [12, 10]  # what nobody has written since takes it


def test_writes_are_counted_anew_from_each_opening_on(backend: RedisBackend):
    other = RedisBackend(backend._address, 100)
    for number, one in enumerate([backend, backend, other, backend], 1):  # the other's numbers are behind
        (opening,) = one.open_many([asks("s")], NOW_S)
        assert one.write([record_of("s", opening.epoch, step=number)]).refusals == [None]
        assert backend.read("s").step == number
    other.close()


# -- the least that a user must be allowed -----


def test_user_with_the_documented_rights_is_enough(start: Start, run: Run):
    page = (Path(__file__).parent.parent / "docs" / "stores.md").read_text()
    (words,) = [line for line in page.splitlines() if line.startswith("ACL SETUSER longshort ")]
    server = start(appendonly=True)
    assert server.call(*words.replace("'", "").split()) == "+OK"
    store = open_store(server, f"redis://longshort:secret@127.0.0.1:{server.port}")

    async def scenario() -> None:
        record = await stored(store, "s")
        assert (await opened(store, "s")).found is Found.OPENED
        assert (await store.read("s")).step == record.step
        assert await store.list_ids("", "", 9) == ["s"]
        assert await store.has_records_of("toy", 1)
        idle = await store.idle_since(1e12, 9)
        assert await store.bury_many(idle, 1e12, NOW_S) == [True]
        assert await store.forget_tombstones(1e12) == 1
        assert await store.delete_many([("s", None)]) == [False]
        await store.ping()

    run(scenario())
    run(store.close())


# -- sentinels -----


def test_sentinels_tell_the_new_primary_after_a_failover(start: Start, tmp_path: Path, run: Run):
    primary, replica = start(), start()
    replica.call("REPLICAOF", "127.0.0.1", str(primary.port))
    sentinel = valkey.start_sentinel(tmp_path / "sentinel", primary)
    try:
        store = open_store(primary, f"redis+sentinel://127.0.0.1:{sentinel.port}/longshort")
        record = run(stored(store, "s"))
        _wait_for(lambda: _is_replica_known(sentinel))
        length = ("HSTRLEN", "longshort:s:s", "r")
        _wait_for(lambda: replica.call(*length) == primary.call(*length))
        primary.kill()
        with pytest.raises(errors.StoreUnavailable):
            run(store.write([record]))
        _wait_for(lambda: _is_back(store, run))
        assert run(store.write([record])) == [None]
        assert same(run(store.read("s")), record)
        run(store.close())
    finally:
        sentinel.kill()


def _wait_for(condition: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.1)


def _is_replica_known(sentinel: Valkey) -> bool:
    return sentinel.call("SENTINEL", "REPLICAS", "longshort") != "*0"


def _is_back(store: Store, run: Run) -> bool:
    try:
        run(store.ping())
    except errors.StoreUnavailable:
        return False
    return True
