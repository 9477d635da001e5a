"""Looking up the DNS name of a sync client's servers: in a thread, since the system's resolver knows no deadline."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

from longshort.addresses import resolved

if TYPE_CHECKING:
    from longshort.servers import Servers


def look_up(servers: Servers[Any], timeout_s: float) -> None:
    """Look the name up where that is due, and wait for the answer no longer than needed, nor than `timeout_s`."""
    wait_s = servers.begin_lookup()
    if wait_s is None:
        return
    thread = threading.Thread(target=_ask, args=(servers,), name="longshort-lookup", daemon=True)
    thread.start()
    thread.join(max(min(wait_s, timeout_s), 0))


def _ask(servers: Servers[Any]) -> None:
    target = servers.target
    try:
        servers.end_lookup(resolved(socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)))
    except (OSError, UnicodeError):  # no such name, no name server, no name at all: what is known must do
        servers.end_lookup(())
