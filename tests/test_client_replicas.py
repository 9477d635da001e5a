"""Either client over three real services on one Valkey, without a proxy: killed, restarted one after the other."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import longshort
import numpy as np
import pytest
import valkey

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from servers import Server

VALUES = np.sin(np.arange(90)).round(3).astype(np.float32)
NAMES = [f"s{number}" for number in range(6)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[valkey.Valkey]:
    server = valkey.start(tmp_path / "valkey", appendonly=True, appendfsync="always")
    yield server
    server.kill()


@pytest.fixture
def replicas(start_server: Callable[..., Server], store: valkey.Valkey) -> list[Server]:
    return [start_server("--store", store.url) for _ in range(3)]


@pytest.fixture
def wanted(server: Server) -> NDArray[np.float32]:
    """What one server that nothing happens to answers."""
    with longshort.Client(server.address) as client, client.session(model="metro") as session:
        return session.steps(VALUES)


def stream(
    address: str, durability: Any, meanwhile: Callable[[], Awaitable[None]]
) -> list[NDArray[np.float32]]:
    """Step some sessions value by value; return their answers. After a third of the values `meanwhile` begins."""

    async def one(session: longshort.aio.Session, started: asyncio.Event, is_over: asyncio.Event) -> Any:
        rows = []
        for count, value in enumerate(VALUES):
            rows.append(await session.step(value))
            assert session.position == count + 1
            if count == len(VALUES) // 3:
                started.set()
            if len(VALUES) // 3 < count < len(VALUES) - 10 and not is_over.is_set():
                await asyncio.sleep(0.05)
        await is_over.wait()
        assert await session.flush() == len(VALUES)
        return np.stack(rows)

    async def scenario() -> Any:
        started, is_over = asyncio.Event(), asyncio.Event()
        async with longshort.aio.Client(address, timeout_s=20) as client, AsyncExitStack() as stack:
            sessions = [
                await stack.enter_async_context(client.session(name, "metro", durability=durability))
                for name in NAMES
            ]
            tasks = [asyncio.create_task(one(session, started, is_over)) for session in sessions]
            await started.wait()
            await meanwhile()
            is_over.set()
            return await asyncio.gather(*tasks)

    answers: list[NDArray[np.float32]] = asyncio.run(scenario())
    return answers


@pytest.mark.parametrize("durability", ["behind", "sync"])
def test_killed_replica_is_a_pause_and_no_answer_is_another(
    replicas: list[Server], wanted: NDArray[np.float32], durability: str
):
    async def kill() -> None:
        await asyncio.to_thread(replicas[0].stop, signal.SIGKILL)

    for answers in stream(",".join(replica.address for replica in replicas), durability, kill):
        np.testing.assert_array_equal(answers, wanted)


@pytest.mark.parametrize("durability", ["none", "behind"])
def test_rolling_restart_is_no_error_to_any_caller(
    replicas: list[Server],
    wanted: NDArray[np.float32],
    durability: str,
    start_server: Callable[..., Server],
    store: valkey.Valkey,
):
    async def restart_all() -> None:
        for replica in replicas:
            assert await asyncio.to_thread(replica.stop) == 0
            await asyncio.to_thread(start_server, "--store", store.url, port=replica.port)

    for answers in stream(",".join(replica.address for replica in replicas), durability, restart_all):
        np.testing.assert_array_equal(answers, wanted)


def test_sync_client_follows_a_session_from_killed_replica_to_killed_replica(
    replicas: list[Server],
    wanted: NDArray[np.float32],
    start_server: Callable[..., Server],
    store: valkey.Valkey,
):
    with (
        longshort.Client([replica.address for replica in replicas], timeout_s=20) as client,
        client.session("s", "metro", durability="behind") as session,
    ):
        rows = []
        for count, value in enumerate(VALUES):
            if count % 30 == 15:
                dead = replicas[count // 30]
                dead.stop(signal.SIGKILL)
                start_server("--store", store.url, port=dead.port)
            rows.append(session.step(value))
        np.testing.assert_array_equal(np.stack(rows), wanted)
        # At its place, which may not be where its stream is: that server learns it with its next checkpoint.
        client.delete("s")

        def step_on() -> None:
            ends_at_s = time.monotonic() + 10
            while time.monotonic() < ends_at_s:
                session.step(1)
                time.sleep(0.05)

        with pytest.raises(longshort.errors.SessionLost):
            step_on()
