"""Outputs that no signature names, of one run or of a run for each step, as one tensor."""

from __future__ import annotations

import numpy as np
import pytest
from longshort_service.step_results import joined


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 5, 4), (5, 4)),  # batch, time, hidden
        ((33, 5, 4), (33, 5, 4)),  # each band is a row of the graph's own
        ((5, 33, 4), (5, 33, 4)),  # each step is one
        ((1, 1, 4), (1, 4)),
        ((1,), ()),
        ((), ()),
    ],
)
def test_one_run_is_taken_as_it_is_without_the_session_s_axis(
    shape: tuple[int, ...], expected: tuple[int, ...]
):
    array = np.arange(np.prod(shape)).reshape(shape)
    found = joined([array], is_stepped=False)
    assert found.shape == expected
    assert found.ravel().tolist() == array.ravel().tolist()


@pytest.mark.parametrize("num_steps", [1, 5])
@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 1, 4), ("time", 4)),
        ((33, 1, 4), (33, "time", 4)),
        ((1, 33, 4), ("time", 33, 4)),  # a sequence within the step: over the bands, say
        ((2, 33, 4), ("time", 2, 33, 4)),
        ((1, 4), ("time", 4)),
        ((1, 1), ("time", 1)),
        ((), ("time",)),
    ],
)
def test_runs_of_a_step_each_are_put_along_the_time(
    num_steps: int, shape: tuple[int, ...], expected: tuple[int | str, ...]
):
    arrays = [np.full(shape, step) for step in range(num_steps)]
    found = joined(arrays, is_stepped=True)
    assert found.shape == tuple(num_steps if size == "time" else size for size in expected)
    times = np.moveaxis(found, expected.index("time"), 0)
    assert [set(time.ravel()) for time in times] == [{step} for step in range(num_steps)]
