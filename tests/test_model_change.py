"""Model changes under live sessions, by real services: versions come and go, sessions stay, move or begin anew."""

from __future__ import annotations

import asyncio
import shutil
import signal
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from frame_wire import Frames, opening
from graphs import write_adder
from longshort.v1 import model_pb2, session_pb2, types_pb2
from longshort_model.synthetic import write_random_model
from oracle import OracleModel, OracleSession
from wire import OPEN, Caller, Stream, in_band, key, refusal_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from longshort.v1 import sequence_pb2
    from numpy.typing import NDArray

    Run = Callable[..., Any]

MOVE, RESET = types_pb2.MODEL_CHANGE_MOVE, types_pb2.MODEL_CHANGE_RESET
VALUES = np.random.default_rng(7).normal(0, 5, 10_000).astype(np.float32)
WHERE = ["live", "spilled", "stored"]


class Shelf:
    """A repository of one model, and the services that follow it one after the other, on one store or none."""

    def __init__(self, root: Path, start: Any) -> None:
        self.models = root / "models"
        self.store = f"sqlite:///{root / 'sessions.db'}"
        self._start = start

    def put(self, version: int, family: str = "f", seed: int | None = None) -> None:
        """Write a version."""
        path = self.models / "m" / str(version) / "model.onnx"
        write_random_model(path, hidden=8, seed=version if seed is None else seed, state_family=family)

    def start(self, *flags: str, store: str = "", watch: str = "0") -> Any:
        """Start a service."""
        return self._start(
            *("--store", store or self.store, "--repository-watch", watch, *flags), models=self.models
        )

    def oracle(self, version: int) -> OracleModel:
        """Return a version in onnxruntime alone."""
        return OracleModel(self.models / "m" / str(version) / "model.onnx")


@pytest.fixture
def shelf(tmp_path: Path, start_server: Any) -> Shelf:
    shelf = Shelf(tmp_path, start_server)
    shelf.put(1)
    return shelf


def moved(session: OracleSession, model: OracleModel) -> OracleSession:
    """Return what a session must say on another model from now on."""
    other = session.fork()
    other.model = model
    return other


def fed(session: OracleSession, count: int) -> list[float]:
    """Return what a session must answer to its next values."""
    rows: NDArray[np.float32] = VALUES[session.step : session.step + count, None]
    return [float(y) for y in session.feed(rows).ravel()]


async def step(stream: Stream, session: OracleSession, count: int = 1) -> list[float]:
    """Send the next values of a session, and check the answer against what it must be."""
    first = session.step
    answer = await stream.step(VALUES[first : first + count], first)
    assert list(answer.values) == fed(session, count)
    return list(answer.values)


async def reload(caller: Caller) -> model_pb2.ReloadModelsResponse:
    response = await caller.models.ReloadModels(model_pb2.ReloadModelsRequest())
    assert isinstance(response, model_pb2.ReloadModelsResponse)
    return response


async def until_versions(caller: Caller, *versions: int) -> None:
    async with asyncio.timeout(20):
        while True:
            models = (await caller.models.ListModels(model_pb2.ListModelsRequest())).models
            if [model.version for model in models] == list(versions):
                return
            await asyncio.sleep(0.02)


async def until_spilled(caller: Caller, session_id: str) -> None:
    request = session_pb2.GetSessionRequest(session=key(session_id))
    async with asyncio.timeout(20):
        while True:
            found = (await caller.sessions.GetSession(request)).session
            if found.location == session_pb2.SESSION_LOCATION_STORED:
                return
            await asyncio.sleep(0.02)


def changing(where: str, shelf: Shelf, run: Run, scenario: Callable[..., Any], after: Any = None) -> None:
    """Run a session of 7 steps on version 1; then version 2 arrives and `scenario` opens it again.

    The session is live on a stream by then, spilled, or stored by a service that has gone since. `after` is done in
    between.
    """
    oracle = OracleSession(shelf.oracle(1))
    first = shelf.start(*(["--idle-timeout", "50ms"] if where == "spilled" else []))

    async def begin(caller: Caller) -> tuple[Stream, sequence_pb2.Opened]:
        stream, opened = await caller.open("s", "m")
        await step(stream, oracle, 4)
        await step(stream, oracle, 3)
        return stream, opened

    async def all_at_one() -> None:
        async with asyncio.timeout(30), Caller(first.address) as caller:
            stream, opened = await begin(caller)
            if where == "spilled":
                await stream.half_close()
                await until_spilled(caller, "s")
            shelf.put(2)
            assert list((await reload(caller)).loaded) == ["m/2"]
            await scenario(caller, oracle, opened, stream if where == "live" else None)

    async def only_the_beginning() -> sequence_pb2.Opened:
        async with asyncio.timeout(30), Caller(first.address) as caller:
            stream, opened = await begin(caller)
            await stream.half_close()
            return opened

    async def the_rest(address: str, opened: sequence_pb2.Opened) -> None:
        async with asyncio.timeout(30), Caller(address) as caller:
            await scenario(caller, oracle, opened, None)

    if where == "stored":
        opened = run(only_the_beginning())
        assert first.stop() == 0
        shelf.put(2)
        if after is not None:
            after()
        run(the_rest(shelf.start().address, opened))
    else:
        run(all_at_one())


def test_version_arrives_and_goes_by_itself_and_live_sessions_do_not_notice(run: Run, shelf: Shelf):
    server = shelf.start(watch="50ms")
    first = OracleSession(shelf.oracle(1))

    async def scenario() -> None:
        async with asyncio.timeout(40), Caller(server.address) as caller:
            old, _ = await caller.open("old", "m")

            async def while_stepping(work: Any) -> None:
                task = asyncio.ensure_future(work)
                while not task.done():
                    await step(old, first)
                    await asyncio.sleep(0.005)
                await task

            await step(old, first)
            shelf.put(2)
            second = shelf.oracle(2)
            await while_stepping(until_versions(caller, 1, 2))
            new, opened = await caller.open("new", "m")
            assert opened.version == 2
            await step(new, OracleSession(second), 3)
            shutil.rmtree(shelf.models / "m" / "1")
            await asyncio.sleep(0.5)  # ten looks
            await until_versions(caller, 1, 2)
            await step(old, first)
            _, opened = await caller.open("old", "m")
            assert opened.version == 1
            await caller.sessions.Delete(session_pb2.DeleteRequest(session=key("old")))
            await until_versions(caller, 2)

    run(scenario())
    assert server.errors() == []


@pytest.mark.parametrize("where", WHERE)
def test_moved_session_goes_on_from_its_old_state_with_the_new_file(run: Run, shelf: Shelf, where: str):
    async def scenario(caller: Caller, oracle: OracleSession, opened: Any, old: Stream | None) -> None:
        stream, again = await caller.open("s", "m", model_change=MOVE, mode=OPEN, client_id="me")
        assert (again.version, again.step, again.created) == (2, 7, False)
        assert (again.durable_step, again.incarnation) == (7, opened.incarnation)
        assert again.epoch > opened.epoch
        assert again.fingerprint == shelf.oracle(2).signature.fingerprint
        if old is not None:
            refusal = await old.end()
            assert refusal == ("ABORTED", "SESSION_MOVED")
            assert refusal.metadata["client_id"] == "me"
        replayed = await stream.step(VALUES[4:7], 4)
        before = OracleSession(shelf.oracle(1))
        fed(before, 4)
        assert (replayed.replayed, list(replayed.values)) == (True, fed(before, 3))
        after = moved(oracle, shelf.oracle(2))
        await step(stream, after, 1)
        await step(stream, after, 5)
        missing = await stream.step([np.nan], 13)  # stands for the last value, the move notwithstanding
        assert list(missing.values) == [float(y) for y in after.feed(VALUES[12:13, None]).ravel()]
        _, third = await caller.open("s", "", model_change=MOVE)
        assert (third.version, third.step, third.incarnation) == (2, 14, opened.incarnation)

    changing(where, shelf, run, scenario)


@pytest.mark.parametrize("where", WHERE)
def test_reset_session_begins_anew_on_the_new_file(run: Run, shelf: Shelf, where: str):
    async def scenario(caller: Caller, _oracle: OracleSession, opened: Any, old: Stream | None) -> None:
        stream, again = await caller.open("s", "", model_change=RESET, mode=OPEN)
        assert (again.version, again.step, again.created) == (2, 0, True)
        assert again.incarnation != opened.incarnation
        if old is not None:
            assert await old.end() == ("ABORTED", "SESSION_MOVED")
        fresh = OracleSession(shelf.oracle(2))
        await step(stream, fresh, 3)
        _, third = await caller.open("s", "", model_change=RESET)
        assert (third.version, third.step, third.incarnation) == (2, 3, again.incarnation)

    changing(where, shelf, run, scenario)


@pytest.mark.parametrize("where", WHERE)
def test_frame_moves_and_resets_the_sessions_that_it_opens(run: Run, shelf: Shelf, where: str):
    async def scenario(caller: Caller, oracle: OracleSession, _opened: Any, _old: Any) -> None:
        frames = Frames(caller)
        response = await frames.ask(
            opens=[
                opening(0, "s", "m", model_change=MOVE),
                opening(1, "t", "m", version=1),
                opening(2, "u", "m", model_change=types_pb2.MODEL_CHANGE_REFUSE + 7),
            ]
        )
        assert [(each.opened.version, each.opened.step) for each in response.opened] == [(2, 7), (1, 0)]
        assert [in_band(each.error).reason for each in response.errors] == ["INVALID_MESSAGE"]
        after = moved(oracle, shelf.oracle(2))
        answer = await frames.ask(handles=[0, 1], steps=[7, 0], values=VALUES[[7, 0]])
        assert list(answer.values) == [*fed(after, 1), *fed(OracleSession(shelf.oracle(1)), 1)]
        response = await frames.ask(opens=[opening(5, "t", "m", model_change=RESET)])
        assert [(each.opened.version, each.opened.step) for each in response.opened] == [(2, 0)]
        answer = await frames.ask(handles=[0, 5], steps=[8, 0], values=VALUES[[8, 0]])
        assert list(answer.values) == [*fed(after, 1), *fed(OracleSession(shelf.oracle(2)), 1)]

    changing(where, shelf, run, scenario)


def test_gateway_moves_all_its_sessions_in_one_frame(run: Run, shelf: Shelf):
    server = shelf.start()
    names = [f"s{k}" for k in range(300)]

    async def scenario() -> None:
        async with asyncio.timeout(30), Caller(server.address) as caller:
            frames = Frames(caller)
            await frames.open(*names, model="m")
            values = np.resize(VALUES, 300)
            await frames.ask(handles=range(300), steps=[0] * 300, values=values)
            shelf.put(2)
            await reload(caller)
            opened = await frames.open(*names, model="m", model_change=MOVE)
            assert {(each.version, each.step, each.durable_step) for each in opened} == {(2, 1, 1)}
            answer = await frames.ask(handles=range(300), steps=[1] * 300, values=values)
            first, second = shelf.oracle(1), shelf.oracle(2)
            expected = []
            for value in values:
                session = OracleSession(first)
                session.feed(value.reshape(1, 1))
                expected += moved(session, second).feed(value.reshape(1, 1)).ravel().tolist()
            assert list(answer.values) == expected

    run(scenario())


@pytest.mark.parametrize("change", [MOVE, RESET], ids=["move", "reset"])
def test_session_whose_version_is_gone_moves_or_begins_anew_on_the_highest(
    run: Run, shelf: Shelf, change: Any
):
    second_state: list[OracleModel] = []

    def take_away() -> None:
        shutil.rmtree(shelf.models / "m" / "1")
        second_state.append(shelf.oracle(2))

    async def scenario(caller: Caller, oracle: OracleSession, _opened: Any, _old: Any) -> None:
        assert await caller.refused_open("s", "m") == ("NOT_FOUND", "MODEL_NOT_FOUND")
        stream, again = await caller.open("s", "m", model_change=change)
        (second,) = second_state
        assert (again.version, again.step) == (2, 7 if change == MOVE else 0)
        await step(stream, moved(oracle, second) if change == MOVE else OracleSession(second), 2)

    changing("stored", shelf, run, scenario, take_away)


def test_file_replaced_under_its_version_is_refused_unless_the_session_moves(run: Run, shelf: Shelf):
    async def scenario(caller: Caller, oracle: OracleSession, _opened: Any, _old: Any) -> None:
        refusal = await caller.refused_open("s", "m")
        assert refusal == ("FAILED_PRECONDITION", "MODEL_CHANGED")
        stream, again = await caller.open("s", "m", version=1, model_change=MOVE)
        assert (again.version, again.step) == (1, 7)
        await step(stream, moved(oracle, shelf.oracle(1)), 2)

    changing("stored", shelf, run, scenario, lambda: shelf.put(1, seed=9))


@pytest.mark.parametrize("change", [MOVE, RESET], ids=["move", "reset"])
def test_moved_session_is_on_its_new_version_after_a_crash(run: Run, shelf: Shelf, change: Any):
    server = shelf.start("--checkpoint-interval", "1h")
    shelf.put(2)
    oracle = OracleSession(shelf.oracle(1))
    after = moved(oracle, shelf.oracle(2))

    async def before() -> int:
        async with asyncio.timeout(20), Caller(server.address) as caller:
            await reload(caller)
            stream, _ = await caller.open("s", "m", version=1)
            await step(stream, oracle, 5)
            _, opened = await caller.open("s", "m", model_change=change)
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
            return opened.incarnation

    async def afterwards(address: str, incarnation: int) -> None:
        async with asyncio.timeout(20), Caller(address) as caller:
            stream, opened = await caller.open("s", "", mode=OPEN)
            assert (opened.version, opened.incarnation) == (2, incarnation)
            assert opened.step == (5 if change == MOVE else 0)
            after.__dict__.update(oracle.__dict__ | {"model": after.model})
            await step(stream, after if change == MOVE else OracleSession(after.model), 2)

    incarnation = run(before())
    run(afterwards(shelf.start().address, incarnation))


def test_what_may_not_move_is_refused_and_its_stream_goes_on(run: Run, shelf: Shelf):
    shelf.put(2)
    shelf.put(3, family="other")
    shelf.put(4, family="")
    write_random_model(shelf.models / "m" / "5" / "model.onnx", hidden=9, state_family="f")
    write_random_model(shelf.models / "n" / "1" / "model.onnx", hidden=8, name="n", state_family="f")
    server = shelf.start(store="memory://")
    oracle = OracleSession(shelf.oracle(1))

    async def scenario() -> None:
        async with asyncio.timeout(20), Caller(server.address) as caller:
            stream, _ = await caller.open("s", "m", version=1)
            await step(stream, oracle, 3)
            refusal = await caller.refused_open("s", "m", version=2)
            assert refusal == ("FAILED_PRECONDITION", "MODEL_MISMATCH")
            assert "unless its opening asks for a model_change" in refusal.message
            for version in (3, 4, 5):
                refusal = await caller.refused_open("s", "m", version=version, model_change=MOVE)
                assert refusal == ("FAILED_PRECONDITION", "MODEL_CHANGED")
                assert f"cannot move from m/1 to m/{version}" in refusal.message
            refusal = await caller.refused_open("s", "m", model_change=MOVE)  # the highest is not alike
            assert refusal == ("FAILED_PRECONDITION", "MODEL_CHANGED")
            for change in (MOVE, RESET):
                refusal = await caller.refused_open("s", "m", version=9, model_change=change)
                assert refusal == ("NOT_FOUND", "MODEL_NOT_FOUND")
            refusal = await caller.refused_open("s", "m", model_change=99)
            assert refusal == ("INVALID_ARGUMENT", "INVALID_MESSAGE")
            await step(stream, oracle, 3)
            _, opened = await caller.open("s", "n", model_change=MOVE)  # another model of the family
            assert (opened.model, opened.step) == ("n", 6)

    run(scenario())
    assert server.errors() == []


def test_session_that_has_not_begun_moves_to_the_new_file_s_own_beginning(run: Run, shelf: Shelf):
    shelf.put(2)
    server = shelf.start(store="memory://")

    async def scenario() -> None:
        async with asyncio.timeout(20), Caller(server.address) as caller:
            _, opened = await caller.open("s", "m", version=1)
            stream, again = await caller.open("s", "m", model_change=MOVE)
            assert (again.version, again.step, again.incarnation) == (2, 0, opened.incarnation)
            await step(stream, OracleSession(shelf.oracle(2)), 3)

    run(scenario())


@pytest.mark.parametrize("store", ["memory://", ""], ids=["memory", "sqlite"])
def test_unary_calls_lose_no_step_while_the_session_moves_to_and_fro(
    run: Run, tmp_path: Path, start_server: Any, store: str
):
    models = tmp_path / "adders"
    for version, bias in ((1, 0), (2, 1000)):
        path = models / "adder" / str(version) / "model.onnx"
        write_adder(path, bias=bias, state_family="sums")
    store = store or f"sqlite:///{tmp_path / 'sessions.db'}"
    server = start_server("--store", store, models=models)

    async def scenario() -> None:
        async with asyncio.timeout(60), Caller(server.address) as caller:
            await caller.open("s", "adder", version=1)

            async def steps() -> set[float]:
                biases = set()
                for number in range(150):
                    try:
                        answer = (await caller.step("s", [1], number, model="")).answer
                    except grpc.aio.AioRpcError as error:  # sent again it has its answer
                        if refusal_of(error) != ("ABORTED", "SESSION_MOVED"):
                            raise
                        answer = (await caller.step("s", [1], number, model="")).answer
                        assert answer.replayed
                    assert answer.step == number + 1
                    biases.add(answer.values[0] - number - 1)
                return biases

            task = asyncio.ensure_future(steps())
            moves = 0
            while not task.done():
                _, opened = await caller.open("s", "", version=2 - moves % 2, model_change=MOVE)
                assert opened.version == 2 - moves % 2
                moves += 1
            assert await task == {0, 1000}
            assert moves > 2

    run(scenario())
    assert server.errors() == []
