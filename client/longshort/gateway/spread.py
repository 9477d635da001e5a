"""Where the lanes of one gateway go: too few keys for their hashes alone to load all servers alike.

It owns the choice among addresses. Which of them are up, `placement` knows.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from longshort.placement import weight

if TYPE_CHECKING:
    from collections.abc import Sequence


class Spread:
    """Chooses addresses for keys that are all known: none gets more than its share, rounded up.

    In their order each key takes the address with the highest hash of both that has a place left (consistent hashing
    with bounded loads, Mirrokni, Thorup and Zadimoghaddam 2016). A function of keys and addresses alone: the same
    addresses give the same answer, whatever was chosen before.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = tuple(keys)

    def __call__(self, key: str, addresses: Sequence[str]) -> str:
        """Return the address of one of the keys, among at least one."""
        limit = -(-len(self._keys) // len(addresses))
        num_taken = Counter[str]()
        for each in self._keys[: self._keys.index(key) + 1]:
            free = [address for address in addresses if num_taken[address] < limit]
            chosen = max(free, key=lambda address: weight(address, each))
            num_taken[chosen] += 1
        return chosen
