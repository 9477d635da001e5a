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
    from longshort_service.lane import Lane


def run_one(lane: Lane) -> None:
    """Take the only message that waits in a lane's `singles`, run it and tell its waiter.

    Raises whatever the engine raises; then nothing has moved, and the message is back where it was.
    """
    assert lane.states is not None  # noqa: S101  the caller has looked
    begin_s = time.perf_counter()
    one, single = lane.singles.first, lane.single_run
    lane.arena.check_row(one.row, one.generation)
    single.values[0, 0] = one.values
    states = lane.states.views(one.row)
    for target, state in zip(single.states, states, strict=True):
        target[...] = state
    gathered_s = time.perf_counter()
    single.run()
    ended_s = time.perf_counter()
    # A search in the bytes of few flags costs half of `all`.
    is_finite = b"\0" not in np.isfinite(single.results).tobytes()
    if is_finite:
        for state, new_state in zip(states, single.new_states, strict=True):
            state[...] = new_state
    lane.singles.drop_first()
    lane.num_queued_steps -= 1
    lane.columns.settle_one(one.row, one.values, single.answers if is_finite else None, one.answer_rows)
    scattered_s = time.perf_counter()
    if is_finite:
        one.waiter.answered(
            single.answers.tobytes() if one.answer_rows else b"", lane.columns.step_of[one.row]
        )
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
