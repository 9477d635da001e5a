"""Running an exported file over whole series, as the service would serve them.

Owns one onnxruntime session and the feeding of it. Needs neither torch nor a server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from longshort_service import signature as signatures

from longshort_model.dataset import repeat_last

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from longshort_model.dataset import Dataset

    Memory = tuple[NDArray[np.float32], NDArray[np.float32]]  # (h, c), each [layers, batch, hidden] f32

MOST_RUNS = 5000  # from zero state, for the error by age: a smooth curve in less than a second


class Replay:
    """A model file, ready to run. Keeps no memory: each call returns it."""

    def __init__(self, model: Path | bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # as the service runs it; more made small models slower
        content = model if isinstance(model, bytes) else model.read_bytes()
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.signature = signatures.from_json(metadata[signatures.METADATA_KEY])
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
        return self.run(repeat_last(dataset.values)[..., None])["y"]

    def from_zero(
        self, dataset: Dataset, start: int, num_ages: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return targets and point predictions [runs, ages] of runs that begin with zero state.

        They begin at rows from `start` on, evenly spread, in every series.
        """
        filled, rows = repeat_last(dataset.values), dataset.values.shape[1]
        per_series = max(1, MOST_RUNS // len(filled))
        begins = np.unique(np.linspace(start, rows - num_ages - 1, per_series).astype(int))
        index = begins[:, None] + np.arange(num_ages)  # [begins, ages]
        values = filled[:, index].reshape(-1, num_ages, 1)
        targets = dataset.values[:, index + 1].reshape(-1, num_ages)
        return targets, self.run(values)["y"][..., 0]
