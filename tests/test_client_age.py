"""Clients of servers that end old streams: sessions return to a server that is back, and no caller notices."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import longshort
import numpy as np
import pytest
import valkey
from longshort.placement import Placement
from replicas import Replica, Store, answers_to

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from servers import Server

    # Takes one step of every session with a value; returns the answers [sessions, outputs] f32.
    Step = Callable[[np.float32], Sequence[Any]]

pytestmark = pytest.mark.long

NAMES = [f"s{number}" for number in range(8)]
PAUSE_S = 0.02
PATIENCE_S = 20.0


@pytest.fixture
def start(start_server: Callable[..., Server], tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers of one store, whose streams live for about 1.5 s."""
    store = valkey.start(tmp_path / "valkey", appendonly=True, appendfsync="always")
    yield partial(start_server, "--store", store.url, "--max-stream-age", "1500ms")
    store.kill()


@contextmanager
def sync_sessions(addresses: list[str], durability: Any) -> Iterator[Step]:
    with longshort.Client(addresses, timeout_s=20) as client:
        sessions = [client.session(name, "metro", durability=durability) for name in NAMES]
        yield lambda value: [session.step(value) for session in sessions]
        for session in sessions:
            session.close()


@contextmanager
def async_sessions(addresses: list[str], durability: Any) -> Iterator[Step]:
    stack = AsyncExitStack()

    async def opened() -> list[longshort.aio.Session]:
        client = await stack.enter_async_context(longshort.aio.Client(addresses, timeout_s=20))
        return [
            await stack.enter_async_context(client.session(name, "metro", durability=durability))
            for name in NAMES
        ]

    async def step(value: np.float32) -> list[Any]:
        return await asyncio.gather(*(session.step(value) for session in sessions))

    with asyncio.Runner() as runner:
        sessions = runner.run(opened())
        yield lambda value: runner.run(step(value))
        runner.run(stack.aclose())


@contextmanager
def gateway(addresses: list[str], durability: Any) -> Iterator[Step]:
    with longshort.Gateway(addresses, "metro", durability=durability, timeout_s=20) as gateway:
        yield lambda value: gateway.steps(NAMES, np.full(len(NAMES), value))


def num_seen(server: Server) -> int:
    """Return how many sessions a server has in memory: those that went elsewhere stay as idle ones for a while."""
    found = re.findall(r'longshort_sessions\{state="(?:live|idle)"\} (\d+)', server.metrics())
    return sum(map(int, found))


def num_placed(keys: Sequence[str], first: Server, second: Server) -> int:
    """Return how many keys have their place at the first of two servers."""
    placement = Placement([first.address, second.address])
    return sum(placement.place(key, 0.0) == first.address for key in keys)


@pytest.mark.parametrize(
    ("follow", "durability", "number"),
    [
        # What NONE has in memory alone goes with a server that is killed: this one leaves in good order.
        (sync_sessions, "none", signal.SIGTERM),
        (async_sessions, "behind", signal.SIGKILL),
        (gateway, "behind", signal.SIGKILL),
    ],
)
def test_sessions_return_to_a_server_that_is_back(
    start: Callable[..., Server], server: Server, follow: Any, durability: str, number: signal.Signals
):
    values: list[np.float32] = []
    answers: list[Sequence[Any]] = []
    rng = np.random.default_rng(4)
    first, second = start(), start()
    with follow([first.address, second.address], durability) as step:

        def step_until(is_so: Callable[[], bool]) -> None:
            ends_at_s = time.monotonic() + PATIENCE_S
            while not is_so():
                assert time.monotonic() < ends_at_s
                values.append(np.float32(rng.normal(0, 100)))
                answers.append(step(values[-1]))
                time.sleep(PAUSE_S)

        step_until(lambda: bool(values))
        num_first = num_seen(first)
        if follow is gateway:  # five of its eight lanes have sessions, and each server has four
            assert 0 < num_first < len(NAMES)
        else:
            assert num_first == num_placed(NAMES, first, second)
        assert num_seen(second) == len(NAMES) - num_first
        first.stop(number)
        step_until(lambda: num_seen(second) == len(NAMES))
        back = start(port=first.port)
        step_until(lambda: num_seen(back) == num_first)
        began_s = time.monotonic()
        step_until(lambda: time.monotonic() > began_s + 2)  # they are opened again, each where it is
        assert num_seen(back) == num_first

    with longshort.Client(server.address) as client, client.session(model="metro") as alone:
        wanted = alone.steps(np.array(values))
    for row in range(len(NAMES)):
        np.testing.assert_array_equal(np.stack([answer[row] for answer in answers]), wanted)
    assert back.errors() == second.errors() == []


def test_end_of_an_old_stream_speaks_against_no_server():
    store, values = Store(), [1.0, 2.0, 3.0]
    with Replica(store) as one, Replica(store) as other:
        with (
            longshort.Client([one.address, other.address]) as client,
            client.session("s", model="metro") as session,
        ):
            answers = [float(session.step(values[0])[0])]
            home, away = (one, other) if one.opens else (other, one)
            home.ends = [(grpc.StatusCode.UNAVAILABLE, "STREAM_AGED")]
            answers += [float(session.step(value)[0]) for value in values[1:]]
        assert answers == answers_to(values)
        assert (len(home.opens), len(away.opens)) == (2, 0)
