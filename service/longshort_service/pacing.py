"""How many rows a batch may have while streams are being opened. Plain arithmetic; time is an argument.

grpc.aio takes one new call at a time and needs about five turns of the event loop for it, and every answered row
lengthens the turns that follow. Left alone, a busy loop takes a new stream only every few tens of milliseconds
(docs/design/0003-turns-of-the-loop.md). So each stream that arrives grants a few rows, and until no stream has come
for some turns, a batch has no more rows than were granted: openings and live sessions share the loop, and neither
can stop the other.
"""

from __future__ import annotations

from typing import Final

# A few rows an opening. With 2, 1,024 streams opened at once under full load were served sooner than with 4.
ROWS_PER_OPENING: Final = 2
# A wait, when no row is granted. It ends in a turn of the loop, so that waits also count turns. It grants rows too, the
# k-th after an arrival k times so many: streams that arrive one by one for ever must not hold live sessions to a few.
WAIT_S: Final = 0.001
ROWS_PER_WAIT: Final = 6
# So many waits without an arrival and the openings are over: one more than taking a call needs turns.
QUIET_WAITS: Final = 6
# Openings so long ago are over, however few turns there were.
EXPIRY_S: Final = 0.1


class OpeningPace:
    """The grants of one scheduler. Times are of one clock, in seconds."""

    __slots__ = ("_granted_rows", "_last_arrival_s", "_quiet_waits")

    def __init__(self) -> None:
        self._last_arrival_s = float("-inf")
        self._granted_rows = 0
        self._quiet_waits = 0

    def arrived(self, now_s: float) -> None:
        """Note that a stream was taken."""
        if not self._is_opening(now_s):
            self._granted_rows = 0
        self._last_arrival_s = now_s
        self._quiet_waits = 0
        self._granted_rows += ROWS_PER_OPENING

    def max_rows(self, now_s: float) -> int | None:
        """Return how many rows the next batch may have: None for no limit, 0 for wait `WAIT_S` and ask again."""
        return self._granted_rows if self._is_opening(now_s) else None

    def waited(self) -> None:
        """Note that a wait is over."""
        self._quiet_waits += 1
        self._granted_rows += ROWS_PER_WAIT * self._quiet_waits

    def batch_formed(self, num_rows: int) -> None:
        """Note that a batch has used up grants."""
        self._granted_rows = max(self._granted_rows - num_rows, 0)

    def _is_opening(self, now_s: float) -> bool:
        return self._quiet_waits < QUIET_WAITS and now_s - self._last_arrival_s < EXPIRY_S
