"""TCP cables that a test can hold or cut: a process of its own, so that the data costs the test no time.

A held cable loses nothing and moves nothing, as a network that is away for a while: neither end hears of the other. A
cut one ends its connections and refuses new ones. It ends with its standard input.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from enum import Enum
from typing import IO, Self, cast

LOOPBACK = "127.0.0.1"


class State(Enum):
    WHOLE = "whole"
    HELD = "held"
    CUT = "cut"


class Cables:
    """The process as the test has it. `ports[n]` leads to `targets[n]`."""

    def __init__(self, targets: list[int]) -> None:
        pipe = subprocess.PIPE
        command = [sys.executable, __file__, *map(str, targets)]
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.ports = [int(port) for port in self._heard().split()]

    def set(self, number: int, state: State) -> None:
        """Change one cable; it is done when this returns."""
        words = cast("IO[str]", self._process.stdin)
        words.write(f"{number} {state.value}\n")
        words.flush()
        self._heard()

    def _heard(self) -> str:
        line = cast("IO[str]", self._process.stdout).readline()
        assert line, "the process of the cables has ended"
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


class Cable:
    """One port that leads to another one."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.state = State.WHOLE
        self.ends: set[End] = set()

    async def listen(self) -> int:
        server = await asyncio.get_running_loop().create_server(lambda: End(self), LOOPBACK, 0)
        return int(server.sockets[0].getsockname()[1])

    def set(self, state: State) -> None:
        self.state = state
        for end in list(self.ends):
            end.obey()


class End(asyncio.Protocol):
    """One end of one connection. What it may write at once is bounded by the windows of those who speak."""

    def __init__(self, cable: Cable, peer: End | None = None) -> None:
        self._cable = cable
        self._peer = peer
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._cable.ends.add(self)
        self.obey()
        if self._peer is None:
            self._transport.pause_reading()  # until there is somebody to give it to
            self._connecting = asyncio.create_task(self._connect())

    def obey(self) -> None:
        """Do as the cable's state says."""
        if self._cable.state is State.CUT:
            self._transport.abort()
        elif self._cable.state is State.HELD:
            self._transport.pause_reading()
        elif not self._transport.is_closing():
            self._transport.resume_reading()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, peer = await loop.create_connection(
                lambda: End(self._cable, self), LOOPBACK, self._cable.target
            )
        except OSError:
            self._transport.abort()
        else:
            self._peer = peer
            self.obey()

    def data_received(self, data: bytes) -> None:
        assert self._peer is not None
        self._peer._transport.write(data)

    def connection_lost(self, _: Exception | None) -> None:
        self._cable.ends.discard(self)
        if self._peer is not None:
            self._peer._transport.close()


async def main(targets: list[int]) -> None:
    cables = [Cable(target) for target in targets]
    print(*[await cable.listen() for cable in cables], flush=True)  # noqa: T201
    words = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(words), sys.stdin)
    async for line in words:
        number, state = line.decode().split()
        cables[int(number)].set(State(state))
        print("done", flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main([int(word) for word in sys.argv[1:]]))
