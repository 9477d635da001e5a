"""A crash at every point between receiving a message and sending its answer, on every store, at every durability.

The service kills itself at the point (SIGKILL, from within), is started again on the same store, and the client goes
on by its rules. All answers are in the end, bit for bit, what a model stepped alone gives; where the durability allows
a loss the client is told. So on each way that a message has: a stream, a stream of frames, unary calls.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import valkey
from fault_plays import MODEL, NUM_STEPS, PLAYS, SIZES
from fault_points import FRAME_POINTS, STEP_POINTS, STREAM_POINTS
from fault_seams import FaultPoint, Phase
from faulty_server import FaultyServers, faulty_servers
from histories import BEHIND, NONE, SYNC, SessionLostError
from longshort_model.synthetic import write_random_model
from oracle import OracleModel, OracleSession

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from valkey import Valkey

    Run = Callable[..., Any]

pytestmark = pytest.mark.long
VALUES = np.random.default_rng(7).normal(size=(len(SIZES), NUM_STEPS)).astype(np.float32)
DURABILITIES = {"NONE": NONE, "BEHIND": BEHIND, "SYNC": SYNC}
POINTS = {"stream": STREAM_POINTS, "frames": FRAME_POINTS, "step": STEP_POINTS}
ALL_STORES = {"memory": ("NONE",), "sqlite": tuple(DURABILITIES), "redis": tuple(DURABILITIES)}
# What differs between stores and durabilities lies behind the turn of a message: one way shows all of it.
STORES = {
    "stream": ALL_STORES,
    "frames": {"sqlite": ("BEHIND", "SYNC"), "redis": ("SYNC",)},
    "step": {"sqlite": ("BEHIND", "SYNC")},
}
ARRIVALS = {
    # The first opening and the one after the half-close; messages of two steps and of one, which go different ways.
    "stream": {Phase.OPENING: (1, 2), Phase.MESSAGE: (2, 5), Phase.WRITE: (2,)},
    # The second job of a frame that makes two; one of the frame after the next.
    "frames": {Phase.MESSAGE: (3, 6), Phase.WRITE: (2,)},
    "step": {Phase.MESSAGE: (2,), Phase.WRITE: (2,)},  # one way for all
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / MODEL / "1"
    folder.mkdir(parents=True)
    write_random_model(folder / "model.onnx", name=MODEL, hidden=8)
    return folder.parent.parent


@pytest.fixture(scope="module")
def truth(models: Path) -> list[list[bytes]]:
    """What each step of each session must be answered with."""
    model = OracleModel(models / MODEL / "1" / "model.onnx")
    return [[answer.tobytes() for answer in OracleSession(model).feed(row[:, None])] for row in VALUES]


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

    way: str
    store: str
    durability: str
    point: FaultPoint
    arrival: int

    def __str__(self) -> str:
        return f"{self.way}-{self.store}-{self.durability}-{self.point.name}-{self.arrival}"

    @property
    def unary_durability(self) -> str:
        """What the service is to do before it answers unary calls."""
        return "sync" if self.durability == "SYNC" else "session"


def cases() -> list[Case]:
    """Every point of every way, store and durability: those of a write where sessions are written as they go."""
    return [
        Case(way, store, durability, point, arrival)
        for way, stores in STORES.items()
        for store, durabilities in stores.items()
        for durability, point in itertools.product(durabilities, POINTS[way])
        if durability != "NONE" or point.phase is not Phase.WRITE
        for arrival in ARRIVALS[way].get(point.phase, (1,))
    ]


@pytest.mark.parametrize("case", cases(), ids=str)
def test_a_crash_at_a_point_loses_nothing_and_repeats_nothing(
    run: Run, servers: FaultyServers, truth: list[list[bytes]], url_of: Callable[[str], str], case: Case
):
    settings = {"store": url_of(case.store), "unary_durability": case.unary_durability}
    name = str(case).replace(" ", "-")
    play = PLAYS[case.way](servers, settings, name, VALUES, DURABILITIES[case.durability])

    async def scenario() -> None:
        await play.until_killed(case.point, case.arrival)
        try:
            await play.to_the_end()
        except SessionLostError:
            assert case.durability == "NONE"  # it was told, which is all that NONE promises
        else:
            assert all(follower.is_done for follower in play.followers)

    run(scenario())
    for follower, answers in zip(play.followers, truth, strict=False):
        assert follower.answers == answers[: len(follower.answers)]
