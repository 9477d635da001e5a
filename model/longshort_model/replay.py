"""Running an exported file over whole series, as the service would serve them.

Owns one onnxruntime session and the feeding of it. Needs neither torch nor a server.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnxruntime
from longshort_service.signature_json import METADATA_KEY, from_json

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from longshort_model.dataset import Dataset

    Memory = tuple[NDArray[np.float32], NDArray[np.float32]]  # (h, c), each [layers, batch, hidden] f32

MOST_RUNS: Final = 5000  # from zero state, for the error by age: a smooth curve in less than a second
MOST_STEPS: Final = 400_000  # of all those runs: on data of minutes there are fewer runs of more ages
PIECE_NUMBERS: Final = 2**21  # steps x layers x hidden in one call; onnxruntime needs some 25 bytes for each


class Replay:
    """A model file, ready to run. Keeps no memory: each call returns it."""

    def __init__(self, model: Path | bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # as the service runs it; more made small models slower
        content = model if isinstance(model, bytes) else model.read_bytes()
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.signature = from_json(metadata[METADATA_KEY])
        self.output_names = [output.name for output in self._session.get_outputs()]

    def run(
        self,
        values: NDArray[np.float32],
        memory: Memory | None = None,
        *,
        lengths: NDArray[np.int32] | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Return every output of the graph by name for raw `values` [batch, time, features] f32.

        `memory` is (h0, c0), zero where None; `lengths` [batch] says how many steps of a row are real, all
        where None.
        """
        batch, time = values.shape[:2]
        if memory is None:
            shape = self.memory_shape(batch)
            memory = (np.zeros(shape, np.float32), np.zeros(shape, np.float32))
        if lengths is None:
            lengths = np.full(batch, time, np.int32)
        feed: dict[str, Any] = {"x": values, "h0": memory[0], "c0": memory[1], "sequence_lens": lengths}
        return dict(zip(self.output_names, self._session.run(None, feed), strict=True))

    def memory_shape(self, batch: int) -> tuple[int, ...]:
        """Return [layers, batch, hidden]."""
        layers, _, hidden = self.signature.states[0].shape
        return layers, batch, hidden

    def as_served(self, dataset: Dataset) -> NDArray[np.float32]:
        """Return the predictions [series, time, outputs] made after each value.

        Zero state once, at the first of all values, and carried from there to the end.
        """
        return self._carried(dataset.inputs())

    def from_zero(
        self, dataset: Dataset, start: int, num_ages: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return targets and point predictions [runs, ages] of runs that begin with zero state.

        They begin at rows from `start` on, evenly spread, in every series, or in as many as MOST_STEPS allows.
        """
        num_series, rows = dataset.values.shape
        num_runs = max(1, min(MOST_RUNS, MOST_STEPS // num_ages))
        chosen = np.unique(np.linspace(0, num_series - 1, min(num_series, num_runs)).astype(int))
        known = dataset.values[chosen]
        begins = np.unique(np.linspace(start, rows - num_ages - 1, num_runs // len(chosen)).astype(int))
        index = begins[:, None] + np.arange(num_ages)  # [begins, ages]
        values = dataset.inputs()[chosen][:, index]
        values = values.reshape(-1, *values.shape[2:])
        targets = known[:, index + 1].reshape(-1, num_ages)
        return targets, self._carried(values)[..., 0]

    def forecasts(
        self, dataset: Dataset, start: int, horizon: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return targets and point predictions [runs, horizon] of forecasts as the service makes them.

        A session is carried from the first of all values and asks after every value from row `start` - 1 on, or after
        as many, evenly spread, as MOST_RUNS allows. The median is fed back as the next value; of a calendar the known
        hours are given.
        """
        num_series, rows = dataset.values.shape
        inputs = dataset.inputs()
        num_origins = max(1, MOST_RUNS // num_series)
        origins = np.unique(np.linspace(start - 1, rows - 1 - horizon, num_origins).astype(int))
        memory, begin, answers, memories = None, 0, [], []
        for origin in origins:
            answer, memory = self._advanced(inputs[:, begin : origin + 1], memory)
            begin = origin + 1
            answers.append(answer[:, -1:])  # [series, 1, outputs]
            memories.append(memory)
        made = np.concatenate(answers)[..., :1]  # [origins * series, 1, 1]
        memory = (np.concatenate([h for h, _ in memories], 1), np.concatenate([c for _, c in memories], 1))
        ahead = [made]
        for k in range(1, horizon):
            known = inputs[:, origins + k, 1:].transpose(1, 0, 2).reshape(len(made), 1, -1)
            got = self.run(np.concatenate([made, known], axis=-1), memory)
            made, memory = got["y"][..., :1], (got["hn"], got["cn"])
            ahead.append(made)
        index = origins[:, None] + np.arange(1, horizon + 1)  # [origins, horizon]
        targets = dataset.values[:, index].transpose(1, 0, 2).reshape(-1, horizon)
        return targets, np.concatenate(ahead, axis=1)[..., 0]

    def _carried(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the predictions for `values` [batch, time, features] from zero state."""
        return self._advanced(values, None)[0]

    def _advanced(
        self, values: NDArray[np.float32], memory: Memory | None
    ) -> tuple[NDArray[np.float32], Memory]:
        """Return the predictions for `values` [batch, time, features] and the memory after them, run in pieces of time.

        The pieces give the bits of one call, which would need memory for all of its steps.
        """
        batch, time = values.shape[:2]
        steps = max(1, PIECE_NUMBERS // math.prod(self.memory_shape(batch)))
        pieces = []
        for begin in range(0, time, steps):
            got = self.run(values[:, begin : begin + steps], memory)
            memory = got["hn"], got["cn"]
            pieces.append(got["y"])
        assert memory is not None  # noqa: S101  there is at least one value
        return np.concatenate(pieces, axis=1), memory
