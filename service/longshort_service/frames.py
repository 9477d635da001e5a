"""The rows of one frame on their way to jobs and back: checked, judged and collected as columns.

What is right about a frame costs a few array operations, however many sessions it has; a Python loop looks only at the
rows that something is wrong with, or that were sent before. Knows no gRPC, no asyncio, no stores; time is an argument.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic

import numpy as np

from longshort_service import errors
from longshort_service.batching import Job
from longshort_service.columns import Moves, as_bytes
from longshort_service.frame_work import FrameWork, Part, Repeats
from longshort_service.served_model import ModelT, allocate_scratch
from longshort_service.session import Replay
from longshort_service.values import rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from longshort_service.arena import Slots
    from longshort_service.frame_work import Frame
    from longshort_service.handles import Found, HandleTable
    from longshort_service.session import Session

# Rows that something is wrong with cost some 10 us each: a frame of them must not hold the loop for seconds.
MAX_ROWS: Final = 65_536


@dataclass(frozen=True, slots=True)
class _Known(Generic[ModelT]):
    """What was found out about a frame that was one job of one step for each of its handles."""

    version: int  # of the handles
    handles: bytes
    model: ModelT
    slots: Slots
    positions: NDArray[np.intp]  # all of them
    found: Found
    starts: NDArray[np.int64]


class FrameReader(Generic[ModelT]):
    """Turns the frames of one stream into jobs."""

    def __init__(self, handles: HandleTable[ModelT], max_steps: int, max_rows: int) -> None:
        self._handles = handles
        self._max_steps = max_steps
        self._max_rows = max_rows  # of one job
        self._last: _Known[ModelT] | None = None

    def begin_again(self, frame: Frame, now_s: float) -> FrameWork[ModelT] | None:
        """Do what `begin` does for a frame of the same sessions as the last one, all of them right; None for others.

        A gateway sends the same handles over and over: they are looked up, and checked against each other, once.
        """
        known = self._last
        if (
            known is None
            or known.version != self._handles.version
            or frame.counts is not None
            or frame.handles.tobytes() != known.handles
        ):
            return None
        num_rows, columns, index = len(frame.handles), known.model.columns, known.slots.index
        if frame.steps is None:
            is_right = bool(columns.is_gapless[index].all())
        else:
            is_right = len(frame.steps) == num_rows and bool((frame.steps == columns.step[index]).all())
        width = len(known.model.signature.features)
        if (
            not is_right
            or frame.values.size != num_rows * width
            or columns.is_busy[index].any()
            or not np.isfinite(frame.values).all()
        ):
            return None
        work: FrameWork[ModelT] = FrameWork(
            frame, self._handles.models, known.found, known.version, known.starts, now_s
        )
        values = frame.values.reshape(num_rows, 1, width)
        self._begin_job(work, known.model, known.positions, values, known.slots)
        return work

    def busy_sessions(self, frame: Frame) -> list[Session[ModelT]]:
        """Return the sessions of a frame that somebody else is moving just now: they are waited for first."""
        found = self._handles.find(frame.handles)
        busy: list[Session[ModelT]] = []
        for index, model in enumerate(self._handles.models):
            rows = found.rows[(found.models == index) & (found.rows >= 0)]
            if model.columns.is_busy[rows].any():
                handles = model.columns.handle[rows[model.columns.is_busy[rows]]]
                busy.extend(self._handles.get(handle) for handle in set(handles.tolist()))
        return busy

    def begin(self, frame: Frame, now_s: float) -> FrameWork[ModelT]:
        """Make jobs of what may be applied; the sessions in them are busy from now on.

        The caller has waited for `busy_sessions`. Raises InvalidMessage where the columns do not fit one another, and
        then nothing has changed. What is wrong with a row is in `failures`.
        """
        found = self._handles.find(frame.handles)
        work: FrameWork[ModelT] = FrameWork(
            frame, self._handles.models, found, self._handles.version, self._starts(frame, found), now_s
        )
        is_open = found.rows >= 0
        repeated = self._handles.repeated(found)
        if repeated is not None:
            repeated &= found.is_known
            for position in np.flatnonzero(repeated).tolist():
                handle = int(frame.handles[position])
                work.failures[position] = errors.HandleTwice(
                    f"handle {handle} is in the frame more than once: a session has one message a frame",
                    handle=handle,
                )
            is_open &= ~repeated
        if not is_open.all():
            for position in np.flatnonzero(~is_open).tolist():
                if position not in work.failures:
                    work.failures[position] = self._handles.refusal(int(frame.handles[position]))
        for model, count, positions in self._groups(frame, found, is_open):
            self._begin_group(work, model, count, positions)
        self._remember(work)
        return work

    def _remember(self, work: FrameWork[ModelT]) -> None:
        """Note a frame that is one job, so that the next of the same sessions needs no looking up."""
        frame, parts = work.frame, work.parts
        if (
            frame.counts is None
            and len(parts) == 1
            and len(parts[0].positions) == len(frame.handles)
            and parts[0].model.signature.value_row.is_float32
        ):
            self._last = _Known(
                self._handles.version,
                frame.handles.tobytes(),
                parts[0].model,
                parts[0].job.slots.spanned(),
                parts[0].positions,
                work.found,
                work.starts,
            )

    def _starts(self, frame: Frame, found: Found) -> NDArray[np.int64]:
        """Return where in the flat values each row begins. Raises InvalidMessage where they do not add up."""
        num_rows = len(frame.handles)
        if num_rows > MAX_ROWS:
            raise errors.InvalidMessage(f"the frame has {num_rows} rows: send at most {MAX_ROWS}")
        for name, column in (("counts", frame.counts), ("steps", frame.steps)):
            if column is not None and len(column) != num_rows:
                raise errors.InvalidMessage(f"{len(column)} {name} do not fit {num_rows} handles")
        if num_rows and not found.is_known.any():
            return np.zeros(num_rows, np.int64)  # how wide they were to be is not known, and none is applied
        widths = np.array([len(model.signature.features) for model in self._handles.models], np.int64)
        if not found.is_known.all() and widths.min() != widths.max():
            raise errors.InvalidMessage(
                "a handle of the frame is not open and models of different width are: whose values are which "
                "cannot be told"
            )
        lengths = widths[found.models] if frame.counts is None else widths[found.models] * frame.counts
        ends = np.cumsum(lengths, dtype=np.int64)
        total = int(ends[-1]) if num_rows else 0
        if total != frame.values.size:
            raise errors.InvalidMessage(
                f"the frame holds {frame.values.size} values, its handles and counts ask for {total}"
            )
        return ends - lengths

    def _groups(
        self, frame: Frame, found: Found, chosen: NDArray[np.bool_]
    ) -> Iterator[tuple[ModelT, int, NDArray[np.intp]]]:
        """Yield model, count of steps and positions of the rows that can share a job."""
        models = self._handles.models
        if frame.counts is None and len(models) == 1:
            if chosen.any():
                yield models[0], 1, np.flatnonzero(chosen)
            return
        positions = np.flatnonzero(chosen)
        counts = np.ones(len(chosen), np.int64) if frame.counts is None else frame.counts
        keys = np.stack([found.models[positions].astype(np.int64), counts[positions]])
        kinds, inverse = np.unique(keys, axis=1, return_inverse=True)
        for kind, (index, count) in enumerate(kinds.T.tolist()):
            yield models[index], count, positions[inverse.ravel() == kind]

    def _begin_group(
        self,
        work: FrameWork[ModelT],
        model: ModelT,
        count: int,
        positions: NDArray[np.intp],
    ) -> None:
        """Make jobs of rows of equal length, or note why not."""
        refusal = self._wrong_count(count)
        if refusal is not None:
            work.failures.update(dict.fromkeys(positions.tolist(), refusal))
            return
        width = len(model.signature.features)
        values = work.frame.values
        if len(positions) * count * width != values.size:
            values = values[work.starts[positions, None] + np.arange(count * width)]
        values = values.reshape(len(positions), count, width)  # [rows, time, features] f32
        layout = model.signature.value_row
        if not layout.is_float32:
            values, positions = _representable(work, model, positions, values)
        rows = work.found.rows[positions]
        columns = model.columns
        if work.frame.steps is None:
            is_right = columns.is_gapless[rows]
        else:
            is_right = work.frame.steps[positions] == columns.step[rows]
        if layout.is_float32:
            is_right &= np.isfinite(values).reshape(len(values), -1).all(axis=1)
        else:
            is_right &= layout.are_finite(values).all(axis=1)
        for begin in range(0, len(positions), self._max_rows):
            chunk = slice(begin, begin + self._max_rows)
            right = np.flatnonzero(is_right[chunk]) + begin
            if len(right):
                slots = self._handles.slots(work.found, positions[right])
                self._begin_job(work, model, positions[right], values[right], slots)
        is_wrong = ~is_right
        if count == 1 and work.frame.steps is not None and is_wrong.any():
            is_wrong &= ~self._repeat(work, model, positions, values[:, 0], is_wrong)
        for place in np.flatnonzero(is_wrong).tolist():
            self._begin_alone(work, model, int(positions[place]), values[place])

    @staticmethod
    def _repeat(
        work: FrameWork[ModelT],
        model: ModelT,
        positions: NDArray[np.intp],
        values: NDArray[np.float32],
        chosen: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Answer those of the chosen rows whose message of one step came before: all do after a lost answer."""
        assert work.frame.steps is not None  # noqa: S101  the caller has looked
        columns, rows = model.columns, work.found.rows[positions]
        is_repeat = chosen & columns.repeats(rows, work.frame.steps[positions], values)
        rows = rows[is_repeat]
        if len(rows):
            columns.used_s[rows] = work.now_s
            work.repeats.append(
                Repeats(
                    model,
                    positions[is_repeat],
                    columns.answer_rows(rows),
                    columns.output[rows],
                    columns.step[rows],
                )
            )
        return is_repeat

    def _begin_job(
        self,
        work: FrameWork[ModelT],
        model: ModelT,
        positions: NDArray[np.intp],
        values: NDArray[np.float32],
        slots: Slots,
    ) -> None:
        """Make a job of rows that are right in every respect."""
        num_rows, num_steps = values.shape[:2]
        columns = model.columns
        try:
            scratch = allocate_scratch(model, num_rows) if num_steps > model.piece_steps(num_rows) else None
        except errors.SessionsExhausted as error:
            work.failures.update(dict.fromkeys(positions.tolist(), error))
            return
        answer_rows = work.frame.num_answer_rows(num_steps)
        crcs = None
        if num_steps > 1:
            crcs = np.fromiter(map(zlib.crc32, as_bytes(values)), np.uint32, num_rows)
        moves = Moves(columns, values[:, -1], crcs, np.full(num_rows, answer_rows, np.int32))
        columns.is_busy[slots.index] = True
        columns.used_s[slots.index] = work.now_s
        job = Job(values, slots, scratch=scratch, owner=moves)
        work.parts.append(Part(model, positions, columns.step[slots.index] + num_steps, job))

    def _begin_alone(
        self,
        work: FrameWork[ModelT],
        model: ModelT,
        position: int,
        values: NDArray[np.float32],
    ) -> None:
        """Give a row that is out of place, or misses a value, to the rules for one message."""
        frame = work.frame
        session = self._handles.get(int(frame.handles[position]))
        # As the client counts: what does not fit into 63 bits is a gap, not a number below zero.
        step = None if frame.steps is None else int(frame.steps[position]) % (1 << 64)
        try:
            begun = session.begin(values, step, frame.answers, work.now_s)
        except errors.ServiceError as error:
            work.failures[position] = error
            return
        if isinstance(begun, Replay):
            work.replays[position] = begun
        else:
            steps = np.array([session.step + begun.num_steps])
            work.parts.append(Part(model, np.array([position]), steps, begun))

    def _wrong_count(self, count: int) -> errors.ServiceError | None:
        if count < 1:
            return errors.EmptyValues("the row holds no values: send at least one step")
        if count > self._max_steps:
            return errors.TooManySteps(
                f"{count} steps in one row: send at most {self._max_steps}",
                num_steps=count,
                max_steps=self._max_steps,
            )
        return None


def _representable(
    work: FrameWork[ModelT], model: ModelT, positions: NDArray[np.intp], numbers: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Return as rows `[rows, time, width]` the numbers that the model's dtypes can hold, and their positions."""
    try:
        return rows_of(numbers, model.signature), positions
    except errors.WrongShape:
        pass
    can_be = model.signature.value_row.can_hold(numbers).all(axis=1)
    for place in np.flatnonzero(~can_be).tolist():
        try:
            rows_of(numbers[place], model.signature)
        except errors.WrongShape as error:
            work.failures[int(positions[place])] = error
    return rows_of(numbers[can_be], model.signature), positions[can_be]
