"""What a frame's rows came to, as the columns of its answer. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from longshort_service.served_model import ModelT, failure_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from longshort_service.frame_work import FrameWork, Part, Repeats


@dataclass(frozen=True, slots=True)
class FrameAnswer:
    """The columns of the rows that were answered, in the order of the frame."""

    handles: NDArray[np.uint32]
    counts: NDArray[np.int64]  # rows of `values` of each
    steps: NDArray[np.int64]  # after each
    values: NDArray[np.float32]  # flat
    replayed: NDArray[np.uint32]  # handles of those that got their stored answer


def collect(work: FrameWork[ModelT]) -> FrameAnswer:
    """Gather the answers of a frame whose jobs have ended; rows that came to nothing are put into its failures."""
    frame, num_rows = work.frame, len(work.frame.handles)
    pieces = [_piece(work, part) for part in work.parts]
    replayed = np.sort(
        np.concatenate([np.array(list(work.replays), np.intp), *(part.positions for part in work.repeats)])
    )
    if len(pieces) == 1 and len(pieces[0].positions) == num_rows and not work.unstored:
        (piece,) = pieces  # of all rows; they are in the frame's order
        return FrameAnswer(
            frame.handles, piece.counts, piece.steps, piece.values.ravel(), frame.handles[replayed]
        )
    for position, replay in work.replays.items():
        layout = work.models[work.found.models[position]].signature.answer_row
        outputs = layout.to_numbers(replay.outputs).reshape(1, -1)
        counts, steps = np.array([len(replay.outputs)]), np.array([replay.step])
        pieces.append(_Piece(np.array([position]), outputs, counts, steps))
    for repeats in work.repeats:
        pieces.extend(_repeated(repeats))
    if work.unstored:
        work.failures.update(work.unstored)
        pieces = [piece.without(work.unstored) for piece in pieces]
        replayed = replayed[~np.isin(replayed, list(work.unstored))]
    counts, steps, lengths = (np.zeros(num_rows, np.int64) for _ in range(3))
    is_answered = np.zeros(num_rows, np.bool_)
    for piece in pieces:
        counts[piece.positions] = piece.counts
        steps[piece.positions] = piece.steps
        lengths[piece.positions] = piece.values.shape[1]
        is_answered[piece.positions] = True
    starts = np.cumsum(lengths) - lengths
    values = np.empty(int(lengths.sum()), np.float32)
    for piece in pieces:
        values[starts[piece.positions, None] + np.arange(piece.values.shape[1])] = piece.values
    return FrameAnswer(
        frame.handles[is_answered], counts[is_answered], steps[is_answered], values, frame.handles[replayed]
    )


@dataclass(frozen=True, slots=True)
class _Piece:
    """Answers of equal length."""

    positions: NDArray[np.intp]
    values: NDArray[np.float32]  # [rows, outputs of all steps that go back]
    counts: NDArray[np.int64]
    steps: NDArray[np.int64]

    def without(self, positions: Iterable[int]) -> _Piece:
        """Return the same without the rows at some positions of the frame."""
        stays = ~np.isin(self.positions, list(positions))
        return _Piece(self.positions[stays], self.values[stays], self.counts[stays], self.steps[stays])


def _repeated(repeats: Repeats[ModelT]) -> Iterator[_Piece]:
    """Yield the repeated rows that have an answer, and those that have none."""
    outputs = repeats.model.signature.answer_row.to_numbers(repeats.outputs)
    for count in (0, 1):
        chosen = repeats.answer_rows == count
        num_rows = int(np.count_nonzero(chosen))
        yield _Piece(
            repeats.positions[chosen],
            outputs[chosen][:, : count * outputs.shape[1]],
            np.full(num_rows, count),
            repeats.steps[chosen],
        )


def _piece(work: FrameWork[ModelT], part: Part[ModelT]) -> _Piece:
    job, positions = part.job, part.positions
    applied = job.applied
    steps, outputs = part.steps, job.outputs
    if applied is not None:
        for row in np.flatnonzero(~applied).tolist():
            work.failures[int(positions[row])] = failure_of(job, row, part.model.name)
        positions, steps = positions[applied], steps[applied]
        outputs = outputs[applied] if len(outputs) else outputs  # there are none before the first run
    num_answered = work.frame.num_answer_rows(job.num_steps)
    outputs = part.model.signature.answer_row.to_numbers(outputs[:, outputs.shape[1] - num_answered :])
    return _Piece(
        positions,
        outputs.reshape(len(positions), -1) if outputs.size else np.empty((len(positions), 0), np.float32),
        np.full(len(positions), num_answered),
        steps,
    )
