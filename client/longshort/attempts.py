"""The attempts at one unary call: where the next one goes, and when, or that it was the last."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

from longshort import recovery
from longshort.backoff import Backoff, pause_s
from longshort.route import Route

if TYPE_CHECKING:
    from longshort.errors import LongshortError
    from longshort.operations import Operation
    from longshort.patience import Patience
    from longshort.servers import Servers


class Attempts:
    """Owns the way and the end of one call; the shell does the calling and the sleeping.

    What only reads is tried again until the time is up. What changes something goes on only where it has surely done
    nothing, to another server that is up.
    """

    def __init__(
        self,
        operation: Operation[Any],
        servers: Servers[Any],
        key: str,
        address: str | None,
        patience: Patience,
    ) -> None:
        self.route = Route(servers, key, address)
        self._is_read = operation.is_read
        self._servers = servers
        self._patience = patience
        self._backoff = Backoff(random.random)

    @property
    def left_s(self) -> float:
        """What is left of the call's own time: a server that has taken it may use all of it, however slow."""
        return max(self._patience.deadline_s - time.monotonic(), 0)

    def pause_after(self, error: LongshortError) -> float:
        """Return the pause in seconds before the next attempt, or raise what the last one has ended with."""
        text = self._servers.target.text
        self.route.failed(error)
        if recovery.blames_server(error):
            self._patience.alone(time.monotonic())
        else:  # one that is slow is there
            self._patience.served()
        has_other = self.route.moves_on()
        if not self._is_read and not (recovery.was_not_taken(error) and has_other):
            raise recovery.untold(error, text, None)
        if not recovery.is_transient(error):
            raise error
        asked_s = error.retry_delay_s
        left_s = self._patience.ends_at_s - time.monotonic()
        pause = pause_s(self._backoff.next_delay_s(asked_s), asked_s, left_s, has_other=has_other)
        if pause is None:
            if self._patience.gives_up:
                error = recovery.time_is_up(error, in_doubt=False, gave_up=True)
            raise recovery.untold(error, text, self._patience.limit_s)
        return pause
