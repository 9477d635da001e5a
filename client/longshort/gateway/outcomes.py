"""What an answered frame means for those who wait: answers, refusals, and sessions that have ended.

It owns what becomes of what was refused. It does not know when frames are sent.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from longshort import arrays, errors, recovery
from longshort.gateway import placing
from longshort.gateway.delivery import deliver
from longshort.gateway.rows import FlushRow, Row
from longshort.gateway.table import OPEN, STORELESS
from longshort.recovery import Verdict

if TYPE_CHECKING:
    from longshort.errors import LongshortError
    from longshort.gateway.frame import Frame
    from longshort.gateway.openings import Openings
    from longshort.gateway.placing import Placed
    from longshort.gateway.rows import ForecastRow
    from longshort.gateway.storing import Storing
    from longshort.gateway.table import SessionTable
    from longshort.gateway.turns import Turns
    from longshort.gateway.wire import FrameAnswer

_NO_STORE: Final = "STORE_UNAVAILABLE"
_STORED: Final = np.zeros((1, 1), np.float32)  # what a flush is answered with: it has nothing to say


class Outcomes:
    """The outcomes of one frame stream.

    `of_store` is the last frame's refusal for want of a store, whose rows are asked again; `of_server` is what a row
    of it has said of its whole server, after which the stream is of no use. A server whose frames have been without a
    store for `store_patience_s` is of no use either: others may have theirs.
    """

    def __init__(
        self,
        table: SessionTable,
        turns: Turns,
        openings: Openings,
        storing: Storing,
        store_patience_s: float,
    ) -> None:
        self.of_store: LongshortError | None = None
        self.of_server: LongshortError | None = None
        self._store_patience_s = store_patience_s
        self._no_store_since_s = math.inf
        self._table = table
        self._turns = turns
        self._openings = openings
        self._storing = storing

    def hand_out(self, frame: Frame, placed: Placed, answer: FrameAnswer, now_s: float) -> None:
        """Tell everybody what the answer says, once the table knows how far sessions are."""
        self.of_store = self.of_server = None
        for opened in answer.messages.opened:
            self._openings.opened(opened.handle, opened.opened)
        for slot, error in placing.errors_of(answer, placing.OPEN_PART).items():
            self._note_store(error)
            self._openings.failed(slot, error, now_s)
        self._hand_out_rows(frame, placed, now_s)
        if frame.forecasts:
            self._hand_out_forecasts(frame, answer, now_s)
        if frame.flushes:
            self._hand_out_flushes(frame, answer, now_s)
        self._look_at_store(now_s)

    def _look_at_store(self, now_s: float) -> None:
        if self.of_store is None:
            self._no_store_since_s = math.inf
            return
        self._no_store_since_s = min(self._no_store_since_s, now_s)
        if now_s - self._no_store_since_s >= self._store_patience_s:
            self.of_server = self.of_server or self.of_store
            self._no_store_since_s = math.inf

    def _hand_out_rows(self, frame: Frame, placed: Placed, now_s: float) -> None:
        failed = [(frame.row_at(number), error) for number, error in placed.refused.items()]
        mute = [frame.row_at(number) for number in placed.mute]
        self._turns.free(deliver(frame, placed, self._turns))
        for row in mute:
            mute_error = errors.FailedPrecondition("the step was taken without an answer", reason="NO_ANSWER")
            self._turns.fail(row, mute_error)
            self._turns.free(np.array([row.slot]))
        for row, error in failed:
            self._refused(row, error, now_s)

    def _hand_out_forecasts(self, frame: Frame, answer: FrameAnswer, now_s: float) -> None:
        refused = placing.errors_of(answer, placing.FORECAST_PART)
        answers = {item.handle: item for item in answer.messages.forecasts}
        for row in frame.forecasts:
            if row.slot in answers:
                values = arrays.answer_rows(answers[row.slot].values, self._table.shape.num_outputs)
                self._turns.num_waiting_steps -= row.sink.row_answered(row.index, 0, values, 0)
                self._turns.free(np.array([row.slot]))
            else:
                self._refused(row, refused[row.slot], now_s)

    def _hand_out_flushes(self, frame: Frame, answer: FrameAnswer, now_s: float) -> None:
        refused = placing.errors_of(answer, placing.FLUSH_PART)
        if len(answer.flushed_steps):
            self._table.note_durable(answer.flushed.astype(np.intp), answer.flushed_steps)
        for row in frame.flushes:
            if row.slot in refused:
                self._flush_refused(row, refused[row.slot], now_s)
            elif row.sink is not None:
                self._turns.num_waiting_steps -= row.sink.row_answered(row.index, 0, _STORED, 0)
                self._turns.free(np.array([row.slot]))

    def _flush_refused(self, row: FlushRow, error: LongshortError, now_s: float) -> None:
        if row.sink is not None:
            self._refused(row, error, now_s)
        elif self._judge(error) is Verdict.LOST:
            self._end(row.slot, error)
        else:
            self._note_store(error)
            self._storing.postpone(error.retry_delay_s, now_s)
            if isinstance(error, errors.SessionTaken):  # by this client itself
                self._table.flag_bytes[row.slot] &= ~OPEN

    def _refused(self, row: Row | ForecastRow | FlushRow, error: LongshortError, now_s: float) -> None:
        """Take that one row was refused: it goes on later, its caller is told, or its session has ended."""
        turns, slot = self._turns, row.slot
        is_taken = isinstance(row, Row) and row.is_taken  # it cannot be refused any more
        self._note_store(error)
        if error.code is errors.Code.UNAVAILABLE and error.reason != _NO_STORE:
            self.of_server = error  # draining, say: elsewhere, or here a moment later
            turns.put_back(row)
            return
        verdict = self._judge(error)
        if isinstance(error, errors.SessionTaken) and verdict is Verdict.RETRY:
            turns.put_back(row)
            self._table.flag_bytes[slot] &= ~OPEN
            turns.open_for(slot)
        elif error.reason == _NO_STORE and isinstance(row, FlushRow):
            self._openings.postpone(slot, error, now_s, flag=STORELESS)
            turns.put_last(row)  # values go on in the server's memory
        elif error.reason == _NO_STORE or (is_taken and error.retry_delay_s is not None):
            turns.put_back(row)
            self._openings.postpone(slot, error, now_s)
        elif verdict is Verdict.LOST or is_taken:
            end = self._end(slot, error)
            turns.fail(row, end)
        else:
            if isinstance(row, Row) and row.sink is not None:
                error = row.sink.told_before(row.index, row.start, error)
            turns.num_waiting_steps -= row.sink.row_failed(row.index, error)  # type: ignore[union-attr]
            turns.free(np.array([slot]))

    def _end(self, slot: int, error: LongshortError) -> LongshortError:
        end = recovery.ending(error, self._table.ids[slot], int(self._table.position[slot]))
        if self._judge(error) is not Verdict.LOST:
            end = errors.SessionLost.like(error)
        self._turns.end(slot, end)
        return end

    def _judge(self, error: LongshortError) -> Verdict:
        return recovery.judge(error, client_id=self._openings.client_id, was_open=True)

    def _note_store(self, error: LongshortError) -> None:
        if error.reason == _NO_STORE:
            self.of_store = error
