"""Looking at sessions and managing them, between their messages, live or stored."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from house import House, SlowStore, reason_of
from longshort_service import errors, management
from longshort_service import record as records
from longshort_service.opener import OpenRequest
from longshort_service.stores.memory import MemoryStore
from tables import RecordingOwner

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Play = Callable[..., None]


@pytest.fixture(params=[MemoryStore, SlowStore])
def play(request: pytest.FixtureRequest, run: Callable[..., Any], adders: Path) -> Play:
    """Run a scenario in a house with each kind of store."""

    def play_in(scenario: Callable[[House], Awaitable[None]], **house: Any) -> None:
        async def limited() -> None:
            async with asyncio.timeout(20), House(adders, request.param(), **house) as built:
                await scenario(built)

        run(limited())

    return play_in


async def make(house: House, state: str, session_id: str = "s") -> Any:
    """Bring about a session at step 1 with total 5 that is streaming, idle or stored."""
    session = await house.open(session_id)
    await house.step(session, 5)
    if state != "streaming":
        house.leave(session)
    if state == "stored":
        await house.spill(session)
    return session


STATES = ["streaming", "idle", "stored"]


@pytest.mark.parametrize("state", STATES)
def test_view_says_where_a_session_is(play: Play, state: str):
    async def scenario(house: House) -> None:
        session = await make(house, state)
        house.now_s += 3
        view = await house.management.get("s")
        assert (view.record.step, view.durable_step) == (1, 0)
        assert view.record.states[0].tolist() == [5]
        assert (view.is_live, view.is_streaming) == (state != "stored", state == "streaming")
        assert view.idle_s == {"streaming": 0, "idle": 3, "stored": 14}[state]
        assert view.record.epoch == session.epoch  # looking raises no epoch

    play(scenario)


@pytest.mark.parametrize("state", STATES)
def test_state_older_than_asked_for_is_stale(play: Play, state: str):
    async def scenario(house: House) -> None:
        await make(house, state)
        assert (await house.management.get("s", min_step=1)).record.step == 1
        with pytest.raises(errors.Stale) as caught:
            await house.management.get("s", min_step=2)
        assert caught.value.metadata == {"step": "1"}
        assert await reason_of(house.management.fork("s", "t", 2)) is errors.Stale
        assert await reason_of(house.management.export("s", 2)) is errors.Stale

    play(scenario)


def test_look_waits_for_the_message_in_flight(play: Play):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        step = asyncio.ensure_future(house.step(session, *[1] * 12))
        await asyncio.sleep(0)
        assert session.is_busy
        assert (await house.management.get("s")).record.step == 12
        await step

    play(scenario)


def test_what_is_not_there_and_what_has_expired_are_told_apart(play: Play):
    async def scenario(house: House) -> None:
        await make(house, "stored")
        house.now_s += 101
        await house.evictor.sweep()
        management = house.management
        for name, expected in (("s", errors.SessionExpired), ("nobody", errors.SessionNotFound)):
            for call in (
                management.get(name),
                management.reset(name),
                management.fork(name, "t", 0),
                management.export(name, 0),
                management.delete(name),
            ):
                assert await reason_of(call) is expected

    play(scenario)


@pytest.mark.parametrize("state", STATES)
def test_reset_starts_anew_with_another_incarnation_and_ends_the_stream(play: Play, state: str):
    async def scenario(house: House) -> None:
        session = await make(house, state)
        owner, incarnation, epoch = session.owner, session.incarnation, session.epoch
        view = await house.management.reset("s")
        assert (view.record.step, view.record.states[0].tolist()) == (0, [0])
        assert view.record.incarnation != incarnation
        assert view.record.epoch > epoch
        if state == "streaming":
            assert [type(end) for end in owner.ends] == [errors.SessionMoved]
            assert owner.ends[0].metadata == {"cause": "reset", "client_id": ""}
        again = await house.open("s")
        assert await house.step(again, 5, step=0) == [5]  # no stored answer is left to be replayed
        assert again.step == 1

    play(scenario)


@pytest.mark.parametrize("state", STATES)
def test_fork_goes_its_own_way_and_leaves_the_source_alone(play: Play, state: str):
    async def scenario(house: House) -> None:
        source = await make(house, state)
        incarnation = (await house.management.get("s")).record.incarnation
        view = await house.management.fork("s", "t", 0)
        assert (view.record.session_id, view.record.step) == ("t", 1)
        assert view.record.incarnation != incarnation
        fork = await house.open("t")
        # The source's last message is not the fork's.
        assert await reason_of(house.step(fork, 5, step=0)) is errors.StepConflict
        assert await house.step(fork, 10) == [15]
        again = source if state == "streaming" else await house.open("s")
        assert await house.step(again, 5, step=0) == [5]  # replayed
        assert await house.step(again, 1) == [6]

    play(scenario)


@pytest.mark.parametrize("taken", ["s", "t"])
def test_fork_onto_a_session_that_exists_is_refused(play: Play, taken: str):
    async def scenario(house: House) -> None:
        await make(house, "streaming", "s")
        await make(house, "stored", "t")
        assert await reason_of(house.management.fork("s", taken, 0)) is errors.SessionExists
        assert (await house.management.get(taken)).record.step == 1

    play(scenario)


@pytest.mark.parametrize("state", STATES)
def test_exported_session_is_imported_exactly(play: Play, state: str):
    async def scenario(house: House) -> None:
        await make(house, state)
        incarnation = (await house.management.get("s")).record.incarnation
        data, step = await house.management.export("s", 0)
        assert step == 1
        view = await house.management.import_("t", data)
        assert view.record.incarnation != incarnation
        copy = await house.open("t")
        assert await house.step(copy, 5, step=0) == [5]  # with its stored answer
        assert await house.step(copy, 1) == [6]
        assert await reason_of(house.management.import_("", data)) is errors.SessionExists
        await house.management.delete("s")
        assert (await house.management.import_("", data)).record.session_id == "s"

    play(scenario)


def test_damaged_or_foreign_records_are_not_imported(play: Play):
    async def scenario(house: House) -> None:
        await make(house, "idle")
        data, _ = await house.management.export("s", 0)
        record = records.decode(data)
        for change, expected in (
            ({"origin": dataclasses.replace(record.origin, fingerprint="other")}, errors.ModelChanged),
            ({"states": ()}, errors.ModelChanged),
            ({"origin": dataclasses.replace(record.origin, model="nobody")}, errors.ModelNotFound),
            ({"origin": dataclasses.replace(record.origin, version=9)}, errors.ModelNotFound),
        ):
            foreign = records.encode(dataclasses.replace(record, **change))  # type: ignore[arg-type]
            assert await reason_of(house.management.import_("t", foreign)) is expected
        assert await reason_of(house.management.import_("t", data[:-1])) is errors.InvalidRecord
        assert await house.store.list_ids("", "", 9) == ["s"]

    play(scenario)


@pytest.mark.parametrize("state", STATES)
def test_deleted_session_is_gone_and_its_id_free(play: Play, state: str):
    async def scenario(house: House) -> None:
        session = await make(house, state)
        owner = session.owner
        await house.management.delete("s")
        assert session.is_ended
        if state == "streaming":
            assert owner.ends[0].metadata == {"cause": "deleted", "client_id": ""}
        assert await reason_of(house.management.get("s")) is errors.SessionNotFound
        assert (await house.open("s")).step == 0

    play(scenario)


def test_full_memory_refuses_forks_and_leaves_nothing_behind(run: Callable[..., Any], adders: Path):
    async def scenario() -> None:
        async with House(adders, max_sessions=1) as house:
            await make(house, "streaming")
            assert await reason_of(house.management.fork("s", "t", 0)) is errors.SessionsExhausted
            assert await house.store.list_ids("", "", 9) == ["s"]

    run(scenario())


# -- lists -----


def test_list_goes_through_all_sessions_in_pages(play: Play):
    async def scenario(house: House) -> None:
        for k, state in enumerate(["stored", "idle", "streaming", "idle", "stored"]):
            await make(house, state, f"s{k}")
        found, after, pages = [], "", 0
        while True:
            views, after = await house.management.list(prefix="", after=after, limit=2, model="")
            found += [view.record.session_id for view in views]
            pages += 1
            if not after:
                break
        assert found == [f"s{k}" for k in range(5)]
        assert pages == 3

    play(scenario)


def test_list_may_be_narrowed_to_a_prefix_and_a_model(play: Play):
    async def scenario(house: House) -> None:
        for name, model in (("a1", "adder"), ("a2", "strict"), ("b1", "adder"), ("b2", "strict")):
            await house.open(name, model=model)

        async def ids(**wanted: str) -> list[str]:
            views, after = await house.management.list(
                **{"prefix": "", "after": "", "limit": 1, "model": ""} | wanted  # type: ignore[arg-type]
            )
            names = [view.record.session_id for view in views]
            return names + (await ids(**wanted | {"after": after}) if after else [])

        assert await ids() == ["a1", "a2", "b1", "b2"]
        assert await ids(prefix="a") == ["a1", "a2"]
        assert await ids(model="strict") == ["a2", "b2"]
        assert await ids(model="strict", prefix="b") == ["b2"]
        assert await ids(prefix="c") == []

    play(scenario)


# -- at the same time -----


@pytest.mark.parametrize("call", ["get", "fork", "export"])
@pytest.mark.parametrize("num_turns", range(6))
def test_session_that_is_reset_meanwhile_is_there_all_the_time(play: Play, call: str, num_turns: int):
    async def scenario(house: House) -> None:
        session = await make(house, "streaming")
        step = asyncio.ensure_future(house.step(session, *[1] * 12))
        await asyncio.sleep(0)
        reset = asyncio.ensure_future(house.management.reset("s"))
        for _ in range(num_turns):
            await asyncio.sleep(0)
        management = house.management
        if call == "get":
            step_found = (await management.get("s")).record.step
        elif call == "fork":
            step_found = (await management.fork("s", "t", 0)).record.step
        else:
            _, step_found = await management.export("s", 0)
        assert step_found in (13, 0)
        await reset
        await step

    play(scenario)


@pytest.mark.parametrize("num_turns", range(8))
def test_session_opened_and_deleted_at_once_is_either_there_or_not(play: Play, num_turns: int):
    async def scenario(house: House) -> None:
        await make(house, "idle")
        deletion = asyncio.ensure_future(house.management.delete("s"))
        for _ in range(num_turns):
            await asyncio.sleep(0)
        owner = RecordingOwner()
        session, created = await house.keeper.open(OpenRequest("s", model="adder"), owner)
        await deletion
        if created:
            assert (session.is_ended, owner.ends) == (False, [])
            assert await house.step(session, 1) == [1]
        else:
            assert (session.is_ended, len(owner.ends)) == (True, 1)

    play(scenario)


@pytest.mark.parametrize("state", STATES)
def test_reset_that_cannot_be_done_loses_nothing(play: Play, state: str):
    async def scenario(house: House) -> None:
        session = await make(house, state)
        models, house.repository._models = house.repository._models, {}
        assert await reason_of(house.management.reset("s")) is errors.ModelNotFound
        house.repository._models = models
        assert session.owner is None or session.owner.ends == []
        again = await house.open("s")
        assert await house.step(again, 1) == [6]

    play(scenario)


def test_stored_session_of_another_model_file_can_be_reset(play: Play):
    async def scenario(house: House) -> None:
        await make(house, "stored")
        stored = await house.store.read("s")
        assert stored is not None
        await house.store.write(
            [dataclasses.replace(stored, origin=dataclasses.replace(stored.origin, fingerprint="another"))]
        )
        assert await reason_of(house.keeper.open(OpenRequest("s"), RecordingOwner())) is errors.ModelChanged
        assert (await house.management.reset("s")).record.step == 0
        again = await house.open("s")
        assert await house.step(again, 1) == [1]

    play(scenario)


def test_reset_that_lacks_a_constant_takes_the_session_from_nobody(
    play: Play, monkeypatch: pytest.MonkeyPatch
):
    def lacking(*_: object) -> None:
        raise errors.ConstantMissing("who", model="adder", constant="who")

    async def scenario(house: House) -> None:
        await make(house, "stored")
        stored = await house.store.read("s")
        assert stored is not None
        with monkeypatch.context() as patch:
            patch.setattr(management, "begin_again", lacking)
            assert await reason_of(house.management.reset("s")) is errors.ConstantMissing
        assert await house.store.write([stored]) == [None]  # whoever has it goes on

    play(scenario)


def test_stored_session_is_reset_where_memory_is_full(play: Play):
    async def scenario(house: House) -> None:
        await make(house, "stored")
        await house.open("other")  # its stream keeps the only place
        view = await house.management.reset("s")
        assert (view.record.step, view.is_live) == (0, False)
        await house.management.delete("other")
        again = await house.open("s")
        assert await house.step(again, 1) == [1]

    play(scenario, max_sessions=1)


def test_listing_few_of_many_goes_on_in_short_pages(play: Play, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(management, "LIST_BATCH", 3)
    monkeypatch.setattr(management, "MAX_LIST_ROUNDS", 2)

    async def scenario(house: House) -> None:
        for k in range(8):
            house.leave(await house.open(f"s{k}"))
        page, after = await house.management.list(prefix="", after="", limit=5, model="nobody")
        assert (page, after) == ([], "s5")
        page, after = await house.management.list(prefix="", after=after, limit=5, model="nobody")
        assert (page, after) == ([], "")

    play(scenario)
