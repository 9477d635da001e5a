"""Making room and sweeping in batches: who leaves, how many at a time, and that nobody loses a step by it."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from house import House, SlowStore
from longshort_service import errors
from longshort_service.opener import OpenRequest
from longshort_service.stores.base import open_one
from longshort_service.stores.memory import MemoryStore
from tables import RecordingOwner, asked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from longshort_service.record import SessionRecord
    from longshort_service.repository import Model
    from longshort_service.session import Session
    from longshort_service.stores.base import Refusal

    Play = Callable[..., None]

ROWS = 64


@pytest.fixture
def play(run: Callable[..., Any], adders: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Run a scenario in a house with rows for many."""
    monkeypatch.setattr("house.ROWS", ROWS)

    def play_in(scenario: Callable[[House], Awaitable[None]], **house: Any) -> None:
        async def limited() -> None:
            async with asyncio.timeout(20), House(adders, **({"max_sessions": ROWS} | house)) as built:
                await scenario(built)

        run(limited())

    return play_in


async def idle_sessions(house: House, count: int) -> list[Session[Model]]:
    """Return sessions that have moved one step and are idle, the longest idle first."""
    sessions = []
    for k in range(count):
        house.now_s += 0.001
        session = await house.open(f"s{k}")
        await house.step(session, 5)
        house.leave(session)
        sessions.append(session)
    return sessions


def test_where_every_opening_drives_one_out_they_leave_in_batches(
    play: Play, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("longshort_service.eviction.SLACK_SHARE", 4)

    async def scenario(house: House) -> None:
        sessions = await idle_sessions(house, 16)
        await house.open("new")
        assert [session.is_ended for session in sessions] == [True] * 5 + [False] * 11
        for k in range(4):
            await house.open(f"new{k}")
        assert len(house.notes.of("eviction")) == 5
        await house.open("s0")
        assert len(house.notes.of("eviction")) == 10

    play(scenario, max_sessions=16)


def test_never_more_are_in_memory_than_may_be_however_many_come_at_once(play: Play):
    async def scenario(house: House) -> None:
        await idle_sessions(house, 10)
        owner = RecordingOwner()
        requests = [OpenRequest(f"new{k}", model="adder") for k in range(30)]
        calls = [
            house.keeper.open_many(requests[:14], owner),
            *(house.keeper.open(request, owner) for request in requests[14:]),
            house.evictor.sweep(),
        ]
        under_way = asyncio.gather(*calls, return_exceptions=True)
        while not under_way.done():
            assert len(house.table) <= 12
            await asyncio.sleep(0)
        in_bulk, *others = await under_way
        exhausted = [isinstance(opened, errors.SessionsExhausted) for opened in [*in_bulk, *others[:-1]]]
        assert exhausted.count(False) == 12
        assert all(session.owner is owner for session in house.table)
        assert house.store.num_records() == 10

    play(scenario, store=SlowStore(), max_sessions=12)


def test_only_those_that_nobody_is_at_leave(play: Play):
    async def scenario(house: House) -> None:
        sessions = await idle_sessions(house, 6)
        house.now_s += 11
        streaming = await house.open("s1")
        async with house.keeper.turns.of("s2"):
            step = asyncio.ensure_future(house.step(sessions[3], *[1] * 12))
            await asyncio.sleep(0)
            await house.evictor.sweep()
            await step
        stayed = {session.id for session in house.table}
        assert stayed == {"s1", "s2", "s3"}
        assert streaming.id in stayed
        assert await house.step(sessions[2], 1) == [6]

    play(scenario)


@pytest.mark.parametrize("num_turns", range(8))
def test_session_stepped_while_its_batch_is_written_stays_alone(play: Play, num_turns: int):
    async def scenario(house: House) -> None:
        await idle_sessions(house, 5)
        house.now_s += 11
        sweep = asyncio.ensure_future(house.evictor.sweep())
        for _ in range(num_turns):
            await asyncio.sleep(0)
        session, _ = await house.keeper.ensure(OpenRequest("s2"))
        assert await house.step(session, 1) == [6]
        await sweep
        for k in range(5):
            again = await house.open(f"s{k}")
            assert (again.step, await house.step(again, 1)) == ((2, [7]) if k == 2 else (1, [6]))

    play(scenario, store=SlowStore())


def test_session_that_another_server_has_is_dropped_and_its_batch_mates_are_kept(play: Play):
    async def scenario(house: House) -> None:
        sessions = await idle_sessions(house, 4)
        elsewhere = await open_one(house.store, asked("s1"), house.now_s)
        moved = dataclasses.replace(sessions[1].record(), epoch=elsewhere.epoch, step=9)
        await house.store.write([moved])
        house.now_s += 11
        await house.evictor.sweep()
        assert len(house.table) == 0
        assert [(await house.management.get(f"s{k}")).record.step for k in range(4)] == [1, 9, 1, 1]
        assert house.notes.of("eviction") == [("idle",)] * 4

    play(scenario)


class BrokenStore(MemoryStore):
    """A store that cannot be written."""

    async def write(self, records: Sequence[SessionRecord], *, settled: bool = True) -> list[Refusal | None]:
        raise OSError(f"{len(records)} records, settled: {settled}, and no room")


def test_store_that_cannot_be_written_costs_no_session(play: Play):
    async def scenario(house: House) -> None:
        sessions = await idle_sessions(house, 3)
        house.now_s += 11
        for _ in range(2):
            with pytest.raises(OSError, match="3 records"):
                await house.evictor.sweep()
        assert len(house.keeper.turns) == 0
        assert await house.step(sessions[0], 1) == [6]

    play(scenario, store=BrokenStore())


def test_session_that_somebody_is_at_does_not_expire(play: Play):
    async def scenario(house: House) -> None:
        await idle_sessions(house, 3)
        house.now_s += 50
        await house.evictor.sweep()
        house.now_s += 51
        async with house.keeper.turns.of("s1"):
            await house.evictor.sweep()
        assert await house.store.list_ids("", "", 9) == ["s1"]
        assert house.notes.of("eviction") == [("idle",)] * 3 + [("expired",)] * 2
        await house.evictor.sweep()
        assert await house.store.list_ids("", "", 9) == []

    play(scenario)


def test_sweep_lets_others_through(play: Play, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("longshort_service.eviction.EVICTION_BATCH", 4)

    async def scenario(house: House) -> None:
        await idle_sessions(house, 40)
        house.now_s += 101
        sweep = asyncio.ensure_future(house.evictor.sweep())
        seen = set()
        while not sweep.done():
            seen.add((len(house.table), house.store.num_records()))
            await asyncio.sleep(0)
        await sweep
        assert len(seen) > 12
        assert (len(house.table), house.store.num_records()) == (0, 0)

    play(scenario)
