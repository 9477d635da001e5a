"""The way of one session to its servers: where its stream is, and where the next one goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longshort import recovery

if TYPE_CHECKING:
    from longshort.errors import LongshortError
    from longshort.servers import Servers


class Route:
    """Follows one key over the servers, and tells what is learnt about them on the way.

    The key stays where it is until its call fails there. `address` is where the last call went; None before the first.
    """

    __slots__ = ("__weakref__", "_key", "_next", "_servers", "address")

    def __init__(self, servers: Servers[Any], key: str, address: str | None = None) -> None:
        self.address = address
        self._servers = servers
        self._key = key
        self._next: str | None = address
        servers.follow(self)

    def take(self) -> str:
        """Return where the next call goes: where the last pause has led to, or the key's place."""
        self.address, self._next = self._next or self._servers.place(self._key), None
        return self.address

    def failed(self, failure: LongshortError) -> None:
        """Take how the call to `address` has ended."""
        if self.address is not None and recovery.blames_server(failure):
            self._servers.failed(self.address)

    def succeeded(self) -> None:
        """Take that the server at `address` has answered."""
        if self.address is not None:
            self._servers.succeeded(self.address)

    def moves_on(self) -> bool:
        """Choose where the next call goes; return whether that is another server, and up. Once a failure.

        A server whose time is over is given to one caller: a second choice would already be another one.
        """
        self._next, is_up = self._servers.place_after(self._key, self.address or "")
        return is_up
