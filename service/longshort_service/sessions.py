"""The session table: which sessions are live, who has them open, and how a message moves one.

Owns every live session and its row. Knows no gRPC, no onnxruntime, no asyncio and no store: what is loaded and what
is spilled goes in and out as SessionRecord. Time is an argument, in seconds since 1970.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from longshort_service import errors
from longshort_service.arena import ArenaFull
from longshort_service.batching import Job
from longshort_service.protocol import MessageIdentity, Verdict, judge, judge_unnumbered
from longshort_service.record import SessionRecord
from longshort_service.values import check_values, checksum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from longshort_service.arena import Arena, Slot
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

    def when_settled(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once when what is in flight has ended."""
        self._when_settled.append(callback)


def select_answers(outputs: NDArray[np.float32], answers: Answers) -> NDArray[np.float32]:
    """Return the rows of `outputs` `[time, outputs]` that go back to the caller."""
    if answers is Answers.ALL:
        return outputs
    return outputs[-1:].copy() if answers is Answers.LAST else outputs[:0].copy()


def _check_fit(record: SessionRecord, signature: Signature) -> None:
    """Raise ValueError where a record's rows beside its states do not have the model's widths."""
    widths = (len(signature.features), len(signature.outputs))
    wanted = (None, None) if record.step == 0 else ((widths[0],), (widths[1],))
    found = tuple(None if row is None else row.shape for row in (record.last_values, record.last_output))
    if found != wanted:
        raise ValueError(f"its last row and answer are {found} instead of {wanted}")
    answer = record.last_answer
    if (record.last_message is None) != (answer is None):
        raise ValueError("it has a last message without its answer, or an answer without its message")
    if answer is not None and (answer.ndim != 2 or answer.shape[1] != widths[1]):
        raise ValueError(f"its stored answer is {answer.shape}")


def allocate_row(model: ServedModel) -> Slot:
    """Return a fresh row of the model. Raises SessionsExhausted."""
    try:
        return model.arena.allocate()
    except ArenaFull as error:
        raise errors.SessionsExhausted(
            f"all {model.arena.num_rows} state rows of {model.name} are in use: wait and send again",
            model=model.name,
        ) from error


class SessionTable(Generic[ModelT]):
    """All live sessions by id."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session[ModelT]] = {}
        # Sessions that no stream has open, by model, the longest unused first.
        self._idle: dict[ModelT, dict[str, Session[ModelT]]] = {}
        self.num_idle = 0

    def __len__(self) -> int:
        """Return the number of live sessions, idle ones included."""
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session[ModelT]]:
        """Iterate over the live sessions; the table must not change meanwhile."""
        return iter(self._sessions.values())

    def get(self, session_id: str) -> Session[ModelT] | None:
        """Return a live session; None where it is not live here."""
        return self._sessions.get(session_id)

    def create(
        self, session_id: str, model: ModelT, *, epoch: int, incarnation: int, now_s: float
    ) -> Session[ModelT]:
        """Add a session at step 0 in the model's initial state. Raises SessionsExhausted."""
        session = Session(session_id, model, allocate_row(model), epoch, incarnation)
        self._add(session, now_s)
        return session

    def restore(self, record: SessionRecord, model: ModelT, *, epoch: int, now_s: float) -> Session[ModelT]:
        """Add a session as it was recorded. Raises SessionsExhausted, or ModelChanged where the state is another's."""
        if record.fingerprint != model.signature.fingerprint:
            raise errors.ModelChanged(
                f"session {record.session_id} was stored with another file of {model.name}/{model.version}: reset it",
                session_id=record.session_id,
            )
        slot = allocate_row(model)
        try:
            _check_fit(record, model.signature)
            model.arena.write(slot, list(record.states))
        except ValueError as error:
            model.arena.free(slot)
            raise errors.ModelChanged(
                f"the stored state of session {record.session_id} does not fit {model.name}/{model.version}: {error}",
                session_id=record.session_id,
            ) from error
        session = Session(record.session_id, model, slot, epoch, record.incarnation)
        session.step = record.step
        session.is_gapless = record.is_gapless
        session.last_message = record.last_message
        session.last_answer = record.last_answer
        session.last_values = record.last_values
        session.last_output = record.last_output
        self._add(session, now_s)
        return session

    def record(self, session: Session[ModelT]) -> SessionRecord:
        """Return a copy of a session as a value. The caller has waited until nothing is in flight."""
        return SessionRecord(
            session_id=session.id,
            model=session.model.name,
            version=session.model.version,
            fingerprint=session.model.signature.fingerprint,
            step=session.step,
            incarnation=session.incarnation,
            epoch=session.epoch,
            is_gapless=session.is_gapless,
            last_used_s=session.last_used_s,
            states=tuple(session.model.arena.read(session.slot)),
            last_message=session.last_message,
            last_answer=session.last_answer,
            last_values=session.last_values,
            last_output=session.last_output,
        )

    def attach(self, session: Session[ModelT], owner: StreamOwner, now_s: float) -> None:
        """Give a session to a stream. A stream that had it before must have been ended by the caller."""
        if session.owner is None:
            self._leave_idle(session)
        session.owner = owner
        session.last_used_s = now_s

    def detach(self, session: Session[ModelT], owner: StreamOwner, now_s: float) -> None:
        """Take a session back from a stream that ends; nothing happens where another stream has it by now."""
        if session.owner is owner:
            session.owner = None
            session.last_used_s = now_s
            if not session.is_ended:
                self._enter_idle(session)

    def touch(self, session: Session[ModelT], now_s: float) -> None:
        """Note that a session was used without a stream."""
        session.last_used_s = now_s
        if session.owner is None:
            self._leave_idle(session)
            self._enter_idle(session)

    def remove(self, session: Session[ModelT]) -> None:
        """Take a session off the table and free its row. The caller has waited until nothing is in flight."""
        if session.in_flight is not None:
            raise errors.InternalError(f"session {session.id} was removed with a message in flight")
        if session.owner is None:
            self._leave_idle(session)
        session.is_ended = True
        del self._sessions[session.id]
        session.model.arena.free(session.slot)

    def longest_idle(self) -> Session[ModelT] | None:
        """Return the session that was unused longest and that may be spilled; None where there is none."""
        heads = (
            next((session for session in idle.values() if session.in_flight is None), None)
            for idle in self._idle.values()
        )
        found = [session for session in heads if session is not None]
        return min(found, key=lambda session: session.last_used_s, default=None)

    def idle_since(self, before_s: float, limit: int) -> list[Session[ModelT]]:
        """Return up to `limit` idle sessions last used before `before_s`."""
        found: list[Session[ModelT]] = []
        for idle in self._idle.values():
            for session in idle.values():
                if session.last_used_s >= before_s or len(found) == limit:
                    break
                if session.in_flight is None:
                    found.append(session)
        return found

    def num_sessions_of(self, model: ModelT) -> int:
        """Return how many live sessions a model has."""
        return sum(session.model is model for session in self._sessions.values())

    def _add(self, session: Session[ModelT], now_s: float) -> None:
        session.last_used_s = now_s
        self._sessions[session.id] = session
        self._enter_idle(session)

    def _enter_idle(self, session: Session[ModelT]) -> None:
        self._idle.setdefault(session.model, {})[session.id] = session
        self.num_idle += 1

    def _leave_idle(self, session: Session[ModelT]) -> None:
        del self._idle[session.model][session.id]
        self.num_idle -= 1
