"""A `longshort serve` of the demo's own: started, awaited, and ended with the demo."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from longshort_service.commands.group import CALLER_MISTAKEN, Failure, Mistake

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

START_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.05  # the log is a file: nothing wakes us when a line is added
# The service drains for 20 s at most unless its configuration says otherwise.
STOP_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class LocalService:
    """A service that runs."""

    process: subprocess.Popen[bytes]
    address: str
    metrics_url: str
    log: Path

    def wait(self) -> None:
        """Return on Ctrl-C or SIGTERM. Raises Failure where the service ends by itself."""
        try:
            code = self.process.wait()
        except KeyboardInterrupt:
            return
        raise Failure(f"the service ended with exit code {code}; see {self.log}")


@contextlib.contextmanager
def local_service(
    repository: Path | None, grpc_port: int, metrics_port: int, log: Path
) -> Iterator[LocalService]:
    """Start the service and end it with the block, SIGTERM and a closed terminal included. Raises Failure."""
    log.parent.mkdir(parents=True, exist_ok=True)
    models = [] if repository is None else [str(repository)]
    command = [sys.executable, "-m", "longshort_service", "serve", *models]
    command += ["--grpc-port", str(grpc_port), "--metrics-port", str(metrics_port)]
    command += ["--log-format", "json", "--log-level", "info"]  # its first lines are read below
    command += ["--store", f"sqlite:///{(log.parent / 'sessions.db').absolute()}"]  # nobody's but the demo's
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # as Ctrl-C: the block is left
    # A group of its own: a terminal's Ctrl-C comes to us alone, and the service drains when we tell it to.
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stderr=sink, stdin=subprocess.DEVNULL, process_group=0)  # noqa: S603
    try:
        yield _started(process, log)
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
            process.kill()
        process.wait()


def _started(process: subprocess.Popen[bytes], log: Path) -> LocalService:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        has_ended = process.poll() is not None
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        for line in lines:
            fields = _fields(line)
            if fields.get("message") == "serving":
                return LocalService(process, fields["grpc"], fields["metrics"], log)
        if has_ended:
            told = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
            message = told[-1] if told else f"the service did not start; see {log}"
            raise (Mistake if process.returncode == CALLER_MISTAKEN else Failure)(message)
        time.sleep(POLL_S)
    raise Failure(f"the service did not start within {START_TIMEOUT_S:.0f} s; see {log}")


def _fields(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError:  # not a log line, or one still being written
        return {}
    return fields if isinstance(fields, dict) else {}
