"""The conversation of many sessions with one server over one frame stream, without I/O.

It owns the frame in flight, and what answers and failures mean. It knows no sockets, threads or clocks: the shell
asks `next_action`, does what it says, and tells the time.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from longshort import arrays, errors, recovery
from longshort.gateway import placing, wire
from longshort.gateway.actions import CONNECT, RECEIVE, Action, Idle, SendFrame
from longshort.gateway.delivery import deliver
from longshort.gateway.filling import fill
from longshort.gateway.frame import Frame
from longshort.gateway.openings import Openings
from longshort.gateway.rows import CloseRow, ForecastRow, OpenRow, Row, call_of
from longshort.gateway.storing import Storing
from longshort.gateway.table import BUSY, DOUBT, ENDED, OPEN, OPENING, SessionTable
from longshort.gateway.turns import Turns
from longshort.recovery import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import ArrayLike, NDArray

    from longshort.backoff import Backoff
    from longshort.errors import LongshortError
    from longshort.gateway.calls import ArrayCall, Sink, StepCall
    from longshort.gateway.doubts import Doubt, Waiter
    from longshort.opening import Opening


class FrameStream:
    """Sessions on one server. Its methods do no I/O and never block; waiters are told from within them.

    `new_backoff` makes the delays between tries: of the stream, of openings, of asking what is stored.
    """

    def __init__(self, opening: Opening, new_backoff: Callable[[], Backoff], max_kept_steps: int) -> None:
        self.table = SessionTable()
        self.turns = Turns(self.table)
        self.failure: LongshortError | None = None  # why there is no stream
        self._storing = Storing(self.table, new_backoff(), max_kept_steps)
        self._openings = Openings(opening, self.table, self.turns, self._storing.kept, new_backoff())
        self._backoff = new_backoff()
        self._is_connected = False
        self._connects_at_s = 0.0
        self._numbers = itertools.count(1)  # of calls
        self._inflight: Frame | None = None
        self._asks_what_is_stored = False  # the frame in flight
        self._broken: LongshortError | None = None  # what the frame answered last says of the whole server
        self._end: LongshortError | None = None

    # What callers ask

    def step(self, call: StepCall, session_id: str, value: ArrayLike, at: int | None) -> None:
        """Take one step, a number or [features]. What is wrong raises, and nothing was asked."""
        self._check()
        table = self.table
        call.slot = slot = table.slot_of(session_id)
        if not isinstance(value, float) or table.num_features != 1:
            row = arrays.one_row(value, table.num_features or None)
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

    def forecast(self, call: ArrayCall, horizon: int) -> None:
        """Look ahead from n sessions. Rows that cannot be asked fail by themselves."""
        self._check()
        self.turns.num_waiting_steps += call.weight
        for index, slot in enumerate(call.slots.tolist()):
            self.turns.try_enqueue(ForecastRow(slot, call, index, horizon))

    def open(self, call: ArrayCall) -> None:
        """Open n sessions; the answer of each is 1 where it was created, else 0. As `forecast` otherwise."""
        self._check()
        self.turns.num_waiting_steps += call.weight
        for index, slot in enumerate(call.slots.tolist()):
            self.turns.try_enqueue(OpenRow(slot, call, index))

    def flush(self, waiter: Waiter, slots: NDArray[np.intp] | None) -> None:
        """Tell a waiter when all that was answered of these sessions (None: all) is stored."""
        self._check()
        known = np.array(sorted(self.table.slots.values()), np.intp) if slots is None else slots
        self._storing.flush(waiter, known)

    def close_session(self, waiter: Waiter, session_id: str) -> None:
        """Give a session's handle back after all that was asked of it; what is in doubt raises."""
        self.close_sessions([(session_id, waiter)])

    def close_sessions(self, closings: Iterable[tuple[str, Waiter]]) -> None:
        """Give handles back after all that was asked of them, in bulk. Each waiter is told of its session."""
        self._check()
        idle = []
        for session_id, waiter in closings:
            slot = self.table.slots.get(session_id)
            if slot is not None and self.table.flag_bytes[slot] not in (0, ENDED):
                self._close_later(CloseRow(slot, waiter))
                continue
            if slot is not None:
                idle.append(slot)
            waiter.set_result(None)
        self._release(idle)

    def _close_later(self, row: CloseRow) -> None:
        try:
            self.turns.enqueue(row)
        except errors.LongshortError as error:
            row.waiter.set_exception(error)

    def retry(self, slot: int | None, waiter: Waiter) -> Doubt:
        """Hand the outcome of a row in doubt to a waiter; raise where there is none. `slot` None: an unknown id."""
        self._check()
        return self.turns.retry(slot, waiter)

    def waiting(self) -> list[Sink]:
        """Return the calls that somebody may await, each once."""
        frame = self._inflight or Frame()
        rows = [*frame.calls, *frame.parts, *frame.rows, *frame.forecasts, *self.turns.items()]
        calls = {id(call): call for call in map(call_of, rows) if call is not None}
        return list(calls.values())

    def _check(self) -> None:
        if self._end is not None:
            raise recovery.again(self._end)

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
        is_held = bool(self.turns.ready) and self._storing.is_full
        for slot in self._storing.unopened(is_held=is_held).tolist():
            self.turns.open_for(slot)
        asking, asks_at_s = self._storing.next_frame(now_s, is_held=is_held)
        idle = Idle(min((at_s for at_s in (resumes_at_s, asks_at_s) if at_s is not None), default=None))
        if asking is None and not (self.turns.ready or self.turns.unopened):
            return idle
        if not self._is_connected:
            if now_s < self._connects_at_s:
                return Idle(self._connects_at_s)
            self._is_connected = True
            return CONNECT
        frame = asking or Frame()
        self._asks_what_is_stored = asking is not None
        opens = self._openings.take(frame) if asking is None else []
        if asking is None:
            fill(frame, self.turns, self.table, is_full=is_held)
        if not frame:
            return idle
        self._inflight = frame
        return SendFrame(frame.encode(self.table, opens))

    def received(self, raw: bytes, now_s: float) -> None:
        """Take one message of the stream."""
        frame = self._inflight
        if frame is None:
            self.disconnected(
                errors.ServerFault("a frame that was not asked", reason="PROTOCOL_VIOLATION"), now_s
            )
            return
        try:
            answer = wire.response(raw)
            placed = placing.place(frame, answer, self.table.num_outputs)
            placing.check_all_told(frame, answer)
        except errors.ServerFault as fault:
            self.disconnected(fault, now_s)
            return
        self._inflight = None
        self.failure = None
        self._backoff.reset()
        self._take_positions(frame, placed)
        if self._asks_what_is_stored:
            self._refused_asking(frame, placed)
            self._storing.heard()
            return
        self._closed(frame)
        for opened in answer.messages.opened:
            self._openings.opened(opened.handle, opened.opened)
        for slot, error in placing.errors_of(answer, placing.OPEN_PART).items():
            self._openings.failed(slot, error, now_s)
        self._hand_out(frame, placed, now_s)
        self._hand_out_forecasts(frame, answer, now_s)
        self._storing.heard()
        self.turns.sweep()
        broken, self._broken = self._broken, None
        if broken is not None:
            self.disconnected(broken, now_s)

    def _refused_asking(self, frame: Frame, placed: placing.Placed) -> None:
        """Take what is said of sessions that were only asked how far they are stored.

        Values of those that are lost would be kept for ever. One whose row in doubt the server has taken refuses the
        message before it: it is opened again, which says the same. What else is wrong, the next rows are told.
        """
        for number, error in placed.refused.items():
            slot = int(frame.slots[number])
            if self._judge(error) is Verdict.LOST:
                position = int(self.table.position[slot])
                self.turns.end(slot, recovery.ending(error, self.table.ids[slot], position))
            elif self.table.flag_bytes[slot] & (DOUBT | BUSY) == DOUBT:
                self.table.flag_bytes[slot] &= ~OPEN

    def _judge(self, error: LongshortError) -> Verdict:
        return recovery.judge(error, client_id=self._openings.client_id, was_open=True)

    def _take_positions(self, frame: Frame, placed: placing.Placed) -> None:
        table, slots = self.table, frame.slots[placed.taken]
        self._storing.taken(frame, placed)
        ends = frame.steps[placed.taken] + frame.counts[placed.taken].astype(np.uint64)
        table.position[slots] = np.maximum(table.position[slots], ends)
        table.durable_step[slots] = placed.durable_steps

    def _hand_out(self, frame: Frame, placed: placing.Placed, now_s: float) -> None:
        failed = [(frame.row_at(number), error) for number, error in placed.refused.items()]
        mute = [frame.row_at(number) for number in placed.mute]
        self.turns.free(deliver(frame, placed, self.turns))
        for row in mute:
            mute_error = errors.FailedPrecondition("the step was taken without an answer", reason="NO_ANSWER")
            self.turns.fail(row, mute_error)
            self.turns.free(np.array([row.slot]))
        for row, error in failed:
            self._row_refused(row, error, now_s)

    def _hand_out_forecasts(self, frame: Frame, answer: wire.FrameAnswer, now_s: float) -> None:
        refused = placing.errors_of(answer, placing.FORECAST_PART)
        answers = {item.handle: item for item in answer.messages.forecasts}
        for row in frame.forecasts:
            if row.slot in answers:
                values = arrays.answer_rows(answers[row.slot].values, self.table.num_outputs)
                self.turns.num_waiting_steps -= row.sink.row_answered(row.index, 0, values, 0)
                self.turns.free(np.array([row.slot]))
            else:
                self._row_refused(row, refused[row.slot], now_s)

    def _row_refused(self, row: Row | ForecastRow, error: LongshortError, now_s: float) -> None:
        """Take that one row was refused: it goes on later, its caller is told, or its session has ended."""
        turns, slot = self.turns, row.slot
        is_taken = isinstance(row, Row) and row.is_taken  # it cannot be refused any more
        if error.code is errors.Code.UNAVAILABLE:
            self._broken = error  # draining, say: elsewhere, or here a moment later
            turns.put_back(row)
            return
        verdict = self._judge(error)
        if isinstance(error, errors.SessionTaken) and verdict is Verdict.RETRY:
            turns.put_back(row)
            self.table.flag_bytes[slot] &= ~OPEN
            turns.open_for(slot)
        elif is_taken and error.retry_delay_s is not None:
            turns.put_back(row)
            self._openings.postpone(slot, error, now_s)
        elif verdict is Verdict.LOST or is_taken:
            position = int(self.table.position[slot])
            end = recovery.ending(error, self.table.ids[slot], position)
            end = end if verdict is Verdict.LOST else errors.SessionLost.like(error)
            turns.end(slot, end)
            turns.fail(row, end)
        else:
            if isinstance(row, Row) and row.sink is not None:
                error = row.sink.told_before(row.index, row.start, error)
            turns.num_waiting_steps -= row.sink.row_failed(row.index, error)  # type: ignore[union-attr]
            turns.free(np.array([slot]))

    def _closed(self, frame: Frame) -> None:
        self._release([row.slot for row in frame.closes])
        for row in frame.closes:
            if not row.waiter.done():
                row.waiter.set_result(None)

    def _release(self, slots: list[int]) -> None:
        """Forget sessions that were closed."""
        if not slots:
            return
        self._storing.kept.forget(np.array(slots))
        for slot in slots:
            waiting = errors.SessionClosed("the session was closed before", reason="CLOSED")
            self.turns.fail_behind(slot, waiting)
            self._openings.forget(slot)
            self.turns.doubts.pop(slot, None)  # of a row whose call was given up while the session was closed
            self.table.release(slot)

    def disconnected(self, failure: LongshortError, now_s: float) -> None:
        """Take the end of the stream, whatever ended it: connect again, or fail what waits."""
        verdict = recovery.judge(failure, client_id="", was_open=bool(self.table.num_features))
        self._stop(failure, is_refused=verdict is not Verdict.RETRY and recovery.refuses(failure))
        if verdict is Verdict.RETRY:
            self._connects_at_s = now_s + self._backoff.next_delay_s(failure.retry_delay_s)
        else:
            self._give_up(failure)

    def _stop(self, failure: LongshortError, *, is_refused: bool) -> None:
        frame, self._inflight = self._inflight or Frame(), None
        self._is_connected = False
        self.failure = failure
        self._take_back(frame, is_refused=is_refused)
        self._openings.stop(frame.opens)
        self.turns.stop()

    def _take_back(self, frame: Frame, *, is_refused: bool) -> None:
        """Put what was in flight back in its sessions' lines: as sent, or as never sent where it was refused.

        What the server has taken before remains sent, whatever a later stream ends with.
        """
        if self._asks_what_is_stored:
            return
        for row in map(frame.row_at, range(len(frame.slots))):
            if is_refused and row.sink is not None and not row.is_taken:
                row.count = 0
            self.turns.put_back(row)
        for forecast in frame.forecasts:
            self.turns.put_back(forecast)
        self._closed(frame)  # without its stream a handle is open no more

    def _give_up(self, error: LongshortError, of_sent: LongshortError | None = None) -> None:
        self.turns.unopened.clear()
        self.table.flags &= ~np.uint8(OPENING)
        for slot in list(self.turns.behind):
            self.turns.give_up_behind(slot, error, of_sent or error)
        self._storing.fail(error)

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
