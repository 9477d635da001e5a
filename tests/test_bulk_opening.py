"""Many sessions opened at once are what they are when opened one by one, whoever comes between."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from house import House, SlowStore, reason_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inside import Gate, until
from longshort_service import errors
from longshort_service.opener import OpenRequest
from longshort_service.stores.base import OpenMode, open_one
from longshort_service.stores.memory import MemoryStore
from tables import RecordingOwner, asked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from longshort_service.opener import Opened

    Play = Callable[..., None]

OPEN, CREATE = OpenMode.OPEN, OpenMode.CREATE
ROWS = 64


@pytest.fixture
def play(run: Callable[..., Any], adders: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Run a scenario in a house with rows for many."""
    monkeypatch.setattr("house.ROWS", ROWS)

    def play_in(scenario: Callable[[House], Awaitable[Any]], **house: Any) -> Any:
        async def limited() -> Any:
            async with asyncio.timeout(20), House(adders, **({"max_sessions": ROWS} | house)) as built:
                return await scenario(built)

        return run(limited())

    return play_in


def requests_of(names: Sequence[str], **request: Any) -> list[OpenRequest]:
    return [OpenRequest(name, **({"model": "adder"} | request)) for name in names]


def told(outcomes: Sequence[Opened]) -> list[Any]:
    """Return what callers are told of openings."""
    return [
        (type(opened), opened.metadata)
        if isinstance(opened, errors.ServiceError)
        else (opened[0].id, opened[0].step, opened[1])
        for opened in outcomes
    ]


# -- against one by one -----

STATES = (
    "absent",
    "idle",
    "streaming",
    "stored",
    "expired",
    "busy",
    "foreign",
    "moved",
    "lost",
    "waited for",
)
ASKED = st.tuples(
    st.sampled_from(STATES),
    st.sampled_from(list(OpenMode)),
    st.sampled_from(["adder", "strict", "", "nobody"]),
    st.sampled_from([0, 1, 2]),
    st.integers(0, 5),  # whether it is asked for a second time, and where
)


async def prepare(house: House, name: str, state: str) -> list[asyncio.Future[Any]]:
    """Bring a session into a state; return the calls that are under way at it."""
    if state == "absent":
        return []
    if state == "lost":
        await open_one(house.store, asked(name, CREATE), house.now_s)
        return []
    session = await house.open(name)
    await house.step(session, 5)
    if state == "streaming":
        return []
    house.leave(session)
    if state in ("stored", "expired", "foreign"):
        record = session.record()
        house.table.remove(session)
        if state == "foreign":
            foreign = dataclasses.replace(record.origin, fingerprint="another")
            record = dataclasses.replace(record, origin=foreign)
        await house.store.write([record])
        if state == "expired":
            await house.store.bury_many([(name, record.epoch)], house.now_s + 1, 0.0)
    if state == "moved":
        elsewhere = await open_one(house.store, asked(name), house.now_s)
        await house.store.write([dataclasses.replace(session.record(), epoch=elsewhere.epoch, step=9)])
    if state in ("busy", "waited for"):
        calls = [asyncio.ensure_future(house.step(session, *[1] * 12))]
        await asyncio.sleep(0)
        if state == "waited for":
            calls.append(asyncio.ensure_future(house.keeper.ensure(OpenRequest(name))))
            await asyncio.sleep(0)
        return calls
    return []


async def outcome_of(house: House, asked: Sequence[tuple[Any, ...]], *, is_bulk: bool) -> Any:
    """Open all that is asked for; return all that can be seen of it."""
    under_way = []
    for k, (state, *_) in enumerate(asked):
        under_way += await prepare(house, f"s{k}", state)
    requests = [
        OpenRequest(f"s{k}", mode, model, version, "me")
        for k, (_, mode, model, version, _) in enumerate(asked)
    ]
    for k, (*_, second) in enumerate(asked):
        if second > 3:
            requests.insert(len(requests) - second % 2, requests[k])
    owner = RecordingOwner()
    if is_bulk:
        outcomes = await house.keeper.open_many(requests, owner)
    else:
        outcomes = []
        for request in requests:
            try:
                outcomes.append(await house.keeper.open(request, owner))
            except errors.ServiceError as error:
                outcomes.append(error)
    await asyncio.gather(*under_way)
    live = {
        session.id: (session.step, session.owner is owner, session.created_by, await house.step(session, 1))
        for session in sorted(house.table, key=lambda session: session.id)
    }
    names = [name for name, _ in await house.store.idle_since(float("inf"), 99)]
    stored = [str(getattr(await house.store.read(name), "states", None)) for name in names]
    lost = (sorted(owner.lost), len(house.notes.of("move")))
    return told(outcomes), live, sorted(stored), await house.store.list_ids("", "", 99), lost


@given(asked=st.lists(ASKED, min_size=1, max_size=8))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_many_are_opened_as_one_by_one(play: Play, asked: list[tuple[Any, ...]]):
    async def in_bulk(house: House) -> Any:
        return await outcome_of(house, asked, is_bulk=True)

    async def one_by_one(house: House) -> Any:
        return await outcome_of(house, asked, is_bulk=False)

    assert play(in_bulk) == play(one_by_one)


# -- the bulk -----


class CountingStore(MemoryStore):
    """Notes how many sessions each of its calls was about."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    async def open_many(self, requests: Any, now_s: float) -> Any:
        self.calls.append(("open", len(requests)))
        return await super().open_many(requests, now_s)

    async def write(self, records: Any, *, settled: bool = True) -> Any:
        self.calls.append(("write", len(records)))
        return await super().write(records, settled=settled)

    async def bury_many(self, entries: Any, before_s: float, now_s: float) -> Any:
        self.calls.append(("bury", len(entries)))
        return await super().bury_many(entries, before_s, now_s)


def test_store_is_asked_once_for_many(play: Play):
    store = CountingStore()

    async def scenario(house: House) -> None:
        names = [f"s{k}" for k in range(40)]
        owner = RecordingOwner()
        outcomes = await house.keeper.open_many(requests_of(names), owner)
        assert told(outcomes) == [(name, 0, True) for name in names]
        await house.keeper.detach_many(list(house.table), owner)
        house.now_s += 11
        await house.evictor.sweep()
        again = await house.keeper.open_many(requests_of(names, mode=OPEN), owner)
        assert told(again) == [(name, 0, False) for name in names]
        await house.keeper.detach_many(list(house.table), owner)
        house.now_s += 101
        await house.evictor.sweep()
        assert store.calls == [("open", 40), ("write", 40)] * 2 + [("bury", 40)]
        assert house.notes.of("eviction") == [("idle",)] * 80 + [("expired",)] * 40

    play(scenario, store=store)


def test_as_many_are_opened_as_there_is_room_for_and_those_that_come_first(play: Play):
    async def scenario(house: House) -> None:
        for name in ("idle", "other"):
            house.leave(await house.open(name))
        await house.open("streaming")
        outcomes = await house.keeper.open_many(requests_of("abcd"), RecordingOwner())
        assert told(outcomes)[:3] == [("a", 0, True), ("b", 0, True), ("c", 0, True)]
        assert isinstance(outcomes[3], errors.SessionsExhausted)
        assert house.store.num_records() == 2
        assert "d" not in await house.store.list_ids("", "", 9)

    play(scenario, max_sessions=4)


def test_as_many_are_opened_as_the_arena_has_rows(play: Play):
    async def scenario(house: House) -> None:
        arena = house.repository.get("adder").arena
        scratch = arena.allocate_many(ROWS - 3)
        outcomes = await house.keeper.open_many(requests_of("abcde"), RecordingOwner())
        assert [isinstance(opened, errors.SessionsExhausted) for opened in outcomes] == [False] * 3 + [
            True
        ] * 2
        assert await house.store.list_ids("", "", 9) == ["a", "b", "c"]
        arena.free(scratch)

    play(scenario)


def test_as_many_are_opened_as_the_store_keeps(play: Play):
    async def scenario(house: House) -> None:
        outcomes = await house.keeper.open_many(requests_of("abc"), RecordingOwner())
        assert [isinstance(opened, errors.SessionsExhausted) for opened in outcomes] == [False, False, True]

    play(scenario, store=MemoryStore(max_entries=2))


def test_openings_of_a_great_frame_let_others_through(play: Play, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("longshort_service.keeper.OPEN_BATCH", 4)

    async def scenario(house: House) -> None:
        opening = asyncio.ensure_future(
            house.keeper.open_many(requests_of([f"s{k}" for k in range(40)]), RecordingOwner())
        )
        seen = set()
        while not opening.done():
            seen.add(len(house.table))
            await asyncio.sleep(0)
        assert len(seen) > 5
        assert len(await opening) == 40

    play(scenario)


def test_refused_opening_deletes_no_entry_that_another_server_made(play: Play):
    async def scenario(house: House) -> None:
        await open_one(house.store, asked("theirs", CREATE), house.now_s)
        outcomes = await house.keeper.open_many(requests_of(["theirs", "ours"]), RecordingOwner())
        assert isinstance(outcomes[0], errors.SessionNotFound)
        assert told(outcomes)[1] == ("ours", 0, True)
        assert await house.store.list_ids("", "", 9) == ["ours", "theirs"]

    play(scenario)


# -- at the same time -----


def test_busy_session_is_waited_for_and_its_stream_is_told_first(play: Play):
    async def scenario(house: House) -> None:
        owner = RecordingOwner()
        session = await house.open("s", owner)
        gate = Gate.before(house.repository.get("adder").lane)
        step = asyncio.ensure_future(house.step(session, 5))
        await gate.arrival()
        opening = asyncio.ensure_future(house.keeper.open_many(requests_of(["s", "t"]), RecordingOwner()))
        await until(lambda: owner.ends, pause_s=0)
        assert not opening.done()
        gate.open()
        assert told(await opening) == [("s", 1, False), ("t", 0, True)]
        assert await step == [5]

    play(scenario)


def test_session_that_was_taken_by_a_call_that_left_is_nobody_s(play: Play):
    """A frame stream that lost it does not give it back: it would never be idle again."""

    async def scenario(house: House) -> None:
        owner = RecordingOwner()
        session = await house.open("s", owner)
        gate = Gate.before(house.repository.get("adder").lane)
        step = asyncio.ensure_future(house.step(session, 5))
        await gate.arrival()
        opening = asyncio.ensure_future(house.keeper.open_many(requests_of(["s"]), RecordingOwner()))
        await until(lambda: owner.ends, pause_s=0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        gate.open()
        assert await step == [5]
        await until(lambda: not len(house.keeper.turns))
        assert (session.owner, house.table.num_idle) == (None, 1)
        await house.spill(session)

    play(scenario)


@pytest.mark.parametrize("num_turns", range(10))
def test_session_opened_by_another_meanwhile_has_one_owner(play: Play, num_turns: int):
    async def scenario(house: House) -> None:
        names = list("abcd")
        bulk_owner, other = RecordingOwner(), RecordingOwner()
        bulk = asyncio.ensure_future(house.keeper.open_many(requests_of(names), bulk_owner))
        for _ in range(num_turns):
            await asyncio.sleep(0)
        session = await house.open("b", other)
        outcomes = await bulk
        assert [opened[1] for opened in outcomes].count(True) >= 3
        assert (session.owner, session.is_ended) in ((bulk_owner, False), (other, False))
        loser = bulk_owner if session.owner is other else other
        assert (loser.lost, session.owner.lost) == (["b"], [])
        assert [house.table.get(name).owner for name in "acd"] == [bulk_owner] * 3
        assert await house.step(session, 5) == [5]

    play(scenario, store=SlowStore())


@pytest.mark.parametrize("num_turns", range(10))
def test_two_frames_open_the_same_sessions_and_create_each_once(play: Play, num_turns: int):
    async def scenario(house: House) -> None:
        names = [f"s{k}" for k in range(6)]
        first, second = RecordingOwner(), RecordingOwner()
        calls = [asyncio.ensure_future(house.keeper.open_many(requests_of(names), first))]
        for _ in range(num_turns):
            await asyncio.sleep(0)
        calls.append(asyncio.ensure_future(house.keeper.open_many(requests_of(names[::-1]), second)))
        of_first, of_second = await asyncio.gather(*calls)
        created = [opened[1] for opened in [*of_first, *of_second]]
        assert created.count(True) == 6
        assert sorted([*first.lost, *second.lost]) == names
        for session in house.table:
            assert (session.id in first.lost) is (session.owner is second)

    play(scenario, store=SlowStore())


@pytest.mark.parametrize("num_turns", range(1, 16))
def test_call_cancelled_anywhere_leaves_every_session_whole_and_to_be_had(
    play: Play, monkeypatch: pytest.MonkeyPatch, num_turns: int
):
    monkeypatch.setattr("longshort_service.keeper.OPEN_BATCH", 3)

    async def scenario(house: House) -> None:
        names = [f"s{k}" for k in range(8)]
        session = await house.open("s0")
        await house.step(session, 5)
        house.leave(session)
        await house.spill(await house.open("s1"))
        owner = RecordingOwner()
        opening = asyncio.ensure_future(house.keeper.open_many(requests_of(names), owner))
        for _ in range(num_turns):
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait([opening])
        await until(lambda: not len(house.keeper.turns), pause_s=0)  # what was begun is carried to its end
        if opening.cancelled():
            assert [live.id for live in house.table if live.owner is owner] == []
        stored = await house.store.list_ids("", "", 99)
        assert {live.id for live in house.table} | {"s0", "s1"} == set(stored)
        outcomes = await house.keeper.open_many(requests_of(names), RecordingOwner())
        assert [opened[0].step for opened in outcomes] == [1, *[0] * 7]
        assert await house.step(house.table.get("s0"), 1) == [6]

    play(scenario, store=SlowStore())


@pytest.mark.parametrize("num_turns", range(12))
def test_sessions_opened_while_they_are_spilled_are_not_lost(play: Play, num_turns: int):
    async def scenario(house: House) -> None:
        names = [f"s{k}" for k in range(6)]
        for name in names:
            session = await house.open(name)
            await house.step(session, 5)
            house.leave(session)
        house.now_s += 11
        sweep = asyncio.ensure_future(house.evictor.sweep())
        for _ in range(num_turns):
            await asyncio.sleep(0)
        owner = RecordingOwner()
        outcomes = await house.keeper.open_many(requests_of(names), owner)
        await sweep
        assert told(outcomes) == [(name, 1, False) for name in names]
        for session, _ in outcomes:
            assert (session.owner, session.is_ended) == (owner, False)
            assert await house.step(session, 1) == [6]

    play(scenario, store=SlowStore())


def test_stream_that_is_cancelled_while_it_gives_back_gives_all_back(
    play: Play, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("longshort_service.keeper.DETACH_BATCH", 4)

    async def scenario(house: House) -> None:
        owner = RecordingOwner()
        await house.keeper.open_many(requests_of([f"s{k}" for k in range(20)]), owner)
        leaving = asyncio.ensure_future(house.keeper.detach_many(list(house.table), owner))
        for _ in range(3):
            await asyncio.sleep(0)
        assert 0 < house.table.num_idle < 20
        leaving.cancel()
        await asyncio.wait([leaving])
        for _ in range(9):
            await asyncio.sleep(0)
        assert house.table.num_idle == 20

    play(scenario)


def test_nothing_is_opened_where_nothing_is_asked_for(play: Play):
    async def scenario(house: House) -> None:
        assert await house.keeper.open_many([], RecordingOwner()) == []
        assert await reason_of(house.open("s", mode=OPEN)) is errors.SessionNotFound

    play(scenario)
