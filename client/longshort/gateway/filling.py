"""What goes into the next frame: all that is ready, in order, as far as a frame holds it.

It owns the limits of frames. It does not know calls or answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from longshort.gateway.rows import CloseRow, FlushRow, ForecastRow, Part, Row, is_withdrawn

if TYPE_CHECKING:
    from collections import deque

    from longshort.gateway.frame import Frame
    from longshort.gateway.rows import Item
    from longshort.gateway.table import SessionTable
    from longshort.gateway.turns import Turns

# A frame is answered when its longest row is done, and a row alone takes 20 to 35 us a step: the others in the
# frame wait no longer than some milliseconds for one that replays its history.
MAX_ROW_STEPS: Final = 256
MIN_ROW_STEPS: Final = 16  # of each of many rows that are long: fewer, and the client's work on a row shows
MAX_LONG_STEPS: Final = (
    4_096  # of rows of several steps: a live value asked meanwhile waits for some 4 ms of a server
)
MAX_FRAME_STEPS: Final = 32_768  # of live rows; some 30 ms of a server
MAX_FRAME_VALUES: Final = (
    262_144  # of either kind: 1 MiB either way; a server takes 4 MiB a message unless told
)


def fill(frame: Frame, turns: Turns, table: SessionTable, *, is_full: bool) -> None:
    """Put what is ready in a frame; `is_full` holds back what would move a session beyond what it has seen."""
    held_live: list[Item] = []
    held_long: list[Item] = []
    live, long = turns.ready.live, turns.ready.long
    left = min(MAX_FRAME_STEPS, _max_values_steps(table))
    left_long = max_long = min(MAX_LONG_STEPS, _max_values_steps(table))
    max_steps = min(max_row_steps(table), max(max_long // max(len(long), 1), MIN_ROW_STEPS))
    while (is_live := bool(live and left > 0)) or (long and left_long > 0):
        item = (live if is_live else long).popleft()
        if is_withdrawn(item):
            turns.free(
                item.slots if isinstance(item, Part) else np.array([item.slot])
            )  # more may be ready now
        elif is_full and _is_new(item):
            (held_live if is_live else held_long).append(item)
        elif is_live:
            left -= _put(frame, item, live, left, 1)
        elif isinstance(item, Part) and left_long < min(len(item.rows), max_long):
            held_long.append(
                item
            )  # whole in a later frame: in shreds it would be slow for the rest of its way
            left_long = 0
        else:
            left_long -= _put(frame, item, long, left_long, max_steps)
    live.extendleft(reversed(held_live))
    long.extendleft(reversed(held_long))


def max_row_steps(table: SessionTable) -> int:
    """Return the greatest number of steps of one session in a frame."""
    return min(table.max_steps, MAX_ROW_STEPS, _max_values_steps(table))


def _max_values_steps(table: SessionTable) -> int:
    return max(MAX_FRAME_VALUES // max(table.shape.num_features, table.shape.num_outputs, 1), 1)


def _put(frame: Frame, item: Item, queue: deque[Item], left: int, max_steps: int) -> int:
    """Put one thing in a frame; return the steps that it takes."""
    if isinstance(item, Row):
        item.count = item.next_count(max_steps)
        frame.rows.append(item)
        return item.count
    if isinstance(item, Part):
        rest = item.cut(left, max_steps)
        if rest is not None:
            queue.appendleft(rest)
        frame.parts.append(item)
        return item.count * len(item.rows)
    if isinstance(item, ForecastRow):
        frame.forecasts.append(item)
        return item.horizon
    if isinstance(item, FlushRow):
        frame.flushes.append(item)
        return 1
    if isinstance(item, CloseRow):
        frame.closes.append(item)
        return 1
    frame.calls.append(item)
    return 1


def _is_new(item: Item) -> bool:
    """Return whether it moves a session beyond what it has seen."""
    return not isinstance(item, ForecastRow | FlushRow | CloseRow) and not (
        isinstance(item, Row) and item.count
    )
