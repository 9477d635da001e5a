"""What is known of every session of one model version beside its states: a column a fact, a row a session.

Owns step, stored answer and identity of the last message, and moves them for a whole batch at once. The rows are the
arena's. Knows no names of sessions, no gRPC, no onnxruntime, no asyncio and no store. Times are in seconds since 1970.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from longshort_service.durability import NEVER, Durability
from longshort_service.protocol import MessageIdentity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from longshort_service.batching import Job


class SessionColumns:
    """The columns of up to `num_rows` sessions. What a row holds that no session has is of no meaning.

    Like the states they are allocated at once and cost memory where they were touched. A message of one step, which
    is most of them, is kept as its values: its checksum is worked out when somebody asks, and its answer is `output`.
    """

    def __init__(self, num_rows: int, num_features: int, num_outputs: int, *, repeats_last: bool) -> None:
        self.step = np.zeros(num_rows, np.int64)
        self.epoch = np.zeros(num_rows, np.uint64)
        self.incarnation = np.zeros(num_rows, np.uint64)
        self.used_s = np.zeros(num_rows, np.float64)
        self.is_gapless = np.zeros(num_rows, np.bool_)
        # A message is in flight: the row is nobody else's meanwhile.
        self.is_busy = np.zeros(num_rows, np.bool_)
        self.is_idle = np.zeros(num_rows, np.bool_)  # a session that no stream has open
        self.output = np.zeros((num_rows, num_outputs), np.float32)  # after the last step
        self.sent = np.zeros((num_rows, num_features), np.float32)  # the last row, as the client sent it
        # The same as the model saw it: they differ where a missing value was filled.
        self.seen = np.zeros_like(self.sent) if repeats_last else self.sent
        self.durability = np.zeros(num_rows, np.int8)  # a Durability
        self.durable = np.zeros(num_rows, np.int64)  # the step that is known to be stored
        self.waits_from = np.zeros(
            num_rows, np.int64
        )  # an answer at this step, or later, waits for the store
        # A record is on its way to the store: no other write of the session begins meanwhile.
        self.is_writing = np.zeros(num_rows, np.bool_)
        self.behind_since_s = np.zeros(num_rows, np.float64)  # by a monotonic clock; 0: not seen behind
        self.written_s = np.zeros(num_rows, np.float64)  # when the store last heard of it
        self.handle = np.zeros(num_rows, np.int32)  # what a frame stream that has it open calls it
        self._message_steps = np.zeros(num_rows, np.int32)  # of the last message; 0: there is none
        # Of its values, where `_has_crc`; otherwise it is that of `sent`.
        self._message_crc = np.zeros(num_rows, np.uint32)
        self._has_crc = np.zeros(num_rows, np.bool_)
        self._answer_rows = np.zeros(num_rows, np.int32)  # of its stored answer
        self._long_answers: dict[int, bytes] = {}  # where it has more than one row
        self._when_settled: dict[int, list[Callable[[], None]]] = {}
        self._when_written: list[Callable[[], None]] = []
        # One number at a time is read faster through these.
        self.step_of = memoryview(self.step.data)
        self.is_busy_of = memoryview(self.is_busy.data)
        self.durable_of = memoryview(self.durable.data)
        self.waits_from_of = memoryview(self.waits_from.data)

    def clear(self, row: int) -> None:
        """Make a row that of a session at step 0."""
        self.clear_many(np.array([row]))

    def clear_many(self, rows: NDArray[np.intp]) -> None:
        """Make rows those of sessions at step 0."""
        self.step[rows] = 0
        self.is_gapless[rows] = True
        self.is_busy[rows] = False
        self.durability[rows] = Durability.NONE
        self.durable[rows] = 0
        self.waits_from[rows] = NEVER
        self.is_writing[rows] = False
        self.behind_since_s[rows] = 0
        self._message_steps[rows] = 0
        self.forget_long_answers(rows)

    def last_message(self, row: int) -> MessageIdentity | None:
        """Return what the last message is known by; None before the first and after a fork."""
        num_steps = int(self._message_steps[row])
        if not num_steps:
            return None
        crc = int(self._message_crc[row]) if self._has_crc[row] else zlib.crc32(self.sent[row].data)
        return MessageIdentity(int(self.step[row]) - num_steps, num_steps, crc)

    def last_answer(self, row: int) -> NDArray[np.float32] | None:
        """Return the stored answer `[rows, outputs] f32` of the last message."""
        if not self._message_steps[row]:
            return None
        long = self._long_answers.get(row)
        if long is not None:
            return np.frombuffer(long, np.float32).reshape(-1, self.output.shape[1])
        return self.output[row : row + 1][: self._answer_rows[row]].copy()

    def last_messages(self, rows: NDArray[np.intp]) -> LastMessages:
        """Return what the last messages of rows are known by, and their answers of more than one row: copies."""
        long = self._long_answers.keys() & set(rows.tolist()) if self._long_answers else ()
        return LastMessages(
            self._message_steps[rows],
            self._message_crc[rows],
            self._has_crc[rows],
            self._answer_rows[rows],
            {row: self._long_answers[row] for row in long},
        )

    def repeats(
        self, rows: NDArray[np.intp], steps: NDArray[np.int64], values: NDArray[np.float32]
    ) -> NDArray[np.bool_]:
        """Return of which rows messages `[rows, features]` of one step are the last one again, bit for bit.

        Where that is known by its values; what was loaded from a record is known by its checksum alone.
        """
        is_last = (self._message_steps[rows] == 1) & ~self._has_crc[rows] & (steps + 1 == self.step[rows])
        same: NDArray[np.bool_] = (self.sent[rows].view(np.uint32) == values.view(np.uint32)).all(axis=1)
        repeated: NDArray[np.bool_] = is_last & same
        return repeated

    def answer_rows(self, rows: NDArray[np.intp]) -> NDArray[np.int32]:
        """Return how many rows the stored answers of rows have."""
        return self._answer_rows[rows]

    def set_last_message(
        self, row: int, message: MessageIdentity | None, answer: NDArray[np.float32] | None
    ) -> None:
        """Put the last message and its answer `[rows, outputs]` into a row, as a record has them."""
        self._long_answers.pop(row, None)
        if message is None or answer is None:
            self._message_steps[row] = 0
            return
        self._message_steps[row] = message.num_steps
        self._message_crc[row] = message.crc
        self._has_crc[row] = True
        self._answer_rows[row] = len(answer)
        if len(answer) > 1:
            self._long_answers[row] = answer.tobytes()

    def settle(self, job: Job, moves: Moves) -> None:
        """Move the rows that a job was applied to, and free all of its rows for what comes next."""
        rows = job.slots.rows
        applied = job.applied
        if applied is None:
            self._move(job.slots.index, job, moves, slice(None))
        elif applied.any():
            self._move(rows[applied], job, moves, applied)
        self.forget_long_answers(rows if applied is None else rows[applied])
        if job.num_steps > 1:
            self._keep_long_answers(job, moves)
        self.is_busy[job.slots.index] = False
        if self._when_settled:
            self._tell_waiters(rows)

    def settle_one(
        self, row: int, sent: Sequence[float], output: NDArray[np.float32] | None, answer_rows: int
    ) -> None:
        """Do for one row, and a message of one step that the model saw as it was sent, what `settle` does for many.

        `output` is None where the message was not applied.
        """
        if output is not None:
            self.step_of[row] += 1
            self._message_steps[row] = 1
            self._answer_rows[row] = answer_rows
            self.output[row] = output
            self.sent[row] = sent
            if self.seen is not self.sent:
                self.seen[row] = sent
            self.is_gapless[row] = True
            self._has_crc[row] = False
            self._long_answers.pop(row, None)
        self.is_busy_of[row] = False
        for callback in self._when_settled.pop(row, ()):
            callback()

    def forget_long_answers(self, rows: NDArray[np.intp]) -> None:
        """Free what is kept beside the columns of rows whose last message nobody can repeat any more."""
        if self._long_answers:
            for row in self._long_answers.keys() & set(rows.tolist()):
                del self._long_answers[row]

    def _move(
        self, rows: slice | NDArray[np.intp], job: Job, moves: Moves, applied: slice | NDArray[np.bool_]
    ) -> None:
        self.step[rows] += job.num_steps
        self._message_steps[rows] = job.num_steps
        self._answer_rows[rows] = moves.answer_rows[applied]
        self.output[rows] = job.outputs[applied, -1]
        self.sent[rows] = moves.sent[applied]
        if self.seen is not self.sent:
            self.seen[rows] = job.values[applied, -1]
        self.is_gapless[rows] = True
        self._has_crc[rows] = moves.crcs is not None
        if moves.crcs is not None:
            self._message_crc[rows] = moves.crcs[applied]

    def _keep_long_answers(self, job: Job, moves: Moves) -> None:
        """Keep the answers of more than one row, which have no column."""
        long, applied = moves.answer_rows > 1, job.applied
        if applied is not None:
            long &= applied
        if long.any():
            answers = as_bytes(job.outputs[long])
            self._long_answers.update(zip(job.slots.rows[long].tolist(), answers, strict=True))

    def when_settled(self, row: int, callback: Callable[[], None]) -> None:
        """Have `callback` called once when what is in flight at a row has ended."""
        self._when_settled.setdefault(row, []).append(callback)

    def num_waiting(self, row: int) -> int:
        """Return how many calls wait for what is in flight at a row."""
        return len(self._when_settled.get(row, ()))

    def end_writing(self, rows: NDArray[np.intp]) -> None:
        """Note that no record of rows is on its way to the store any more."""
        self.is_writing[rows] = False
        callbacks, self._when_written = self._when_written, []
        for callback in callbacks:
            callback()

    def when_written(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once when records, of whatever rows, are no more on their way to the store."""
        self._when_written.append(callback)

    def _tell_waiters(self, rows: NDArray[np.intp]) -> None:
        for row in self._when_settled.keys() & set(rows.tolist()):
            for callback in self._when_settled.pop(row):
                callback()


@dataclass(frozen=True, slots=True)
class LastMessages:
    """The last messages of several rows. Where `num_steps` is 0 there is none."""

    num_steps: NDArray[np.int32]  # [rows]
    crcs: NDArray[np.uint32]  # [rows] where `has_crc`; otherwise it is that of the row's `sent`
    has_crc: NDArray[np.bool_]  # [rows]
    answer_rows: NDArray[np.int32]  # [rows]
    long_answers: dict[int, bytes]  # by the number of the row


@dataclass(frozen=True, slots=True)
class Moves:
    """What a job does to the sessions in its rows when it is applied: a JobOwner."""

    columns: SessionColumns
    sent: NDArray[np.float32]  # [rows, features] each message's last row as it was sent
    crcs: NDArray[np.uint32] | None  # [rows] of the messages' values; None where they have one step
    answer_rows: NDArray[np.int32]  # [rows] how much of the answer goes back: all steps, 1 or 0

    def settled(self, job: Job) -> None:
        """See JobOwner."""
        self.columns.settle(job, self)


def as_bytes(rows: NDArray[np.float32]) -> list[bytes]:
    """Return the bytes of each row, copied: what is kept of a row must not keep the batch alive."""
    width = math.prod(rows.shape[1:])
    flat = np.ascontiguousarray(rows).reshape(len(rows), width)
    items: Any = flat.view(np.dtype((np.void, width * 4))).ravel().tolist()
    return cast("list[bytes]", items)
