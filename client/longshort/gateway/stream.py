"""The conversation of many sessions with one server over one frame stream, without I/O.

It owns the frame in flight, and what the end of the stream means. It knows no sockets, threads or clocks: the shell
asks `next_action`, does what it says, and tells the time.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from longshort import arrays, errors, named, recovery
from longshort.backoff import FIRST_DELAY_S
from longshort.gateway import placing, wire
from longshort.gateway.actions import CONNECT, RECEIVE, Action, Idle, SendFrame
from longshort.gateway.closings import Closings
from longshort.gateway.filling import fill
from longshort.gateway.frame import Frame
from longshort.gateway.openings import Openings
from longshort.gateway.outcomes import Outcomes
from longshort.gateway.rows import FlushRow, ForecastRow, OpenRow, Row, call_of
from longshort.gateway.storing import Storing
from longshort.gateway.table import (
    BUSY,
    DOUBT,
    ENDED,
    OPEN,
    OPENING,
    POSTPONED,
    QUEUED,
    STORELESS,
    SessionTable,
)
from longshort.gateway.turns import Turns
from longshort.recovery import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import ArrayLike, NDArray

    from longshort.backoff import Backoff
    from longshort.errors import LongshortError
    from longshort.gateway.calls import ArrayCall, Sink, StepCall
    from longshort.gateway.doubts import Doubt, Waiter
    from longshort.gateway.shape import Shape
    from longshort.opening import Opening


class FrameStream:
    """Sessions on one server. Its methods do no I/O and never block; waiters are told from within them.

    `new_backoff` makes the delays between tries: of the stream, of openings, of asking the server to store. Without a
    server for `give_up_s` what waits fails, which names the `address`; `store_patience_s` is as in Outcomes. `shape` is
    shared by all streams of a gateway.
    """

    def __init__(
        self,
        opening: Opening,
        new_backoff: Callable[[], Backoff],
        shape: Shape,
        *,
        address: str,
        max_kept_steps: int,
        give_up_s: float,
        store_patience_s: float = math.inf,
    ) -> None:
        self.table = SessionTable(shape)
        self.turns = Turns(self.table)
        self.failure: LongshortError | None = None  # why calls wait: no stream, or a server without its store
        self.is_connected = False
        self._storing = Storing(self.table, new_backoff(), max_kept_steps)
        self._openings = Openings(opening, self.table, self.turns, self._storing.kept, new_backoff())
        self._outcomes = Outcomes(self.table, self.turns, self._openings, self._storing, store_patience_s)
        self._closings = Closings(self.table, self.turns, self._openings, self._storing.kept)
        self._backoff = new_backoff()
        self._address = address
        self._give_up_s = give_up_s
        self._tries_since_s: float | None = None  # while somebody waits for a server
        self._connects_at_s = 0.0
        self._numbers = itertools.count(1)  # of calls
        self._inflight: Frame | None = None
        self._end: LongshortError | None = None

    # What callers ask

    def step(self, call: StepCall, session_id: str, value: ArrayLike, at: int | None) -> None:
        """Take one step, a number or [features]. What is wrong raises, and nothing was asked."""
        self._check()
        table = self.table
        call.slot = slot = table.slot_of(session_id)
        num_features = table.shape.num_features
        if not isinstance(value, float) or num_features != 1:
            row = arrays.one_row(value, num_features or None)
            value = row[0] if row.shape[1] > 1 else float(row[0, 0])
        call.value = value
        call.number = next(self._numbers)
        table.check(slot)
        if at is None:
            self.turns.ask_step(call)
        else:
            first_step = arrays.whole_number(at, "at", 2**63)
            row = arrays.one_row(value, None)
            self.turns.enqueue(Row(slot, call, 0, row, first_step=first_step))
            self.turns.num_waiting_steps += 1

    def steps(self, call: ArrayCall, values: NDArray[np.float32]) -> None:
        """Take [n, time, features] f32 of n sessions. Rows that cannot be asked fail by themselves."""
        self._check()
        call.number = next(self._numbers)
        self.turns.ask_array(call, values)

    def forecast(self, call: ArrayCall, horizon: int, known: NDArray[np.float32] | None = None) -> None:
        """Look ahead from n sessions, beside what will be known, flat [n, numbers] f32.

        Rows that cannot be asked fail by themselves.
        """
        self._check()
        self.turns.num_waiting_steps += call.weight
        for index, slot in enumerate(call.slots.tolist()):
            told = [] if known is None else known[index].tolist()
            self.turns.try_enqueue(ForecastRow(slot, call, index, horizon, told))

    def open(self, call: ArrayCall, initial: NDArray[Any] | None = None) -> None:
        """Open n sessions; the answer of each is 1 where it was created, else 0. As `forecast` otherwise.

        `initial` [n] of named fields is what those begin with that are created.
        """
        self._check()
        self.turns.num_waiting_steps += call.weight
        for index, slot in enumerate(call.slots.tolist()):
            self._openings.begin_with(slot, None if initial is None else named.row_messages(initial[index]))
            self.turns.try_enqueue(OpenRow(slot, call, index))

    def flush(self, call: ArrayCall) -> None:
        """Have n sessions stored, with all that was asked of them before. As `forecast` otherwise."""
        self._check()
        self.turns.num_waiting_steps += call.weight
        table, slots = self.table, call.slots
        is_quiet = table.flags[slots] & (ENDED | DOUBT | BUSY | QUEUED) == 0
        is_done = is_quiet & table.is_stored(slots)
        if is_done.any():
            rows = np.flatnonzero(is_done)
            nothing = np.zeros((len(rows), 1, 1), np.float32)
            self.turns.num_waiting_steps -= call.rows_answered(rows, 0, nothing, 0)
        for index in np.flatnonzero(~is_done).tolist():
            self.turns.try_enqueue(FlushRow(int(slots[index]), call, index))

    def close_session(self, waiter: Waiter, session_id: str) -> None:
        """Give a session's handle back after all that was asked of it; what is in doubt raises."""
        self.close_sessions([(session_id, waiter)])

    def close_sessions(self, closings: Iterable[tuple[str, Waiter]]) -> None:
        """Give handles back after all that was asked of them, in bulk. Each waiter is told of its session."""
        self._check()
        self._closings.ask(closings)

    def retry(self, slot: int | None, waiter: Waiter) -> Doubt:
        """Hand the outcome of a row in doubt to a waiter; raise where there is none. `slot` None: an unknown id."""
        self._check()
        return self.turns.retry(slot, waiter)

    def waiting(self) -> list[Sink]:
        """Return the calls that somebody may await, each once."""
        frame = self._inflight or Frame()
        items = [*frame.items(), *self.turns.items()]
        calls = {id(call): call for call in map(call_of, items) if call is not None}
        return list(calls.values())

    def _check(self) -> None:
        if self._end is not None:
            raise recovery.again(self._end)

    @property
    def has_ended(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._end is not None

    @property
    def is_quiet(self) -> bool:
        """Whether no answer is awaited on the stream."""
        return self._inflight is None

    # What the shell does

    def next_action(self, now_s: float) -> Action:
        """Return what the shell is to do now."""
        if self._inflight is not None:
            return RECEIVE
        resumes_at_s = self._openings.resume(now_s)
        if not (self.turns.ready or self._openings.has_some):
            if not self.is_connected:
                self._tries_since_s = None
            return Idle(resumes_at_s)
        if not self.is_connected:
            if now_s < self._connects_at_s:
                return Idle(self._connects_at_s)
            if self._tries_since_s is None:
                self._tries_since_s = now_s
            self.is_connected = True
            return CONNECT
        frame = Frame()
        opens = self._openings.take(frame)
        asks_at_s = self._fill(frame, now_s)
        if not frame:
            return Idle(min((at_s for at_s in (resumes_at_s, asks_at_s) if at_s is not None), default=None))
        self._inflight = frame
        return SendFrame(frame.encode(self.table, opens))

    def _fill(self, frame: Frame, now_s: float) -> float | None:
        """Put what is ready in a frame. Return when less may be kept, where new values wait for that."""
        is_held = bool(self.turns.ready) and self._storing.is_full
        fill(frame, self.turns, self.table, is_full=is_held)
        if not is_held:
            return None
        slots, asks_at_s = self._storing.wanted(now_s)
        flushed = {row.slot for row in frame.flushes}
        for slot in slots.tolist():
            if not self.table.flag_bytes[slot] & OPEN:
                self.turns.open_for(slot)
            elif slot not in flushed:
                frame.flushes.append(FlushRow(slot, None, 0))
        return now_s if self.turns.unopened else asks_at_s

    def received(self, raw: bytes, now_s: float) -> LongshortError | None:
        """Take one message of the stream. Return why the stream is of no use after it: that has `disconnected`."""
        frame = self._inflight
        if frame is None:
            return errors.ServerFault("a frame that was not asked", reason="PROTOCOL_VIOLATION")
        try:
            answer = wire.response(raw)
            placed = placing.place(frame, answer, self.table.shape.num_outputs)
            placing.check_all_told(frame, answer)
        except errors.ServerFault as fault:
            return fault
        self._inflight = None
        self._backoff.reset()
        self._tries_since_s = None
        self._take_positions(frame, placed)
        self._closings.done(frame.closes)
        self._outcomes.hand_out(frame, placed, answer, now_s)
        self.failure = self._outcomes.of_store
        self._storing.heard()
        self.turns.sweep()
        return self._outcomes.of_server

    def _take_positions(self, frame: Frame, placed: placing.Placed) -> None:
        table, slots = self.table, frame.slots[placed.taken]
        self._storing.taken(frame, placed)
        ends = frame.steps[placed.taken] + frame.counts[placed.taken].astype(np.uint64)
        table.position[slots] = np.maximum(table.position[slots], ends)
        table.note_durable(slots, placed.durable_steps)

    def disconnected(self, failure: LongshortError, now_s: float, *, has_other: bool = False) -> None:
        """Take the end of the stream, whatever ended it: connect again, or fail what waits.

        `has_other` is whether the next stream is to another server, of which nothing bad is known.
        """
        verdict = recovery.judge(failure, client_id="", was_open=self.table.shape.is_known)
        self._stop(failure, is_refused=verdict is not Verdict.RETRY and recovery.refuses(failure))
        has_time = self._tries_since_s is None or now_s - self._tries_since_s < self._give_up_s
        if verdict is Verdict.RETRY and has_time:
            delay_s = self._backoff.next_delay_s(None if has_other else failure.retry_delay_s)
            self._connects_at_s = now_s + (min(delay_s, FIRST_DELAY_S) if has_other else delay_s)
            return
        self._tries_since_s = None
        if verdict is Verdict.RETRY:
            alone = recovery.time_is_up(failure, in_doubt=False, gave_up=True)
            failure = recovery.untold(alone, self._address, self._give_up_s)
        self._give_up(failure)

    def _stop(self, failure: LongshortError, *, is_refused: bool) -> None:
        frame, self._inflight = self._inflight or Frame(), None
        self.is_connected = False
        self.failure = failure
        for item in frame.unanswered(is_refused=is_refused):
            self.turns.put_back(item)
        self._closings.done(frame.closes)  # without its stream a handle is open no more
        self._openings.stop(frame.opens)
        self.turns.stop()

    def _give_up(self, error: LongshortError, of_sent: LongshortError | None = None) -> None:
        self.turns.unopened.clear()
        self.table.flags &= ~np.uint8(OPENING | POSTPONED | STORELESS)
        for slot in list(self.turns.behind):
            self.turns.give_up_behind(slot, error, of_sent or error)

    def close(self, error: LongshortError) -> None:
        """End it: whatever waits and whatever is asked from now on raises an error like this one.

        But rows that were sent raise StepInDoubt: theirs must not look like values that were never taken.
        """
        self._stop(error, is_refused=False)
        in_doubt = errors.StepInDoubt(
            f"{error.message}, after these values were sent: the session's step, once it is open again, says "
            "whether they were taken",
            reason="STEP_IN_DOUBT",
        )
        self._give_up(error, in_doubt)
        self._end = error
