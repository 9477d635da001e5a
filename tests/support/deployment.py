"""What the tests of the deployment share: the tools that read it, and a real Prometheus."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
PROMETHEUS = ROOT / "deploy" / "prometheus"


def tool(name: str) -> str:
    """Return the path of a program, or skip; with LONGSHORT_REQUIRE_ALL=1 fail."""
    beside_python = shutil.which(name, path=str(Path(sys.executable).parent))
    found = beside_python or shutil.which(name)
    if found is None and os.environ.get("LONGSHORT_REQUIRE_ALL") == "1":
        pytest.fail(f"{name} is not installed and nothing may skip")
    return found or pytest.skip(f"{name} is not installed")


def run_tool(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a program that must succeed and return what it wrote."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def await_http(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a program that was started answers at a URL; fail with its log where it does not."""
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"{process.args} did not start: {log.read_text()}")


class Prometheus:
    """A running Prometheus."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"

    def get(self, path: str, **parameters: str) -> Any:
        url = f"{self._url}/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found


@contextmanager
def prometheus_scraping(metrics_port: int, folder: Path, labels: str = "") -> Iterator[Prometheus]:
    """Run Prometheus with our configuration, only faster and with the service's address.

    `labels` are what its targets are given beside their own, as YAML.
    """
    program = tool("prometheus")
    configuration = (PROMETHEUS / "prometheus.yml").read_text()
    target = '"longshort:9464"]'
    assert target in configuration
    configuration = configuration.replace(
        target, f'"127.0.0.1:{metrics_port}"]\n        labels: {{ {labels} }}'
    )
    configuration = re.sub(r"_interval: \d+s", "_interval: 200ms", configuration)
    (folder / "prometheus.yml").write_text(configuration)
    shutil.copy(PROMETHEUS / "longshort.rules.yml", folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stderr=log, stdout=log) as process:
        try:
            await_http(f"http://127.0.0.1:{port}/-/ready", process, folder / "log")
            yield Prometheus(port)
        finally:
            process.terminate()
