"""What goes into the next frame: all that is ready, in order, as far as a frame holds it.

It owns the limits of frames. It does not know calls or answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from longshort.gateway.rows import CloseRow, ForecastRow, Part, Row, is_withdrawn

if TYPE_CHECKING:
    from longshort.gateway.frame import Frame
    from longshort.gateway.rows import Item
    from longshort.gateway.table import SessionTable
    from longshort.gateway.turns import Turns

# A frame is answered when its longest row is done, and a row alone takes 20 to 35 us a step: the others in the
# frame wait no longer than some milliseconds for one that replays its history.
MAX_ROW_STEPS: Final = 256
MAX_FRAME_STEPS: Final = 32_768  # some 30 ms of a server
MAX_FRAME_VALUES: Final = 262_144  # 1 MiB either way; a server takes 4 MiB a message unless told otherwise


def fill(frame: Frame, turns: Turns, table: SessionTable, *, is_full: bool) -> None:
    """Put what is ready in a frame; `is_full` holds back what would move a session beyond what it has seen."""
    held: list[Item] = []
    left = min(MAX_FRAME_STEPS, _max_values_steps(table))
    while turns.ready and left > 0:
        item = turns.ready.popleft()
        if is_withdrawn(item):
            turns.free(
                item.slots if isinstance(item, Part) else np.array([item.slot])
            )  # more may be ready now
        elif is_full and _is_new(item):
            held.append(item)
        else:
            left -= _put(frame, item, turns, left, max_row_steps(table))
    turns.ready.extendleft(reversed(held))


def max_row_steps(table: SessionTable) -> int:
    """Return the greatest number of steps of one session in a frame."""
    return min(table.max_steps, MAX_ROW_STEPS, _max_values_steps(table))


def _max_values_steps(table: SessionTable) -> int:
    return max(MAX_FRAME_VALUES // max(table.num_features, table.num_outputs, 1), 1)


def _put(frame: Frame, item: Item, turns: Turns, left: int, max_steps: int) -> int:
    """Put one thing in a frame; return the steps that it takes."""
    if isinstance(item, Row):
        item.count = item.next_count(max_steps)
        frame.rows.append(item)
        return item.count
    if isinstance(item, Part):
        rest = item.cut(left, max_steps)
        if rest is not None:
            turns.ready.appendleft(rest)
        frame.parts.append(item)
        return item.count * len(item.rows)
    if isinstance(item, ForecastRow):
        frame.forecasts.append(item)
        return item.horizon
    if isinstance(item, CloseRow):
        frame.closes.append(item)
        return 1
    frame.calls.append(item)
    return 1


def _is_new(item: Item) -> bool:
    """Return whether it moves a session beyond what it has seen."""
    return not isinstance(item, ForecastRow | CloseRow) and not (isinstance(item, Row) and item.count)
