"""What an event loop waits in: gRPC's completion queue, with file descriptors beside it."""

from __future__ import annotations

import logging
import selectors
import time
from typing import TYPE_CHECKING, Any, Final

from grpc._cython import cygrpc

from longshort_service.transport.doorbell import Doorbell
from longshort_service.transport.watcher import Watcher

if TYPE_CHECKING:
    from selectors import SelectorKey

logger = logging.getLogger(__name__)

# So many events are handled before what they have made ready gets its turn: about 3 ms of echoes.
MAX_EVENTS: Final = 256
_PAST_S: Final = 0.0
_TIMEOUT: Final = cygrpc.CompletionType.queue_timeout


class CompletionSelector(selectors.DefaultSelector):
    """A selector that hands the events of a completion queue to their tags while it waits for descriptors.

    A tag is a callable that takes its event. The descriptors stand in the usual selector (epoll, kqueue), which a
    thread watches: it rings the queue's doorbell when one is ready.
    """

    def __init__(self) -> None:
        super().__init__()
        self.queue: Any = cygrpc.CompletionQueue()
        self._doorbell = Doorbell(self.queue)
        self.ring = self._doorbell.ring
        self._poll = self.queue.poll
        self._watcher = Watcher(self.fileno(), self.ring)

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """Wait at most `timeout` seconds (None: for ever) for anything to happen; return the ready descriptors.

        Returns early, with nothing, where the queue had events or the doorbell rang. Errors of tags are logged.
        """
        if self._watcher.is_resting:  # what it told of has been handled since the last call
            self._watcher.resume()
        if timeout is None:
            self._handle_events(None)
        else:
            self._handle_events(time.time() + timeout if timeout > 0 else _PAST_S)
        return super().select(0) if self._watcher.is_resting else []

    def close(self) -> None:
        """End the thread, the queue and all that is left in it."""
        self._watcher.close()
        self._doorbell.close()
        self.queue.shutdown()
        super().close()

    def _handle_events(self, deadline_s: float | None) -> None:
        """Wait for one event, then take those that are there."""
        poll = self._poll
        for _ in range(MAX_EVENTS):
            event = poll(deadline_s)
            if event.completion_type == _TIMEOUT:
                return
            try:
                event.tag(event)
            except Exception:
                logger.exception("an event of gRPC could not be handled")
            # A call lives as long as its event; kept over the next wait, it would keep its server from stopping.
            event = None
            deadline_s = _PAST_S
