"""The model as the rivals run it: onnxruntime, one thread, the two memories carried by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

if TYPE_CHECKING:
    from numpy.typing import NDArray


def load(path: str) -> ort.InferenceSession:
    """Return an onnxruntime session with one thread, as the service has it: more made small models slower."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class Follower:
    """A batch of sequences that step together: their memories, carried from one run to the next.

    The model is one of `longshort_model.synthetic`.
    """

    def __init__(self, engine: ort.InferenceSession, batch: int = 1) -> None:
        self._run = engine.run
        layers, _, hidden = next(value.shape for value in engine.get_inputs() if value.name == "h0")
        self._long_term = np.zeros((layers, batch, hidden), np.float32)  # [layers, batch, hidden] f32
        self._short_term = self._long_term
        self._lengths = np.ones(batch, np.int32)  # [batch] i32

    def step(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run values [batch, time, features] and return predictions [batch, time, outputs]; the memories move."""
        if values.shape[1] != self._lengths[0]:
            self._lengths = np.full(len(values), values.shape[1], np.int32)
        predictions, self._short_term, self._long_term = self._run(
            ("y", "hn", "cn"),
            {"x": values, "h0": self._short_term, "c0": self._long_term, "sequence_lens": self._lengths},
        )
        return predictions  # type: ignore[no-any-return]  # onnxruntime is not typed
