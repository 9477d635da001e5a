"""A real Envoy with the configuration that operators are handed, at other addresses."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from deployment import await_http, tool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RECIPE = Path(__file__).parent.parent.parent / "deploy" / "envoy" / "envoy.yaml"


@dataclass(frozen=True)
class Envoy:
    """A running Envoy: the port that callers use, and the one that answers questions about it."""

    port: int
    admin_port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def healthy(self) -> set[int]:
        """Return the ports of the replicas that get new calls."""
        hosts = self._ask("clusters?format=json")["cluster_statuses"][0]["host_statuses"]
        return {
            host["address"]["socket_address"]["port_value"]
            for host in hosts
            if host["health_status"] == {"eds_health_status": "HEALTHY"}
        }

    def await_healthy(self, ports: set[int], within_s: float = 10.0) -> None:
        """Wait until exactly these replicas get new calls."""
        deadline_s = time.monotonic() + within_s
        while self.healthy() != ports:
            assert time.monotonic() < deadline_s, f"{self.healthy()} get calls and not {ports}"
            time.sleep(0.05)

    def counter(self, name: str) -> int:
        """Return a counter of the cluster."""
        stats = self._ask(f"stats?format=json&filter=^cluster.longshort.{name}$")["stats"]
        return int(stats[0]["value"])

    def _ask(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/{path}", timeout=5) as response:
            return json.load(response)


@contextmanager
def running_envoy(replicas: Sequence[int], folder: Path) -> Iterator[Envoy]:
    """Run Envoy before replicas at these ports; it ends with the block. Skips where there is no Envoy."""
    program = tool("envoy")
    with ExitStack() as sockets:
        taken = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        envoy = Envoy(*(one.getsockname()[1] for one in taken))
    (folder / "envoy.yaml").write_text(yaml.safe_dump(_at(envoy, replicas)))
    command = [program, "-c", str(folder / "envoy.yaml"), "--concurrency", "1", "--log-level", "warning"]
    # So that several tests run their own Envoy side by side.
    command += ["--use-dynamic-base-id"]
    with (folder / "envoy.log").open("wb") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            await_http(f"http://127.0.0.1:{envoy.admin_port}/ready", process, folder / "envoy.log")
            envoy.await_healthy(set(replicas))
            yield envoy
        finally:
            process.terminate()


def _at(envoy: Envoy, replicas: Sequence[int]) -> dict[str, Any]:
    """Return the recipe with addresses of this machine in the place of the container's."""
    recipe: dict[str, Any] = yaml.safe_load(RECIPE.read_text())
    listener, cluster = recipe["static_resources"]["listeners"][0], recipe["static_resources"]["clusters"][0]
    listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": envoy.port}
    recipe["admin"]["address"]["socket_address"]["port_value"] = envoy.admin_port
    (endpoints,) = cluster["load_assignment"]["endpoints"]
    endpoints["lb_endpoints"] = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
        for port in replicas
    ]
    return recipe
