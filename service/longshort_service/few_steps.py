"""One step of a few sessions, the shortest way: what a small batch comes to, done with plain numbers.

A lightly loaded service runs most steps alone or in small company, and then the array operations of a batch cost
several times what the model does. Nothing is decided here that `run_batch`, `SessionColumns.settle` and a delivery do
not decide in the same way; a test holds the two against each other.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from longshort_service.served_model import not_finite

if TYPE_CHECKING:
    from longshort_service.lane import Lane

# Up to so many rows this costs less than a batch: some 9 us a row, against 100 us a batch and 1 us a row.
MAX_FEW: Final = 16


def run_few(lane: Lane) -> None:
    """Run all of the at most MAX_FEW messages that wait in a lane's `singles`, and tell their waiters.

    Raises whatever the engine raises; then nothing has moved, and the messages still wait.
    """
    assert lane.states is not None  # noqa: S101  the caller has looked
    begin_s = time.perf_counter()
    few = lane.singles.waiting
    run = lane.small_run(len(few))
    rows = []
    for place, one in enumerate(few):
        lane.arena.check_row(one.row, one.generation)
        run.values[place] = one.values
        states = lane.states.views(one.row)
        for target, state in zip(run.states[place], states, strict=True):
            target[...] = state
        rows.append(states)
    gathered_s = time.perf_counter()
    run.run()
    ended_s = time.perf_counter()
    finite = run.finite_rows()
    lane.singles.clear()
    lane.num_queued_steps -= len(few)
    for place, one in enumerate(few):
        output = None
        if finite[place]:
            output = run.answers[place]
            for state, new_state in zip(rows[place], run.new_states[place], strict=True):
                state[...] = new_state
        lane.columns.settle_one(one.row, one.values, output, one.answer_rows)
    scattered_s = time.perf_counter()
    for place, one in enumerate(few):
        if finite[place]:
            output_bytes = run.answers[place].tobytes() if one.answer_rows else b""
            one.waiter.answered(output_bytes, lane.columns.step_of[one.row])
        else:
            one.waiter.failed(not_finite(lane.name))
    now_s = time.perf_counter()
    lane.observer.few_done(
        num_applied=sum(finite),
        waited_s=[begin_s - one.arrival_s for one in few],
        gather_s=gathered_s - begin_s,
        run_s=ended_s - gathered_s,
        scatter_s=scattered_s - ended_s,
        total_s=[now_s - one.arrival_s for one in few],
    )
