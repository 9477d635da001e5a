"""The real service as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

START_TIMEOUT_S = 60.0  # 15 public files on two busy cores take 20


@dataclass
class Server:
    """A running `longshort serve`."""

    process: subprocess.Popen[bytes]
    port: int
    metrics_port: int
    log: Path

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as response:
            return str(response.read().decode())

    def errors(self) -> list[str]:
        """Return what the log holds of errors and worse; a good service logs none, whatever its callers do."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if json.loads(line)["level"] in ("error", "critical")]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


@contextmanager
def running_server(repository: Path, log: Path, *flags: str, port: int = 0) -> Iterator[Server]:
    """Start the service on free ports and end it with the block."""
    command = [sys.executable, "-m", "longshort_service", "serve", str(repository), "--grpc-port", str(port)]
    command += ["--metrics-port", "0", "--log-format", "json", *flags]
    if "--store" not in flags:  # the default would be a file that all tests share
        command += ["--store", "memory://"]
    with log.open("ab") as sink:
        process = subprocess.Popen(command, stderr=sink, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    try:
        yield _await_start(process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _await_start(process: subprocess.Popen[bytes], log: Path) -> Server:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        for line in log.read_text().splitlines():
            fields = json.loads(line) if line.startswith("{") else {}
            if fields.get("message") == "serving" and fields.get("pid") == process.pid:
                port = int(fields["grpc"].rpartition(":")[2])
                metrics_port = int(fields["metrics"].rpartition(":")[2].partition("/")[0])
                return Server(process, port, metrics_port, log)
        time.sleep(0.02)
    raise AssertionError(f"the service did not start: {log.read_text()}")
