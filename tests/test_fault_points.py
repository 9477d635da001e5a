"""A crash at every point between receiving a message and sending its answer, on every store, at every durability.

The service kills itself at the point (SIGKILL, from within), is started again on the same store, and the client goes
on by its rules. All answers are in the end, bit for bit, what a model stepped alone gives; where the durability allows
a loss the client is told.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
import valkey
from fault_points import FAULT_POINTS, FaultPoint, Phase
from faulty_server import FaultyServer, FaultyServers, faulty_servers
from histories import BEHIND, NONE, SYNC, Follower, SessionLostError, StoreCaller, reason_of
from longshort_model.synthetic import write_random_model
from oracle import OracleModel, OracleSession

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from valkey import Valkey

    Run = Callable[..., Any]

SIZES = (1, 2, 1, 3, 1, 1, 2, 3, 1, 2, 1, 1)
VALUES = np.random.default_rng(7).normal(size=sum(SIZES)).astype(np.float32)
FLUSH_AT, LEAVE_AT, DRAIN_AT = 7, 11, 14  # steps, each the end of a message
DURABILITIES = {"NONE": NONE, "BEHIND": BEHIND, "SYNC": SYNC}
STORES = {"memory": ("NONE",), "sqlite": tuple(DURABILITIES), "redis": tuple(DURABILITIES)}
# The first opening and the one after the half-close; messages of two steps and of one, which go different ways.
ARRIVALS = {Phase.OPENING: (1, 2), Phase.MESSAGE: (2, 5), Phase.WRITE: (2,)}
# What happens beside the messages: the last of them may be answered before.
BESIDE = {Phase.WRITE, Phase.HALF_CLOSE, Phase.DRAIN}
PATIENCE_S = 20.0
# Soon, so that checkpoints fall among so few messages.
SETTINGS = {"checkpoint_interval_s": 0.005, "checkpoint_steps": 3, "max_sessions": 64, "max_batch_rows": 16}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "lstm" / "1"
    folder.mkdir(parents=True)
    write_random_model(folder / "model.onnx", name="lstm", hidden=8)
    return folder.parent.parent


@pytest.fixture(scope="module")
def truth(models: Path) -> list[bytes]:
    """What each step must be answered with."""
    answers = OracleSession(OracleModel(models / "lstm" / "1" / "model.onnx")).feed(VALUES[:, None])
    return [answer.tobytes() for answer in answers]


@pytest.fixture(scope="module")
def servers(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyServers]:
    with faulty_servers(models, tmp_path_factory.mktemp("log") / "faulty.log") as running:
        yield running


@pytest.fixture(scope="module")
def shared_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    running = valkey.start(tmp_path_factory.mktemp("valkey"), appendonly=True, appendfsync="always")
    yield running
    running.stop()


@pytest.fixture
def url_of(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Return the URL of a store that no service has used, or whose sessions are others'."""

    def url(store: str) -> str:
        if store == "redis":
            return str(request.getfixturevalue("shared_valkey").url)
        return f"sqlite:///{tmp_path}/sessions.db" if store == "sqlite" else "memory://"

    return url


@dataclass(frozen=True)
class Case:
    """Where a service is killed: at the n-th arrival at a point."""

    store: str
    durability: str
    point: FaultPoint
    arrival: int

    def __str__(self) -> str:
        return f"{self.store}-{self.durability}-{self.point.name}-{self.arrival}"


def cases() -> list[Case]:
    """Every point of every store and durability: those of a write where sessions are written as they go."""
    return [
        Case(store, durability, point, arrival)
        for store, durabilities in STORES.items()
        for durability, point in itertools.product(durabilities, FAULT_POINTS)
        if durability != "NONE" or point.phase is not Phase.WRITE
        for arrival in ARRIVALS.get(point.phase, (1,))
    ]


class Play:
    """A follower from its first message to its last, over services that end under it."""

    def __init__(self, servers: FaultyServers, follower: Follower, settings: dict[str, Any]) -> None:
        self._servers = servers
        self._follower = follower
        self._settings = settings

    async def until_killed(self, point: FaultPoint, arrival: int) -> None:
        """Go on until the service has killed itself at a point; all may have been answered before."""
        server = self._servers.start(point=point.name, arrival=arrival, **self._settings)
        end = "answered"
        try:
            await self._through(server, drains=point.phase is Phase.DRAIN)
        except grpc.aio.AioRpcError as error:
            end = reason_of(error)
        may_end_so = {"": True, "DRAINING": point.phase is Phase.DRAIN, "answered": point.phase in BESIDE}
        assert may_end_so.get(end), end
        assert self._servers.wait(server) == -signal.SIGKILL

    async def to_the_end(self) -> None:
        """Go on, on another service, until all is answered."""
        server = self._servers.start(**self._settings)
        await self._through(server, drains=False)
        self._servers.kill(server)

    async def _through(self, server: FaultyServer, *, drains: bool) -> None:
        follower = self._follower
        async with asyncio.timeout(PATIENCE_S), StoreCaller(server.address) as caller:
            stream, step = await follower.open(caller)
            step = await follower.go_on(stream, step, FLUSH_AT)
            if step == FLUSH_AT:
                await follower.flush(stream)
            step = await follower.go_on(stream, step, LEAVE_AT)
            if step == LEAVE_AT:
                await stream.leave()
                stream, step = await follower.open(caller)
            if drains:
                step = await follower.go_on(stream, step, DRAIN_AT)
                server.send(signal.SIGTERM)
            await follower.go_on(stream, step)


@pytest.mark.parametrize("case", cases(), ids=str)
def test_a_crash_at_a_point_loses_nothing_and_repeats_nothing(
    run: Run, servers: FaultyServers, truth: list[bytes], url_of: Callable[[str], str], case: Case
):
    follower = Follower(str(case).replace(" ", "-"), "lstm", VALUES, SIZES, DURABILITIES[case.durability])
    play = Play(servers, follower, SETTINGS | {"store": url_of(case.store)})

    async def scenario() -> None:
        await play.until_killed(case.point, case.arrival)
        try:
            await play.to_the_end()
        except SessionLostError:
            assert case.durability == "NONE"  # it was told, which is all that NONE promises
        else:
            assert follower.is_done

    run(scenario())
    assert follower.answers == truth[: len(follower.answers)]
