"""The event loop that the service runs on: asyncio's own, waiting in gRPC's completion queue.

docs/design/0005-the-completion-queue.md says why.
"""

from __future__ import annotations

import asyncio
from typing import Any

from longshort_service.transport.selector import CompletionSelector


class CompletionLoop(asyncio.SelectorEventLoop):
    """An asyncio loop in whose thread the events of gRPC servers are handled, between its callbacks."""

    def __init__(self) -> None:
        """Make the loop and its queue. Raises OSError where it cannot listen on 127.0.0.1 for a moment."""
        selector = CompletionSelector()
        self._ring = selector.ring
        super().__init__(selector)
        self.queue: Any = selector.queue

    def _write_to_self(self) -> None:
        # asyncio's way of waking its loop from another thread: a byte into a socket, which the watcher's thread would
        # have to see first.
        self._ring()
