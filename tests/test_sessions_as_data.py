"""Sessions exported, imported, forked, reset and deleted while others step: every answer stays that of a session alone.

Two services with other stores, each with streams that step without a pause; beside them callers do whatever can be done
to sessions as data, to those that step too. The truth is onnxruntime stepping the same file by hand.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
import valkey
from longshort.v1 import sequence_pb2, session_pb2
from longshort_model.synthetic import write_random_model
from oracle import OracleModel, OracleSession
from wire import CREATE, OPEN, Caller, Refusal, Stream, key, refused, values_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Run = Callable[..., Any]

NUM_LIVE, NUM_ACTS, NUM_FEATURES = 6, 40, 3
# What is in mid-batch when something is done to a session: short pieces, small batches, everything in the thread.
LIMITS = [
    *("--piece-steps", "3", "--max-batch-rows", "5", "--inline-run-limit", "0"),
    *("--max-sessions", "40", "--idle-timeout", "100ms"),
]


async def next_but_durable(stream: Stream) -> sequence_pb2.StreamResponse:
    """Read the next message that answers something: how much is stored is said whenever it is known."""
    while (response := await stream.receive()).WhichOneof("kind") == "durable":
        pass
    return response


class Follower:
    """A session beside its oracle, which also keeps what it was at every step that a message ended at."""

    def __init__(self, session_id: str, stream: Stream, oracle: OracleSession) -> None:
        self.id = session_id
        self._stream = stream
        self._oracle = oracle
        self.past = {oracle.step: oracle.fork()}
        self.num_messages = 0

    async def step(self, rng: random.Random) -> None:
        """Send a message; its answer must be the oracle's, to the bit."""
        count = rng.choice([1, 1, 2, 5, 11])
        rows = np.array([[rng.uniform(-3, 3) for _ in range(NUM_FEATURES)] for _ in range(count)], np.float32)
        expected = self._oracle.feed(rows)
        self.past[self._oracle.step] = self._oracle.fork()
        await self._stream.send(values=values_of(rows.ravel().tolist(), self._oracle.step - count))
        answer = (await next_but_durable(self._stream)).answer
        self.num_messages += 1
        found: NDArray[np.float32] = np.array(answer.values, np.float32).reshape(expected.shape)
        assert (answer.step, answer.replayed) == (self._oracle.step, False)
        np.testing.assert_array_equal(found, expected)

    async def leave(self) -> None:
        """End its stream."""
        await self._stream.call.done_writing()
        with pytest.raises(EOFError):
            await next_but_durable(self._stream)
        assert await self._stream.call.code() is grpc.StatusCode.OK

    async def end(self) -> Refusal:
        """Return how its stream has ended."""
        return await refused(next_but_durable(self._stream))


class Manager:
    """Does what can be done to sessions as data, and checks what comes of it."""

    def __init__(
        self, model: OracleModel, callers: list[Caller], live: list[tuple[int, Follower]], seed: int
    ) -> None:
        self._model = model
        self._callers = callers
        self._live = live  # each with the place of its service
        self._rng = random.Random(seed)
        self._num_made = 0
        self._prefix = f"made-{seed}"
        self.done: dict[str, int] = {}

    async def act(self) -> None:
        """Do something to a session, and step what has come of it."""
        act = self._rng.choice([self.export, self.fork, self.reset, self.delete])
        await act()
        self.done[act.__name__] = self.done.get(act.__name__, 0) + 1

    async def export(self) -> None:
        """A session that steps is exported, and goes on elsewhere as it was between two messages."""
        place, source = self._rng.choice(self._live)
        exported = await self._callers[place].sessions.Export(
            session_pb2.ExportRequest(session=key(source.id))
        )
        there = self._rng.randrange(len(self._callers))
        name = self._name()
        request = session_pb2.ImportRequest(session=key(name), record=exported.record)
        imported = await self._callers[there].sessions.Import(request)
        assert imported.session.step == exported.step
        again = await refused(self._callers[there].sessions.Import(request))
        assert again == ("ALREADY_EXISTS", "SESSION_EXISTS")
        await self._go_on(there, name, source.past[exported.step].fork())

    async def fork(self) -> None:
        """A session that steps is forked, and so is the fork; each goes its own way."""
        place, source = self._rng.choice(self._live)
        names = [self._name(), self._name()]
        sessions = self._callers[place].sessions
        first = await sessions.Fork(session_pb2.ForkRequest(session=key(source.id), fork=key(names[0])))
        await sessions.Fork(session_pb2.ForkRequest(session=key(names[0]), fork=key(names[1])))
        for name in names:
            await self._go_on(place, name, source.past[first.session.step].fork())

    async def reset(self) -> None:
        """A session that has stepped begins anew; its stream has ended."""
        place, name = self._rng.randrange(len(self._callers)), self._name()
        stream, _ = await self._callers[place].open(name, "wide", mode=CREATE)
        follower = Follower(name, stream, OracleSession(self._model))
        await follower.step(self._rng)
        await self._callers[place].sessions.Reset(session_pb2.ResetRequest(session=key(name)))
        assert await follower.end() == ("ABORTED", "SESSION_MOVED")
        await self._go_on(place, name, OracleSession(self._model))

    async def delete(self) -> None:
        """A session in use is deleted and is gone; its id begins anew."""
        place, name = self._rng.randrange(len(self._callers)), self._name()
        caller = self._callers[place]
        stream, _ = await caller.open(name, "wide", mode=CREATE)
        follower = Follower(name, stream, OracleSession(self._model))
        await follower.step(self._rng)
        await caller.sessions.Delete(session_pb2.DeleteRequest(session=key(name)))
        assert await follower.end() == ("ABORTED", "SESSION_MOVED")
        refusal = await caller.refused_open(name, "wide", mode=OPEN)
        assert refusal == ("NOT_FOUND", "SESSION_NOT_FOUND")
        stream, opened = await caller.open(name, "wide", mode=CREATE)
        assert opened.step == 0
        await self._check(Follower(name, stream, OracleSession(self._model)))

    def _name(self) -> str:
        self._num_made += 1
        return f"{self._prefix}-{self._num_made}"

    async def _go_on(self, place: int, name: str, oracle: OracleSession) -> None:
        stream, opened = await self._callers[place].open(name, mode=OPEN, model="")
        assert opened.step == oracle.step
        await self._check(Follower(name, stream, oracle))

    async def _check(self, follower: Follower) -> None:
        for _ in range(2):
            await follower.step(self._rng)
        await follower.leave()


@pytest.fixture(params=["sqlite", "valkey"])
def other_store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """The store of the second service; the first one's is memory."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'sessions.db'}"
        return
    store = valkey.start(tmp_path / "valkey")
    yield store.url
    store.stop()


def rows_a_run(metrics: str) -> float:
    """Return how many sessions shared a run, on average."""
    found = {
        line.partition("{")[0]: float(line.rpartition(" ")[2])
        for line in metrics.splitlines()
        if line.startswith("longshort_batch_rows_") and 'model="wide"' in line
    }
    return found["longshort_batch_rows_sum"] / found["longshort_batch_rows_count"]


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_is_done_to_sessions_leaves_every_answer_as_it_would_be_alone(
    run: Run, repository: Path, start_server: Callable[..., Any], other_store: str, seed: int
):
    model = OracleModel(repository / "wide" / "1" / "model.onnx")
    servers = [start_server(*LIMITS), start_server(*LIMITS, "--store", other_store)]

    async def follow(follower: Follower, seed: int, is_over: asyncio.Event) -> None:
        rng = random.Random(seed)
        while not is_over.is_set():
            await follower.step(rng)

    async def scenario() -> None:
        callers = [Caller(server.address) for server in servers]
        live: list[tuple[int, Follower]] = []
        for k in range(NUM_LIVE):
            stream, _ = await callers[k % 2].open(f"live-{seed}-{k}", "wide", mode=CREATE)
            live.append((k % 2, Follower(f"live-{seed}-{k}", stream, OracleSession(model))))
        is_over = asyncio.Event()
        async with asyncio.timeout(120), asyncio.TaskGroup() as group:
            for number, (_, follower) in enumerate(live):
                group.create_task(follow(follower, 100 * seed + number, is_over))
            managers = [Manager(model, callers, live, 10 * seed + k) for k in range(2)]
            before = [follower.num_messages for _, follower in live]
            for _ in range(NUM_ACTS):
                await asyncio.gather(*(manager.act() for manager in managers))
            is_over.set()
        for (_, follower), count in zip(live, before, strict=True):
            assert follower.num_messages >= count + NUM_ACTS  # nobody was held up
            await follower.leave()
        acts = {name for manager in managers for name in manager.done}
        assert acts == {"export", "fork", "reset", "delete"}
        for caller in callers:
            await caller.channel.close()

    run(scenario())
    assert [server.errors() for server in servers] == [[], []]
    assert all(rows_a_run(server.metrics()) > 1 for server in servers)  # they were batch-mates indeed


def test_import_on_a_service_with_another_file_is_refused_and_leaves_nothing(
    run: Run, start_server: Callable[..., Any], tmp_path: Path
):
    write_random_model(
        tmp_path / "other" / "wide" / "1" / "model.onnx",
        name="wide",
        hidden=8,
        features=3,
        outputs=2,
        seed=9,
    )
    servers = [start_server(), start_server(models=tmp_path / "other")]

    async def scenario() -> None:
        async with Caller(servers[0].address) as here, Caller(servers[1].address) as there:
            stream, _ = await here.open("s", "wide", mode=CREATE)
            await stream.step([1, 2, 3], 0)
            exported = await here.sessions.Export(session_pb2.ExportRequest(session=key("s")))
            request = session_pb2.ImportRequest(record=exported.record)
            refusal = await refused(there.sessions.Import(request))
            assert refusal == ("FAILED_PRECONDITION", "MODEL_CHANGED")
            damaged = exported.record[:-9] + b"\0" + exported.record[-8:]
            request = session_pb2.ImportRequest(record=damaged)
            assert await refused(there.sessions.Import(request)) == ("INVALID_ARGUMENT", "INVALID_RECORD")
            assert not (await there.sessions.ListSessions(session_pb2.ListSessionsRequest())).sessions
            assert (await stream.step([1, 2, 3], 1)).step == 2

    run(scenario())
