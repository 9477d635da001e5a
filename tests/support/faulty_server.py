"""Services that are killed, or kill themselves, on purpose. Each is a process of its own, up in some 40 ms.

As a program: a process that has imported the service and forks a child for each start that is asked for on its
standard input. It has no gRPC server, no engine and no store of its own, so that nothing but code is inherited. As a
module: the tests' side of that.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fault_seams import Fuse

LIFETIME_S = 60  # a service that nobody ends ends itself
WAIT_S = 15.0
FAILED_PORT = 0


@dataclass(frozen=True)
class FaultyServer:
    """A running service."""

    pid: int
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def send(self, number: int) -> None:
        os.kill(self.pid, number)


class FaultyServers:
    """Starts services of a repository of models, and waits for their ends."""

    def __init__(self, repository: Path, log: Path) -> None:
        self._repository = repository
        self._log = log
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # of threads, a fork keeps only one
            )
        self._running: set[int] = set()

    def start(self, *, point: str = "", arrival: int = 1, **settings: Any) -> FaultyServer:
        """Start a service; where a point is named it kills itself at the n-th arrival there."""
        settings = {"repository": str(self._repository), "grpc_port": 0, "metrics_port": 0} | settings
        pid, port = self._ask(point=point, arrival=arrival, settings=settings)
        self._running.add(pid)
        assert port != FAILED_PORT, f"the service did not start: {self._log.read_text()[-2000:]}"
        return FaultyServer(pid, port)

    def wait(self, server: FaultyServer) -> int:
        """Wait for a service's end and return its exit code; that of a signal is negative."""
        (code,) = self._ask(wait=server.pid)
        self._running.discard(server.pid)
        return code

    def kill(self, server: FaultyServer) -> None:
        """Kill a service; one that is gone is let be."""
        if server.pid in self._running:
            server.send(signal.SIGKILL)
            self.wait(server)

    def errors(self) -> list[str]:
        """Return what the services have logged of errors and worse."""
        lines = [line for line in self._log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if json.loads(line)["level"] in ("error", "critical")]

    def close(self) -> None:
        """Kill all that still run."""
        for pid in list(self._running):
            self.kill(FaultyServer(pid, FAILED_PORT))
        self._process.communicate(timeout=30)

    def _ask(self, **order: Any) -> list[int]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        reply: list[int] = json.loads(self._process.stdout.readline() or "[]")
        assert reply, f"the starter of services has ended: {self._log.read_text()[-2000:]}"
        return reply


@contextmanager
def faulty_servers(repository: Path, log: Path) -> Iterator[FaultyServers]:
    """Start services within the block; none is left after it, and none has logged an error."""
    servers = FaultyServers(repository, log)
    try:
        yield servers
    finally:
        servers.close()
    assert servers.errors() == []


def _main() -> None:
    """Take orders, one a line, until their end."""
    import fault_points  # noqa: F401  all that children need is imported once
    import longshort_service.serving  # noqa: F401

    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _reply(_exit_code_of(order["wait"]))
        elif not os.fork():
            _be_a_service(order["point"], order["arrival"], order["settings"])


def _exit_code_of(pid: int) -> int:
    """Wait for a child's end; one that does not end is ended, by SIGABRT."""
    end = os.pidfd_open(pid)
    if not select.select([end], [], [], WAIT_S)[0]:
        os.kill(pid, signal.SIGABRT)
    os.close(end)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _reply(*numbers: int) -> None:
    print(json.dumps(numbers), flush=True)  # noqa: T201  it is how the program answers


def _be_a_service(point: str, arrival: int, settings: dict[str, Any]) -> NoReturn:
    """Serve until SIGTERM, then drain."""
    from fault_points import install
    from longshort_service import logs
    from longshort_service.transport.event_loop import CompletionLoop

    signal.alarm(LIFETIME_S)
    code = 1
    try:
        logs.setup("json", "info", sys.stderr)
        fuse = install(point, arrival) if point else None
        with asyncio.Runner(loop_factory=CompletionLoop) as runner:
            runner.run(_serve(settings, fuse))
        code = 0
    except BaseException:
        logging.exception("the service has failed")  # noqa: LOG015  the log that was just set up
    finally:
        sys.stderr.flush()
        os._exit(code)


async def _serve(settings: dict[str, Any], fuse: Fuse | None) -> None:
    from longshort_service.app import App
    from longshort_service.config import ServeConfig

    app = App(ServeConfig(**settings | {"repository": Path(settings["repository"])}))
    try:
        await app.start()
    except BaseException:
        _reply(os.getpid(), FAILED_PORT)
        raise
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    if fuse is not None:
        fuse.is_lit = True
    _reply(os.getpid(), app.grpc_port)
    await stop.wait()
    await app.stop()


if __name__ == "__main__":
    _main()
