"""States on a device, here with the CPU for one: the same rows as HostStates keeps, by the same methods."""

from __future__ import annotations

from typing import Never

import numpy as np
import pytest
from longshort_service.device_states import DeviceStates
from longshort_service.graph_check import ModelError
from longshort_service.host_states import HostStates, StateLayout

# Batch axes first, in the middle, last; a row of one number; 1 + 6 + 10 + 3 numbers: segments of 4.
LAYOUTS = [
    StateLayout((-1,), 0, 7.0),
    StateLayout((2, -1, 3), 1, 0.0),
    StateLayout((1, -1, 10), 1, -1.0),
    StateLayout((3, -1), 1, 0.5),
]
# 5 numbers: no segment is longer than 1.
ODD = [StateLayout((-1, 5), 0, 0.25)]


@pytest.fixture(params=[LAYOUTS, ODD], ids=["four states", "odd"])
def layouts(request):
    return request.param


def both(layouts, num_rows: int = 8) -> tuple[DeviceStates, HostStates]:
    return DeviceStates(layouts, num_rows, provider="cpu"), HostStates(layouts, num_rows)


def test_rows_are_initialised_one_and_many_at_a_time(layouts):
    for states in both(layouts):
        states.initialise(3)
        states.initialise(np.array([5, 0]))
        for row in (0, 3, 5):
            for state, layout in zip(states.read(row), layouts, strict=True):
                assert (state == layout.initial).all()
                assert (
                    state.shape == layout.shape[: layout.batch_axis] + layout.shape[layout.batch_axis + 1 :]
                )


def test_any_order_of_writing_and_reading_gives_what_host_memory_gives(layouts):
    device, host = both(layouts)
    random = np.random.default_rng(0)
    for row in range(8):
        device.initialise(row)
        host.initialise(row)
    for _ in range(50):
        row = int(random.integers(8))
        states = [random.normal(size=state.shape).astype(np.float32) for state in host.read(row)]
        device.write(row, states)
        host.write(row, states)
        for k in range(8):
            for mine, theirs in zip(device.read(k), host.read(k), strict=True):
                assert mine.tobytes() == theirs.tobytes()
    assert device.row_bytes == host.row_bytes


def test_many_rows_are_read_as_host_memory_reads_them(layouts):
    device, host = both(layouts)
    random = np.random.default_rng(1)
    for row in range(8):
        states = [random.normal(size=state.shape).astype(np.float32) for state in host.read(row)]
        device.write(row, states)
        host.write(row, states)
    for rows in ([2], [7, 0, 3], [1, 2, 3], list(range(8))):
        many = device.read_many(np.array(rows))
        for mine, theirs, layout in zip(many, host.read_many(np.array(rows)), layouts, strict=True):
            assert (mine.shape, mine.tobytes()) == (theirs.shape, theirs.tobytes())
            for place, row in enumerate(rows):
                alone = device.read(row)[layouts.index(layout)]
                assert mine.take(place, layout.batch_axis).tobytes() == alone.tobytes()
    host.write(2, host.read(3))
    device.write(2, device.read(3))
    assert not np.array_equal(many[-1].take(2, layouts[-1].batch_axis), device.read(2)[-1])  # copies


def test_what_was_read_is_a_copy():
    states = DeviceStates(ODD, 2, provider="cpu")
    states.initialise(0)
    states.read(0)[0][:] = 9
    assert (states.read(0)[0] == 0.25).all()


def test_other_shapes_are_refused_and_change_nothing():
    states = DeviceStates(LAYOUTS, 2, provider="cpu")
    states.initialise(0)
    before = states.read(0)
    with pytest.raises(ValueError, match="shapes"):
        states.write(0, before[:1])
    with pytest.raises(ValueError, match="shapes"):
        states.write(0, [state.T for state in before])
    assert [state.tolist() for state in states.read(0)] == [state.tolist() for state in before]


def test_row_behind_the_last_is_nobody_s():
    states = DeviceStates(ODD, 2, provider="cpu")
    states.initialise(np.array([0, 1]))
    states.write(-1, [np.full(5, 9, np.float32)])
    assert all((states.read(row)[0] == 0.25).all() for row in (0, 1))
    assert (states.read(2)[0] == 9).all()
    with pytest.raises(Exception, match="indice"):
        states.initialise(3)


def test_no_room_is_a_model_error(monkeypatch):
    def refuse(*_: object) -> Never:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("onnxruntime.OrtValue.ortvalue_from_numpy", refuse)
    with pytest.raises(ModelError, match=r"no room for 60 bytes of states \(cpu\): out of memory"):
        DeviceStates(ODD, 2, provider="cpu")
