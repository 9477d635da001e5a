"""The event loop that the service runs on: asyncio's own, waiting in gRPC's completion queue.

docs/design/0005-the-completion-queue.md says why.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from longshort_service.transport.selector import CompletionSelector

if TYPE_CHECKING:
    from collections.abc import Callable

CLOSE_TIMEOUT_S: Final = 2.0


class CompletionLoop(asyncio.SelectorEventLoop):
    """An asyncio loop in whose thread the events of gRPC servers are handled, between its callbacks."""

    def __init__(self) -> None:
        """Make the loop and its queue. Raises OSError where it cannot listen on 127.0.0.1 for a moment."""
        self._events = CompletionSelector()
        super().__init__(self._events)
        self.queue: Any = self._events.queue
        self._servers: set[Any] = set()

    def add_server(self, server: Any) -> None:
        """Give a bare server of gRPC its queue. It must not have started."""
        server.register_completion_queue(self.queue)
        self._servers.add(server)

    def end_server(self, server: Any, on_gone: Callable[[], object]) -> None:
        """Have a server refuse new calls; when its calls are over it is destroyed, and then `on_gone` told."""

        def on_shutdown(_event: object) -> None:
            self._servers.discard(server)
            server.destroy()
            on_gone()

        server.shutdown(self.queue, on_shutdown)

    def close(self) -> None:
        """End the servers that nobody has stopped, then the loop: gRPC would wait for their calls for ever."""
        if not self.is_running():
            for server in self._servers:
                self.end_server(server, _do_nothing)
                server.cancel_all_calls()
            deadline_s = time.monotonic() + CLOSE_TIMEOUT_S
            while self._servers and time.monotonic() < deadline_s:
                self._events.select(CLOSE_TIMEOUT_S)
        super().close()

    def _write_to_self(self) -> None:
        # asyncio's way of waking its loop from another thread: a byte into a socket, which the watcher's thread would
        # have to see first.
        self._events.ring()


def _do_nothing() -> None:
    pass
