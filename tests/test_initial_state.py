"""A session begins in what its opening gives: over every call, in every store, through resets, forks and moves."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import valkey
from frame_wire import OPEN_PART, Frames, opening, refusals_of
from inside import service
from longshort.v1 import sequence_pb2, session_pb2, types_pb2
from longshort_service.handlers import tensors
from told import write_speaker
from wire import CREATE, Caller, key, refused, values_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from servers import Server

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_speaker(tmp_path / "models" / "speaker" / "1" / "model.onnx")
    return tmp_path / "models"


def given(**arrays: NDArray[Any]) -> list[types_pb2.Tensor]:
    return [tensors.message(name, array) for name, array in arrays.items()]


def voice(first: float) -> NDArray[np.float64]:
    return np.array([first, 2.5])


def start(value: float) -> NDArray[np.float32]:
    return np.array([value], np.float32)


async def memory(caller: Caller, session_id: str) -> dict[str, list[float]]:
    request = session_pb2.GetSessionRequest(session=key(session_id), include_memory=True)
    found = (await caller.sessions.GetSession(request)).memory
    return {each.name: tensors.by_name([each])[each.name].tolist() for each in found}


def test_session_begins_in_what_its_opening_gives_over_every_call(run: Run, models: Path):
    async def scenario() -> None:
        async with service(models) as (_, caller):
            stream, opened = await caller.open("a", "speaker", initial=given(who=voice(100), s0=start(5)))
            assert (opened.created, opened.step) == (True, 0)
            assert await memory(caller, "a") == {"s0": [5], "who": [100, 2.5]}
            assert list((await stream.step([1, 2], 0)).values) == [106, 108]
            request = sequence_pb2.StepRequest(
                session=key("b"), model="speaker", values=values_of([1]), initial=given(who=voice(200))
            )
            assert list((await caller.sequence.Step(request)).answer.values) == [201]
            frames = Frames(caller)
            opens = [
                opening(k, f"f{k}", model="speaker", initial=given(who=voice(k), s0=start(10 * k)))
                for k in range(3)
            ]
            assert not (await frames.ask(opens=opens)).errors
            assert await frames.step([0, 1, 2], [1, 1, 1]) == {k: (1, [11 * k + 1]) for k in range(3)}
            assert await memory(caller, "f2") == {"s0": [21], "who": [2, 2.5]}

    run(scenario())


def test_session_that_is_there_keeps_what_it_has(run: Run, models: Path):
    async def scenario() -> None:
        async with service(models) as (_, caller):
            stream, _ = await caller.open("a", "speaker", initial=given(who=voice(100)))
            await stream.step([1], 0)
            for initial in ([], given(who=voice(7)), given(nonsense=start(1))):
                again, opened = await caller.open("a", "speaker", initial=initial)
                assert (opened.created, opened.step) == (False, 1)
                assert list((await again.step([0])).values) == [101]
                await again.half_close()
                stream, _ = await caller.open("a", "speaker")
                await caller.sessions.Reset(session_pb2.ResetRequest(session=key("a")))
                again, _ = await caller.open("a", "speaker")
                await again.step([1], 0)

    run(scenario())


@pytest.mark.parametrize(
    ("initial", "reason"),
    [
        ([], "CONSTANT_MISSING"),
        (given(s0=start(1)), "CONSTANT_MISSING"),
        (given(who=np.zeros(3)), "WRONG_SHAPE"),
        (given(who=np.zeros(2, np.float32)), "WRONG_SHAPE"),
        (given(who=voice(1), x=start(1)), "WRONG_SHAPE"),
        (given(who=voice(1)) * 2, "WRONG_SHAPE"),
        (given(who=voice(float("nan"))), "VALUE_NOT_FINITE"),
        ([types_pb2.Tensor(name="who", dtype=2, shape=[2], data=b"short")], "WRONG_SHAPE"),
        ([types_pb2.Tensor(name="who", dtype=0, shape=[2], data=bytes(16))], "WRONG_SHAPE"),
    ],
)
def test_session_that_cannot_begin_so_is_refused_and_nothing_is_left(
    run: Run, models: Path, initial: list[types_pb2.Tensor], reason: str
):
    async def scenario() -> None:
        async with service(models) as (_, caller):
            refusal = await caller.refused_open("a", "speaker", initial=initial)
            assert refusal == ("INVALID_ARGUMENT", reason)
            if reason == "CONSTANT_MISSING":
                assert refusal.metadata == {"model": "speaker", "constant": "who"}
            frames = Frames(caller)
            response = await frames.ask(opens=[opening(0, "a", model="speaker", initial=initial)])
            assert refusals_of(response, OPEN_PART) == {0: ("INVALID_ARGUMENT", reason)}
            request = sequence_pb2.StepRequest(
                session=key("a"), model="speaker", values=values_of([1]), initial=initial
            )
            assert await refused(caller.sequence.Step(request)) == ("INVALID_ARGUMENT", reason)
            assert not (await caller.sessions.ListSessions(session_pb2.ListSessionsRequest())).sessions

    run(scenario())


@pytest.mark.parametrize("mode", ["loss", "drain"])
@pytest.mark.parametrize("has_stepped", [False, True])
def test_what_a_session_began_in_survives_its_server(
    run: Run, models: Path, tmp_path: Path, mode: str, *, has_stepped: bool
):
    """Stored with the birth: where the server is lost before a step, the next one begins where it did."""
    settings: dict[str, Any] = {"store": f"sqlite:///{tmp_path / 'sessions.db'}", "durability": "sync"}

    async def scenario() -> None:
        async with service(models, **settings) as (app, caller):
            stream, _ = await caller.open("a", "speaker", initial=given(who=voice(100), s0=start(5)))
            if has_stepped:
                await stream.step([1], 0)
            if mode == "loss":  # nothing of what it would store on its way out reaches the file
                app._keeper.checkpointer.store_parts = _nothing_stored  # type: ignore[method-assign]
        async with service(models, **settings) as (_, caller):
            stream, opened = await caller.open("a", "speaker")
            assert (opened.created, opened.step) == (False, int(has_stepped))
            assert await memory(caller, "a") == {"s0": [5 + has_stepped], "who": [100, 2.5]}
            assert list((await stream.step([1], opened.step)).values) == [106 + has_stepped]

    run(scenario())


@pytest.fixture(params=["sqlite", "valkey"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'sessions.db'}"
        return
    process = valkey.start(tmp_path / "valkey")
    yield process.url
    process.stop()


def test_what_a_session_began_in_survives_a_server_that_is_killed(
    run: Run, models: Path, store: str, start_server: Callable[..., Server]
):
    server = start_server("--store", store, models=models)

    async def begin() -> None:
        async with Caller(server.address) as caller:
            await caller.open("a", "speaker", mode=CREATE, initial=given(who=voice(100), s0=start(5)))

    run(begin())
    server.stop(signal.SIGKILL)
    server = start_server("--store", store, models=models)

    async def go_on() -> None:
        async with Caller(server.address) as caller:
            assert await memory(caller, "a") == {"s0": [5], "who": [100, 2.5]}  # before anybody opens it
            stream, opened = await caller.open("a", "speaker")
            assert (opened.created, opened.step) == (False, 0)
            assert list((await stream.step([1], 0)).values) == [106]

    run(go_on())


async def _nothing_stored(*_: object, **__: object) -> bool:
    return True


@pytest.mark.parametrize("is_live", [False, True])
def test_reset_keeps_the_constants_and_goes_back_to_the_model_s_state(
    run: Run, models: Path, tmp_path: Path, *, is_live: bool
):
    settings = {"store": f"sqlite:///{tmp_path / 'sessions.db'}"}

    async def scenario() -> None:
        async with service(models, **settings) as (_, caller):
            stream, _ = await caller.open("a", "speaker", initial=given(who=voice(100), s0=start(5)))
            await stream.step([1], 0)
            if is_live:
                await check(caller)
        if not is_live:
            async with service(models, **settings) as (_, caller):
                await check(caller)

    async def check(caller: Caller) -> None:
        await caller.sessions.Reset(session_pb2.ResetRequest(session=key("a")))
        assert await memory(caller, "a") == {"s0": [0], "who": [100, 2.5]}
        stream, opened = await caller.open("a", "speaker")
        assert opened.step == 0
        assert list((await stream.step([1], 0)).values) == [101]

    run(scenario())


def test_forks_and_exports_carry_the_constants(run: Run, models: Path, tmp_path: Path):
    async def scenario() -> None:
        async with service(models) as (_, caller):
            stream, _ = await caller.open("a", "speaker", initial=given(who=voice(100), s0=start(5)))
            await stream.step([1], 0)
            await caller.sessions.Fork(session_pb2.ForkRequest(session=key("a"), fork=key("b")))
            fork, _ = await caller.open("b", "speaker")
            assert list((await fork.step([1], 1)).values) == [107]
            exported = await caller.sessions.Export(session_pb2.ExportRequest(session=key("a")))
        other = {"store": f"sqlite:///{tmp_path / 'other.db'}"}
        async with service(models, **other) as (_, caller):
            await caller.sessions.Import(session_pb2.ImportRequest(session=key("c"), record=exported.record))
            assert await memory(caller, "c") == {"s0": [6], "who": [100, 2.5]}
            stream, _ = await caller.open("c", "speaker")
            assert list((await stream.step([1], 1)).values) == [107]

    run(scenario())


@pytest.mark.parametrize("is_live", [False, True])
@pytest.mark.parametrize("has_stepped", [False, True])
def test_session_takes_its_constants_to_another_version(
    run: Run, tmp_path: Path, *, is_live: bool, has_stepped: bool
):
    settings: dict[str, Any] = {"store": f"sqlite:///{tmp_path / 'sessions.db'}"}
    for version in (1, 2):
        path = tmp_path / "models" / "speaker" / str(version) / "model.onnx"
        write_speaker(path, version=version, state_family="voices")

    async def begin(caller: Caller) -> None:
        for name in ("moved", "reset"):
            stream, _ = await caller.open(name, "speaker", version=1, initial=given(who=voice(100)))
            if has_stepped:
                await stream.step([1], 0)
            await stream.half_close()

    async def change(caller: Caller) -> None:
        move = types_pb2.MODEL_CHANGE_MOVE
        stream, opened = await caller.open("moved", "speaker", model_change=move)
        assert (opened.version, opened.step) == (2, int(has_stepped))
        assert list((await stream.step([1], opened.step)).values) == [101 + has_stepped]
        reset = types_pb2.MODEL_CHANGE_RESET
        refusal = await caller.refused_open("reset", "speaker", model_change=reset)
        assert refusal == ("INVALID_ARGUMENT", "CONSTANT_MISSING")
        stream, opened = await caller.open("reset", "speaker", version=1)
        assert opened.step == int(has_stepped)  # the refusal has changed nothing
        initial = given(who=voice(7), s0=start(1))
        stream, opened = await caller.open("reset", "speaker", model_change=reset, initial=initial)
        assert (opened.version, opened.step, opened.created) == (2, 0, True)
        assert list((await stream.step([1], 0)).values) == [9]

    async def scenario() -> None:
        async with service(tmp_path / "models", **settings) as (_, caller):
            await begin(caller)
            if is_live:
                await change(caller)
        if not is_live:
            async with service(tmp_path / "models", **settings) as (_, caller):
                await change(caller)

    run(scenario())


def test_many_are_created_at_once_each_in_its_own(run: Run, models: Path):
    async def scenario() -> None:
        async with service(models) as (_, caller):

            async def one(k: int) -> None:
                initial = given(who=voice(k), s0=start(-k))
                stream, _ = await caller.open(f"s{k}", "speaker", mode=CREATE, initial=initial)
                assert list((await stream.step([k], 0)).values) == [k]

            await asyncio.gather(*map(one, range(100)))

    run(scenario())
