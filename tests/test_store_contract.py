"""What every store promises, against each store that there is."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

import pytest
import valkey
from longshort_service import errors
from longshort_service.record import Origin
from longshort_service.stores.base import (
    Birth,
    Found,
    OpenMode,
    Refusal,
    Store,
    StoreOpening,
    StoreRequest,
    open_one,
)
from longshort_service.stores.opening import make_store
from store_records import (
    BIRTH,
    NOW_S,
    TOY,
    asks,
    bury_one,
    created,
    delete_one,
    opened,
    record_of,
    same,
    stored,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path
    from typing import Any

    from valkey import Valkey

    Run = Callable[[Coroutine[Any, Any, Any]], Any]
    Make = Callable[..., Store]

STORES = ("memory", "sqlite", "redis", "redis-aof")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Valkey]]:
    folder = tmp_path_factory.mktemp("valkey")
    started = {
        "redis": valkey.start(folder / "plain"),
        "redis-aof": valkey.start(folder / "aof", appendonly=True, appendfsync="always"),
    }
    yield started
    for server in started.values():
        server.kill()


@pytest.fixture(params=STORES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(kind: str, servers: dict[str, Valkey], tmp_path: Path, run: Run) -> Iterator[Make]:
    """Return what makes a store; those of one test share what they keep, but for memory."""
    made: list[Store] = []
    if kind in servers:
        servers[kind].call("FLUSHALL")
    urls = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/s.db"}

    def another(max_entries: int = 1_000) -> Store:
        url = urls[kind] if kind in urls else servers[kind].url
        made.append(make_store(url, max_entries=max_entries, environ={}))
        return made[-1]

    yield another
    for store in made:
        run(store.close())


@pytest.fixture
def store(make: Make) -> Store:
    return make()


# -- opening -----


@pytest.mark.parametrize(
    ("mode", "found"),
    [
        (OpenMode.OPEN_OR_CREATE, Found.CREATED),
        (OpenMode.CREATE, Found.CREATED),
        (OpenMode.OPEN, Found.ABSENT),
    ],
)
def test_opening_what_is_not_there(store: Store, run: Run, mode: OpenMode, found: Found):
    opening = run(opened(store, "s", mode))
    assert (opening.found, opening.record) == (found, None)
    assert run(store.list_ids("", "", 9)) == (["s"] if found is Found.CREATED else [])


@pytest.mark.parametrize("mode", OpenMode)
def test_opening_without_a_birth_creates_nothing(store: Store, run: Run, mode: OpenMode):
    opening = run(open_one(store, asks("s", mode, birth=None), NOW_S))
    assert opening == StoreOpening(Found.ABSENT)
    assert run(store.list_ids("", "", 9)) == []


@pytest.mark.parametrize(
    ("mode", "found"),
    [
        (OpenMode.OPEN_OR_CREATE, Found.OPENED),
        (OpenMode.OPEN, Found.OPENED),
        (OpenMode.CREATE, Found.EXISTS),
    ],
)
def test_opening_what_is_there(store: Store, run: Run, mode: OpenMode, found: Found):
    record = run(stored(store, "s"))
    opening = run(opened(store, "s", mode))
    assert opening.found is found
    if found is Found.OPENED:
        assert opening.previous_epoch == record.epoch
        assert opening.epoch > record.epoch
        assert same(opening.record, record)
    else:  # nothing has changed
        assert run(store.write([record])) == [None]


@pytest.mark.parametrize(
    ("mode", "found"),
    [
        (OpenMode.OPEN_OR_CREATE, Found.EXPIRED),
        (OpenMode.OPEN, Found.EXPIRED),
        (OpenMode.CREATE, Found.CREATED),
    ],
)
def test_opening_what_has_expired(store: Store, run: Run, mode: OpenMode, found: Found):
    record = run(stored(store, "s"))
    assert run(bury_one(store, "s", record.epoch))
    opening = run(opened(store, "s", mode))
    assert opening == StoreOpening(found, 0, opening.epoch)
    if found is Found.EXPIRED:
        with pytest.raises(errors.SessionExpired):
            run(store.read("s"))
    else:  # the tombstone is gone with the new session
        assert run(store.forget_tombstones(1e12)) == 0
        run(store.read("s"))


def test_what_was_never_written_is_found_as_it_was_born_in_a_durable_store(store: Store, run: Run):
    epoch = run(created(store, "s"))
    opening = run(opened(store, "s", OpenMode.OPEN))
    assert (opening.found, opening.previous_epoch) == (Found.OPENED, epoch)
    if not store.is_durable:
        assert opening.record is None
        return
    record = opening.record
    assert (record.step, record.states, record.incarnation) == (0, (), BIRTH.incarnation)
    assert (record.epoch, record.last_used_s, record.origin) == (epoch, NOW_S, TOY)
    assert not record.is_gapless  # its owner may have answered values before it was gone


def test_opening_clears_the_mark_of_the_record(store: Store, run: Run):
    async def scenario() -> None:
        record = await stored(store, "s")
        assert (await opened(store, "s")).record.is_gapless
        if not store.is_durable:
            return  # it has handed its record over
        again = await opened(store, "s")
        assert again.record is not None
        assert not again.record.is_gapless
        assert same(dataclasses.replace(again.record, is_gapless=True), record)
        await store.write([dataclasses.replace(record, epoch=again.epoch)])
        assert (await opened(store, "s")).record.is_gapless

    run(scenario())


@pytest.mark.parametrize("is_gapless", [False, True])
def test_mark_of_a_record_is_stored(store: Store, run: Run, *, is_gapless: bool):
    run(stored(store, "s", is_gapless=is_gapless))
    assert run(store.read("s")).is_gapless is is_gapless
    assert run(opened(store, "s")).record.is_gapless is is_gapless


def test_record_of_an_opening_is_settled_only_where_it_is_known_to_be(store: Store, run: Run):
    run(stored(store, "s"))
    assert run(opened(store, "s")).is_settled is store.is_durable


def test_epochs_are_never_used_again_over_delete_and_expiry(store: Store, run: Run):
    async def epochs() -> list[int]:
        found = [(await stored(store, "s")).epoch, (await opened(store, "s", OpenMode.OPEN)).epoch]
        await delete_one(store, "s")
        found += [(await stored(store, "s")).epoch, await created(store, "t")]
        assert await bury_one(store, "s", found[2])
        return [*found, await created(store, "s")]

    found = run(epochs())
    assert found == sorted(set(found))


# -- writing -----


def test_write_is_accepted_only_with_the_entry_s_very_epoch(store: Store, run: Run):
    async def scenario() -> None:
        record = await stored(store, "s")
        newer = await opened(store, "s", OpenMode.OPEN, client_id="other")
        moved = Refusal(is_gone=False)
        if store.is_durable:  # by this very process, without another between
            moved = Refusal(
                is_gone=False, client_id="other", epoch=newer.epoch, owned_since=newer.owned_since
            )
            assert newer.owned_since == record.epoch
        stale = dataclasses.replace(record, step=99)
        future = dataclasses.replace(record, epoch=newer.epoch + 1)
        nobody = dataclasses.replace(record, session_id="nobody")
        fitting = record_of("s", newer.epoch, step=7)
        assert await store.write([stale]) == [moved]
        assert await store.write([future]) == [moved]
        assert await store.write([nobody, fitting]) == [Refusal(is_gone=True), None]
        assert same(await store.read("s"), fitting)
        assert await store.read("nobody") is None

    run(scenario())


def test_write_that_is_not_waited_for_is_accepted(store: Store, run: Run):
    async def scenario() -> None:
        record = record_of("s", await created(store, "s"))
        assert await store.write([record], settled=False) == [None]
        assert same(await store.read("s"), record)

    run(scenario())


def test_write_after_the_end_is_refused(store: Store, run: Run):
    async def scenario() -> None:
        record, expired = await stored(store, "s"), await stored(store, "t")
        assert await delete_one(store, "s")
        assert await bury_one(store, "t", expired.epoch)
        assert await store.write([record, expired]) == [Refusal(is_gone=True)] * 2
        assert await store.read("s") is None
        assert not await delete_one(store, "s")

    run(scenario())


def test_reading_raises_no_epoch(store: Store, run: Run):
    record = run(stored(store, "s"))
    assert same(run(store.read("s")), record)
    assert run(store.write([record])) == [None]


def test_ids_of_any_printable_sign_are_kept_apart(store: Store, run: Run):
    async def scenario() -> None:
        names = [chr(code) for code in range(0x21, 0x7F)] + ["%", "_", "';--", "*", "a" * 256, "A"]
        records = {name: await stored(store, name) for name in dict.fromkeys(names)}
        for name, record in records.items():
            assert same(await store.read(name), record)
        assert await store.list_ids("", "", 999) == sorted(records)

    run(scenario())


# -- the end of sessions -----


def test_burying_needs_the_entry_s_epoch(store: Store, run: Run):
    record = run(stored(store, "s"))
    assert not run(bury_one(store, "s", record.epoch + 1))
    assert not run(bury_one(store, "nobody", 1))
    assert run(bury_one(store, "s", record.epoch))
    assert store.num_records() == 0
    assert run(store.list_ids("", "", 9)) == []


def test_what_was_used_since_is_not_buried(store: Store, run: Run):
    record = run(stored(store, "s", 5.0))
    assert not run(bury_one(store, "s", record.epoch, before_s=5.0))
    assert run(bury_one(store, "s", record.epoch, before_s=5.5))


def test_tombstones_are_forgotten_when_they_are_old_enough(store: Store, run: Run):
    async def scenario() -> None:
        for made_s, name in enumerate("abc"):
            record = await stored(store, name)
            await bury_one(store, name, record.epoch, float(made_s))
        assert await store.forget_tombstones(2.0) == 2
        assert (await opened(store, "a", OpenMode.OPEN)).found is Found.ABSENT
        assert (await opened(store, "c", OpenMode.OPEN)).found is Found.EXPIRED

    run(scenario())


def test_idle_sessions_are_those_last_used_before_a_time(store: Store, run: Run):
    async def scenario() -> None:
        records = {name: await stored(store, name, float(used_s)) for used_s, name in enumerate("abcd")}
        idle = await store.idle_since(2.0, 9)
        assert sorted(idle) == [(name, records[name].epoch) for name in "ab"]
        assert len(await store.idle_since(2.0, 1)) == 1
        assert len(set(await store.idle_since(9.0, 3))) == 3
        assert len(await store.idle_since(9.0, 9)) == 4

    run(scenario())


def test_rewritten_record_is_idle_by_its_last_use(store: Store, run: Run):
    async def scenario() -> None:
        record = await stored(store, "a", 0.0)
        other = await stored(store, "b", 1.0)
        await store.write([dataclasses.replace(record, last_used_s=5.0)])
        assert await store.idle_since(3.0, 9) == [("b", other.epoch)]

    run(scenario())


# -- many at once -----


def test_many_are_opened_each_in_its_own_way(store: Store, run: Run):
    async def scenario() -> None:
        record = await stored(store, "stored")
        expired = await stored(store, "expired")
        await bury_one(store, "expired", expired.epoch)
        requests = [
            asks("new"),
            asks("stored", OpenMode.OPEN),
            asks("expired", OpenMode.OPEN),
            asks("absent", OpenMode.OPEN),
        ]
        openings = await store.open_many(requests, NOW_S)
        found = [opening.found for opening in openings if isinstance(opening, StoreOpening)]
        assert found == [Found.CREATED, Found.OPENED, Found.EXPIRED, Found.ABSENT]
        one, other = openings[:2]
        assert isinstance(one, StoreOpening)
        assert isinstance(other, StoreOpening)
        assert same(other.record, record)
        assert (await opened(store, "stored", OpenMode.CREATE)).found is Found.EXISTS
        assert len({one.epoch, other.epoch, record.epoch}) == 3

    run(scenario())


def test_hundreds_go_in_one_call(store: Store, run: Run):
    async def scenario() -> None:
        names = [f"s{k:03}" for k in range(300)]
        openings = await store.open_many([asks(name) for name in names], NOW_S)
        epochs = [opening.epoch for opening in openings if isinstance(opening, StoreOpening)]
        assert len(set(epochs)) == 300
        records = [record_of(name, epoch) for name, epoch in zip(names, epochs, strict=True)]
        assert await store.write(records) == [None] * 300
        again = await store.open_many([asks(name) for name in names[::3]], NOW_S)
        for opening, record in zip(again, records[::3], strict=True):
            assert isinstance(opening, StoreOpening)
            assert same(opening.record, record)
        refusals = await store.write(records)
        assert [refusal is None for refusal in refusals] == [k % 3 != 0 for k in range(300)]
        assert await store.delete_many([(name, None) for name in names]) == [True] * 300
        assert store.num_records() == 0

    run(scenario())


def test_many_are_deleted_and_buried_and_each_is_told_of(store: Store, run: Run):
    async def scenario() -> None:
        records = [await stored(store, name) for name in "abcd"]
        assert await store.delete_many([("a", None), ("nobody", None)]) == [True, False]
        entries = [("b", records[1].epoch), ("c", records[2].epoch + 99), ("a", records[0].epoch)]
        assert await store.bury_many(entries, 1e12, NOW_S) == [True, False, False]
        assert await store.list_ids("", "", 9) == ["c", "d"]
        assert (await opened(store, "b", OpenMode.OPEN)).found is Found.EXPIRED
        assert (await opened(store, "a", OpenMode.OPEN)).found is Found.ABSENT

    run(scenario())


def test_call_about_nothing_does_nothing(store: Store, run: Run):
    async def scenario() -> None:
        assert await store.open_many([], NOW_S) == []
        assert await store.write([]) == []
        assert await store.delete_many([]) == []
        assert await store.bury_many([], 1.0, 1.0) == []

    run(scenario())


# -- limits -----


def test_as_many_are_opened_at_once_as_may_be_kept(make: Make, run: Run):
    async def scenario() -> None:
        store = make(2)
        openings = await store.open_many([asks(name) for name in "abc"], NOW_S)
        assert [isinstance(opening, errors.SessionsExhausted) for opening in openings] == [False, False, True]
        assert await store.list_ids("", "", 9) == ["a", "b"]

    run(scenario())


def test_no_more_sessions_are_taken_than_the_limit(make: Make, run: Run):
    async def scenario() -> None:
        store = make(2)
        record = await stored(store, "a")
        await created(store, "b")
        with pytest.raises(errors.SessionsExhausted) as caught:
            await opened(store, "c")
        assert caught.value.metadata == {"max_stored_sessions": "2"}
        assert (await opened(store, "c", OpenMode.OPEN)).found is Found.ABSENT
        assert (await opened(store, "b", OpenMode.OPEN)).found is Found.OPENED  # what is there is served
        assert await store.write([record]) == [None]
        await delete_one(store, "a")
        assert (await opened(store, "c")).found is Found.CREATED

    run(scenario())


# -- listing and counting -----


def test_ids_come_in_order_in_pages_and_by_prefix(store: Store, run: Run):
    async def scenario() -> None:
        for name in ("b2", "a1", "b1", "a", "c"):
            await created(store, name)
        assert await store.list_ids("", "", 2) == ["a", "a1"]
        assert await store.list_ids("", "a1", 9) == ["b1", "b2", "c"]
        assert await store.list_ids("a", "", 9) == ["a", "a1"]
        assert await store.list_ids("a", "a", 9) == ["a1"]
        assert await store.list_ids("b", "a1", 9) == ["b1", "b2"]
        assert await store.list_ids("a", "b1", 9) == []
        assert await store.list_ids("x", "", 9) == []
        assert await store.list_ids("\u00e4", "", 9) == []

    run(scenario())


def test_records_are_counted(store: Store, run: Run):
    assert store.num_records() == 0
    record = run(stored(store, "s"))
    assert store.num_records() == 1
    run(store.write([record]))
    assert store.num_records() == 1
    run(delete_one(store, "s"))
    assert store.num_records() == 0


def test_stored_records_are_known_by_model_and_version(store: Store, run: Run):
    async def scenario() -> None:
        assert not await store.has_records_of("toy", 1)
        record = await stored(store, "s")
        await store.write([record])  # again: it is one record
        assert await store.has_records_of("toy", 1)
        assert not await store.has_records_of("toy", 2)
        assert not await store.has_records_of("other", 1)
        await store.write([dataclasses.replace(record, origin=Origin("other", 2, "f2"))])
        assert not await store.has_records_of("toy", 1)
        assert await store.has_records_of("other", 2)
        await delete_one(store, "s")
        assert not await store.has_records_of("other", 2)

    run(scenario())


def test_ping_goes_well_and_says_that_the_store_is_there(store: Store, run: Run):
    run(store.ping())
    assert store.away_since_s is None
    assert run(store.list_ids("", "", 9)) == []


# -- two servers, one store -----


def test_two_stores_that_race_never_both_write(make: Make, kind: str, run: Run):
    """Each owner opens, writes twice and counts what was accepted: nobody writes after another has opened."""
    if kind == "memory":
        return  # nobody else has it
    one, other = make(), make()
    log: list[tuple[int, int]] = []  # epoch, number of its write; in the order of acceptance within an epoch

    async def own(store: Store, client_id: str) -> list[int]:
        epochs = []
        for _ in range(40):
            opening = await opened(store, "s", client_id=client_id)
            epochs.append(opening.epoch)
            for k in range(1, 3):
                (refusal,) = await store.write([record_of("s", opening.epoch, step=k)])
                if refusal is None:
                    log.append((opening.epoch, k))
                else:
                    assert not refusal.is_gone
        return epochs

    async def scenario() -> None:
        epochs = await asyncio.gather(own(one, "one"), own(other, "other"))
        drawn = [epoch for mine in epochs for epoch in mine]
        assert len(set(drawn)) == len(drawn)
        record = await one.read("s")
        assert record is not None
        assert (record.epoch, record.step) == max(log)

    run(scenario())


def test_what_one_store_has_written_another_opens(make: Make, kind: str, run: Run):
    if kind == "memory":
        return  # nobody else has it

    async def scenario() -> None:
        one, other = make(), make()
        record = await stored(one, "s")
        opening = await opened(other, "s", OpenMode.OPEN, client_id="thief")
        assert same(opening.record, record)
        assert opening.owned_since == 0
        refusal = Refusal(is_gone=False, client_id="thief", epoch=opening.epoch)
        assert await one.write([record]) == [refusal]
        # The run of openings begins anew with each change of hands, and goes on without one.
        back = await opened(one, "s", OpenMode.OPEN)
        again = await opened(one, "s", OpenMode.OPEN)
        assert (back.owned_since, again.owned_since) == (0, back.epoch)

    run(scenario())


def test_deletion_may_be_of_an_epoch_alone(store: Store, run: Run):
    async def scenario() -> None:
        record = await stored(store, "s")
        newer = await opened(store, "s", OpenMode.OPEN)
        assert await store.delete_many([("s", record.epoch)]) == [False]
        assert await store.delete_many([("s", newer.epoch)]) == [True]
        assert await store.delete_many([("s", None)]) == [False]

    run(scenario())


def test_session_is_created_with_the_record_that_it_begins_with(store: Store, run: Run):
    if not store.is_durable:
        return  # its record stays with who creates it

    async def scenario() -> None:
        copy = record_of("other", 0, step=7)
        request = StoreRequest("s", OpenMode.CREATE, birth=Birth(copy.origin, copy.incarnation, copy))
        opening = await open_one(store, request, 0.0)
        found = await store.read("s")
        assert found is not None
        assert (found.session_id, found.epoch, found.step) == ("s", opening.epoch, 7)
        assert not found.is_gapless

    run(scenario())


def test_creation_that_finds_one_which_has_not_begun_is_told_whose_it_is(store: Store, run: Run):
    if not store.is_durable:
        return  # who is live here is known here

    async def scenario() -> None:
        born = await opened(store, "s", OpenMode.CREATE, client_id="me")
        assert (await opened(store, "s", OpenMode.CREATE, client_id="you")).client_id == "me"
        await store.write([record_of("s", born.epoch, step=1)])
        assert (await opened(store, "s", OpenMode.CREATE, client_id="me")).client_id == ""

    run(scenario())
