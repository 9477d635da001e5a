"""What every store promises, against each store that there is."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from longshort_service import errors
from longshort_service.stores.base import Found, OpenMode, Store, StoreOpening, open_one
from longshort_service.stores.memory import MemoryStore
from tables import TableModel, move, new_session, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from longshort_service.record import SessionRecord

    Run = Callable[[Coroutine[Any, Any, Any]], Any]

STORES = {"memory": MemoryStore}


@pytest.fixture(params=sorted(STORES))
def store(request: pytest.FixtureRequest, run: Run):
    made: Store = STORES[request.param]()
    yield made
    run(made.close())


def record_of(session_id: str, epoch: int, last_used_s: float = 0.0) -> SessionRecord:
    _table, session = new_session(TableModel(), session_id)
    move(session, rows_of(1), 0)
    return dataclasses.replace(session.record(), epoch=epoch, last_used_s=last_used_s)


async def created(store: Store, session_id: str) -> int:
    opening = await open_one(store, session_id, OpenMode.CREATE)
    assert opening.found is Found.CREATED
    return opening.epoch


async def stored(store: Store, session_id: str, last_used_s: float = 0.0) -> SessionRecord:
    record = record_of(session_id, await created(store, session_id), last_used_s)
    assert await store.write([record]) == [True]
    return record


async def delete_one(store: Store, session_id: str) -> bool:
    (was_there,) = await store.delete_many([session_id])
    return was_there


async def bury_one(store: Store, session_id: str, epoch: int, now_s: float) -> bool:
    (is_buried,) = await store.bury_many([(session_id, epoch)], now_s)
    return is_buried


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
    opening = run(open_one(store, "s", mode))
    assert (opening.found, opening.record) == (found, None)
    assert run(store.list_ids("", "", 9)) == (["s"] if found is Found.CREATED else [])


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
    opening = run(open_one(store, "s", mode))
    assert opening.found is found
    if found is Found.OPENED:
        assert opening.previous_epoch == record.epoch
        assert opening.epoch > record.epoch
        assert str(opening.record) == str(record)
    else:  # nothing has changed
        assert run(store.write([record])) == [True]


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
    assert run(bury_one(store, "s", record.epoch, 1.0))
    opening = run(open_one(store, "s", mode))
    assert opening == StoreOpening(found, 0, opening.epoch)
    if found is Found.EXPIRED:
        with pytest.raises(errors.SessionExpired):
            run(store.read("s"))
    else:  # the tombstone is gone with the new session
        assert run(store.read("s")) is None
        assert run(store.forget_tombstones(9.0)) == 0


def test_opening_what_was_never_written_finds_no_record(store: Store, run: Run):
    epoch = run(created(store, "s"))
    opening = run(open_one(store, "s", OpenMode.OPEN))
    assert (opening.found, opening.previous_epoch, opening.record) == (Found.OPENED, epoch, None)


def test_epochs_are_never_used_again_over_delete_and_expiry(store: Store, run: Run):
    async def epochs() -> list[int]:
        found = [await created(store, "s"), (await open_one(store, "s", OpenMode.OPEN)).epoch]
        await delete_one(store, "s")
        found += [await created(store, "s"), await created(store, "t")]
        await bury_one(store, "s", found[2], 1.0)
        return [*found, await created(store, "s")]

    found = run(epochs())
    assert found == sorted(set(found))


# -- writing -----


def test_write_is_accepted_only_with_the_entry_s_very_epoch(store: Store, run: Run):
    async def scenario() -> None:
        record = await stored(store, "s")
        newer = await open_one(store, "s", OpenMode.OPEN)
        stale = dataclasses.replace(record, step=99)
        future = dataclasses.replace(record, epoch=newer.epoch + 1)
        nobody = dataclasses.replace(record, session_id="nobody")
        fitting = dataclasses.replace(record, epoch=newer.epoch, step=5)
        assert await store.write([stale, future, nobody, fitting]) == [False, False, False, True]
        found = await store.read("s")
        assert found is not None
        assert found.step == 5
        assert await store.read("nobody") is None

    run(scenario())


def test_write_after_delete_is_refused(store: Store, run: Run):
    record = run(stored(store, "s"))
    assert run(delete_one(store, "s"))
    assert run(store.write([record])) == [False]
    assert run(store.read("s")) is None
    assert not run(delete_one(store, "s"))


def test_reading_raises_no_epoch(store: Store, run: Run):
    record = run(stored(store, "s"))
    assert str(run(store.read("s"))) == str(record)
    assert run(store.write([record])) == [True]


# -- the end of sessions -----


def test_burying_needs_the_entry_s_epoch(store: Store, run: Run):
    record = run(stored(store, "s"))
    assert not run(bury_one(store, "s", record.epoch + 1, 1.0))
    assert not run(bury_one(store, "nobody", 1, 1.0))
    assert run(bury_one(store, "s", record.epoch, 1.0))
    assert store.num_records() == 0
    assert run(store.list_ids("", "", 9)) == []


def test_tombstones_are_forgotten_when_they_are_old_enough(store: Store, run: Run):
    async def scenario() -> None:
        for made_s, name in enumerate("abc"):
            record = await stored(store, name)
            await bury_one(store, name, record.epoch, float(made_s))
        assert await store.forget_tombstones(2.0) == 2
        assert (await open_one(store, "a", OpenMode.OPEN)).found is Found.ABSENT
        assert (await open_one(store, "c", OpenMode.OPEN)).found is Found.EXPIRED

    run(scenario())


def test_idle_records_are_those_last_used_before_a_time(store: Store, run: Run):
    async def scenario() -> None:
        for used_s, name in enumerate("abcd"):
            await stored(store, name, float(used_s))
        assert {record.session_id for record in await store.idle_since(2.0, 9)} == {"a", "b"}
        assert len(await store.idle_since(2.0, 1)) == 1
        assert len({record.session_id for record in await store.idle_since(9.0, 3)}) == 3
        await created(store, "never-written")
        assert len(await store.idle_since(9.0, 9)) == 4

    run(scenario())


def test_rewritten_record_is_idle_by_its_last_use(store: Store, run: Run):
    async def scenario() -> None:
        record = await stored(store, "a", 0.0)
        await stored(store, "b", 1.0)
        await store.write([dataclasses.replace(record, last_used_s=5.0)])
        assert [found.session_id for found in await store.idle_since(3.0, 9)] == ["b"]

    run(scenario())


# -- many at once -----


def test_many_are_opened_each_in_its_own_way(store: Store, run: Run):
    async def scenario() -> None:
        record = await stored(store, "stored")
        expired = await stored(store, "expired")
        await bury_one(store, "expired", expired.epoch, 1.0)
        openings = await store.open_many(
            [
                ("new", OpenMode.OPEN_OR_CREATE),
                ("stored", OpenMode.OPEN),
                ("expired", OpenMode.OPEN),
                ("absent", OpenMode.OPEN),
            ]
        )
        found = [opening.found for opening in openings if isinstance(opening, StoreOpening)]
        assert found == [Found.CREATED, Found.OPENED, Found.EXPIRED, Found.ABSENT]
        opened = openings[1]
        assert isinstance(opened, StoreOpening)
        assert str(opened.record) == str(record)
        assert (await open_one(store, "stored", OpenMode.CREATE)).found is Found.EXISTS
        epochs = [opening.epoch for opening in openings[:2] if isinstance(opening, StoreOpening)]
        assert len({*epochs, record.epoch}) == 3

    run(scenario())


def test_many_are_deleted_and_buried_and_each_is_told_of(store: Store, run: Run):
    async def scenario() -> None:
        records = [await stored(store, name) for name in "abcd"]
        assert await store.delete_many(["a", "nobody"]) == [True, False]
        entries = [("b", records[1].epoch), ("c", records[2].epoch + 99), ("a", records[0].epoch)]
        assert await store.bury_many(entries, 1.0) == [True, False, False]
        assert await store.list_ids("", "", 9) == ["c", "d"]
        assert (await open_one(store, "b", OpenMode.OPEN)).found is Found.EXPIRED
        assert (await open_one(store, "a", OpenMode.OPEN)).found is Found.ABSENT

    run(scenario())


def test_call_about_nothing_does_nothing(store: Store, run: Run):
    async def scenario() -> None:
        assert await store.open_many([]) == []
        assert await store.write([]) == []
        assert await store.delete_many([]) == []
        assert await store.bury_many([], 1.0) == []

    run(scenario())


# -- limits -----


def test_memory_opens_as_many_at_once_as_it_may_keep(run: Run):
    async def scenario() -> None:
        store = MemoryStore(max_entries=2)
        openings = await store.open_many([(name, OpenMode.OPEN_OR_CREATE) for name in "abc"])
        assert [isinstance(opening, errors.SessionsExhausted) for opening in openings] == [False, False, True]
        assert await store.list_ids("", "", 9) == ["a", "b"]

    run(scenario())


def test_memory_forgets_as_many_tombstones_as_are_too_many(run: Run):
    async def scenario() -> None:
        store = MemoryStore(max_entries=2)
        await bury_one(store, "a", await created(store, "a"), 0.0)
        entries = [(name, await created(store, name)) for name in "bc"]
        assert await store.bury_many(entries, 1.0) == [True, True]
        found = [(await open_one(store, name, OpenMode.OPEN)).found for name in "abc"]
        assert found == [Found.ABSENT, Found.EXPIRED, Found.EXPIRED]

    run(scenario())


def test_memory_takes_no_more_sessions_than_its_limit(run: Run):
    async def scenario() -> None:
        store = MemoryStore(max_entries=2)
        record = await stored(store, "a")
        await created(store, "b")
        with pytest.raises(errors.SessionsExhausted) as caught:
            await open_one(store, "c", OpenMode.OPEN_OR_CREATE)
        assert caught.value.metadata == {"max_stored_sessions": "2"}
        assert (await open_one(store, "c", OpenMode.OPEN)).found is Found.ABSENT
        assert (await open_one(store, "b", OpenMode.OPEN)).found is Found.OPENED  # what is there is served
        assert await store.write([record]) == [True]
        await delete_one(store, "a")
        assert (await open_one(store, "c", OpenMode.OPEN_OR_CREATE)).found is Found.CREATED

    run(scenario())


def test_memory_forgets_the_oldest_tombstone_beyond_its_limit(run: Run):
    async def scenario() -> None:
        store = MemoryStore(max_entries=2)
        for made_s, name in enumerate("abc"):
            await bury_one(store, name, await created(store, name), float(made_s))
        found = [(await open_one(store, name, OpenMode.OPEN)).found for name in "abc"]
        assert found == [Found.ABSENT, Found.EXPIRED, Found.EXPIRED]

    run(scenario())


# -- listing and counting -----


def test_ids_come_in_order_in_pages_and_by_prefix(store: Store, run: Run):
    async def scenario() -> None:
        for name in ("b2", "a1", "b1", "a", "c"):
            await created(store, name)
        assert await store.list_ids("", "", 2) == ["a", "a1"]
        assert await store.list_ids("", "a1", 9) == ["b1", "b2", "c"]
        assert await store.list_ids("a", "", 9) == ["a", "a1"]
        assert await store.list_ids("x", "", 9) == []

    run(scenario())


def test_records_are_counted(store: Store, run: Run):
    assert store.num_records() == 0
    record = run(stored(store, "s"))
    run(created(store, "t"))
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
        await delete_one(store, "s")
        assert not await store.has_records_of("toy", 1)

    run(scenario())
