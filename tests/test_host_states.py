"""States in host memory: whatever a state's layout is, rows go in and out as plain NumPy has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from longshort_service.host_states import HostStates, StateLayout, layouts_of
from tables import signature_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    States = list[NDArray[np.float32]]

# As an LSTM has it (batch in the middle), as a cache has it (batch first), batch last, and a number a row.
LAYOUTS = (
    StateLayout((2, -1, 3), 1, 0.0),
    StateLayout((-1, 2, 2), 0, 1.5),
    StateLayout((2, 3, -1), 2, 0.25),
    StateLayout((-1,), 0, -1.0),
)
ROW_SHAPES = ((2, 3), (2, 2), (2, 3), ())
NUM_ROWS = 6


def row_of(number: float) -> States:
    """Return a row whose every element is different, and different from other numbers' rows."""
    return [
        np.float32(number) + np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 64
        for shape in ROW_SHAPES
    ]


def initial_row() -> States:
    return [
        np.full(shape, layout.initial, np.float32) for shape, layout in zip(ROW_SHAPES, LAYOUTS, strict=True)
    ]


def batch_of(rows: list[States]) -> States:
    return [np.stack([row[k] for row in rows], axis=layout.batch_axis) for k, layout in enumerate(LAYOUTS)]


def assert_same(have: States, want: States) -> None:
    assert [array.shape for array in have] == [array.shape for array in want]
    assert all(np.array_equal(one, other, equal_nan=True) for one, other in zip(have, want, strict=True))


def filled() -> tuple[HostStates, list[States]]:
    """Return states whose rows are all different, and the rows."""
    states, rows = HostStates(LAYOUTS, NUM_ROWS), [row_of(row) for row in range(NUM_ROWS)]
    for row, arrays in enumerate(rows):
        states.write(row, arrays)
    return states, rows


PLACES = st.lists(st.integers(0, NUM_ROWS - 1), min_size=1, max_size=NUM_ROWS, unique=True)
CHANGES = st.lists(st.tuples(st.sampled_from(["initialise", "write", "scatter"]), PLACES), max_size=8)


@settings(deadline=None)  # the machines are shared
@given(changes=CHANGES, looked_at=st.lists(st.integers(0, NUM_ROWS - 1), max_size=2 * NUM_ROWS))
def test_rows_are_moved_as_plain_numpy_moves_them(changes: list[tuple[str, list[int]]], looked_at: list[int]):
    states, rows = filled()
    number = float(NUM_ROWS)
    for kind, places in changes:
        news = [row_of(number + k) for k in range(len(places))]
        number += len(places)
        if kind == "initialise":
            news = [initial_row() for _ in places]
            states.initialise(np.array(places))
        elif kind == "scatter":
            states.scatter(np.array(places), batch_of(news))
        else:
            news = news[:1]
            states.write(places[0], news[0])
        for place, new in zip(places, news, strict=False):
            rows[place] = new
    for row, arrays in enumerate(rows):
        assert_same(states.read(row), arrays)
    if looked_at:  # in any order, and one row for several of a batch
        assert_same(states.gather(np.array(looked_at)), batch_of([rows[row] for row in looked_at]))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: str(layout.shape))
def test_each_layout_is_gathered_and_scattered_by_itself(layout: StateLayout):
    states = HostStates([layout], NUM_ROWS)
    shape = layout.with_batch(3)
    batch = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    states.scatter(np.array([4, 0, 2]), [batch])
    (back,) = states.gather(np.array([0, 2, 4]))
    assert np.array_equal(back, batch.take([1, 2, 0], axis=layout.batch_axis))
    assert back.flags.c_contiguous


def test_rows_that_follow_one_another_are_gathered_in_place_and_scattered_as_any():
    states, rows = filled()
    batch = states.gather(slice(1, 4))
    assert_same(batch, batch_of(rows[1:4]))
    states.scatter(slice(2, 4), batch_of([row_of(100), row_of(101)]))
    assert_same(
        states.gather(np.arange(NUM_ROWS)), batch_of([*rows[:2], row_of(100), row_of(101), *rows[4:]])
    )
    assert_same(batch, batch_of([rows[1], row_of(100), row_of(101)]))  # the memory itself


def test_one_row_can_be_made_initial():
    states, rows = filled()
    states.initialise(2)
    assert_same(states.read(2), initial_row())
    assert_same(states.read(1), rows[1])
    assert_same(states.read(3), rows[3])


def test_what_is_read_and_gathered_are_copies():
    states, rows = filled()
    for arrays in (states.read(1), states.gather(np.arange(NUM_ROWS))):
        for array in arrays:
            array.fill(np.nan)
    assert_same(states.gather(np.arange(NUM_ROWS)), batch_of(rows))


def test_views_of_a_row_are_the_row_as_a_batch_of_one():
    states, rows = filled()
    views = states.views(2)
    assert_same(views, batch_of(rows[2:3]))
    for view, new in zip(views, batch_of([row_of(100)]), strict=True):
        view[...] = new
    assert_same(states.gather(np.arange(NUM_ROWS)), batch_of([*rows[:2], row_of(100), *rows[3:]]))


def test_what_is_written_and_scattered_is_copied():
    states, rows = filled()
    row, batch = row_of(100), batch_of([row_of(101), row_of(102)])
    states.write(0, row)
    states.scatter(np.array([1, 2]), batch)
    for array in (*row, *batch):
        array.fill(np.nan)
    assert_same(states.gather(np.arange(4)), batch_of([row_of(100), row_of(101), row_of(102), rows[3]]))


def test_batch_that_lies_scattered_in_memory_is_scattered_right():
    states, _ = filled()
    batch = [np.asfortranarray(array) for array in batch_of([row_of(7), row_of(8)])]
    states.scatter(np.array([5, 1]), batch)
    assert_same(states.gather(np.array([5, 1])), batch)


def test_values_that_are_no_numbers_are_moved_bit_for_bit():
    states = HostStates([StateLayout((-1, 2), 0, 0.0)], 2)
    strange = np.array([[0x7FC00001, 0x80000000]], np.uint32).view(
        np.float32
    )  # a NaN with a payload, and -0.0
    states.scatter(np.array([1]), [strange])
    assert states.gather(np.array([1]))[0].tobytes() == strange.tobytes()


def test_some_rows_of_a_batch_are_selected_in_the_order_asked_for():
    states, rows = filled()
    assert_same(states.select(batch_of(rows[:3]), np.array([2, 0])), batch_of([rows[2], rows[0]]))


def test_finite_rows_tells_rows_apart():
    batch = batch_of([row_of(number) for number in range(5)])
    batch[0][1, 1, 2] = np.nan
    batch[1][2, 0, 1] = np.inf
    batch[2][0, 0, 3] = -np.inf
    batch[3][4] = np.nan
    memory = HostStates(LAYOUTS, 1)
    every = range(len(LAYOUTS))
    assert memory.finite_rows(batch, every).tolist() == [True, False, False, False, False]
    assert memory.finite_rows(batch, [0, 2]).tolist() == [True, False, True, False, True]


@pytest.mark.parametrize(
    "states",
    [
        [],
        row_of(1)[:3],
        [np.zeros((3, 2), np.float32), *row_of(1)[1:]],
        [*row_of(1)[:3], np.zeros(1, np.float32)],
    ],
    ids=["none", "one too few", "turned round", "an array for a number"],
)
def test_states_of_another_shape_are_refused_and_change_nothing(states: States):
    memory, rows = filled()
    with pytest.raises(ValueError, match="shapes"):
        memory.write(1, states)
    assert_same(memory.gather(np.arange(NUM_ROWS)), batch_of(rows))


def test_row_bytes_counts_every_state():
    assert HostStates(LAYOUTS, 3).row_bytes == 4 * (6 + 4 + 6 + 1)


def test_layout_puts_the_batch_at_its_axis():
    assert [layout.with_batch(5) for layout in LAYOUTS] == [(2, 5, 3), (5, 2, 2), (2, 3, 5), (5,)]


def test_layouts_of_a_model_are_those_of_its_states():
    assert layouts_of(signature_of()) == [StateLayout((1, -1, 2), 1, 0.0)]
