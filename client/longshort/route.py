"""The way of one session to its servers: where its stream is, and where the next one goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longshort import recovery
from longshort.backoff import FIRST_DELAY_S

if TYPE_CHECKING:
    from longshort.errors import LongshortError
    from longshort.servers import Servers


class Route:
    """Follows one key over the servers, and tells what is learnt about them on the way.

    The key stays where it is until its call fails there. `address` is where the last call went; None before the first.
    """

    __slots__ = ("_key", "_next", "_servers", "address")

    def __init__(self, servers: Servers[Any], key: str, address: str | None = None) -> None:
        self.address = address
        self._servers = servers
        self._key = key
        self._next: str | None = address

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

    def pause(self, delay_s: float, asked_s: float | None) -> tuple[float, float | None]:
        """Return the pause before the next call, and what of it a server asks for: little where another is up."""
        if self.moves_on():
            return min(delay_s - (asked_s or 0.0), FIRST_DELAY_S), None
        return delay_s, asked_s

    def moves_on(self) -> bool:
        """Choose where the next call goes; return whether that is another server, and up."""
        self._next, is_up = self._servers.place_after(self._key, self.address or "")
        return is_up
