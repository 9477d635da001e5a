"""One run of a batch: what the engine is given, and which rows hold what it gives back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from lanes import lane_of
from longshort_service.arena import DeadSlot, Slots
from longshort_service.batching import Batch, Job
from longshort_service.host_states import StateLayout
from longshort_service.lane import run_batch
from longshort_service.ports import Port
from longshort_service.signature import Channel, MissingValue, Signature, State

if TYPE_CHECKING:
    from longshort_service.host_states import HostStates
    from longshort_service.lane import Lane
    from numpy.typing import NDArray

    States = list[NDArray[np.float32]]

NUM_ROWS = 12
NAN = float("nan")


@dataclass
class Adder:
    """An engine that answers with the sum so far, keeps it on axis 1, and says what it was given.

    Where a row ends early, its padding is answered with no number.
    """

    values: list[Any] = field(default_factory=list)
    counts: list[Any] = field(default_factory=list)
    signature: Signature = field(
        default_factory=lambda: Signature(
            "adder", (Channel("x"),), (Channel("y"),), (State("s0", "sn", (1, -1, 1), 1),)
        )
    )

    def run(
        self, values: NDArray[np.float32], counts: NDArray[np.int32] | None, states: States
    ) -> tuple[NDArray[np.float32], States]:
        self.values.append(values[:, :, 0].tolist())
        self.counts.append(None if counts is None else counts.tolist())
        assert values.flags.c_contiguous
        sums = np.cumsum(values, axis=1) + states[0].reshape(-1, 1, 1)
        lengths = np.full(len(values), values.shape[1]) if counts is None else counts
        ends = sums[np.arange(len(sums)), lengths - 1, 0]
        sums[np.arange(values.shape[1]) >= lengths[:, None]] = np.nan
        return sums, [ends.reshape(1, -1, 1)]


class Owner:
    def settled(self, job: Job) -> None:
        """See JobOwner."""


@pytest.fixture
def lane() -> Lane:
    layout = StateLayout((1, -1, 1), 1, 0.0)
    return lane_of(Adder(), layouts=[layout], num_rows=NUM_ROWS, can_pad=True)


def memory_of(lane: Lane) -> HostStates:
    assert lane.states is not None
    return lane.states


def slots_holding(lane: Lane, *sums: float) -> Slots:
    """Return rows that hold these sums."""
    slots = lane.arena.allocate_many(len(sums))
    memory_of(lane).scatter(slots.rows, [np.array(sums, np.float32).reshape(1, -1, 1)])
    return slots


def sums_in(lane: Lane, slots: Slots) -> list[float]:
    return list(memory_of(lane).gather(slots.rows)[0].ravel().tolist())


def job_of(lane: Lane, *messages: list[float], sums: list[float] | None = None, is_long: bool = False) -> Job:
    """Return a job of messages of equal length of sessions that hold these sums; zeros unless given."""
    slots = slots_holding(lane, *(sums or [0.0] * len(messages)))
    scratch = slots_holding(lane, *[-1.0] * len(messages)) if is_long else None
    return Job(np.array(messages, np.float32)[:, :, None], slots, scratch=scratch, owner=Owner())


def batch_of(*pieces: tuple[Job, int]) -> Batch:
    jobs, counts = zip(*pieces, strict=True)
    return Batch(list(jobs), list(counts), max(counts), sum(job.num_rows for job in jobs))


def given_to(lane: Lane) -> tuple[Any, Any]:
    engine: Any = lane.engine
    return engine.values[-1], engine.counts[-1]


def test_rows_of_all_jobs_run_together_and_hold_what_came_of_them(lane: Lane):
    one, many = job_of(lane, [5], sums=[10]), job_of(lane, [1], [2], [3], sums=[20, 30, 40])
    result = run_batch(lane, batch_of((one, 1), (many, 1)))
    assert given_to(lane) == ([[5], [1], [2], [3]], None)
    assert result.answers.ravel().tolist() == [15, 21, 32, 43]
    assert result.finite is None
    assert min(result.gather_s, result.run_s, result.scatter_s) >= 0
    assert sums_in(lane, one.slots) == [15]
    assert sums_in(lane, many.slots) == [21, 32, 43]


def test_rows_that_follow_one_another_are_run_in_place_and_a_row_that_fails_stays(lane: Lane):
    slots_holding(lane, 1)  # so that the span does not begin at the first row
    slots = slots_holding(lane, 10, 20, 30).spanned()
    assert slots.span is not None
    for values, sums in (([1, 2, 3], [11, 22, 33]), ([1, NAN, 3], [12, 22, 36])):
        job = Job(np.array(values, np.float32).reshape(3, 1, 1), slots, owner=Owner())
        run_batch(lane, batch_of((job, 1)))
        assert sums_in(lane, slots) == sums


def test_rows_of_unequal_length_are_padded_and_padding_that_is_no_number_harms_nobody(lane: Lane):
    short, long = job_of(lane, [5], [6]), job_of(lane, [1, 2, 3])
    result = run_batch(lane, batch_of((short, 1), (long, 3)))
    assert given_to(lane) == ([[5, 0, 0], [6, 0, 0], [1, 2, 3]], [1, 1, 3])
    assert result.finite is None or result.finite.all()
    assert sums_in(lane, short.slots) == [5, 6]
    assert sums_in(lane, long.slots) == [6]


def test_row_that_fails_among_padded_ones_fails_alone(lane: Lane):
    short, long = job_of(lane, [5], [NAN]), job_of(lane, [1, NAN, 3], [1, 2, 3])
    result = run_batch(lane, batch_of((short, 1), (long, 3)))
    assert result.finite is not None
    assert result.finite.tolist() == [True, False, False, True]
    assert sums_in(lane, short.slots) == [5, 0]
    assert sums_in(lane, long.slots) == [0, 6]


def test_row_whose_state_alone_is_not_finite_fails(lane: Lane):
    job = job_of(lane, [1], [2])
    engine: Any = lane.engine
    bare_run = engine.run

    def run(*inputs: Any) -> Any:
        answers, states = bare_run(*inputs)
        states[0][0, 1, 0] = np.inf
        return answers, states

    engine.run = run
    result = run_batch(lane, batch_of((job, 1)))
    assert result.finite is not None
    assert result.finite.tolist() == [True, False]
    assert sums_in(lane, job.slots) == [1, 0]


def test_pieces_of_a_long_job_end_in_its_scratch_rows_and_the_last_in_its_own(lane: Lane):
    job = job_of(lane, [1, 2, 3], [10, 20, 30], sums=[100, 200], is_long=True)
    assert job.scratch is not None
    for scratch, own in (([103, 230], [100, 200]), ([103, 230], [106, 260])):
        count = 2 - job.num_done // 2
        run_batch(lane, batch_of((job, count)))
        job.num_done += count
        assert sums_in(lane, job.scratch) == scratch
        assert sums_in(lane, job.slots) == own


def test_row_that_failed_before_runs_on_for_nobody(lane: Lane):
    job = job_of(lane, [1, 2], [10, 20], is_long=True)
    job.failed = np.array([True, False])
    run_batch(lane, batch_of((job, 1)))
    assert job.scratch is not None
    assert sums_in(lane, job.scratch) == [-1, 10]
    job.num_done = 1
    run_batch(lane, batch_of((job, 1)))
    assert sums_in(lane, job.slots) == [0, 30]


def test_last_piece_of_a_job_that_moves_nothing_is_written_nowhere(lane: Lane):
    slots = slots_holding(lane, 7)
    look = Job(np.array([[[1], [2]]], np.float32), slots, scratch=slots, feedback=([0], [0]))
    mate = job_of(lane, [4])
    run_batch(lane, batch_of((look, 1), (mate, 1)))
    assert sums_in(lane, slots) == [8]
    look.num_done = 1
    run_batch(lane, batch_of((look, 1)))
    assert sums_in(lane, slots) == [8]
    assert sums_in(lane, mate.slots) == [4]


def test_dead_row_in_a_batch_is_noticed_before_anything_is_run_or_written(lane: Lane):
    good, dead = job_of(lane, [5], sums=[10]), job_of(lane, [1], [2])
    lane.arena.free(dead.slots.part(slice(1, 2)))
    heir = slots_holding(lane, 77)
    with pytest.raises(DeadSlot):
        run_batch(lane, batch_of((good, 1), (dead, 1)))
    assert lane.engine.values == []  # type: ignore[attr-defined]
    assert sums_in(lane, good.slots) == [10]
    assert sums_in(lane, heir) == [77]


class Resident(Adder):
    """An engine that keeps the states: it is told the rows to run from and to, and says itself what was finite."""

    provider = "a device"

    def run(self, values: Any, counts: Any, *rows: Any) -> Any:
        self.values.append(values[:, :, 0].tolist())
        self.counts.append(None if counts is None else counts.tolist())
        self.rows = [row.tolist() for row in rows]
        return values, np.array([True, False])


def test_states_that_stay_on_a_device_are_run_there(lane: Lane):
    device = Resident()
    lane.resident = device  # type: ignore[assignment]
    lane.states = None
    short, look = Slots(np.array([3]), np.array([1])), Slots(np.array([5]), np.array([1]))
    lane.arena.allocate_many(6)
    jobs = [
        Job(np.array([[[7]]], np.float32), short, owner=Owner()),
        Job(np.array([[[8]]], np.float32), look),
    ]
    result = run_batch(lane, batch_of(*((job, 1) for job in jobs)))
    assert device.values == [[[7], [8]]]
    assert device.rows == [[3, 5], [3, -1]]  # what moves nobody is written nowhere
    assert result.finite is not None
    assert result.finite.tolist() == [True, False]
    assert lane.provider == "a device"
    assert lane.engine.values == []  # type: ignore[attr-defined]


def test_provider_is_the_engine_s_where_states_are_in_main_memory(lane: Lane):
    lane.engine.provider = "a processor"
    assert lane.provider == "a processor"


class Refusing(Adder):
    """An engine whose graph fails on a 7; or on everything, where it is dead."""

    is_dead = False

    def is_alive(self) -> bool:
        return not self.is_dead

    def run(
        self, values: NDArray[np.float32], counts: NDArray[np.int32] | None, states: States
    ) -> tuple[NDArray[np.float32], States]:
        if self.is_dead or (values == 7).any():
            raise RuntimeError("7 is beyond the table")
        return super().run(values, counts, states)


@pytest.mark.parametrize("unequal", [False, True])
def test_rows_that_the_graph_fails_on_are_refused_and_the_others_are_run(*, unequal: bool):
    layout = StateLayout((1, -1, 1), 1, 0.0)
    lane = lane_of(Refusing(), layouts=[layout], num_rows=NUM_ROWS, can_pad=True)
    one = job_of(lane, [5, 6] if unequal else [5], sums=[10])
    many = job_of(lane, [1], [7], [3], sums=[20, 30, 40])
    result = run_batch(lane, batch_of((one, len(one.values[0])), (many, 1)))
    assert list(result.refusals) == [2]
    assert "beyond the table" in result.refusals[2].message
    assert result.finite is not None
    assert result.finite.tolist() == [True, True, False, True]
    assert sums_in(lane, one.slots) == [21 if unequal else 15]
    assert sums_in(lane, many.slots) == [21, 30, 43]
    assert result.answers[3, 0].tolist() == [43]


def test_row_that_is_refused_beside_one_that_is_not_finite():
    lane = lane_of(Refusing(), layouts=[StateLayout((1, -1, 1), 1, 0.0)], num_rows=NUM_ROWS, can_pad=False)
    job = job_of(lane, [NAN], [7], [3])
    result = run_batch(lane, batch_of((job, 1)))
    assert list(result.refusals) == [1]
    assert result.finite is not None
    assert result.finite.tolist() == [False, False, True]


class Windowed:
    """An engine whose graph takes NaN: it answers with 1, or with no number where it is given one beyond 9."""

    signature = Signature(
        "windowed",
        (Channel("x"),),
        (Channel("y"),),
        (State("x.window", "", (-1, 1), 0, window_of="x"), State("mask", "", (-1, 1), 0)),
        inputs=(Port("x", (1,), time_axis=None),),
        missing=MissingValue.PASS,
    )

    def run(
        self, values: NDArray[np.float32], counts: NDArray[np.int32] | None, states: States
    ) -> tuple[NDArray[np.float32], States]:
        assert counts is None
        return np.where(values > 9, np.nan, 1).astype(np.float32), [values[:, 0], states[1]]


def test_missing_value_in_a_window_and_a_constant_without_end_are_no_fault_of_the_answer():
    layouts = [StateLayout((-1, 1), 0), StateLayout((-1, 1), 0, -np.inf)]
    lane = lane_of(Windowed(), layouts=layouts, num_rows=NUM_ROWS)
    for values, finite in (([NAN, 2], None), ([NAN, 10], [True, False])):
        slots = lane.arena.allocate_many(2)
        memory_of(lane).initialise(slots.rows)
        job = Job(np.array(values, np.float32).reshape(2, 1, 1), slots, owner=Owner())
        result = run_batch(lane, batch_of((job, 1)))
        assert (None if result.finite is None else result.finite.tolist()) == finite
        windows, masks = memory_of(lane).gather(slots.rows)
        assert windows.ravel().tolist() == pytest.approx([NAN, 2 if finite is None else 0], nan_ok=True)
        assert masks.ravel().tolist() == [-np.inf] * 2


def test_engine_that_fails_on_everything_raises():
    engine = Refusing()
    engine.is_dead = True
    lane = lane_of(engine, layouts=[StateLayout((1, -1, 1), 1, 0.0)], num_rows=NUM_ROWS, can_pad=False)
    with pytest.raises(RuntimeError):
        run_batch(lane, batch_of((job_of(lane, [1]), 1)))


def test_few_steps_go_the_short_way_where_the_graph_takes_rows_as_they_are(lane: Lane):
    assert lane.can_run_few
    engine: Any = lane.engine
    engine.signature = dataclasses.replace(engine.signature, rows_alone=True)
    assert not lane.can_run_few
