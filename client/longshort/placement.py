"""Which of several servers a session goes to: rendezvous hashing over those that are not known to be down.

It owns the addresses and what is known of each. It does no I/O and has no clock: time is an argument, in seconds of
any one clock. It is not locked: who shares it among threads does that.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    # Returns which of some addresses, at least one, a key goes to: always the same for the same ones.
    Choose = Callable[[str, Sequence[str]], str]

FIRST_PAUSE_S: Final = 0.5  # a restarted server is back after about this time
MAX_PAUSE_S: Final = 10.0  # what a trial of a dead server may cost one caller, it costs no oftener than this
FACTOR: Final = 2.0


def weight(address: str, key: str) -> bytes:
    """Return how much an address is a key's own."""
    # BLAKE2b is the same in every process, unlike hash(), and mixes well, unlike CRC-32, whose linearity would rank
    # addresses of one pattern alike for all keys. An address has no "|" in it.
    return blake2b(f"{address}|{key}".encode(), digest_size=8).digest()


def heaviest(key: str, addresses: Sequence[str]) -> str:
    """Return the address with the highest hash of both (highest random weight)."""
    return max(addresses, key=lambda address: weight(address, key))


@dataclass(slots=True)
class _Down:
    """A server that has failed: nobody goes there before `until_s`, then one caller tries it."""

    until_s: float
    pause_s: float


class Placement:
    """Places keys on addresses.

    A key goes to its `heaviest` address, unless told to `choose` otherwise: every client, in any process and with the
    addresses in any order, finds the same one; where an address goes or is down, only its keys move, spread evenly over
    the others, and they come back with it. `draw` returns a random number in [0, 1).

    At least one address. Where all are down, the key goes to the one whose time is over first, so that in a row of
    failures each has its turn.
    """

    __slots__ = ("_choose", "_down", "_draw", "addresses")

    def __init__(
        self,
        addresses: Sequence[str],
        draw: Callable[[], float] = random.random,
        choose: Choose = heaviest,
    ) -> None:
        self.addresses = tuple(dict.fromkeys(addresses))
        self._draw = draw
        self._choose = choose
        self._down: dict[str, _Down] = {}

    def place(self, key: str, now_s: float) -> str:
        """Return the address of a key. A server whose time is over is given to one caller only, until it succeeds."""
        if len(self.addresses) == 1:
            return self.addresses[0]
        up = [address for address in self.addresses if self.is_up(address, now_s)]
        if not up:
            return min(self.addresses, key=lambda address: self._down[address].until_s)
        address = self._choose(key, up)
        down = self._down.get(address)
        if down is not None:  # this caller tries it: the others need not all wait for a dead server
            down.pause_s = min(down.pause_s * FACTOR, MAX_PAUSE_S)
            down.until_s = now_s + self._jittered(down.pause_s)
        return address

    def is_up(self, address: str, now_s: float) -> bool:
        """Return whether an address has not failed, or its time is over."""
        down = self._down.get(address)
        return down is None or down.until_s <= now_s

    def failed(self, address: str, now_s: float) -> None:
        """Note a failure of the transport, or that a server is draining. An address that is not known is ignored.

        The many streams of one dead server fail at once: that counts as one failure.
        """
        if address in self.addresses:
            down = self._down.setdefault(address, _Down(now_s, FIRST_PAUSE_S))
            down.until_s = max(down.until_s, now_s + self._jittered(down.pause_s))

    def succeeded(self, address: str) -> None:
        """Note that a server has answered: it is up."""
        self._down.pop(address, None)

    def set_addresses(self, addresses: Sequence[str]) -> None:
        """Take the addresses in place of the former; what is known of those that stay is kept.

        No address at all changes nothing: a name server that knows nobody is more likely wrong than a lasting truth.
        """
        if addresses:
            self.addresses = tuple(dict.fromkeys(addresses))
            self._down = {address: down for address, down in self._down.items() if address in self.addresses}

    def _jittered(self, pause_s: float) -> float:
        return pause_s * (0.5 + 0.5 * self._draw())
