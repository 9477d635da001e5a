"""One-step messages that come one by one, collected until the engine is free. They become one job.

Most callers send one value a message over a stream of their own. What is done for each of them here is counted in
microseconds, so it is little: lists are appended to, and turned into columns once a batch. Knows no gRPC.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

import numpy as np

from longshort_service.arena import Slots
from longshort_service.batching import Job
from longshort_service.columns import Moves, as_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from longshort_service.arena import Slot
    from longshort_service.columns import SessionColumns


class SingleWaiter(Protocol):
    """Who has sent a one-step message and is told its answer. Neither may raise."""

    def answered(self, outputs: bytes, step: int) -> None:
        """Take the answer, `[outputs] f32` little-endian, or nothing where none was wanted; the step is after it."""

    def failed(self, job: Job, position: int) -> None:
        """Take that the message in that row of a job was not applied."""


class Singles:
    """What waits to become a job of one step for each of many sessions of one model."""

    __slots__ = (
        "_answer_rows",
        "_arrivals_s",
        "_columns",
        "_generations",
        "_observe",
        "_rows",
        "_values",
        "_waiters",
    )

    def __init__(self, columns: SessionColumns, observe: Callable[[NDArray[np.float64]], None]) -> None:
        self._columns = columns
        self._observe = observe  # is told how long each answer took, in seconds
        self._rows: list[int] = []
        self._generations: list[int] = []
        self._values: list[Sequence[float]] = []
        self._answer_rows: list[int] = []
        self._waiters: list[SingleWaiter] = []
        self._arrivals_s: list[float] = []  # on the performance counter

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._rows)

    def add(
        self, slot: Slot, values: Sequence[float], answer_rows: int, waiter: SingleWaiter, now_s: float
    ) -> None:
        """Take a message `[features]`, finite and in its place, of a session that is not busy; it is from now on."""
        self._arrivals_s.append(now_s)
        self._columns.is_busy_of[slot.row] = True
        self._rows.append(slot.row)
        self._generations.append(slot.generation)
        self._values.append(values)
        self._answer_rows.append(answer_rows)
        self._waiters.append(waiter)

    def take(self, max_rows: int) -> Job:
        """Return the first of them as a job, which tells each waiter."""
        columns = self._columns
        sent = np.array(self._values[:max_rows], np.float32)  # [rows, features]
        slots = Slots(
            np.array(self._rows[:max_rows], np.intp), np.array(self._generations[:max_rows], np.int64)
        )
        moves = Moves(columns, sent, None, np.array(self._answer_rows[:max_rows], np.int32))
        arrivals_s = np.array(self._arrivals_s[:max_rows])
        delivery = _Delivery(moves, self._waiters[:max_rows], arrivals_s, self._observe)
        job = Job(sent[:, None, :], slots, owner=moves, on_end=delivery)
        job.enqueued_s = self._arrivals_s[0]
        job.arrivals_s = arrivals_s
        for column in (
            self._rows, self._generations, self._values, self._answer_rows, self._waiters, self._arrivals_s
        ):  # fmt: skip
            del column[:max_rows]
        return job


class _Delivery:
    """Tells every waiter of a job what became of its message."""

    __slots__ = ("_arrivals_s", "_moves", "_observe", "_waiters")

    def __init__(
        self,
        moves: Moves,
        waiters: list[SingleWaiter],
        arrivals_s: NDArray[np.float64],
        observe: Callable[[NDArray[np.float64]], None],
    ) -> None:
        self._moves = moves
        self._waiters = waiters
        self._arrivals_s = arrivals_s
        self._observe = observe

    def __call__(self, job: Job) -> None:
        self._observe(time.perf_counter() - self._arrivals_s)
        steps = self._moves.columns.step[job.slots.rows].tolist()
        applied = job.applied
        if applied is None and self._moves.answer_rows.all():
            for waiter, outputs, step in zip(self._waiters, as_bytes(job.outputs), steps, strict=True):
                waiter.answered(outputs, step)
            return
        for position, (waiter, step) in enumerate(zip(self._waiters, steps, strict=True)):
            if applied is not None and not applied[position]:
                waiter.failed(job, position)
            else:
                wanted = job.outputs[position, : self._moves.answer_rows[position]]
                waiter.answered(wanted.tobytes(), step)
