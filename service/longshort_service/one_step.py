"""One step of one session, the shortest way: what a batch of one row comes to, done with plain numbers.

A lightly loaded service runs most steps alone, and then the array operations of a batch cost twice what the model
does. Nothing is decided here that `run_batch`, `SessionColumns.settle` and a delivery do not decide in the same way;
a test holds the two against each other.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from longshort_service.served_model import not_finite

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longshort_service.lane import Lane


def run_one(lane: Lane) -> None:
    """Take the only message that waits in a lane's `singles`, run it and tell its waiter.

    Raises whatever the engine raises; then nothing has moved, and the message is back where it was.
    """
    assert lane.states is not None  # noqa: S101  the caller has looked
    begin_s = time.perf_counter()
    one = lane.singles.first
    lane.arena.check_row(one.row, one.generation)
    values = np.array(one.values, np.float32).reshape(1, 1, -1)
    states = lane.states.views(one.row)
    gathered_s = time.perf_counter()
    answers, new_states = lane.engine.run(values, None, states)
    ended_s = time.perf_counter()
    is_finite = _is_finite(answers) and all(map(_is_finite, new_states))
    if is_finite:
        for state, new_state in zip(states, new_states, strict=True):
            state[...] = new_state
    lane.singles.drop_first()
    lane.num_queued_steps -= 1
    lane.columns.settle_one(one.row, values[0, 0], answers[0, 0] if is_finite else None, one.answer_rows)
    scattered_s = time.perf_counter()
    if is_finite:
        one.waiter.answered(answers.tobytes() if one.answer_rows else b"", lane.columns.step_of[one.row])
    else:
        one.waiter.failed(not_finite(lane.name))
    lane.observer.one_done(
        num_applied=int(is_finite),
        waited_s=begin_s - one.arrival_s,
        gather_s=gathered_s - begin_s,
        run_s=ended_s - gathered_s,
        scatter_s=scattered_s - ended_s,
        total_s=time.perf_counter() - one.arrival_s,
    )


def _is_finite(array: NDArray[np.float32]) -> bool:
    """Return whether all elements are finite. A search in the bytes of few flags costs half of `all`."""
    return b"\0" not in np.isfinite(array).tobytes()
