"""The way of a session between its row and the store: opened, spilled, expired, and never lost in between."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from flaky_store import FlakyStore
from house import House, SlowStore, reason_of
from inside import Gate
from longshort_service import errors
from longshort_service.durability import Durability
from longshort_service.keeper import MAX_WAITING
from longshort_service.opener import OpenRequest
from longshort_service.stores.base import OpenMode, open_one
from longshort_service.stores.memory import MemoryStore
from tables import RecordingOwner, asked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Play = Callable[..., None]

OPEN, CREATE = OpenMode.OPEN, OpenMode.CREATE


@pytest.fixture
def play(run: Callable[..., Any], adders: Path) -> Play:
    """Run a scenario in a house, once for each store given."""

    def play_in(scenario: Callable[[House], Awaitable[None]], **house: Any) -> None:
        async def limited() -> None:
            async with asyncio.timeout(20), House(adders, **house) as built:
                await scenario(built)

        run(limited())

    return play_in


@pytest.fixture(params=[MemoryStore, SlowStore])
def store(request: pytest.FixtureRequest) -> MemoryStore:
    made: MemoryStore = request.param()
    return made


# -- opening -----


@pytest.mark.parametrize(
    ("before", "mode", "expected"),
    [
        ("absent", OpenMode.OPEN_OR_CREATE, "created"),
        ("absent", OPEN, errors.SessionNotFound),
        ("absent", CREATE, "created"),
        ("live", OpenMode.OPEN_OR_CREATE, "opened"),
        ("live", OPEN, "opened"),
        ("live", CREATE, errors.SessionExists),
        ("stored", OpenMode.OPEN_OR_CREATE, "opened"),
        ("stored", OPEN, "opened"),
        ("stored", CREATE, errors.SessionExists),
        ("expired", OpenMode.OPEN_OR_CREATE, errors.SessionExpired),
        ("expired", OPEN, errors.SessionExpired),
        ("expired", CREATE, "created"),
    ],
)
@pytest.mark.parametrize("how", ["open", "ensure"])
def test_opening_in_every_mode_of_what_is_there_is_not_or_has_expired(
    play: Play, store: MemoryStore, *, before: str, mode: OpenMode, expected: Any, how: str
):
    async def scenario(house: House) -> None:
        if before != "absent":
            session = await house.open("s")
            await house.step(session, 5)
            house.leave(session)
        if before == "stored":
            await house.spill(session)
        if before == "expired":
            house.now_s += 101
            await house.evictor.sweep()
        request = OpenRequest("s", mode, "adder")
        call = house.keeper.open(request, RecordingOwner()) if how == "open" else house.keeper.ensure(request)
        if isinstance(expected, str):
            session, created = await call
            assert created is (expected == "created")
            assert session.step == (0 if created else 1)
            assert await house.step(session, 1) == [1 if created else 6]
            assert house.table.get("s") is session
        else:
            assert await reason_of(call) is expected
            assert (house.table.get("s") is not None) is (before == "live")

    play(scenario, store=store)


def test_opening_raises_the_epoch_and_keeps_the_incarnation(play: Play, store: MemoryStore):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        epochs, incarnation = [session.epoch], session.incarnation
        for is_spilled in (False, True, False):
            if is_spilled:
                await house.spill(session)
            session = await house.open("s")
            epochs.append(session.epoch)
            assert session.incarnation == incarnation
        assert epochs == sorted(set(epochs))

    play(scenario, store=store)


def test_older_stream_is_ended_and_told_who_came(play: Play, store: MemoryStore):
    async def scenario(house: House) -> None:
        older = RecordingOwner("a")
        session = await house.open("s", older)
        assert await house.open("s", RecordingOwner("b")) is session
        (end,) = older.ends
        assert isinstance(end, errors.SessionMoved)
        assert end.metadata == {"cause": "opened", "client_id": "b"}
        assert house.notes.of("move") == [()]

    play(scenario, store=store)


def test_opening_waits_for_the_step_in_flight(play: Play, store: MemoryStore):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        step = asyncio.ensure_future(house.step(session, *[1] * 12))
        await asyncio.sleep(0)
        assert session.is_busy
        again = await house.open("s")
        assert (again.step, again.is_busy) == (12, False)
        assert (await step)[-1] == 12

    play(scenario, store=store)


def test_openings_of_one_session_at_once_create_it_once(play: Play, store: MemoryStore):
    async def scenario(house: House) -> None:
        owners = [RecordingOwner(str(k)) for k in range(5)]
        calls = [house.keeper.open(OpenRequest("s", model="adder"), owner) for owner in owners]
        results = await asyncio.gather(*calls)
        assert [created for _, created in results] == [True, False, False, False, False]
        assert len({id(session) for session, _ in results}) == 1
        assert [len(owner.ends) for owner in owners] == [1, 1, 1, 1, 0]

    play(scenario, store=store)


def test_unary_call_does_not_take_a_session_from_its_stream(play: Play, store: MemoryStore):
    async def scenario(house: House) -> None:
        owner = RecordingOwner()
        session = await house.open("s", owner)
        ensured, created = await house.keeper.ensure(OpenRequest("s"))
        assert (ensured, created, session.owner, owner.ends) == (session, False, owner, [])

    play(scenario, store=store)


@pytest.mark.parametrize(
    "request_", [{"model": "strict"}, {"model": "adder", "version": 2}, {"model": "nobody"}]
)
@pytest.mark.parametrize("is_stored", [True, False])
def test_session_stays_on_its_model_and_version(
    play: Play, store: MemoryStore, request_: dict[str, Any], *, is_stored: bool
):
    async def scenario(house: House) -> None:
        owner = RecordingOwner()
        session = await house.open("s", owner)
        await house.step(session, 5)
        if is_stored:
            await house.spill(session)
        for mode in (OpenMode.OPEN_OR_CREATE, OPEN):
            assert await reason_of(house.open("s", mode=mode, **request_)) is errors.ModelMismatch
        assert owner.ends == []
        again = await house.open("s", model="")
        assert await house.step(again, 1) == [6]

    play(scenario, store=store)


@pytest.mark.parametrize("model", ["", "nobody"])
@pytest.mark.parametrize("mode", [OpenMode.OPEN_OR_CREATE, CREATE])
def test_opening_without_a_model_makes_no_session(play: Play, store: MemoryStore, model: str, mode: OpenMode):
    async def scenario(house: House) -> None:
        assert await reason_of(house.open("s", model=model, mode=mode)) is errors.ModelNotFound
        assert await house.store.list_ids("", "", 9) == []

    play(scenario, store=store)


def test_creating_anew_without_a_model_after_expiry_is_model_not_found(play: Play):
    async def scenario(house: House) -> None:
        house.leave(await house.open("s"))
        house.now_s += 101
        await house.evictor.sweep()
        assert await reason_of(house.open("s", model="", mode=CREATE)) is errors.ModelNotFound
        assert await reason_of(house.open("s", model="")) is errors.SessionExpired

    play(scenario)


@pytest.mark.parametrize("meanwhile", ["nothing", "open", "step"])
def test_creation_is_taken_back_unless_the_session_is_used_by_now(
    play: Play, store: MemoryStore, meanwhile: str
):
    async def scenario(house: House) -> None:
        session, created = await house.keeper.ensure(OpenRequest("s", CREATE, "adder"))
        assert created
        if meanwhile == "open":
            await house.open("s")
        if meanwhile == "step":
            step = asyncio.ensure_future(house.step(session, 5))
            await asyncio.sleep(0)
        await house.keeper.uncreate(session)
        assert session.is_ended is (meanwhile == "nothing")
        again, created = await house.keeper.ensure(OpenRequest("s", model="adder"))
        assert created is (meanwhile == "nothing")
        assert await house.step(again, 1) == [6 if meanwhile == "step" else 1]
        if meanwhile == "step":
            await step

    play(scenario, store=store)


# -- leaving memory -----


def test_idle_session_is_spilled_and_comes_back_exactly(play: Play, store: MemoryStore):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        await house.step(session, 1, 2, step=0)
        await house.spill(session)
        assert (len(house.table), house.store.num_records()) == (0, 1)
        again = await house.open("s", mode=OPEN)
        assert (again.step, again.is_gapless) == (2, True)
        assert await house.step(again, 1, 2, step=0) == [1, 3]  # the stored answer survives
        assert again.step == 2
        assert await house.step(again, 1) == [4]
        assert house.notes.of("eviction") == [("idle",)]

    play(scenario, store=store)


def test_session_in_use_is_not_spilled(play: Play, store: MemoryStore):
    async def scenario(house: House) -> None:
        streaming, idle = await house.open("streaming"), await house.open("idle")
        house.leave(idle)
        house.now_s += 11
        step = asyncio.ensure_future(house.step(idle, *[1] * 12))
        await asyncio.sleep(0)
        await house.evictor.sweep()
        assert not streaming.is_ended
        assert not idle.is_ended
        await step

    play(scenario, store=store)


def test_full_memory_makes_room_by_the_longest_idle(play: Play, store: MemoryStore):
    async def scenario(house: House) -> None:
        sessions = {}
        for name in "abc":
            house.now_s += 1
            sessions[name] = await house.open(name, model="strict" if name == "a" else "adder")
            await house.step(sessions[name], 5)
        house.leave(sessions["b"])
        house.now_s += 1
        house.leave(sessions["a"])
        await house.open("d")
        assert sessions["b"].is_ended
        assert not sessions["a"].is_ended
        await house.open("e")
        assert sessions["a"].is_ended
        assert await reason_of(house.open("f")) is errors.SessionsExhausted
        assert await reason_of(house.open("a", model="")) is errors.SessionsExhausted
        assert await reason_of(house.open("f", mode=OPEN)) is errors.SessionNotFound
        house.leave(sessions["c"])
        again = await house.open("a", model="")  # the refused opening has not lost it
        assert await house.step(again, 1) == [6]
        assert house.notes.of("eviction") == [("capacity",)] * 3

    play(scenario, store=store, max_sessions=3)


def test_session_expires_then_is_forgotten(play: Play, store: MemoryStore):
    async def scenario(house: House) -> None:
        house.leave(await house.open("s"))
        house.now_s += 99
        await house.evictor.sweep()
        assert await house.store.read("s") is not None
        house.now_s += 2
        await house.evictor.sweep()
        assert await reason_of(house.open("s")) is errors.SessionExpired
        house.now_s += 1001
        await house.evictor.sweep()
        assert await reason_of(house.open("s", mode=OPEN)) is errors.SessionNotFound
        assert house.notes.of("eviction") == [("idle",), ("expired",)]

    play(scenario, store=store)


def test_open_stream_is_use_and_keeps_a_session_from_expiring(play: Play, store: MemoryStore):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        house.now_s += 1000
        await house.evictor.sweep()
        assert house.table.get("s") is session

    play(scenario, store=store)


def test_sweep_goes_through_more_sessions_than_it_takes_at_once(play: Play, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("longshort_service.eviction.EVICTION_BATCH", 2)
    monkeypatch.setattr("longshort_service.eviction.SWEEP_SCAN", 3)

    async def scenario(house: House) -> None:
        for k in range(7):
            house.leave(await house.open(f"s{k}"))
        house.now_s += 11
        await house.evictor.sweep()
        assert (len(house.table), house.store.num_records()) == (0, 7)
        house.now_s += 101
        await house.evictor.sweep()
        assert house.store.num_records() == 0
        assert await reason_of(house.open("s6")) is errors.SessionExpired

    play(scenario)


# -- at the same time -----


@pytest.mark.parametrize("num_turns", range(1, 12))
def test_session_opened_while_it_is_spilled_is_not_taken_from_its_stream(play: Play, num_turns: int):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        await house.step(session, 5)
        house.leave(session)
        house.now_s += 11
        sweep = asyncio.ensure_future(house.evictor.sweep())
        for _ in range(num_turns):
            await asyncio.sleep(0)
        owner = RecordingOwner()
        again = await house.open("s", owner)
        await sweep
        assert not again.is_ended
        assert again.owner is owner
        assert owner.ends == []
        assert await house.step(again, 1) == [6]
        await house.spill(again)
        assert await house.step(await house.open("s"), 1) == [7]

    play(scenario, store=SlowStore())


@pytest.mark.parametrize("num_turns", range(1, 12))
def test_session_stepped_while_it_is_spilled_does_not_lose_the_step(play: Play, num_turns: int):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        await house.step(session, 5)
        house.leave(session)
        house.now_s += 11
        sweep = asyncio.ensure_future(house.evictor.sweep())
        for _ in range(num_turns):
            await asyncio.sleep(0)
        ensured, created = await house.keeper.ensure(OpenRequest("s"))
        assert not created
        assert await house.step(ensured, 1) == [6]
        await sweep
        again = await house.open("s")
        assert again.step == 2
        assert await house.step(again, 1) == [7]

    play(scenario, store=SlowStore())


@pytest.mark.parametrize("num_turns", range(8))
def test_opening_waits_for_a_unary_call_that_comes_while_the_store_is_asked(play: Play, num_turns: int):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        house.leave(session)

        async def is_busy_when_opened() -> bool:
            opened = await house.open("s")
            return opened.is_busy

        opening = asyncio.ensure_future(is_busy_when_opened())
        for _ in range(num_turns):
            await asyncio.sleep(0)
        ensured, _ = await house.keeper.ensure(OpenRequest("s"))
        assert len(await house.step(ensured, *[1] * 12)) == 12
        assert await opening is False

    play(scenario, store=SlowStore())


@pytest.mark.parametrize("num_turns", range(1, 12))
@pytest.mark.parametrize("before", ["absent", "stored"])
def test_unary_call_that_races_an_opening_leaves_the_stream_its_session(
    play: Play, num_turns: int, before: str
):
    async def scenario(house: House) -> None:
        if before == "stored":
            session = await house.open("s")
            await house.step(session, 5)
            house.leave(session)
            await house.checkpointer.until_stored(session, 1)
            await house.spill(session)
        owner = RecordingOwner()
        opening = asyncio.ensure_future(house.open("s", owner, durability=Durability.SYNC))
        for _ in range(num_turns):
            await asyncio.sleep(0)
        ensured, created = await house.keeper.ensure(OpenRequest("s", model="adder"))
        session = await opening
        assert not created
        assert ensured is session
        assert (session.owner, owner.lost) == (owner, [])
        assert session.durability is Durability.SYNC

    play(scenario, store=FlakyStore())


def test_refused_opening_of_a_stored_session_leaves_it_in_the_store(play: Play, store: MemoryStore):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        await house.step(session, 5)
        await house.spill(session)
        record = await house.store.read("s")
        assert record is not None
        foreign = dataclasses.replace(
            record, origin=dataclasses.replace(record.origin, fingerprint="another")
        )
        assert await house.store.write([foreign]) == [None]
        for _ in range(2):
            assert await reason_of(house.open("s")) is errors.ModelChanged
        found = await house.store.read("s")
        assert found is not None
        assert (found.fingerprint, found.step) == ("another", 1)

    play(scenario, store=store)


# -- another server on the same store -----


def test_session_that_another_server_has_moved_is_loaded_anew(play: Play, store: MemoryStore):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        await house.step(session, 5)
        record = session.record()
        house.leave(session)
        elsewhere = await open_one(house.store, asked("s"), house.now_s)
        moved = dataclasses.replace(
            record, epoch=elsewhere.epoch, step=9, states=tuple(state + 10 for state in record.states)
        )
        assert await house.store.write([moved]) == [None]
        again = await house.open("s")
        assert again is not session
        assert session.is_ended
        assert again.step == 9
        assert await house.step(again, 1) == [16]

    play(scenario, store=store)


def test_server_that_lost_a_session_does_not_write_over_its_new_owner(play: Play, store: MemoryStore):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        await house.step(session, 5)
        record = session.record()
        elsewhere = await open_one(house.store, asked("s"), house.now_s)
        moved = dataclasses.replace(record, epoch=elsewhere.epoch, step=9, last_used_s=2_000.0)
        await house.store.write([moved])
        await house.spill(session)  # the write is refused: what is here is old, and goes
        found = await house.store.read("s")
        assert found is not None
        assert found.step == 9

    play(scenario, store=store)


def test_session_that_its_owner_never_stored_is_not_found_elsewhere(play: Play, store: MemoryStore):
    async def scenario(house: House) -> None:
        await open_one(house.store, asked("s", CREATE), house.now_s)  # by another server, which then dies
        for _ in range(2):  # it is no silent start from zero, however often it is asked for
            assert await reason_of(house.open("s")) is errors.SessionNotFound
        await house.management.delete("s")
        assert (await house.open("s")).step == 0

    play(scenario, store=store)


def test_store_is_closed_at_the_end(play: Play, monkeypatch: pytest.MonkeyPatch):
    store, is_closed = MemoryStore(), []

    async def close() -> None:
        is_closed.append(True)

    monkeypatch.setattr(store, "close", close)
    play(lambda house: house.open("s"), store=store)
    assert is_closed == [True]


def test_nothing_is_durable_in_memory(play: Play):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        await house.step(session, 5)
        await asyncio.sleep(0.06)  # longer than a checkpoint interval
        assert (session.durability, session.durable_step) == (Durability.NONE, 0)

    play(scenario)


@pytest.mark.parametrize("num_turns", range(1, 12))
def test_opening_cancelled_anywhere_loses_neither_the_session_nor_its_place(play: Play, num_turns: int):
    """The history: the store has raised the epoch, and the caller leaves before the live session knows."""

    async def scenario(house: House) -> None:
        session = await house.open("s")
        await house.step(session, 5)
        house.leave(session)
        owner = RecordingOwner()
        opening = asyncio.ensure_future(house.open("s", owner))
        for _ in range(num_turns):
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait([opening])
        async with house.keeper.turns.of("s"):  # what was begun is carried to its end
            assert session.owner is not owner or not opening.cancelled()
        again = await house.open("s")
        assert (again.step, again.is_ended) == (1, False)
        assert await house.step(again, 1) == [6]

    play(scenario, store=SlowStore())


def test_opening_that_races_the_spill_of_its_session_finds_it(play: Play):
    async def scenario(house: House) -> None:
        for num_turns in range(14):
            name = f"s{num_turns}"
            session = await house.open(name)
            await house.step(session, 5)
            house.leave(session)
            house.now_s += 11
            sweep = asyncio.ensure_future(house.evictor.sweep())
            for _ in range(num_turns):
                await asyncio.sleep(0)
            again = await house.open(name)
            await sweep
            assert again.step == 1
            assert await house.step(again, 1) == [6]
            await house.management.delete(name)

    play(scenario, store=SlowStore())


def test_calls_beyond_the_limit_that_wait_for_one_session_are_refused(play: Play):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        gate = Gate.before(house.repository.get("adder").lane)
        first = asyncio.ensure_future(house.step(session, 1))
        await gate.arrival()
        waiting = [asyncio.ensure_future(house.keeper.ensure(OpenRequest("s"))) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0)
        assert await reason_of(house.keeper.ensure(OpenRequest("s"))) is errors.QueueFull
        gate.open()
        await first
        assert len(await asyncio.gather(*waiting)) == MAX_WAITING

    play(scenario)
