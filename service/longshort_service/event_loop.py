"""The event loop that the service runs on: uvloop's, with gRPC's wake-ups drained in bulk.

grpc.aio has a thread that writes one byte to a socket for every event of its queue, and a reader that takes one byte
off a wake-up while it handles every event there is. So under load bytes pile up: each costs a turn of the loop in which
nothing is to do, and once the socket is full (about 280 bytes on Linux) the thread sleeps in write() until the loop
has turned again, one event a turn. New calls then wait behind hundreds of events, for tens of milliseconds each.
docs/design/0003-turns-of-the-loop.md has the measurements.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

try:
    from uvloop import Loop as _FastestLoop
except ImportError:  # Windows
    _FastestLoop = asyncio.SelectorEventLoop  # type: ignore[misc,assignment]

_DRAIN_BYTES: Final = 4096


class ServiceLoop(_FastestLoop):
    """A loop that reads all of gRPC's wake-up bytes at once."""

    def add_reader(  # type: ignore[override]
        self, fd: Any, callback: Callable[..., object], *args: Any
    ) -> None:
        """Watch a file descriptor as every loop does; gRPC's wake-up socket is drained first."""
        bare = callback.func if isinstance(callback, functools.partial) else callback
        owner = getattr(bare, "__self__", None)
        if type(owner).__name__ == "PollerCompletionQueue" and isinstance(fd, socket.socket):
            super().add_reader(fd, _drained(fd, callback), *args)
        else:
            super().add_reader(fd, callback, *args)


def _drained(wakeups: socket.socket, handle_events: Callable[..., object]) -> Callable[..., None]:
    """Return a reader that leaves at most one byte to `handle_events`, which blocks where there is none.

    Bytes are taken before events: an event whose byte is taken here is in the queue already, since the thread that
    wakes us puts the event there first.
    """

    def handle(*args: object) -> None:
        num_bytes = len(wakeups.recv(_DRAIN_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        if num_bytes > 1:
            wakeups.recv(num_bytes - 1)
        handle_events(*args)

    return handle
