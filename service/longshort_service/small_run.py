"""A run of one step of a few sessions, in memory that onnxruntime is given once. Knows a model, and no sessions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnxruntime as ort
    from numpy.typing import NDArray

    from longshort_service.signature import Signature


class SmallRun:
    """One step of `num_rows` sessions: a third cheaper than a run of new arrays. On the CPU only.

    Fill `values` and `states`, `run`, and read `answers` and `new_states` before the next run. `states[k]` and
    `new_states[k]` are row k's states as batches of one, `[..., 1, ...]`, in place.
    """

    def __init__(self, session: ort.InferenceSession, signature: Signature, num_rows: int) -> None:
        self._session = session
        self._binding = session.io_binding()
        values = np.zeros((num_rows, 1, len(signature.features)), np.float32)
        self.values = values[:, 0]  # [rows, features] f32
        self._binding.bind_cpu_input(signature.input, values)
        if signature.sequence_lens is not None:
            self._counts = np.ones(num_rows, np.int32)
            self._binding.bind_cpu_input(signature.sequence_lens, self._counts)
        shapes = [state.with_batch(num_rows) for state in signature.states]
        sizes = [num_rows * len(signature.outputs), *(math.prod(shape) for shape in shapes)]
        self._results = np.zeros(
            sum(sizes), np.float32
        )  # all that comes of a run, to be looked through at once
        answers, *parts = np.split(self._results, np.cumsum(sizes)[:-1])
        self.answers = answers.reshape(num_rows, -1)  # [rows, outputs] f32
        inputs = [np.zeros(shape, np.float32) for shape in shapes]
        outputs = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        for spec, state, new_state in zip(signature.states, inputs, outputs, strict=True):
            self._binding.bind_cpu_input(spec.input, state)
            self._bind_output(spec.output, new_state)
        self._bind_output(signature.output, answers.reshape(num_rows, 1, -1))
        self.states = [_row(signature, inputs, row) for row in range(num_rows)]
        self.new_states = [_row(signature, outputs, row) for row in range(num_rows)]

    def run(self) -> None:
        """Run. Raises whatever onnxruntime raises."""
        self._session.run_with_iobinding(self._binding)

    def finite_rows(self) -> list[bool]:
        """Return of each row whether what came of it is finite, answers and states."""
        # A search in the bytes of few flags costs half of `all`.
        if b"\0" not in np.isfinite(self._results).tobytes():
            return [True] * len(self.answers)
        return [
            bool(np.isfinite(answer).all() and all(np.isfinite(state).all() for state in states))
            for answer, states in zip(self.answers, self.new_states, strict=True)
        ]

    def _bind_output(self, name: str, array: NDArray[np.float32]) -> None:
        self._binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)


def _row(signature: Signature, batches: list[NDArray[np.float32]], row: int) -> list[NDArray[np.float32]]:
    return [
        batch[(*(slice(None),) * state.batch_axis, slice(row, row + 1))]
        for state, batch in zip(signature.states, batches, strict=True)
    ]
