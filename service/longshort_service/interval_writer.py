"""Writing what is behind, once an interval.

Owns the copies of sessions that wait to be written. Does not know gRPC, or how a store does it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from longshort_service.session_writer import WRITE_BATCH
from longshort_service.turns import first_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshort_service.behind import Behind
    from longshort_service.outage import Outage
    from longshort_service.repository import Model
    from longshort_service.session import Session
    from longshort_service.session_writer import SessionWriter
    from longshort_service.sessions import SessionTable
    from longshort_service.snapshot import Snapshot

# A store may need a second until what it was given is durable: so many wait for that together.
WRITES_AT_ONCE: Final = 8


class IntervalWriter:
    """Copies what is behind and settled, and what is in flight then as soon as it settles.

    At full speed a session is in flight whenever the loop comes to anything else: the moment between two messages is
    where its message settles.
    """

    def __init__(
        self,
        *,
        table: SessionTable[Model],
        writer: SessionWriter,
        behind: Behind,
        outage: Outage,
        interval_s: float,
        monotonic: Callable[[], float],
    ) -> None:
        self._table = table
        self._writer = writer
        self._behind = behind
        self._outage = outage
        self._interval_s = interval_s
        self._monotonic = monotonic
        self._copies: deque[tuple[list[Session[Model]], Snapshot]] = deque()  # taken and not yet written
        self._has_copies = asyncio.Event()
        self._awaited: dict[Model, set[int]] = {}  # busy rows that are taken when they settle
        self._is_stopping = False

    def stop(self) -> None:
        """Have `run` end, once what is copied is written."""
        self._is_stopping = True
        self._has_copies.set()

    async def run(self) -> None:
        """Write until `stop`."""
        while not self._is_stopping:
            next_look_s = self._monotonic() + self._interval_s
            if not self._outage.is_away:
                self._copy_behind()
            while True:
                await self._write_copies()
                pause_s = next_look_s - self._monotonic()
                if pause_s <= 0 or self._is_stopping:
                    break
                self._has_copies.clear()
                await first_of(self._has_copies, pause_s)
            # A store that is slower than the interval does not keep the loop to itself.
            await asyncio.sleep(0)
        await self._write_copies()

    async def _write_copies(self) -> None:
        while self._copies:
            parts = [self._copies.popleft() for _ in range(min(WRITES_AT_ONCE, len(self._copies)))]
            await asyncio.gather(*(self._writer.write(sessions, copy) for sessions, copy in parts))

    def _copy_behind(self) -> None:
        by_model = self._table.by_model()
        # A model without sessions may be unloaded: nothing of it is kept.
        self._awaited = {model: self._awaited.get(model, set()) for model, _ in by_model}
        for model, index in by_model:
            columns, end = model.columns, index.num_rows
            is_due = self._behind.is_behind(columns, end) & ~columns.is_writing[:end]
            is_busy = columns.is_busy[:end]
            self._copy(index.at(np.flatnonzero(is_due & ~is_busy)))
            awaited = self._awaited[model]
            for row in set(np.flatnonzero(is_due & is_busy).tolist()) - awaited:
                awaited.add(row)
                columns.when_settled(row, partial(self._row_settled, model, row))

    def _row_settled(self, model: Model, row: int) -> None:
        """Copy all awaited rows that are settled by now: a job settles many at once."""
        awaited = self._awaited.get(model)
        if awaited is None or row not in awaited:
            return
        rows = np.array(sorted(awaited), np.intp)
        columns = model.columns
        is_free = ~columns.is_busy[rows]
        awaited.difference_update(rows[is_free].tolist())
        rows = rows[is_free]
        index = dict(self._table.by_model()).get(model)
        if index is not None:
            rows = rows[rows < index.num_rows]
            is_due = self._behind.is_behind(columns, index.num_rows)[rows] & ~columns.is_writing[rows]
            self._copy(index.at(rows[is_due]))

    def _copy(self, sessions: list[Session[Model]]) -> None:
        for begin in range(0, len(sessions), WRITE_BATCH):
            self._copies += self._writer.copies(sessions[begin : begin + WRITE_BATCH])
            self._has_copies.set()
