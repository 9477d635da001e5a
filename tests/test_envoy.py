"""Envoy with deploy/envoy/envoy.yaml before three real services: sessions stick, and what is gone gets no calls."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import longshort
import pytest
import valkey
import yaml
from deployment import ROOT, run_tool, tool
from envoy import RECIPE, running_envoy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from envoy import Envoy
    from servers import Server

pytestmark = pytest.mark.long

SESSIONS = [f"s{number}" for number in range(60)]


def homes(replicas: list[Server]) -> list[set[str]]:
    """Return the sessions of each replica."""
    found = []
    for replica in replicas:
        with longshort.Client(replica.address) as client:
            found.append({session.id for session in client.sessions()})
    return found


def open_and_step(client: longshort.Client, names: Iterable[str]) -> None:
    for name in names:
        with client.session(name, "metro", timeout_s=5.0) as session:
            session.step([1.0])


@pytest.fixture
def replicas(start_server: Callable[..., Server]) -> list[Server]:
    """Three services, each with a memory of its own: a session that strays is a session too many."""
    return [start_server("--store", "memory://") for _ in range(3)]


@pytest.fixture
def envoy(replicas: list[Server], tmp_path: Path) -> Iterator[Envoy]:
    with running_envoy([replica.port for replica in replicas], tmp_path) as running:
        yield running


def test_envoy_accepts_its_configuration():
    run_tool(tool("envoy"), "--mode", "validate", "-c", RECIPE)


def test_the_health_check_of_its_container_sees_it_live(envoy: Envoy):
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["envoy"]
    _, *command = compose["healthcheck"]["test"]
    run_tool(*(word.replace("9901", str(envoy.admin_port)) for word in command))
    with pytest.raises(AssertionError):
        run_tool(*(word.replace("9901", "1") for word in command))  # tcpmux: nobody listens there


def test_a_session_comes_to_the_same_replica_by_every_call(envoy: Envoy, replicas: list[Server]):
    for _ in range(2):  # over two connections
        with longshort.Client(envoy.address) as client:
            open_and_step(client, SESSIONS)
            for name in SESSIONS:
                assert client.get_session(name).step > 0
    found = homes(replicas)
    assert sorted(name for names in found for name in names) == sorted(SESSIONS)
    assert min(len(names) for names in found) > len(SESSIONS) // 10


def test_a_killed_replica_costs_new_calls_nothing_and_the_others_sessions_nothing(
    envoy: Envoy, replicas: list[Server]
):
    with longshort.Client(envoy.address) as client, ExitStack() as stack:
        sessions = {name: stack.enter_context(client.session(name, "metro")) for name in SESSIONS}
        for session in sessions.values():
            session.step([1.0])
        lost, *_ = homes(replicas)
        replicas[0].stop(signal.SIGKILL)
        # At once, before a health check can have told: what cannot connect goes to the next replica of the ring.
        open_and_step(client, [f"{name}-new" for name in SESSIONS])
        for name in set(SESSIONS) - lost:
            sessions[name].step([2.0])
            assert sessions[name].position == 2
        envoy.await_healthy({replica.port for replica in replicas[1:]})
    assert envoy.counter("upstream_rq_retry_overflow") == 0


def test_a_replica_that_drains_gets_no_new_calls_and_gets_them_again_when_it_is_back(
    envoy: Envoy, replicas: list[Server], start_server: Callable[..., Server]
):
    with longshort.Client(envoy.address) as client:
        assert replicas[0].stop() == 0
        open_and_step(client, SESSIONS)
        envoy.await_healthy({replica.port for replica in replicas[1:]})
        replicas[0] = start_server("--store", "memory://", port=replicas[0].port)
        envoy.await_healthy({replica.port for replica in replicas})
        open_and_step(client, [f"{name}-new" for name in SESSIONS])
    assert len(homes(replicas)[0]) > len(SESSIONS) // 10


def test_a_frozen_replica_gets_no_new_calls_and_its_streams_are_cut(envoy: Envoy, replicas: list[Server]):
    with longshort.Client(envoy.address) as client, ExitStack() as stack:
        open_and_step(client, SESSIONS)
        name = min(homes(replicas)[0])
        session = stack.enter_context(client.session(name, "metro"))
        replicas[0].process.send_signal(signal.SIGSTOP)
        # Cut by a ping without an answer, the client goes on elsewhere; of this memory:// nothing is known there.
        with pytest.raises(longshort.errors.SessionLost):
            session.step([2.0], timeout_s=20.0)
        envoy.await_healthy({replica.port for replica in replicas[1:]})
        open_and_step(client, [f"{name}-new" for name in SESSIONS])


@pytest.fixture
def valkey_server(tmp_path: Path) -> Iterator[valkey.Valkey]:
    server = valkey.start(tmp_path / "valkey", appendonly=True)
    yield server
    server.kill()


@pytest.fixture
def sharing(start_server: Callable[..., Server], valkey_server: valkey.Valkey) -> list[Server]:
    """Three services on one Valkey, as docker-compose.yml and Kubernetes have them."""
    return [start_server("--store", valkey_server.url) for _ in range(3)]


@contextmanager
def stepping(address: str, steps_before: int) -> Iterator[dict[str, int]]:
    """Step sessions one value after the other from threads while the block runs, and check every answer's step.

    Yields how many steps each has had; an error of any of them is raised at the end.
    """
    done = dict.fromkeys(SESSIONS[:12], 0)
    is_over = threading.Event()

    def go_on(client: longshort.Client, name: str) -> None:
        with client.session(name, "metro", timeout_s=20.0) as session:
            while not is_over.is_set():
                session.step([float(done[name])])
                done[name] += 1
                assert session.position == done[name]

    def each_has_stepped(count: int) -> bool:
        return all(steps >= count for steps in done.values())

    with longshort.Client(address) as client, ThreadPoolExecutor(len(done)) as pool:
        running = [pool.submit(go_on, client, name) for name in done]
        try:
            while not each_has_stepped(steps_before) and not any(task.done() for task in running):
                time.sleep(0.05)
            yield done
            target = max(done.values()) + 20
            while not each_has_stepped(target) and not any(task.done() for task in running):
                time.sleep(0.05)
        finally:
            is_over.set()
        for task in running:
            task.result(timeout=30)


def test_sessions_of_a_killed_replica_go_on_elsewhere(sharing: list[Server], tmp_path: Path):
    with (
        running_envoy([replica.port for replica in sharing], tmp_path) as envoy,
        stepping(envoy.address, 20),
    ):
        sharing[0].stop(signal.SIGKILL)


def test_a_rolling_restart_is_no_error_to_any_caller(
    sharing: list[Server], tmp_path: Path, start_server: Callable[..., Server], valkey_server: valkey.Valkey
):
    ports = {replica.port for replica in sharing}
    with running_envoy(sorted(ports), tmp_path) as envoy, stepping(envoy.address, 20):
        for replica in sharing:
            assert replica.stop() == 0
            start_server("--store", valkey_server.url, port=replica.port)
            envoy.await_healthy(ports)
