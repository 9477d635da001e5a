"""Whose turn it is: what may go into the next frame, and what waits behind a session's earlier calls.

It owns the order of calls, withdrawals, doubts, and how many steps wait. It does not know frames or the stream.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from longshort import arrays, errors, recovery
from longshort.gateway.calls import ArrayCall, StepCall
from longshort.gateway.line import Line
from longshort.gateway.ready import Ready
from longshort.gateway.rows import CloseRow, FlushRow, ForecastRow, OpenRow, Part, Row, is_withdrawn
from longshort.gateway.table import BUSY, DOUBT, ENDED, OPEN, OPENING, POSTPONED, QUEUED, STORELESS
from longshort.gateway.values import wrong_width

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longshort.errors import LongshortError
    from longshort.gateway.doubts import Doubt, Waiter
    from longshort.gateway.line import Queued
    from longshort.gateway.rows import Item
    from longshort.gateway.table import SessionTable

MAX_WITHDRAWN = 1_024  # that lie in the queues before they are searched


class Turns:
    """The queues of one frame stream.

    A session has at most one row that is ready or sent: it is BUSY. What comes meanwhile waits in `behind`, in
    order. What is withdrawn stays where it lies until its turn, or until there is too much of it.
    """

    def __init__(self, table: SessionTable) -> None:
        self.ready = Ready()
        self.unopened: deque[int] = deque()  # slots to be opened
        self.doubts: dict[int, deque[Doubt]] = {}  # by slot, the oldest first
        self.num_waiting_steps = 0
        self._table = table
        self.behind: dict[int, Line] = {}  # by slot, in the order of calls
        self._num_withdrawn = 0

    # Asking

    def ask_step(self, call: StepCall) -> None:
        """Take one step of a session whose width is known and kept."""
        flags = self._table.flag_bytes
        slot = call.slot
        if flags[slot] == OPEN:
            flags[slot] = OPEN | BUSY
            self.ready.append(call)
        else:
            self.enqueue(Row(slot, call, 0, arrays.one_row(call.value, None)))
        self.num_waiting_steps += 1

    def ask_array(self, call: ArrayCall, values: NDArray[np.float32]) -> None:
        """Take [n, time, features] f32: together what is free, row by row what has to wait. None fails the rest."""
        table = self._table
        self.num_waiting_steps += call.weight
        free = table.flags[call.slots] == OPEN
        if table.shape.num_features != values.shape[2]:
            free[:] = False  # told where its turn comes, or not known yet
        rows = np.flatnonzero(free)
        if len(rows):
            part = Part(call, values, rows, call.slots[rows])
            table.flags[part.slots] = OPEN | BUSY
            self.ready.append(part)
        for index in np.flatnonzero(~free).tolist():
            self.try_enqueue(Row(int(call.slots[index]), call, index, values[index]))

    def try_enqueue(self, row: Row | ForecastRow | FlushRow | OpenRow) -> None:
        """Put a row in its session's line; where that is not possible, it fails."""
        try:
            self.enqueue(row)
        except errors.LongshortError as error:
            self.num_waiting_steps -= row.sink.row_failed(row.index, error)  # type: ignore[union-attr]

    def enqueue(self, item: Queued) -> None:
        """Put something in its session's line; raise where nothing can be asked of the session."""
        table, slot = self._table, item.slot
        table.check(slot)
        self.behind.setdefault(slot, Line()).append(item)
        table.flag_bytes[slot] |= QUEUED
        self.open_for(slot)
        self.advance(slot)

    def open_for(self, slot: int) -> None:
        """Have a session opened, unless it is open or about to be."""
        if not self._table.flag_bytes[slot] & (OPEN | OPENING):
            self._table.flag_bytes[slot] |= OPENING
            self.unopened.append(slot)

    # The order of a session's calls

    def advance(self, slot: int) -> None:
        """Let the next in a session's line be ready, if the session is free."""
        flags = self._table.flag_bytes
        if flags[slot] & (OPEN | QUEUED | BUSY | POSTPONED) != OPEN | QUEUED:
            return
        queue = self.behind[slot]
        if flags[slot] & DOUBT and not (isinstance(queue[0], Row) and queue[0].sink is None):
            return  # what the server has forgotten goes on; all else waits for `retry`
        while queue and not flags[slot] & BUSY:
            item = queue.take(is_storeless=bool(flags[slot] & STORELESS))
            if item is None:
                break
            if isinstance(item, OpenRow):
                self._tell_open(item)
            elif self._is_to_go(item):
                flags[slot] |= BUSY
                self.ready.append(item)
        if not queue:
            del self.behind[slot]
            flags[slot] &= ~QUEUED

    def _tell_open(self, row: OpenRow) -> None:
        opened = self._table.opened[row.slot]
        created = np.array([[opened is not None and opened.created]], np.float32)
        self.num_waiting_steps -= row.sink.row_answered(row.index, 0, created, 0)

    def _is_to_go(self, item: Row | ForecastRow | FlushRow | CloseRow) -> bool:
        if is_withdrawn(item):
            self._num_withdrawn = max(self._num_withdrawn - 1, 0)
            return False
        width = self._table.shape.num_features
        if isinstance(item, Row) and item.sink is not None and item.values.shape[1] != width:
            error = wrong_width(item.values.shape[1], width, is_array=isinstance(item.sink, ArrayCall))
            self.num_waiting_steps -= item.sink.row_failed(item.index, error)
            return False
        return True

    def free(self, slots: NDArray[np.intp]) -> None:
        """Take that the rows of these sessions are done with: whoever waits behind them is next."""
        flags = self._table.flags
        now = flags[slots] & ~np.uint8(BUSY)
        flags[slots] = now
        for slot in slots[now != OPEN].tolist():
            self.advance(slot)

    def put_back(self, item: Row | ForecastRow | FlushRow | CloseRow) -> None:
        """Put what was ready or sent at the front of its session's line."""
        slot = item.slot
        self._table.flag_bytes[slot] = self._table.flag_bytes[slot] & ~BUSY | QUEUED
        self.behind.setdefault(slot, Line()).appendleft(item)

    def put_last(self, item: FlushRow) -> None:
        """Put what was sent at the end of its session's line, but before a closing: what waits goes before it."""
        slot = item.slot
        self._table.flag_bytes[slot] = self._table.flag_bytes[slot] & ~BUSY | QUEUED
        self.behind.setdefault(slot, Line()).put_last(item)
        self.advance(slot)

    def pending(self, slot: int) -> Row | None:
        """Return the unanswered message of a session that has no row under way."""
        return self.behind.get(slot, Line()).pending()

    def stop(self) -> None:
        """Take that there is no stream any more: all wait again, and what is wanted is to be opened."""
        flags = self._table.flags
        flags &= ~np.uint8(OPEN | OPENING | POSTPONED | STORELESS)
        self.unopened.clear()
        items, self.ready = self.ready, Ready()
        for item in items.apart():
            self.put_back(item)
        for slot, queue in list(self.behind.items()):
            queue.drop_resent()
            if not queue:
                del self.behind[slot]
                flags[slot] &= ~np.uint8(QUEUED)
        self._open_wanted()

    def _open_wanted(self) -> None:
        """Have the sessions opened that somebody waits for, those with an unanswered message first."""
        wanted = [slot for slot, queue in self.behind.items() if any(not item.is_idle for item in queue)]
        for slot in sorted(wanted, key=lambda slot: self.pending(slot) is None):
            self.open_for(slot)

    # Endings

    def end(self, slot: int, error: LongshortError) -> None:
        """End a session: all that waits for it fails."""
        self._table.end(slot, error)
        self.fail_behind(slot, error)
        for doubt in self.doubts.pop(slot, ()):
            doubt.settle(None, error)

    def fail_behind(self, slot: int, error: LongshortError) -> None:
        """Fail all that waits for a session."""
        self._table.flag_bytes[slot] &= ~QUEUED
        for item in self.behind.pop(slot, ()):
            self.fail(item, error)

    def fail(self, item: Queued, error: LongshortError) -> None:
        """Fail one thing, with an error object of its own."""
        if isinstance(item, CloseRow):
            if not item.waiter.done():
                item.waiter.set_exception(recovery.again(error))
        elif item.sink is not None:
            self.num_waiting_steps -= item.sink.row_failed(item.index, recovery.again(error))

    def items(self) -> list[Item | OpenRow]:
        """Return all that is ready or waits behind."""
        return [*self.ready, *(item for queue in self.behind.values() for item in queue)]

    # Withdrawals and doubts

    def abandon(self, call: StepCall | ArrayCall) -> bool:
        """Take that nobody awaits a call any more; return whether values of it are in doubt.

        What was sent is in doubt, the rest is withdrawn. The caller marks the call as done.
        """
        self.num_waiting_steps -= call.weight
        self._num_withdrawn += call.weight
        return self.doubt_sent(call)

    def doubt_sent(self, call: StepCall | ArrayCall) -> bool:
        """Put in doubt what was sent of a call, as its answers are not handed out; return whether there is any."""
        doubts = [
            (slot, doubt)
            for slot, doubt in call.abandon(self._table.ids)
            if not self._table.flag_bytes[slot] & ENDED
        ]
        for slot, doubt in doubts:
            self._doubt(slot, doubt)
        return bool(doubts)

    def give_up(self, row: Row, error: LongshortError) -> None:
        """Fail a row whose session lives on: what was sent of it is in doubt."""
        if row.sink is not None and row.is_begun:
            doubt, num_steps = row.sink.row_doubted(row.index, error)
            self.num_waiting_steps -= num_steps
            self.put_back(row)
            self._doubt(row.slot, doubt)
        else:
            self.fail(row, error)

    def give_up_behind(self, slot: int, error: LongshortError, of_sent: LongshortError) -> None:
        """Give up all that waits for a session, which lives on; `of_sent` is the error of what was sent of it."""
        queue = self.behind.pop(slot, Line())
        self._table.flag_bytes[slot] &= ~QUEUED
        for item in reversed(queue):  # the one that was sent is the first, and is to stay
            if isinstance(item, Row):
                self.give_up(item, recovery.again(of_sent if item.is_begun else error))
            else:
                self.fail(item, error)

    def _doubt(self, slot: int, doubt: Doubt) -> None:
        """Let a session take nothing new: what waits for it fails, but for the row that was sent."""
        flags = self._table.flag_bytes
        doubts = {*self.doubts.get(slot, ()), doubt}
        self.doubts[slot] = deque(sorted(doubts, key=lambda doubt: doubt.number))
        flags[slot] |= DOUBT
        queue = self.behind.pop(slot, Line())
        flags[slot] &= ~QUEUED
        begun = Line(item for item in queue if isinstance(item, Row) and item.is_begun)
        if begun:
            self.behind[slot] = begun
            flags[slot] |= QUEUED
        for item in queue:
            if item not in begun:
                self.fail(item, recovery.doubt())

    def retry(self, slot: int | None, waiter: Waiter) -> Doubt:
        """Hand the outcome of a row in doubt to a waiter, now or when it is there; raise where there is none."""
        flags = self._table.flag_bytes
        if slot is not None and flags[slot] & ENDED:
            self._table.check(slot)
        doubts = None if slot is None else self.doubts.get(slot)
        if slot is None or not doubts:
            raise errors.FailedPrecondition("no call of this session is in doubt", reason="NOT_IN_DOUBT")
        doubt = doubts.popleft()
        if not doubts:
            del self.doubts[slot]
            flags[slot] &= ~DOUBT
        doubt.waiter = waiter
        if doubt.is_settled:
            doubt.tell()
        elif flags[slot] & QUEUED:
            self.open_for(slot)
        self.advance(slot)
        return doubt

    def abandon_retry(self, slot: int, doubt: Doubt) -> None:
        """Take that nobody awaits a retry any more, whose outcome was not handed out: it is in doubt again."""
        doubt.waiter = None
        if not self._table.flag_bytes[slot] & ENDED:
            self._doubt(slot, doubt)

    def sweep(self) -> None:
        """Forget what was withdrawn, once it is more than what waits."""
        if self._num_withdrawn <= self.num_waiting_steps + MAX_WITHDRAWN:
            return
        self._num_withdrawn = 0
        for slot, queue in list(self.behind.items()):
            left = Line(item for item in queue if not is_withdrawn(item))
            self.behind[slot] = left
            if not left:
                del self.behind[slot]
                self._table.flag_bytes[slot] &= ~QUEUED
