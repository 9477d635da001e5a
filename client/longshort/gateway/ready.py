"""What may go into the next frame: live rows, and those that carry several steps.

It owns the order within each kind. It does not know frames, or what they hold.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from longshort import arrays
from longshort.gateway.calls import StepCall
from longshort.gateway.rows import ForecastRow, Part, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from longshort.gateway.rows import CloseRow, FlushRow, Item


class Ready:
    """Two queues, each in the order in which things became ready: a live row never waits behind a long one."""

    def __init__(self) -> None:
        self.live: deque[Item] = deque()  # a step each
        self.long: deque[Item] = deque()  # several

    def __bool__(self) -> bool:
        return bool(self.live or self.long)

    def __iter__(self) -> Iterator[Item]:
        yield from self.live
        yield from self.long

    def apart(self) -> Iterator[Row | ForecastRow | FlushRow | CloseRow]:
        """Iterate over all, each row by itself."""
        for item in self:
            if isinstance(item, StepCall):
                yield Row(item.slot, item, 0, arrays.one_row(item.value, None))
            elif isinstance(item, Part):
                yield from (item.row_at(place, None) for place in range(len(item.rows)))
            else:
                yield item

    def append(self, item: Item) -> None:
        """Take what is next after all of its kind."""
        (self.long if _is_long(item) else self.live).append(item)


def _is_long(item: Item) -> bool:
    if isinstance(item, Row):
        return item.next_count(2) > 1
    if isinstance(item, Part):
        return item.num_left > 1
    return isinstance(item, ForecastRow) and item.horizon > 1
