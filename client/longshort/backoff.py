"""How long to wait before the next try: exponential, with jitter, never sooner than the server asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_DELAY_S = 0.1  # a restarted server listens again after about this time; a proxy fails over at once
FACTOR = 2.0
MAX_DELAY_S = 1.0  # a server that is back is noticed within about this time
LAST_TRY_S = 0.02  # with less time left than this, another try has no chance


class Backoff:
    """Delays of growing length, each drawn between half and the whole of its bound.

    `draw` returns a random number in [0, 1): the many clients of one dead server must not come back at once.
    """

    __slots__ = ("_bound_s", "_draw")

    def __init__(self, draw: Callable[[], float]) -> None:
        self._draw = draw
        self._bound_s = FIRST_DELAY_S

    def next_delay_s(self, at_least_s: float | None) -> float:
        """Return the delay before the next try, and make the one after it longer."""
        delay_s = self._bound_s * (0.5 + 0.5 * self._draw())
        self._bound_s = min(self._bound_s * FACTOR, MAX_DELAY_S)
        if at_least_s is None:
            return delay_s
        return at_least_s + delay_s  # spread above what the server asked for, never below it

    def reset(self) -> None:
        """Start again with the shortest delay: the server has answered."""
        self._bound_s = FIRST_DELAY_S


def pause_s(delay_s: float, asked_s: float | None, left_s: float, *, has_other: bool = False) -> float | None:
    """Return how long to wait before the next try, or None where the time left is too short for one.

    `has_other` is whether that goes to another server, which is up and has not asked for anything.
    Near the end of the time the pauses halve, so that a server that comes back late is still met; what the
    server asked for (`asked_s`) is kept as long as that leaves time for a last try.
    """
    if left_s <= LAST_TRY_S:
        return None
    if has_other:
        delay_s, asked_s = min(delay_s - (asked_s or 0.0), FIRST_DELAY_S), None
    return max(min(delay_s, left_s / 2), min(asked_s or 0.0, left_s - LAST_TRY_S))
