"""Handing the answers of a frame to those who wait, and saying which sessions are free after it.

It owns the way from columns to calls. It does not know failures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longshort.gateway.frame import Frame
    from longshort.gateway.placing import Placed
    from longshort.gateway.turns import Turns


def deliver(frame: Frame, placed: Placed, turns: Turns) -> NDArray[np.intp]:
    """Hand out what was answered; what goes on is ready again. Return the slots whose rows are done with."""
    slots = frame.slots[placed.rows]
    is_done = np.ones(len(slots), np.bool_)
    _deliver_calls(frame, placed, turns)
    for part, first, end in list(frame.parts_with_places()):
        low, high = np.searchsorted(placed.rows, [first, end]).tolist()
        places = placed.rows[low:high] - first
        answers = placed.answers[placed.starts[low] : placed.starts[high]]
        left = part.values.shape[1] - part.start - part.count
        if len(places) < len(part.rows):
            part.rows, part.slots = part.rows[places], part.slots[places]
        if len(places):
            shape = (len(places), part.count, answers.shape[1])
            done = part.call.rows_answered(part.rows, part.start, answers.reshape(shape), left)
            turns.num_waiting_steps -= done
        part.start += part.count
        if left and len(places):
            is_done[low:high] = False
            turns.ready.append(part)
    _deliver_rows(frame, placed, turns, is_done)
    return slots[is_done]


def _deliver_calls(frame: Frame, placed: Placed, turns: Turns) -> None:
    calls = frame.calls
    if not calls:
        return
    num_answered = int(np.searchsorted(placed.rows, len(calls)))
    if num_answered < len(calls):
        calls = [calls[number] for number in placed.rows[:num_answered].tolist()]
    num_told = 0
    for call, answer in zip(calls, placed.answers[:num_answered], strict=True):
        num_told += call.answered(answer)
    turns.num_waiting_steps -= num_told


def _deliver_rows(frame: Frame, placed: Placed, turns: Turns, is_done: NDArray[np.bool_]) -> None:
    num_before = len(frame.slots) - len(frame.rows)
    first = int(np.searchsorted(placed.rows, num_before))
    for place in range(first, len(placed.rows)):
        row = frame.rows[placed.rows[place] - num_before]
        start = row.start
        left = row.answered(row.count)
        if row.sink is not None:
            answers = placed.answers[placed.starts[place] : placed.starts[place + 1]]
            turns.num_waiting_steps -= row.sink.row_answered(row.index, start, answers, left)
        if left:
            is_done[place] = False
            turns.ready.append(row)
