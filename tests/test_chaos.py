"""Nothing lost, nothing twice: 200 sessions stream real series while servers and their store are killed under them.

CHAOS_FAULTS says how many faults there are, CHAOS_SEED which: `make chaos` has 50. What is asserted is that every
answer is, bit for bit, that of a run without faults; the times are printed.
"""

from __future__ import annotations

import os
import secrets
from contextlib import ExitStack
from typing import TYPE_CHECKING

import chaos_report
import pytest
import valkey
from chaos_crowd import Crowd
from chaos_faults import ClusterFaults, Faults
from program import SHIPPED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from servers import Server

NUM_FAULTS = int(os.environ.get("CHAOS_FAULTS") or 0)
SEED = int(os.environ.get("CHAOS_SEED") or secrets.randbelow(10**6))
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(240 + 20 * NUM_FAULTS),  # a minute or less on a quiet machine
]


def play(title: str, crowd: Crowd, faults: Faults, num_faults: int) -> None:
    """Stream until so many faults are over; then hold every answer against a run without them."""
    print(f"CHAOS_SEED={SEED}")  # noqa: T201
    crowd.run(",".join(faults.addresses), lambda stop: faults.play(num_faults, SEED, stop))
    crowd.check()
    assert [line for server in faults.all_servers for line in server.errors()] == []
    print(chaos_report.text_of(title, SEED, crowd, faults))  # noqa: T201


def test_one_server_that_is_killed_again_and_again_is_a_pause(
    start_server: Callable[..., Server], tmp_path: Path
):
    crowd = Crowd(SEED)
    store = f"sqlite:///{tmp_path / 'sessions.db'}"
    faults = Faults(lambda port: start_server("--store", store, port=port, models=SHIPPED), 1, crowd.callers)
    play("one server on SQLite", crowd, faults, NUM_FAULTS or 10)


def test_whatever_happens_to_three_replicas_and_their_store_is_a_pause(
    start_server: Callable[..., Server], tmp_path: Path
):
    crowd = Crowd(SEED)
    with ExitStack() as stack:
        store = valkey.start(tmp_path / "valkey", appendonly=True)
        stack.callback(store.kill)
        faults = ClusterFaults(
            lambda *flags, port: start_server(*flags, port=port, models=SHIPPED), store, crowd.callers, stack
        )
        play("three replicas on one Valkey", crowd, faults, NUM_FAULTS or 14)
