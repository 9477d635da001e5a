"""The gateway against real services that store: they are killed or drained, and every answer is what it was."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import longshort
import numpy as np
import pytest
import valkey
from longshort import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from servers import Server

IDS = [f"meter-{number}" for number in range(60)]


class Followed:
    """A gateway's sessions, what each was given, and what they all answer alone."""

    def __init__(self, gateway: longshort.Gateway) -> None:
        self.gateway = gateway
        self._group = gateway.group(IDS)
        self._values: list[np.ndarray] = []
        self._answers: list[np.ndarray] = []

    def step(self, times: int = 1) -> float:
        """Step all sessions; return how long the slowest call took, in seconds."""
        slowest_s = 0.0
        for _ in range(times):
            draw = np.random.default_rng(len(self._values))
            values = draw.normal(0, 100, len(IDS)).astype(np.float32)
            begin_s = time.perf_counter()
            self._answers.append(self.gateway.steps(self._group, values))
            slowest_s = max(slowest_s, time.perf_counter() - begin_s)
            self._values.append(values)
        return slowest_s

    def check(self, server: Server) -> None:
        """Compare with sessions that were never disturbed."""
        have = np.stack(self._answers, axis=1)  # [sessions, time, outputs] f32
        with longshort.Gateway(server.address, "metro", timeout_s=20) as alone:
            undisturbed = alone.steps(
                [f"alone-{key}" for key in IDS], np.stack(self._values, axis=1)[:, :, None]
            )
        np.testing.assert_array_equal(have, undisturbed)
        assert [self.gateway.position(key) for key in IDS] == [len(self._values)] * len(IDS)


@pytest.mark.parametrize("durability", ["behind", "sync"])
def test_server_that_is_killed_goes_on_from_its_file(
    start_server: Callable[..., Server], tmp_path: Path, durability: Any
):
    store = ("--store", f"sqlite:///{tmp_path}/sessions.db")
    server = start_server(*store)
    with longshort.Gateway(server.address, "metro", durability=durability, timeout_s=20) as gateway:
        followed = Followed(gateway)
        followed.step(20)
        gateway.flush(IDS[::2])
        followed.step(20)
        server.stop(signal.SIGKILL)
        server = start_server(*store, port=server.port)
        followed.step(20)
        gateway.flush()
        server.stop(signal.SIGKILL)
        server = start_server(*store, port=server.port)
        followed.step(5)
        followed.check(server)


def test_gateway_says_what_a_session_has_and_how_far_it_is_stored(
    start_server: Callable[..., Server], tmp_path: Path
):
    server = start_server("--store", f"sqlite:///{tmp_path}/sessions.db", "--checkpoint-interval", "1h")
    with longshort.Gateway(server.address, "metro", durability="behind", timeout_s=20) as gateway:
        with pytest.raises(longshort.errors.FailedPrecondition):
            gateway.durability("s")
        gateway.step("s", 1.0)
        assert (gateway.durability("s"), gateway.durable_step("s")) == ("behind", 0)
        gateway.flush(["s"])
        assert gateway.durable_step("s") == 1
        with longshort.Client(server.address) as client:
            client.delete("s")
        with pytest.raises(longshort.errors.RowsFailed):
            gateway.steps(["s"], [1.0])
        assert gateway.durable_step("s") == 0  # it has ended: what its opening said
    with longshort.Gateway(server.address, "metro", durability="none", timeout_s=20) as gateway:
        gateway.step("t", 1.0)
        assert (gateway.durability("t"), gateway.durable_step("t")) == ("none", 0)


def test_little_is_kept_where_the_server_is_asked_to_store(
    start_server: Callable[..., Server], tmp_path: Path
):
    server = start_server("--store", f"sqlite:///{tmp_path}/sessions.db")
    with longshort.Gateway(
        server.address, "metro", durability="behind", timeout_s=20, max_kept_steps=100
    ) as gateway:
        followed = Followed(gateway)
        begin_s = time.perf_counter()
        followed.step(100)
        assert time.perf_counter() - begin_s < 15, "nobody waits for the server's own checkpoints"
        followed.check(server)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[valkey.Valkey]:
    server = valkey.start(tmp_path / "valkey", appendonly=True, appendfsync="always")
    yield server
    server.kill()


@pytest.fixture
def replicas(start_server: Callable[..., Server], store: valkey.Valkey) -> list[Server]:
    return [start_server("--store", store.url) for _ in range(3)]


def gateway_of(replicas: list[Server], **options: Any) -> longshort.Gateway:
    addresses = [replica.address for replica in replicas]
    return longshort.Gateway(addresses, "metro", **{"durability": "behind", "timeout_s": 30} | options)


def test_replica_that_is_killed_is_a_short_pause(replicas: list[Server]):
    with gateway_of(replicas) as gateway:
        followed = Followed(gateway)
        followed.step(20)
        for number in range(2):
            replicas[number].stop(signal.SIGKILL)
            assert followed.step(20) < 5
        gateway.flush()
        followed.check(replicas[2])


def test_rolling_restart_is_no_error_to_anybody(
    replicas: list[Server], start_server: Callable[..., Server], store: valkey.Valkey
):
    def restart() -> None:
        for number, replica in enumerate(list(replicas)):
            assert replica.stop() == 0
            replicas[number] = start_server("--store", store.url, port=replica.port)

    with gateway_of(replicas) as gateway:
        followed = Followed(gateway)
        followed.step(5)
        rolling = threading.Thread(target=restart)
        rolling.start()
        while rolling.is_alive():
            followed.step()
        rolling.join()
        followed.step(5)
        followed.check(replicas[0])


def test_two_gateways_never_both_feed_a_session(replicas: list[Server]):
    with gateway_of(replicas) as one, gateway_of(replicas[::-1]) as two:
        one.steps(IDS, np.ones(len(IDS)))
        two.steps(IDS, np.ones(len(IDS)))
        with pytest.raises(errors.RowsFailed) as caught:
            one.steps(IDS, np.ones(len(IDS)))
        assert {type(error) for error in caught.value.errors.values()} == {errors.SessionTaken}
        assert [two.position(key) for key in IDS] == [2] * len(IDS)
