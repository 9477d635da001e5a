"""Streams that end for their age: their sessions are stored first, and nothing that was sent is lost or taken twice."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from flaky_store import FlakyStore
from frame_wire import Frames, rows_of
from histories import StoreCaller
from inside import PATIENCE_S, Gate, service, until
from longshort.v1 import sequence_pb2, types_pb2
from longshort_service.handlers import conversation
from wire import OPEN, values_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from longshort_service.app import App

    Run = Callable[..., Any]

AGED = ("UNAVAILABLE", "STREAM_AGED")
AGE_S = 0.3
SELDOM: dict[str, Any] = {"checkpoint_interval_s": 100.0, "idle_timeout_s": 100.0}
DURABILITIES = [types_pb2.DURABILITY_NONE, types_pb2.DURABILITY_BEHIND, types_pb2.DURABILITY_SYNC]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> FlakyStore:
    """The store of every service of the test."""
    flaky = FlakyStore(is_shared=True)
    monkeypatch.setattr("longshort_service.app.make_store", lambda *_, **__: flaky)
    monkeypatch.setattr(conversation, "AGED_AGAIN_S", 0.2)
    return flaky


@asynccontextmanager
async def served(models: Path, **settings: Any) -> AsyncIterator[tuple[App, StoreCaller]]:
    """Start a service whose streams grow old soon, with a caller."""
    settings = SELDOM | {"max_stream_age_s": AGE_S} | settings
    async with (
        asyncio.timeout(PATIENCE_S),
        service(models, **settings) as (app, _),
        StoreCaller(f"127.0.0.1:{app.grpc_port}") as caller,
    ):
        yield app, caller


async def say_something(stream: Any) -> None:
    """Wait until a stream is old, and have it answer something: it ends behind that."""
    await asyncio.sleep(1.5 * AGE_S)
    await stream.send(forecast=sequence_pb2.StreamForecast(horizon=1))
    assert (await stream.receive()).answer.forecast


async def write_under_way(store: FlakyStore, stream: Any) -> None:
    """Wait until the sessions of an old stream are being written."""
    num_writes = store.calls["write"]
    await say_something(stream)
    await until(lambda: store.calls["write"] > num_writes)


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.usefixtures("store")
def test_old_stream_ends_and_its_session_goes_on_elsewhere_without_a_number(
    run: Run, adders: Path, durability: Any
):
    async def scenario() -> None:
        async with served(adders) as (_, a), served(adders, max_stream_age_s=0.0) as (_, b):
            stream, _ = await a.open("s", durability=durability)
            assert list((await stream.step([1, 2])).values) == [1, 3]
            await say_something(stream)
            end = await stream.refusal()
            assert end == AGED
            assert end.retry_delay_s is None
            stream, opened = await b.open("s", mode=OPEN)
            assert opened.step == 2
            assert list((await stream.step([3])).values) == [6]  # clean: nothing was missing

    run(scenario())


@pytest.mark.usefixtures("store")
def test_old_stream_of_frames_ends_and_its_sessions_go_on_elsewhere(run: Run, adders: Path):
    async def scenario() -> None:
        async with served(adders) as (app, a), served(adders, max_stream_age_s=0.0) as (_, b):
            frames = Frames(a)
            await frames.open("x", "y")
            assert await frames.step([0, 1], [1, 2]) == {0: (1, [1]), 1: (1, [2])}
            await asyncio.sleep(1.5 * AGE_S)
            await frames.send()
            await frames.receive()
            assert await frames.end() == AGED
            await until(lambda: app._table.num_idle == 2)
            frames = Frames(b)
            assert [opened.step for opened in await frames.open("x", "y", mode=OPEN)] == [1, 1]
            assert await frames.step([0, 1], [3, 4]) == {0: (2, [4]), 1: (2, [6])}

    run(scenario())


@pytest.mark.usefixtures("store")
def test_message_in_hand_is_answered_and_the_next_is_not_taken(run: Run, adders: Path):
    async def scenario() -> None:
        async with served(adders) as (app, caller):
            gate = Gate.before(app.repository.get("adder").lane)
            stream, _ = await caller.open("s")
            frames = Frames(caller)
            await frames.open("x")
            await stream.send(values=values_of([5]))
            await stream.send(values=values_of([7]))
            await frames.send(handles=[0], values=[6])
            await frames.send(handles=[0], values=[7])
            await gate.arrival()
            await asyncio.sleep(2 * AGE_S)
            gate.open()
            assert list((await stream.receive()).answer.values) == [5]
            assert rows_of(await frames.receive()) == {0: (1, [6])}
            assert await stream.refusal() == AGED
            assert await frames.end() == AGED
            assert {(await caller.described(name)).step for name in ("s", "x")} == {1}

    run(scenario())


def test_stream_goes_on_while_the_store_is_away(run: Run, adders: Path, store: FlakyStore):
    async def scenario() -> None:
        async with served(adders) as (_, caller):
            stream, _ = await caller.open("s")
            store.is_down = True
            store.away_since_s = store.monotonic()
            for step in range(6):
                assert (await stream.step([1], step)).step == step + 1
                await asyncio.sleep(AGE_S / 3)
            store.is_down = False
            await say_something(stream)
            assert await stream.refusal() == AGED
            assert store.step_of("s") == 6

    run(scenario())


@pytest.mark.parametrize("is_half_closed", [True, False])
def test_store_that_goes_away_while_an_old_stream_is_written_leaves_the_stream_as_it_was(
    run: Run, adders: Path, store: FlakyStore, *, is_half_closed: bool
):
    """What came while it was held is answered then, in its order."""

    async def scenario() -> None:
        async with served(adders) as (_, caller):
            stream, _ = await caller.open("s", durability=types_pb2.DURABILITY_NONE)
            await stream.step([1])
            with store.held("write"):
                await write_under_way(store, stream)
                await stream.send(values=values_of([2]))
                if is_half_closed:
                    await stream.call.done_writing()
                await asyncio.sleep(0.05)  # it has come, and is not taken
                store.is_down = True
            assert list((await stream.receive()).answer.values) == [3]
            if not is_half_closed:
                assert list((await stream.step([3])).values) == [6]
                store.is_down = False
                await say_something(stream)
                assert await stream.refusal() == AGED
                assert store.is_clean("s")
            else:
                with pytest.raises(EOFError):
                    await stream.receive()
                store.is_down = False
            await until(lambda: store.step_of("s") == (2 if is_half_closed else 3))

    run(scenario())


def test_half_close_of_an_old_stream_that_is_being_written_ends_it_well(
    run: Run, adders: Path, store: FlakyStore
):
    async def scenario() -> None:
        async with served(adders) as (_, caller):
            stream, _ = await caller.open("s")
            await stream.step([1])
            with store.held("write"):
                await write_under_way(store, stream)
                await stream.call.done_writing()
                with pytest.raises(EOFError):
                    await stream.receive()
            await until(lambda: store.step_of("s") == 1 and store.is_clean("s"))

    run(scenario())


def test_call_that_ends_while_its_old_stream_is_written_leaves_a_session_that_goes_on(
    run: Run, adders: Path, store: FlakyStore
):
    async def scenario() -> None:
        async with served(adders) as (app, caller):
            stream, _ = await caller.open("s")
            await stream.step([1])
            with store.held("write"):
                await write_under_way(store, stream)
                stream.call.cancel()
                await until(lambda: app._table.num_idle == 1)
            stream, opened = await caller.open("s", mode=OPEN)
            assert opened.step == 1
            assert list((await stream.step([2])).values) == [3]
            await say_something(stream)
            assert await stream.refusal() == AGED
            assert store.overlaps == set()

    run(scenario())


def test_drain_that_begins_while_an_old_stream_is_written_ends_it(run: Run, adders: Path, store: FlakyStore):
    """The store fails the old stream, which is not let go on: the drain has stored what it had."""

    async def scenario() -> None:
        async with served(adders, may_log_errors=True, drain_timeout_s=1.0) as (app, caller):
            stream, _ = await caller.open("s")
            await stream.step([1])
            with store.held("write"):
                await write_under_way(store, stream)
                await stream.send(values=values_of([2]))
                stopping = asyncio.ensure_future(app.stop())
                await until(lambda: app._edge.is_draining)
                store.is_down = True
            assert await stream.refusal() == ("UNAVAILABLE", "DRAINING")
            await stopping

    run(scenario())


@pytest.mark.usefixtures("store")
def test_bug_at_the_end_of_an_old_stream_is_told_as_one(
    run: Run, adders: Path, monkeypatch: pytest.MonkeyPatch
):
    async def scenario() -> None:
        async with served(adders, may_log_errors=True) as (app, caller):
            stream, _ = await caller.open("s")
            await stream.step([1])
            monkeypatch.setattr(app._checkpointer, "store_parts", lambda *_, **__: 1 / 0)
            await say_something(stream)
            assert await stream.end() == ("INTERNAL", "INTERNAL")

    run(scenario())


@pytest.mark.usefixtures("store")
def test_silent_stream_stays_however_old(run: Run, adders: Path):
    """Its client would connect again with its next message only: until then the session would count as unused."""

    async def scenario() -> None:
        async with served(adders) as (app, caller):
            stream, _ = await caller.open("s")
            frames = Frames(caller)
            await frames.open("x")
            await asyncio.sleep(3 * AGE_S)
            assert app._streams.num_streams() == 2
            assert list((await stream.step([1])).values) == [1]

    run(scenario())


@pytest.mark.usefixtures("store")
def test_stream_has_no_age_unless_told_so(run: Run, adders: Path):
    async def scenario() -> None:
        async with served(adders, max_stream_age_s=0.0) as (app, caller):
            stream, _ = await caller.open("s")
            (conversation_,) = app._streams._streams
            assert conversation_._age_timer is None
            await stream.leave()

    run(scenario())
