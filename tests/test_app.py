"""What the whole service says of itself while its session store is away."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

from program import longshort

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from servers import Server


def readyz(server: Server) -> tuple[int, str]:
    """Return the status and the words of /readyz."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/readyz", timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.read().decode()


def until_ready_says(words: str, server: Server) -> None:
    deadline_s = time.monotonic() + 40
    while words not in readyz(server)[1]:
        assert time.monotonic() < deadline_s, readyz(server)
        time.sleep(0.05)


def test_store_that_is_away_is_said_first_as_degraded_and_then_as_not_ready(
    start_server: Callable[..., Server], tmp_path: Path
):
    file = tmp_path / "store" / "sessions.db"
    file.parent.mkdir()
    server = start_server("--store", f"sqlite:///{file}", "--store-outage-limit", "10s")
    assert readyz(server) == (200, "ready\n")
    away = file.parent.rename(tmp_path / "away")
    at = ("--address", server.address, "--timeout", "1")
    assert longshort("stream", "--model", "metro", *at, text="1\n").returncode == 1
    assert longshort("sessions", "list", *at).returncode == 1  # the ids are the store's
    assert longshort("health", server.address).stdout == "SERVING, degraded: the session store is away\n"
    until_ready_says("not ready: the session store is away for too long", server)
    assert longshort("health", server.address).stdout == "NOT_SERVING\n"
    away.rename(file.parent)
    until_ready_says("ready\n", server)
    until = time.monotonic() + 15
    while (said := longshort("health", server.address).stdout) != "SERVING\n":
        assert time.monotonic() < until, said
