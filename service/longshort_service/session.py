"""One live session: how a message moves it, and what is left of the last one.

Its row is the arena's, what is known of it stands in the columns of its model. Knows no gRPC, no onnxruntime, no
asyncio and no store. Time is an argument, in seconds since 1970.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol

import numpy as np

from longshort_service import errors
from longshort_service.arena import Slot, Slots
from longshort_service.batching import Job
from longshort_service.columns import Moves
from longshort_service.durability import Durability
from longshort_service.protocol import MessageIdentity, Verdict, judge, judge_unnumbered
from longshort_service.record import SessionRecord
from longshort_service.served_model import ModelT, allocate_scratch
from longshort_service.values import check_values, checksum

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from longshort_service.arena import States


class StreamOwner(Protocol):
    """The stream that has a session open."""

    def lose(self, session_id: str, error: errors.ServiceError) -> None:
        """Take that a session is no longer the stream's, once its message in hand is answered. Must not raise."""

    def stored(self, session_id: str, durable_step: int) -> None:
        """Take that a session of the stream's is stored up to a step. Must not raise."""


class Answers(enum.Enum):
    """Which of a message's predictions go back."""

    ALL = enum.auto()
    LAST = enum.auto()
    NONE = enum.auto()


@dataclass(frozen=True, slots=True)
class Replay:
    """The stored answer of a message that was applied before."""

    outputs: NDArray[np.float32]  # [rows, outputs] f32
    step: int  # of the session, which has not moved


class Session(Generic[ModelT]):
    """One live session: the name of a row. What is known of it stands in its model's columns.

    While a message `is_busy`, the row is not read, written or freed by anyone else. `owner` is the stream that has it
    open.
    """

    __slots__ = ("created_by", "generation", "id", "is_ended", "model", "owner", "row")

    def __init__(self, session_id: str, model: ModelT, row: int, generation: int) -> None:
        self.id = session_id
        self.model = model
        self.row = row  # the arena's
        self.generation = generation  # the row's, as long as it is this session's
        self.created_by = ""  # the client_id of the stream that began it, as long as it stays live
        self.is_ended = False  # taken off the table: whoever still holds it must not use it
        self.owner: StreamOwner | None = None

    @property
    def slot(self) -> Slot:
        """Its row."""
        return Slot(self.row, self.generation)

    @property
    def step(self) -> int:
        """The number of steps it has consumed."""
        return self.model.columns.step_of[self.row]

    @property
    def epoch(self) -> int:
        """Raised by every opening."""
        return int(self.model.columns.epoch[self.row])

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.model.columns.epoch[self.row] = epoch

    @property
    def incarnation(self) -> int:
        """Drawn when it was created, reset or imported."""
        return int(self.model.columns.incarnation[self.row])

    @incarnation.setter
    def incarnation(self, incarnation: int) -> None:
        self.model.columns.incarnation[self.row] = incarnation

    @property
    def durability(self) -> Durability:
        """How far what is stored of it may be behind."""
        return Durability(self.model.columns.durability[self.row])

    @property
    def durable_step(self) -> int:
        """The step that is known to be stored: what would survive the loss of this server."""
        return self.model.columns.durable_of[self.row]

    @durable_step.setter
    def durable_step(self, step: int) -> None:
        self.model.columns.durable_of[self.row] = step

    @property
    def is_gapless(self) -> bool:
        """Whether it is known that no values are missing after its step."""
        return bool(self.model.columns.is_gapless[self.row])

    @property
    def last_used_s(self) -> float:
        """When it was used last."""
        return float(self.model.columns.used_s[self.row])

    @last_used_s.setter
    def last_used_s(self, now_s: float) -> None:
        self.model.columns.used_s[self.row] = now_s

    @property
    def is_busy(self) -> bool:
        """Whether a message is in flight."""
        return not self.is_ended and bool(self.model.columns.is_busy[self.row])

    def begin(
        self, rows: NDArray[np.float32], step: int | None, answers: Answers, now_s: float
    ) -> Job | Replay:
        """Take a message of values `[time, features]`: a job to run, or the answer it got before.

        The caller has waited until nothing is in flight. Raises a StepRefused, ValueMissing, ValueNotFinite or
        SessionsExhausted (no row to work on), and then nothing has changed.
        """
        if self.is_ended:
            raise errors.SessionMoved(f"session {self.id} has ended", cause="ended", client_id="")
        if self.is_busy:
            raise errors.InternalError(f"session {self.id} has a message in flight already")
        columns, row, model = self.model.columns, self.row, self.model
        crc = checksum(rows)
        if step is None:
            judge_unnumbered(self.step, gapless=self.is_gapless)
        else:
            message = MessageIdentity(step, len(rows), crc)
            if judge(self.step, columns.last_message(row), message) is Verdict.REPLAY:
                self.last_used_s = now_s
                answer = columns.last_answer(row)
                if answer is None:
                    raise errors.InternalError(f"session {self.id} has lost its stored answer")
                return Replay(answer, self.step)
        last_row = columns.seen[row] if self.step else None
        values = check_values(rows, model.signature, last_row)
        moves = Moves(
            columns,
            sent=rows[None, -1],
            crcs=np.array([crc], np.uint32),
            answer_rows=np.array([num_answer_rows(answers, len(rows))], np.int32),
        )
        scratch = allocate_scratch(model, 1) if len(rows) > model.piece_steps(1) else None
        columns.is_busy[row] = True
        self.last_used_s = now_s
        return Job(values[None], Slots.of(self.slot), scratch=scratch, owner=moves)

    def abandon(self, job: Job) -> None:
        """Forget a job that the scheduler did not take; its scratch row goes back."""
        if job.scratch is not None:
            self.model.arena.free(job.scratch)
            job.scratch = None
        self.model.columns.is_busy[self.row] = False

    @property
    def is_writing(self) -> bool:
        """Whether a record of it is on its way to the store."""
        return not self.is_ended and bool(self.model.columns.is_writing[self.row])

    @property
    def num_waiting(self) -> int:
        """The number of calls that wait for what is in flight."""
        return 0 if self.is_ended else self.model.columns.num_waiting(self.row)

    def when_settled(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once when what is in flight has ended."""
        self.model.columns.when_settled(self.row, callback)

    def restart(self, states: States, incarnation: int, now_s: float) -> None:
        """Begin anew at step 0 from `states`. The caller has waited until nothing is in flight."""
        self.model.arena.write(self.slot, states)
        self.model.columns.clear(self.row)
        self.incarnation = incarnation
        self.last_used_s = now_s

    def put(self, record: SessionRecord) -> None:
        """Become what a record says, its epoch excepted. The record fits the model."""
        columns, row = self.model.columns, self.row
        if record.states:
            self.model.arena.write(self.slot, list(record.states))
        else:
            self.model.arena.memory.initialise(row)
        columns.clear(row)
        columns.step[row] = record.step
        columns.is_gapless[row] = record.is_gapless
        columns.set_last_message(row, record.last_message, record.last_answer)
        if record.last_values is not None and record.last_output is not None:
            columns.sent[row] = columns.seen[row] = record.last_values
            columns.output[row] = record.last_output

    def record(self) -> SessionRecord:
        """Return a copy of the session as a value. The caller has waited until nothing is in flight."""
        columns, row, model = self.model.columns, self.row, self.model
        has_begun = self.step > 0
        return SessionRecord(
            session_id=self.id,
            origin=model.origin,
            step=self.step,
            incarnation=self.incarnation,
            epoch=self.epoch,
            is_gapless=self.is_gapless,
            last_used_s=self.last_used_s,
            states=tuple(model.arena.read(self.slot)),
            last_message=columns.last_message(row),
            last_answer=columns.last_answer(row),
            last_values=columns.seen[row].copy() if has_begun else None,
            last_output=columns.output[row].copy() if has_begun else None,
        )


def num_answer_rows(answers: Answers, num_steps: int) -> int:
    """Return how many rows of a message's outputs go back to the caller."""
    return {Answers.ALL: num_steps, Answers.LAST: 1, Answers.NONE: 0}[answers]


def select_answers(outputs: NDArray[np.float32], answers: Answers) -> NDArray[np.float32]:
    """Return the rows of `outputs` `[time, outputs]` that go back to the caller."""
    if answers is Answers.ALL:
        return outputs
    return outputs[-1:].copy() if answers is Answers.LAST else outputs[:0].copy()
