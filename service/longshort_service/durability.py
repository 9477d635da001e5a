"""How far what is stored may be behind what was answered."""

from __future__ import annotations

import enum
from typing import Final

# The step from which an answer waits, of a session that never waits for the store.
NEVER: Final = 2**63 - 1


class Durability(enum.IntEnum):
    """What a session has. The numbers stand in a column."""

    NONE = 0  # nothing is stored on the way
    BEHIND = 1  # the stored state is a bounded time and a bounded number of steps behind
    SYNC = 2  # an answer waits until what it says is stored
