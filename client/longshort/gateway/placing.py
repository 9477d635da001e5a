"""Which of a frame's parts an answer answers: each of them, or the stream is not to be trusted.

It owns the check of answers against frames. It changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from longshort import errors, status
from longshort.v1 import sequence_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from longshort.errors import LongshortError
    from longshort.gateway.frame import Frame
    from longshort.gateway.wire import FrameAnswer

OPEN_PART = sequence_pb2.FRAME_PART_OPEN
VALUES_PART = sequence_pb2.FRAME_PART_VALUES
FORECAST_PART = sequence_pb2.FRAME_PART_FORECAST
FLUSH_PART = sequence_pb2.FRAME_PART_FLUSH


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """What has become of each row of a frame, in the frame's order.

    `answers` holds the rows' answers one after the other, from `starts` on. A row that was taken by number, and
    whose stored answer is not what is asked now, is in `mute` instead.
    """

    rows: NDArray[np.intp]  # [answered] into the frame's rows
    starts: NDArray[np.intp]  # [answered + 1] into `answers`
    answers: NDArray[np.float32]  # [sum of counts, outputs] f32, read-only
    taken: NDArray[np.intp]  # [answered + mute] rows whose values the session has
    durable_steps: NDArray[np.uint64]  # [taken]
    mute: list[int]
    refused: Mapping[int, LongshortError]


def place(frame: Frame, answer: FrameAnswer, num_outputs: int) -> Placed:
    """Return what an answer says of the frame's rows; ServerFault where it is no answer to this frame."""
    taken = _rows(frame, answer.handles)
    num_taken = len(taken)
    counts = answer.counts.astype(np.intp) if len(answer.counts) else np.ones(num_taken, np.intp)
    durable = answer.durable_steps if len(answer.durable_steps) else np.zeros(num_taken, np.uint64)
    _demand(num_taken == len(counts) == len(answer.steps) == len(durable), "columns of unequal length")
    asked = frame.counts[taken]
    ends = frame.steps[taken] + asked.astype(np.uint64)
    _demand(np.array_equal(ends, answer.steps), "steps that do not follow")
    _demand(len(answer.values) == counts.sum() * num_outputs, "values that are not those of its rows")
    answers = answer.values.reshape(-1, max(num_outputs, 1))
    rows, fits, mute = taken, counts == asked, []
    if not fits.all():
        mute = taken[~fits].tolist()
        rows, answers, counts = taken[fits], answers[np.repeat(fits, counts)], counts[fits]
    starts = np.concatenate([[0], np.cumsum(counts)])
    refused = _refused(frame, taken, errors_of(answer, VALUES_PART))
    return Placed(rows, starts, answers, taken, durable, mute, refused)


def errors_of(answer: FrameAnswer, part: sequence_pb2.FramePart) -> dict[int, LongshortError]:
    """Return the errors of one part of a frame by handle."""
    return {
        failure.handle: status.from_message(failure.error)
        for failure in answer.messages.errors
        if failure.part == part
    }


def check_all_told(frame: Frame, answer: FrameAnswer) -> None:
    """Raise ServerFault where an opening, a forecast or a flush has neither answer nor error, or was not asked."""
    opened = {item.handle for item in answer.messages.opened} | errors_of(answer, OPEN_PART).keys()
    _demand(opened == set(frame.opens), "not the openings that were asked")
    forecasts = {item.handle for item in answer.messages.forecasts} | errors_of(answer, FORECAST_PART).keys()
    _demand(forecasts == {row.slot for row in frame.forecasts}, "not the forecasts that were asked")
    flushed = set(answer.flushed.tolist()) | errors_of(answer, FLUSH_PART).keys()
    _demand(flushed == {row.slot for row in frame.flushes}, "not the flushes that were asked")
    _demand(len(answer.flushed_steps) in (0, len(answer.flushed)), "columns of unequal length")


def _rows(frame: Frame, handles: NDArray[np.uint32]) -> NDArray[np.intp]:
    if np.array_equal(handles, frame.slots):
        return np.arange(len(frame.slots))
    order = np.argsort(frame.slots)
    places = np.searchsorted(frame.slots, handles, sorter=order)
    _demand(bool((places < len(order)).all()), "a row that was not asked")
    rows: NDArray[np.intp] = order[places]
    _demand(np.array_equal(frame.slots[rows], handles), "a row that was not asked")
    _demand(bool((np.diff(rows) > 0).all()), "rows out of order")
    return rows


def _refused(
    frame: Frame, taken: NDArray[np.intp], failures: dict[int, LongshortError]
) -> Mapping[int, LongshortError]:
    if not failures and len(taken) == len(frame.slots):
        return {}
    left = np.ones(len(frame.slots), np.bool_)
    left[taken] = False
    numbers = np.flatnonzero(left).tolist()
    slots = frame.slots[numbers].tolist()
    _demand(failures.keys() == set(slots), "rows with neither an answer nor an error")
    return {number: failures[slot] for number, slot in zip(numbers, slots, strict=True)}


def _demand(holds: bool, what: str) -> None:  # noqa: FBT001 - the condition itself
    if not holds:
        raise errors.ServerFault(f"a frame's answer has {what}", reason="PROTOCOL_VIOLATION")
