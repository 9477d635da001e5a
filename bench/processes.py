"""Servers as processes of their own: started, awaited, measured by the operating system, ended with the block."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT: Final = Path(__file__).parent.parent
START_TIMEOUT_S: Final = 60.0
LOG: Final = ROOT / "build" / "bench" / "servers.log"  # what they say after their start
STOP_TIMEOUT_S: Final = 30.0  # the service drains for 20 s at most


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs and what it said of itself when it was ready."""

    pid: int
    said: dict[str, Any]

    @property
    def address(self) -> str:
        """Host and port of its gRPC."""
        return str(self.said["grpc"])

    def cpu_s(self) -> float:
        """Return the CPU time that it has used so far, children included."""
        return sum(_cpu_s(pid) for pid in _tree(self.pid))

    def resident_bytes(self) -> int:
        """Return the memory that it holds, children included."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) for pid in _tree(self.pid))
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def server(arguments: Sequence[str]) -> Iterator[Server]:
    """Run `python -m ARGUMENTS` until the block ends. RuntimeError where it does not start.

    Ready is a line of JSON with a key `grpc`, on standard error: what the service logs and what the rivals print.
    """
    with subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        text=True,
    ) as process:
        deadline = threading.Timer(START_TIMEOUT_S, process.kill)
        deadline.start()
        try:
            said = _ready(process, arguments)
            deadline.cancel()
            # The pipe must not fill up: the server would wait for us to read it.
            threading.Thread(target=_keep, args=(process, arguments), daemon=True).start()
            yield Server(process.pid, said)
        finally:
            deadline.cancel()
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
            process.kill()


def _ready(process: subprocess.Popen[str], arguments: Sequence[str]) -> dict[str, Any]:
    assert process.stderr is not None
    line = "it said nothing"
    for line in process.stderr:
        with contextlib.suppress(json.JSONDecodeError):
            said = json.loads(line)
            if isinstance(said, dict) and "grpc" in said:
                return said
    raise RuntimeError(f"{' '.join(arguments)} did not start: {line.strip()}")


def _keep(process: subprocess.Popen[str], arguments: Sequence[str]) -> None:
    assert process.stderr is not None
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with LOG.open("a", encoding="utf-8") as log, contextlib.suppress(ValueError):  # closed with the process
        log.write(f"--- {' '.join(arguments)}\n")
        for line in process.stderr:
            log.write(line)


def _tree(pid: int) -> list[int]:
    """Return a process and its descendants."""
    found = [pid]
    for parent in found:  # grows while it is walked
        for task in Path(f"/proc/{parent}/task").iterdir():
            with contextlib.suppress(OSError):  # a thread that has ended meanwhile
                found += map(int, (task / "children").read_text("ascii").split())
    return found


def _cpu_s(pid: int) -> float:
    # The clock of another process as Linux numbers it (clock_getcpuclockid): in nanoseconds, where /proc/PID/stat
    # counts hundredths of a second, a tenth of what a lightly loaded server uses while it is measured.
    return time.clock_gettime((~pid << 3) | 2)
