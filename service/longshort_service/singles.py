"""One-step messages that come one by one, collected until the engine is free. They become one job.

Most callers send one value a message over a stream of their own. What is done for each of them here is counted in
microseconds, so it is little: lists are appended to, and turned into columns once a batch. Knows no gRPC.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from longshort_service.arena import Slots
from longshort_service.batching import Job
from longshort_service.columns import Moves, as_bytes
from longshort_service.served_model import failure_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from longshort_service.columns import SessionColumns
    from longshort_service.errors import ServiceError


class SingleWaiter(Protocol):
    """Who has sent a one-step message and is told its answer. Neither may raise."""

    def answered(self, outputs: bytes, step: int) -> None:
        """Take the answer, `[outputs] f32` little-endian, or nothing where none was wanted; the step is after it."""

    def failed(self, error: ServiceError) -> None:
        """Take that the message was not applied."""


class Single(NamedTuple):
    """A one-step message."""

    row: int
    generation: int
    values: Sequence[float]  # [features]
    answer_rows: int  # 1, or 0 where no answer is wanted
    waiter: SingleWaiter
    arrival_s: float  # on the performance counter


class Singles:
    """What waits to become a job of one step for each of many sessions of one model."""

    __slots__ = ("_columns", "_model_name", "_observe", "_waiting")

    def __init__(
        self, columns: SessionColumns, model_name: str, observe: Callable[[NDArray[np.float64]], None]
    ) -> None:
        self._columns = columns
        self._model_name = model_name
        self._observe = observe  # is told how long each answer took, in seconds
        self._waiting: list[Single] = []

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._waiting)

    def add(self, single: Single) -> None:
        """Take a message, finite and in its place, of a session that is not busy; it is from now on."""
        self._columns.is_busy_of[single.row] = True
        self._waiting.append(single)

    @property
    def waiting(self) -> Sequence[Single]:
        """What waits, in the order of arrival."""
        return self._waiting

    def clear(self) -> None:
        """Let go of all that waits: it was dealt with."""
        self._waiting = []

    def take(self, max_rows: int) -> Job:
        """Return the first of them as a job, which tells each waiter."""
        taken, self._waiting = self._waiting[:max_rows], self._waiting[max_rows:]
        rows, generations, values, answer_rows, waiters, arrivals = zip(*taken, strict=True)
        sent = np.array(values, np.float32)  # [rows, features]
        slots = Slots(np.array(rows, np.intp), np.array(generations, np.int64))
        moves = Moves(self._columns, sent, None, np.array(answer_rows, np.int32))
        arrivals_s = np.array(arrivals)
        delivery = _Delivery(moves, waiters, arrivals_s, self._model_name, self._observe)
        job = Job(sent[:, None, :], slots, owner=moves, on_end=delivery)
        job.enqueued_s = arrivals[0]
        job.arrivals_s = arrivals_s
        return job


@dataclass(frozen=True, slots=True)
class _Delivery:
    """Tells every waiter of a job what became of its message."""

    moves: Moves
    waiters: Sequence[SingleWaiter]
    arrivals_s: NDArray[np.float64]
    model_name: str
    observe: Callable[[NDArray[np.float64]], None]

    def __call__(self, job: Job) -> None:
        self.observe(time.perf_counter() - self.arrivals_s)
        steps = self.moves.columns.step[job.slots.rows].tolist()
        applied = job.applied
        if applied is None and self.moves.answer_rows.all():
            for waiter, outputs, step in zip(self.waiters, as_bytes(job.outputs), steps, strict=True):
                waiter.answered(outputs, step)
            return
        for position, (waiter, step) in enumerate(zip(self.waiters, steps, strict=True)):
            if applied is not None and not applied[position]:
                waiter.failed(failure_of(job, position, self.model_name))
            else:
                wanted = job.outputs[position, : self.moves.answer_rows[position]]
                waiter.answered(wanted.tobytes(), step)
