"""One frame on its way: its columns as they came, the jobs that they make, and what was settled without one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic

import numpy as np

from longshort_service.served_model import ModelT
from longshort_service.session import Answers, Replay, num_answer_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from longshort_service import errors
    from longshort_service.batching import Job
    from longshort_service.handles import Found


@dataclass(frozen=True, slots=True)
class Frame:
    """The columns of a frame's values, as they came. A row is one session's message."""

    handles: NDArray[np.uint32]  # [rows]
    counts: NDArray[np.int64] | None  # [rows] steps of each; None: 1 each
    steps: NDArray[np.int64] | None  # [rows] the step before each; None: not numbered
    values: NDArray[np.float32]  # flat, all rows one after the other
    answers: Answers

    def num_answer_rows(self, num_steps: int) -> int:
        """Return how many rows of outputs go back for a message of so many steps."""
        return num_answer_rows(self.answers, num_steps)


@dataclass(slots=True, eq=False)
class Part(Generic[ModelT]):
    """Rows of one model and one length, in their order in the frame, that go as one job."""

    model: ModelT
    positions: NDArray[np.intp]
    steps: NDArray[np.int64]  # of their sessions when it has been applied; later they may be anywhere
    job: Job


@dataclass(frozen=True, slots=True, eq=False)
class Repeats(Generic[ModelT]):
    """Rows whose message of one step was applied before, with their stored answers."""

    model: ModelT
    positions: NDArray[np.intp]
    answer_rows: NDArray[np.int32]  # 1, or 0 where none was wanted
    outputs: NDArray[np.float32]  # [rows, outputs]
    steps: NDArray[np.int64]


@dataclass(slots=True)
class FrameWork(Generic[ModelT]):
    """What a frame came to: jobs to be run, and what was settled at once."""

    frame: Frame
    models: Sequence[ModelT]  # by the index that `found` has of each
    found: Found
    version: int  # of the handles when it was found
    starts: NDArray[np.int64]  # [rows] where in the flat values each begins
    now_s: float
    parts: list[Part[ModelT]] = field(default_factory=list)
    failures: dict[int, errors.ServiceError] = field(default_factory=dict)  # by position
    replays: dict[int, Replay] = field(default_factory=dict)  # by position
    repeats: list[Repeats[ModelT]] = field(default_factory=list)
    unstored: dict[int, errors.ServiceError] = field(default_factory=dict)  # applied, by position

    def reached(self) -> Iterator[tuple[ModelT, NDArray[np.intp], NDArray[np.intp], NDArray[np.int64]]]:
        """Yield model, rows, positions and steps of the sessions that have an answer, applied or repeated."""
        for part in self.parts:
            applied = part.job.applied
            chosen = slice(None) if applied is None else applied
            yield part.model, part.job.slots.rows[chosen], part.positions[chosen], part.steps[chosen]
        for repeats in self.repeats:
            yield repeats.model, self.found.rows[repeats.positions], repeats.positions, repeats.steps
        for position, replay in self.replays.items():
            model = self.models[self.found.models[position]]
            yield model, self.found.rows[[position]], np.array([position]), np.array([replay.step])

    def give_up(self, part: Part[ModelT], error: errors.ServiceError) -> None:
        """Take back a part that the scheduler did not take: nothing has moved."""
        self.parts.remove(part)
        if part.job.scratch is not None:
            part.model.arena.free(part.job.scratch)
        part.model.columns.is_busy[part.job.slots.rows] = False
        self.failures.update(dict.fromkeys(part.positions.tolist(), error))
