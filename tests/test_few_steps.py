"""One step of a few sessions against a batch: the short way decides nothing otherwise than the long one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import FATAL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lanes import Observer, Waiter, lane_of_model
from longshort_service import errors
from longshort_service.arena import DeadSlot, Slot
from longshort_service.batching import Batch
from longshort_service.engine import Engine
from longshort_service.few_steps import run_few
from longshort_service.lane import run_batch
from longshort_service.singles import Single

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from longshort_service.lane import Lane

NUM_ROWS = 4


@pytest.fixture(scope="module")
def engines(adders: Path, repository: Path) -> dict[str, Engine]:
    """A state on the first axis, and two of two layers each on the second."""
    folders = {"adder": adders / "adder", "deep": repository / "deep"}
    return {
        name: Engine(folder / "1" / "model.onnx", provider="cpu", intra_op_num_threads=1)
        for name, folder in folders.items()
    }


def new_lane(engine: Engine) -> tuple[Lane, list[Slot], Observer]:
    """Return a lane with sessions in all of its rows."""
    observer = Observer()
    lane = lane_of_model(engine, num_rows=NUM_ROWS, observer=observer, name=engine.signature.name)
    slots = [lane.arena.allocate() for _ in range(NUM_ROWS)]
    lane.columns.clear_many(np.arange(NUM_ROWS))
    return lane, slots, observer


def send(lane: Lane, slot: Slot, values: Sequence[float], answer_rows: int = 1) -> Waiter:
    waiter = Waiter()
    lane.num_queued_steps += 1
    lane.singles.add(Single(slot.row, slot.generation, values, answer_rows, waiter, arrival_s=0.0))
    return waiter


def run_as_batch(lane: Lane) -> None:
    """Do what the scheduler does to a batch."""
    job = lane.singles.take(NUM_ROWS)
    batch = Batch([job], [1], 1, job.num_rows)
    lane.observer.batch_formed(job.num_rows, [job.waits_s(1.0)])
    result = run_batch(lane, batch)
    job.outputs, job.num_done = result.answers, 1
    job.failed = None if result.finite is None or result.finite.all() else ~result.finite
    lane.num_queued_steps -= job.num_rows
    assert job.owner is not None
    assert job.on_end is not None
    job.owner.settled(job)
    job.on_end(job)
    lane.observer.batch_done(job.num_applied, result.gather_s, result.run_s, result.scatter_s)


def assert_same(alone: Lane, together: Lane) -> None:
    for row in range(NUM_ROWS):
        for one, other in zip(alone.arena.memory.read(row), together.arena.memory.read(row), strict=True):
            assert one.tobytes() == other.tobytes()
        assert alone.columns.last_message(row) == together.columns.last_message(row)
        answers = [lane.columns.last_answer(row) for lane in (alone, together)]
        assert str(answers[0]) == str(answers[1])
    for name in ("step", "is_busy", "is_gapless", "output", "sent", "seen"):
        assert getattr(alone.columns, name).tobytes() == getattr(together.columns, name).tobytes()
    assert (alone.num_queued_steps, len(alone.singles)) == (together.num_queued_steps, len(together.singles))
    assert alone.observer == together.observer


VALUE = st.floats(-9, 9, width=32) | st.sampled_from([1e30, 3e38, -3e38])


MESSAGE = st.tuples(st.integers(0, NUM_ROWS - 1), VALUE, st.integers(0, 1))


@pytest.mark.parametrize("name", ["adder", "deep"])
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=st.lists(st.lists(MESSAGE, min_size=1, unique_by=lambda message: message[0]), max_size=6))
def test_few_steps_and_a_batch_come_to_the_same(
    engines: dict[str, Engine], name: str, rounds: list[list[tuple[int, float, int]]]
):
    few, slots, _ = new_lane(engines[name])
    batch, _, _ = new_lane(engines[name])
    for messages in rounds:
        waiters = [
            [send(lane, slots[row], [value], answer_rows) for row, value, answer_rows in messages]
            for lane in (few, batch)
        ]
        run_few(few)
        run_as_batch(batch)
        for one, other in zip(*waiters, strict=True):
            assert one.answers == other.answers
            assert [str(error) for error in one.failures] == [str(error) for error in other.failures]
        assert_same(few, batch)


def test_step_whose_result_is_not_finite_fails_and_moves_nothing(engines: dict[str, Engine]):
    lane, slots, observer = new_lane(engines["adder"])
    send(lane, slots[1], [3e38])
    run_few(lane)  # finite, if too large for its square
    waiter = send(lane, slots[1], [3e38])
    run_few(lane)
    (error,) = waiter.failures
    assert isinstance(error, errors.NonFiniteResult)
    assert error.metadata == {"model": "adder"}
    assert lane.arena.read(slots[1])[0].tolist() == [np.float32(3e38)]
    assert (lane.columns.step_of[1], lane.columns.is_busy_of[1]) == (1, False)
    assert (observer.num_done, observer.num_applied) == (2, 1)


def dead_row(lane: Lane, slot: Slot) -> float:
    lane.arena.free(slot)
    return 1.0


@pytest.mark.parametrize(
    ("spoil", "error"), [(lambda _lane, _slot: FATAL, Exception), (dead_row, DeadSlot)], ids=["engine", "row"]
)
def test_step_that_raises_has_moved_nothing_and_still_waits(
    engines: dict[str, Engine], spoil: Callable[[Lane, Slot], float], error: type[Exception]
):
    lane, slots, observer = new_lane(engines["adder"])
    waiter = send(lane, slots[1], [spoil(lane, slots[1])])
    with pytest.raises(error):
        run_few(lane)
    assert (len(lane.singles), lane.num_queued_steps) == (1, 1)
    assert lane.arena.memory.read(1)[0].tolist() == [0]
    assert lane.columns.step_of[1] == 0
    assert (waiter.answers, waiter.failures) == ([], [])
    assert observer.num_done == 0
