"""Looking up the DNS name of a sync client's servers: in a thread, since the system's resolver knows no deadline."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

from longshort.addresses import resolved
from longshort.servers import LOOKUP_TIMEOUT_S

if TYPE_CHECKING:
    from longshort.servers import Servers


class Lookups:
    """The lookups of one client, for all of its threads."""

    def __init__(self, servers: Servers[Any]) -> None:
        self._servers = servers
        self._first_is_over = threading.Event()
        if not servers.target.has_name:
            self._first_is_over.set()

    def look_up(self, timeout_s: float) -> None:
        """Look the name up where that is due, and wait for the answer no longer than needed, nor than `timeout_s`.

        Whoever comes during the first one waits as well: nothing is known yet.
        """
        wait_s = self._servers.begin_lookup()
        if wait_s is None:
            self._first_is_over.wait(max(min(LOOKUP_TIMEOUT_S, timeout_s), 0))
            return
        thread = threading.Thread(target=self._ask, name="longshort-lookup", daemon=True)
        thread.start()
        thread.join(max(min(wait_s, timeout_s), 0))
        self._first_is_over.set()  # or has been waited for long enough

    def _ask(self) -> None:
        target = self._servers.target
        try:
            infos = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except (OSError, ValueError):  # no such name, no name server, no name at all: what is known must do
            infos = []
        self._servers.end_lookup(resolved(infos))
