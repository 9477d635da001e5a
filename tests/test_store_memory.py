"""What the store in memory does in its own way: it hands records over, and bounds its tombstones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longshort_service.stores.base import Found, OpenMode
from longshort_service.stores.memory import MemoryStore
from store_records import NOW_S, bury_one, created, opened, stored

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., object]


def test_record_is_handed_over_at_an_opening(run: Run):
    async def scenario() -> None:
        store = MemoryStore()
        record = await stored(store, "s")
        assert (await opened(store, "s")).record is record
        assert store.num_records() == 0
        assert (await opened(store, "s")).record is None

    run(scenario())


def test_live_session_is_not_buried(run: Run):
    """Of a session that is live there is no record: when it was used last is not known here."""

    async def scenario() -> None:
        store = MemoryStore()
        assert not await bury_one(store, "s", await created(store, "s"))

    run(scenario())


def test_oldest_tombstones_are_forgotten_beyond_the_limit(run: Run):
    async def scenario() -> None:
        store = MemoryStore(max_entries=2)
        record = await stored(store, "a")
        assert await bury_one(store, "a", record.epoch, now_s=0.0)
        entries = [(name, (await stored(store, name)).epoch) for name in "bc"]
        assert await store.bury_many(entries, 1e12, NOW_S) == [True, True]
        found = [(await opened(store, name, OpenMode.OPEN)).found for name in "abc"]
        assert found == [Found.ABSENT, Found.EXPIRED, Found.EXPIRED]

    run(scenario())
