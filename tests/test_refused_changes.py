"""What the store does not grant changes nothing: no stream loses its session to a call that is refused."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from flaky_store import FlakyStore
from house import House, reason_of
from inside import Gate
from longshort_service import errors
from longshort_service.durability import Durability
from longshort_service.opener import OpenRequest
from longshort_service.stores.base import OpenMode
from tables import RecordingOwner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Any]


async def followed(house: House) -> tuple[Any, RecordingOwner]:
    """Return a session at step 2 and the stream that has it."""
    owner = RecordingOwner()
    session = await house.open("s", owner)
    await house.step(session, 1, 2)
    return session, owner


async def goes_on(house: House, store: FlakyStore, session: Any, owner: RecordingOwner) -> None:
    """Its stream still has the session, which is stored as soon as the store is back."""
    assert owner.lost == []
    assert (session.owner, session.step) == (owner, 2)
    assert await house.step(session, 3) == [6]
    store.is_down = False
    async with asyncio.timeout(5):
        while store.step_of("s") != 3:  # noqa: ASYNC110  nobody tells of a write behind
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "change",
    [
        lambda house: house.management.delete("s"),
        lambda house: house.management.reset("s"),
        lambda house: house.keeper.open(OpenRequest("s", client_id="other"), RecordingOwner()),
    ],
    ids=["delete", "reset", "open"],
)
def test_change_that_the_store_refuses_takes_the_session_from_nobody(run: Run, adders: Path, change: Any):
    async def scenario() -> None:
        store = FlakyStore()
        async with House(adders, store=store) as house:
            session, owner = await followed(house)
            store.is_down = True
            assert await reason_of(change(house)) is errors.StoreUnavailable
            await goes_on(house, store, session, owner)

    run(scenario())


def test_reset_that_could_not_be_written_has_reset_nothing(run: Run, adders: Path):
    async def scenario() -> None:
        store = FlakyStore()
        async with House(adders, store=store) as house:
            session, owner = await followed(house)
            incarnation = session.incarnation
            with store.held("write"):
                reset = asyncio.ensure_future(house.management.reset("s"))
                await asyncio.sleep(0.2)
                store.is_down = True
            assert await reason_of(reset) is errors.StoreUnavailable
            assert session.incarnation == incarnation
            await goes_on(house, store, session, owner)

    run(scenario())


@pytest.mark.parametrize(
    ("end", "expected"),
    [("opened", errors.SessionMoved), ("deleted", errors.SessionNotFound)],
)
def test_reset_of_a_session_that_is_another_server_s_ends_what_is_here(
    run: Run, adders: Path, end: str, expected: type[errors.ServiceError]
):
    async def scenario() -> None:
        store = FlakyStore()
        async with House(adders, store=store) as house:
            session, owner = await followed(house)
            if end == "opened":
                await store.open_elsewhere("s")
            else:
                del store.entries["s"]
            assert await reason_of(house.management.reset("s")) is expected
            assert session.is_ended
            assert len(owner.lost) == 1

    run(scenario())


def test_opening_whose_reply_was_lost_costs_nothing_that_memory_alone_has(run: Run, adders: Path):
    async def scenario() -> None:
        store = FlakyStore()
        async with House(adders, store=store, durability=Durability.NONE) as house:
            session, _ = await followed(house)
            epoch = session.epoch
            store.loses_replies = True
            assert await reason_of(house.open("s")) is errors.StoreUnavailable
            store.loses_replies = False
            await store.ping()
            again = await house.open("s")
            assert (again.step, again.durable_step) == (2, 0)
            assert again.epoch > epoch + 1

    run(scenario())


def test_lost_reply_does_not_make_an_old_memory_the_newest(run: Run, adders: Path):
    async def scenario() -> None:
        store = FlakyStore()
        async with House(adders, store=store, durability=Durability.NONE) as house:
            session, _ = await followed(house)
            await store.open_elsewhere("s")
            store.loses_replies = True
            assert await reason_of(house.open("s")) is errors.StoreUnavailable
            store.loses_replies = False
            await store.ping()
            assert (await house.open("s")).step == 0  # all that is stored
            assert session.is_ended

    run(scenario())


def test_creation_that_is_taken_back_leaves_what_another_server_has_opened_since(run: Run, adders: Path):
    async def scenario() -> None:
        store = FlakyStore()
        async with House(adders, store=store) as house:
            session, created = await house.keeper.ensure(OpenRequest("s", model="adder"))
            assert created
            await store.open_elsewhere("s")
            await house.keeper.uncreate(session)
            assert session.is_ended
            assert store.step_of("s") == 0

    run(scenario())


def test_creation_is_taken_back_though_its_caller_leaves(run: Run, adders: Path):
    async def scenario() -> None:
        store = FlakyStore()
        async with House(adders, store=store) as house:
            session, _ = await house.keeper.ensure(OpenRequest("s", model="adder"))
            with store.held("delete"):
                call = asyncio.ensure_future(house.keeper.uncreate(session))
                await asyncio.sleep(0.05)
                call.cancel()
                await asyncio.wait([call])
            async with house.keeper.turns.of("s"):
                assert session.is_ended
                assert "s" not in store.entries

    run(scenario())


def test_refused_creation_leaves_what_another_server_has_opened_since(
    run: Run, adders: Path, monkeypatch: pytest.MonkeyPatch
):
    async def scenario() -> None:
        store = FlakyStore()
        async with House(adders, store=store) as house:

            async def no_room(count: int) -> int:
                del count
                await store.open_elsewhere("s")
                raise errors.SessionsExhausted("full", max_sessions=0)

            monkeypatch.setattr(house.evictor, "make_room", no_room)
            assert await reason_of(house.open("s")) is errors.SessionsExhausted
            assert store.step_of("s") == 0

    run(scenario())


@pytest.mark.parametrize("fault", ["away", "full", "no room"])
def test_import_that_fails_leaves_the_whole_session_or_none(
    run: Run, adders: Path, monkeypatch: pytest.MonkeyPatch, fault: str
):
    async def scenario() -> None:
        store = FlakyStore()
        async with House(adders, store=store) as house:
            await followed(house)
            data, _ = await house.management.export("s", 0)
            make_room = house.evictor.make_room

            async def fail(count: int) -> int:
                if fault == "no room":
                    raise errors.SessionsExhausted("full", max_sessions=0)
                store.is_down, store.is_full = fault == "away", fault == "full"
                return await make_room(count)

            monkeypatch.setattr(house.evictor, "make_room", fail)
            expected = errors.SessionsExhausted if fault == "no room" else errors.StoreUnavailable
            assert await reason_of(house.management.import_("copy", data)) is expected
            assert house.table.get("copy") is None
            assert store.step_of("copy") == (None if fault == "no room" else 2)
            store.is_down = store.is_full = False

    run(scenario())


def test_imported_session_is_stored_as_used_now(run: Run, adders: Path):
    async def scenario() -> None:
        store = FlakyStore()
        async with House(adders, store=store) as house:
            await followed(house)
            data, _ = await house.management.export("s", 0)
            house.now_s += 500
            with store.held("write"):
                importing = asyncio.ensure_future(house.management.import_("copy", data))
                await asyncio.sleep(0.05)
                record = store.entries["copy"].record
                assert (record.step, record.last_used_s, record.is_gapless) == (2, house.now_s, False)
            view = await importing
            assert (view.record.incarnation, view.durable_step) == (record.incarnation, 2)

    run(scenario())


def test_creation_elsewhere_whose_answer_was_lost_is_known_as_the_client_s_own(run: Run, adders: Path):
    async def scenario() -> None:
        store = FlakyStore()
        async with House(adders, store=store) as here, House(adders, store=store) as there:
            await there.open("s", RecordingOwner(), mode=OpenMode.CREATE, client_id="mine")
            with pytest.raises(errors.SessionExists) as exists:
                await here.open("s", RecordingOwner(), mode=OpenMode.CREATE, client_id="mine")
            assert exists.value.metadata["client_id"] == "mine"

    run(scenario())


def test_session_opened_without_the_store_is_numbered_though_a_message_was_in_flight(run: Run, adders: Path):
    async def scenario() -> None:
        store = FlakyStore()
        async with House(adders, store=store) as house:
            session, _ = await followed(house)
            gate = Gate.before(session.model.lane)
            message = asyncio.ensure_future(house.step(session, 3))
            await gate.arrival()
            store.is_down = True
            opening = asyncio.ensure_future(house.open("s", epoch=session.epoch))
            await asyncio.sleep(0.05)
            gate.let_through(1)
            assert await message == [6]
            assert await opening is session
            assert not session.is_gapless
            store.is_down = False

    run(scenario())
