"""One live session: how a message moves it, and what is left of the last one.

Owns step, stored answer and the one job in flight; its row is the arena's. Knows no gRPC, no onnxruntime, no asyncio
and no store. Time is an argument, in seconds since 1970.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from longshort_service import errors
from longshort_service.arena import ArenaFull
from longshort_service.batching import Job
from longshort_service.protocol import MessageIdentity, Verdict, judge, judge_unnumbered
from longshort_service.values import check_values, checksum

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from longshort_service.arena import Arena, Slot, States
    from longshort_service.record import SessionRecord
    from longshort_service.signature import Signature


class ServedModel(Protocol):
    """What the table needs to know of a model version. Compared and hashed by identity."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def version(self) -> int:
        """Its version."""

    @property
    def signature(self) -> Signature:
        """What its numbers mean."""

    @property
    def arena(self) -> Arena:
        """Its rows."""

    @property
    def piece_steps(self) -> int:
        """The number of steps above which a message takes more than one run."""


ModelT = TypeVar("ModelT", bound=ServedModel)


class StreamOwner(Protocol):
    """The stream that has a session open."""

    client_id: str

    def end(self, error: errors.ServiceError) -> None:
        """End the stream with `error` once the message in hand, if any, is answered. Must not raise."""


class Answers(enum.Enum):
    """Which of a message's predictions go back."""

    ALL = enum.auto()
    LAST = enum.auto()
    NONE = enum.auto()


@dataclass(frozen=True, slots=True)
class Replay:
    """The stored answer of a message that was applied before."""

    outputs: NDArray[np.float32]  # [rows, outputs] f32


class Session(Generic[ModelT]):
    """One live session. Its row, step and stored answer change together, in `settled`.

    `in_flight` is the one job that may move it; while there is one, the row is not read, written or freed by anyone
    else. `owner` is the stream that has it open.
    """

    __slots__ = (
        "_pending_answers",
        "_pending_message",
        "_when_settled",
        "created_by",
        "epoch",
        "id",
        "in_flight",
        "incarnation",
        "is_ended",
        "is_gapless",
        "last_answer",
        "last_message",
        "last_output",
        "last_used_s",
        "last_values",
        "model",
        "owner",
        "slot",
        "step",
    )

    def __init__(self, session_id: str, model: ModelT, slot: Slot, epoch: int, incarnation: int) -> None:
        self.id = session_id
        self.model = model
        self.slot = slot
        self.epoch = epoch
        self.incarnation = incarnation
        self.created_by = ""  # the client_id of the stream that began it, as long as it stays live
        self.step = 0
        self.is_gapless = True
        self.is_ended = False  # taken off the table: whoever still holds it must not use it
        self.last_used_s = 0.0
        self.last_message: MessageIdentity | None = None
        self.last_answer: NDArray[np.float32] | None = None  # [rows, outputs] f32
        self.last_values: NDArray[np.float32] | None = None  # [features] f32
        self.last_output: NDArray[np.float32] | None = None  # [outputs] f32
        self.owner: StreamOwner | None = None
        self.in_flight: Job | None = None
        self._pending_message: MessageIdentity | None = None
        self._pending_answers = Answers.ALL
        self._when_settled: list[Callable[[], None]] = []

    def begin(
        self, rows: NDArray[np.float32], step: int | None, answers: Answers, now_s: float
    ) -> Job | Replay:
        """Take a message of values `[time, features]`: a job to run, or the answer it got before.

        The caller has waited until nothing is in flight. Raises a StepRefused, ValueMissing, ValueNotFinite or
        SessionsExhausted (no row to work on), and then nothing has changed.
        """
        if self.is_ended:
            raise errors.SessionMoved(f"session {self.id} has ended", cause="ended", client_id="")
        if self.in_flight is not None:
            raise errors.InternalError(f"session {self.id} has a message in flight already")
        message = MessageIdentity(self.step if step is None else step, len(rows), checksum(rows))
        if step is None:
            judge_unnumbered(self.step, gapless=self.is_gapless)
        elif judge(self.step, self.last_message, message) is Verdict.REPLAY:
            self.last_used_s = now_s
            if self.last_answer is None:
                raise errors.InternalError(f"session {self.id} has lost its stored answer")
            return Replay(self.last_answer)
        values = check_values(rows, self.model.signature, self.last_values)
        scratch = None
        if len(rows) > self.model.piece_steps:
            scratch = allocate_row(self.model)
        job = Job(values, self.slot, scratch=scratch, owner=self)
        self.in_flight = job
        self._pending_message = message
        self._pending_answers = answers
        self.last_used_s = now_s
        return job

    def abandon(self, job: Job) -> None:
        """Forget a job that the scheduler did not take; its scratch row goes back."""
        if job.scratch is not None:
            self.model.arena.free(job.scratch)
            job.scratch = None
        self.settled(job)

    def settled(self, job: Job) -> None:
        """Take the scheduler's word that a job has ended: where it was applied, the session moves."""
        if job.outputs is not None and job.is_applied:
            self.step += job.num_steps
            self.last_message = self._pending_message
            self.last_values = job.values[-1].copy()  # a view would keep the whole message alive
            self.last_output = job.outputs[-1].copy()
            self.last_answer = select_answers(job.outputs, self._pending_answers)
            self.is_gapless = True
        self.in_flight = None
        callbacks, self._when_settled = self._when_settled, []
        for callback in callbacks:
            callback()

    @property
    def num_waiting(self) -> int:
        """The number of calls that wait for what is in flight."""
        return len(self._when_settled)

    def restart(self, states: States, incarnation: int, now_s: float) -> None:
        """Begin anew at step 0 from `states`. The caller has waited until nothing is in flight."""
        self.model.arena.write(self.slot, states)
        self.incarnation = incarnation
        self.step = 0
        self.is_gapless = True
        self.last_used_s = now_s
        self.last_message = self.last_answer = self.last_values = self.last_output = None

    def when_settled(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once when what is in flight has ended."""
        self._when_settled.append(callback)


def select_answers(outputs: NDArray[np.float32], answers: Answers) -> NDArray[np.float32]:
    """Return the rows of `outputs` `[time, outputs]` that go back to the caller."""
    if answers is Answers.ALL:
        return outputs
    return outputs[-1:].copy() if answers is Answers.LAST else outputs[:0].copy()


def check_fit(record: SessionRecord, model: ServedModel) -> None:
    """Raise ModelChanged where a record cannot be continued by a model: another file, or arrays that do not fit."""
    signature = model.signature
    label = f"{model.name}/{model.version}"
    if record.fingerprint != signature.fingerprint:
        raise errors.ModelChanged(
            f"session {record.session_id} was stored with another file of {label}: reset it",
            session_id=record.session_id,
        )
    num_outputs = len(signature.outputs)
    row, output = (None, None) if record.step == 0 else ((len(signature.features),), (num_outputs,))
    answer = record.last_answer
    fits = (
        tuple(state.shape for state in record.states)
        == tuple(state.row_shape() for state in signature.states)
        and _shape(record.last_values) == row
        and _shape(record.last_output) == output
        and (record.last_message is None) == (answer is None)
        and (answer is None or (answer.ndim == 2 and answer.shape[1] == num_outputs))
    )
    if not fits:
        raise errors.ModelChanged(
            f"the stored state of session {record.session_id} does not fit {label}: reset it",
            session_id=record.session_id,
        )


def _shape(array: NDArray[np.float32] | None) -> tuple[int, ...] | None:
    return None if array is None else array.shape


def allocate_row(model: ServedModel) -> Slot:
    """Return a fresh row of the model. Raises SessionsExhausted."""
    try:
        return model.arena.allocate()
    except ArenaFull as error:
        raise errors.SessionsExhausted(
            f"all {model.arena.num_rows} state rows of {model.name} are in use: wait and send again",
            model=model.name,
        ) from error
