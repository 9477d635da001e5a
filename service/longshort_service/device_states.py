"""The states of all rows on a device: one pool in its memory, beside the arrays that HostStates keeps in the host's.

Owns the memory, and moving rows between it and the host. Does not know who holds a row. Needs onnx, for the graphs
that move rows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from longshort_service import resident_graph
from longshort_service.engine import open_session
from longshort_service.graph_check import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from longshort_service.arena import States
    from longshort_service.host_states import StateLayout


class DeviceStates:
    """The rows `0..num_rows` of state in the memory of `provider`, "cpu" or "cuda", taken at once.

    One more row behind them is nobody's: `resident_graph.NOWHERE` is its number, and it takes what is not to be kept.
    On CUDA it also takes what is written beyond the end by mistake: the scatter there does not refuse but clamps.

    Used from one thread at a time, which need not be the engine's, for rows that the engine does not run meanwhile.
    Raises ModelError where the provider is not there or its memory does not suffice.
    """

    def __init__(self, layouts: Sequence[StateLayout], num_rows: int, *, provider: str) -> None:
        self._shapes = [layout.row_shape for layout in layouts]
        self._axes = [layout.batch_axis for layout in layouts]
        pool_layout = resident_graph.PoolLayout.of(self._shapes)
        self.row_bytes = 4 * pool_layout.size
        self._row_shape = (pool_layout.segments, pool_layout.width)
        self._ends = np.cumsum([math.prod(shape) for shape in self._shapes])[:-1]
        self._initial = np.concatenate([layout.initial_row().reshape(-1) for layout in layouts])
        self._reading = _session(resident_graph.reading(pool_layout).SerializeToString(), provider)
        self._writing = _session(resident_graph.writing(pool_layout).SerializeToString(), provider)
        # NumPy's zeros are not yet in memory, and reading does not bring them there: a pool of gigabytes costs the
        # host nothing where it is copied to a device, and only its touched rows where it stays.
        zeros = np.zeros((num_rows + 1, *self._row_shape), np.float32)
        try:
            self.pool = ort.OrtValue.ortvalue_from_numpy(zeros, provider, 0)
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            raise ModelError(f"no room for {zeros.nbytes:,} bytes of states ({provider}): {error}") from error

    def initial_row(self) -> States:
        """Return what a row starts with, without the batch axis."""
        parts = np.split(self._initial.copy(), self._ends)
        return [part.reshape(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def initialise(self, rows: int | NDArray[np.intp]) -> None:
        """Put the initial state into rows."""
        rows = np.atleast_1d(rows)
        self._put(rows, np.broadcast_to(self._initial, (len(rows), len(self._initial))))

    def read(self, row: int) -> States:
        """Return copies of one row's states, without the batch axis."""
        parts = np.split(self._get(np.array([row])).reshape(-1), self._ends)
        return [part.reshape(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def read_many(self, rows: NDArray[np.intp]) -> States:
        """Return copies of many rows' states, `[..., rows, ...]`."""
        parts = np.split(self._get(rows).reshape(len(rows), -1), self._ends, axis=1)
        return [
            np.moveaxis(part.reshape(len(rows), *shape), 0, axis)
            for part, shape, axis in zip(parts, self._shapes, self._axes, strict=True)
        ]

    def _get(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        numbers = np.empty((len(rows), *self._row_shape), np.float32)
        binding = self._reading.io_binding()
        binding.bind_ortvalue_input(resident_graph.POOL, self.pool)
        binding.bind_cpu_input(resident_graph.SOURCE_ROWS, rows.astype(np.int64))
        binding.bind_output(resident_graph.ROWS, "cpu", 0, numbers.dtype, numbers.shape, numbers.ctypes.data)
        self._reading.run_with_iobinding(binding)
        return numbers

    def write(self, row: int, states: States) -> None:
        """Put states, as `read` returns them, into a row. Raises ValueError for other shapes."""
        if [state.shape for state in states] != self._shapes:
            raise ValueError("the states do not have the shapes of these rows")
        numbers = np.concatenate([state.reshape(-1) for state in states])
        self._put(np.array([row]), numbers[None])

    def _put(self, rows: NDArray[np.intp], numbers: NDArray[np.float32]) -> None:
        binding = self._writing.io_binding()
        binding.bind_ortvalue_input(resident_graph.POOL, self.pool)
        binding.bind_cpu_input(resident_graph.TARGET_ROWS, resident_graph.places(rows))
        batch = np.ascontiguousarray(numbers, np.float32).reshape(len(rows), *self._row_shape)
        binding.bind_cpu_input(resident_graph.ROWS, batch)
        binding.bind_ortvalue_output(resident_graph.NEXT_POOL, self.pool)
        self._writing.run_with_iobinding(binding)


def _session(model: bytes, provider: str) -> ort.InferenceSession:
    return open_session(model, label="rows of states", provider=provider, intra_op_num_threads=1)
