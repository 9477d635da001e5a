"""The core of a frame stream without a service: sessions of toy models under handles, frames from lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from longshort_service.frame_answer import collect
from longshort_service.frame_work import Frame, FrameWork
from longshort_service.frames import FrameReader
from longshort_service.handles import HandleTable
from longshort_service.session import Answers
from longshort_service.sessions import SessionTable
from tables import NOW_S, TableModel, finish, move, rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from longshort_service.session import Session

MAX_STEPS, MAX_ROWS = 6, 3


def frame(
    handles: Sequence[int],
    values: Sequence[float],
    counts: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
    answers: Answers = Answers.ALL,
) -> Frame:
    """Return a frame as the codec makes it: numbers of 64 bits are read as signed."""
    return Frame(
        np.array(handles, np.uint32),
        None if counts is None else np.array(counts, np.int64),
        None if steps is None else np.array(steps, np.uint64).view(np.int64),
        np.array(values, np.float32),
        answers,
    )


class ToyStream:
    """The handles of one frame stream, the table of their sessions, and what becomes of frames."""

    def __init__(self) -> None:
        self.table: SessionTable[TableModel] = SessionTable()
        self.handles: HandleTable[TableModel] = HandleTable()
        self.reader = FrameReader(self.handles, MAX_STEPS, MAX_ROWS)

    def open(self, handle: int, model: TableModel, *values: float) -> Session[TableModel]:
        """Open a session that has seen these values, one a message, unless it has no handle yet."""
        session_id = f"s{len(self.table)}"
        session = self.table.create(session_id, model, epoch=1, incarnation=7, now_s=NOW_S)
        for value in values:
            move(session, rows_of(value))
        self.handles.open(handle, session)
        return session

    def begin(self, sent: Frame) -> FrameWork[TableModel]:
        """Begin a frame."""
        return self.reader.begin(sent, NOW_S + 1)

    def play(self, sent: Frame) -> dict[int, tuple[int, list[float]] | str]:
        """Run a frame: by handle, what each session's step is now and its answer, or the reason of its failure."""
        work = self.begin(sent)
        for part in work.parts:
            finish(part.job, part.model)
        return outcomes(work)


def outcomes(work: FrameWork[TableModel]) -> dict[int, tuple[int, list[float]] | str]:
    """Return what became of a frame's rows, by handle; all of a model's jobs have ended."""
    answer = collect(work)
    assert answer.values.dtype == np.float32
    num_columns = answer.values.size // max(int(answer.counts.sum()), 1)
    ends = np.cumsum(answer.counts * num_columns)
    came: dict[int, tuple[int, list[float]] | str] = {}
    for handle, step, begin, end in zip(
        answer.handles.tolist(),
        answer.steps.tolist(),
        (ends - answer.counts * num_columns).tolist(),
        ends.tolist(),
        strict=True,
    ):
        came[handle] = (step, answer.values[begin:end].tolist())
    for position, error in work.failures.items():
        came[int(work.frame.handles[position])] = error.reason
    return came
