"""The servers of one client: where a session goes now, a channel each, and when their name is looked up again.

It owns placement, channels and stubs, for threads and tasks alike. The lookup itself is `names` and `aio.names`.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, Generic, TypeVar
from weakref import WeakSet

from longshort import view
from longshort.operations import Stubs
from longshort.placement import Placement, heaviest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from longshort.addresses import Target
    from longshort.placement import Choose
    from longshort.route import Route

C = TypeVar("C")

FAILURE_INTERVAL_S: Final = 5.0  # a failure has the name looked up, no oftener than this: many come at once
REFRESH_INTERVAL_S: Final = (
    30.0  # without one: an added server gets its share of new sessions after this time
)
LOOKUP_TIMEOUT_S: Final = 2.0  # what a caller waits for a name server; the former addresses do meanwhile


class Servers(Generic[C]):
    """Places keys on a target's servers. `new_channel` makes a channel to an address when it is first needed.

    Behind a name it lets a channel go when its address has left the name and no route leads there any more.

    It may be shared by threads. Its methods do not block.
    """

    def __init__(self, target: Target, new_channel: Callable[[str], C], choose: Choose = heaviest) -> None:
        self.target = target
        self._new_channel = new_channel
        self._lock = threading.Lock()
        self._placement = Placement(target.addresses, choose=choose)
        self._channels: dict[str, tuple[C, Stubs]] = {}
        self._routes = WeakSet["Route"]()
        self._is_closed = False
        self._looked_up_at_s = float("-inf")
        self._is_looking_up = False
        self._has_failed = True  # nothing is known yet

    def place(self, key: str) -> str:
        """Return the address where a key is to go now."""
        with self._lock:
            return self._placement.place(key, time.monotonic())

    def place_after(self, key: str, address: str) -> tuple[str, bool]:
        """Return where a key goes after its call to `address` has failed, and whether it may go there at once.

        It may where that is another server that is not known to be down.
        """
        with self._lock:
            now_s = time.monotonic()
            is_any_up = any(self._placement.is_up(other, now_s) for other in self._placement.addresses)
            place = self._placement.place(key, now_s)
            return place, is_any_up and place != address

    def failed(self, address: str) -> None:
        """Note that a server could not be reached, broke a call off, or is draining."""
        with self._lock:
            self._has_failed = True
            self._placement.failed(address, time.monotonic())

    def succeeded(self, address: str) -> None:
        """Note that a server has taken a call."""
        with self._lock:
            self._placement.succeeded(address)

    def channel(self, address: str) -> C:
        """Return the channel to an address."""
        return self._connected(address)[0]

    def stubs(self, address: str) -> Stubs:
        """Return the stubs of the channel to an address."""
        return self._connected(address)[1]

    def follow(self, route: Route) -> None:
        """Keep the channel to where a route leads, as long as there is that route."""
        with self._lock:
            self._routes.add(route)

    def close(self) -> list[C]:
        """Make no channel from now on; return those that there are, to be closed."""
        with self._lock:
            self._is_closed = True
            return [channel for channel, _ in self._channels.values()]

    def begin_lookup(self) -> float | None:
        """Return None, or how long to wait for a lookup of the name that is to be begun now, in seconds.

        None while one is under way: with a dead name server it takes longer than the time until the next is due.
        """
        if not self.target.has_name:
            return None
        with self._lock:
            interval_s = FAILURE_INTERVAL_S if self._has_failed else REFRESH_INTERVAL_S
            if self._is_looking_up or time.monotonic() < self._looked_up_at_s + interval_s:
                return None
            self._is_looking_up = True
            self._looked_up_at_s = time.monotonic()
            wait_s = LOOKUP_TIMEOUT_S if self._has_failed else 0.0
            self._has_failed = False
            return wait_s

    def end_lookup(self, addresses: Sequence[str]) -> None:
        """Take what the name server has answered; nothing where it has not."""
        with self._lock:
            self._is_looking_up = False
            self._placement.set_addresses(addresses)
            kept = {*self._placement.addresses, *(route.address for route in self._routes)}
            self._channels = {
                address: connected for address, connected in self._channels.items() if address in kept
            }

    def _connected(self, address: str) -> tuple[C, Stubs]:
        with self._lock:
            if self._is_closed:
                raise view.closed_error("client")
            if address not in self._channels:
                channel = self._new_channel(address)
                self._channels[address] = channel, Stubs(channel)
            return self._channels[address]
