"""An engine whose states stay on its device: a run takes rows and gives answers, and no state leaves the device.

Stands beside Engine, which takes states and gives them back. Owns the wrapped model and its pool. Needs onnx.
An engine is used from one thread at a time; its caller sees to that.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from longshort_service import resident_graph
from longshort_service.device_states import DeviceStates
from longshort_service.engine import PROVIDERS, Engine, measure_cost, open_session
from longshort_service.graph_check import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from longshort_service.batching import RunCost
    from longshort_service.signature import Signature


class ResidentEngine:
    """One loaded model file and the states of `num_rows` sessions, both on the device of `provider`.

    Raises ModelError where Engine would and where the device has no room, UnsuitableGraph where the graph cannot be
    wrapped. `signature` and `arrays` are as Engine takes them. `plain` is the same file as an ordinary engine on the
    CPU.
    """

    def __init__(
        self,
        path: Path,
        *,
        provider: str,
        intra_op_num_threads: int,
        num_rows: int,
        signature: Signature | None = None,
        arrays: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        # The ordinary engine holds file, graph and results against the signature, wherever it runs. The wrapped graph
        # would take a state of another shape for its own, as long as it has as many numbers.
        self.plain = Engine(path, provider="cpu", intra_op_num_threads=1, signature=signature, arrays=arrays)
        self.plain.warm_up(1, 1)
        self.signature = self.plain.signature
        wrapped = resident_graph.resident(onnx.load(path), self.signature)
        self._session = open_session(
            wrapped.SerializeToString(),
            label=str(path),
            provider=provider,
            intra_op_num_threads=intra_op_num_threads,
        )
        self.provider = PROVIDERS[provider]
        self.states = DeviceStates(self.plain.layouts, num_rows, provider=provider)
        self._binding = self._session.io_binding()
        # One buffer for both: ScatterND copies the pool unless its input and output are the same memory.
        self._binding.bind_ortvalue_input(resident_graph.POOL, self.states.pool)
        self._binding.bind_ortvalue_output(resident_graph.NEXT_POOL, self.states.pool)

    def run(
        self,
        values: NDArray[np.float32],
        counts: NDArray[np.int32] | None,
        source_rows: NDArray[np.intp],
        target_rows: NDArray[np.intp],
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Run `values` `[batch, time, features]` on from the states in `source_rows` `[batch]`.

        Returns the answers `[batch, time, outputs]` and which rows are finite `[batch]`, answers and states. The new
        states of a finite row are in its target row then, the target of another is unchanged. A target of -1 is
        nowhere; no other may be given twice. `counts` `[batch]` says how many steps of each row are real; None: all.
        Answers beyond a row's count are padding. All is done on return, on the device too. Raises whatever
        onnxruntime raises; no row has changed then, unless the device itself has failed.
        """
        shape = (*values.shape[:2], self.signature.answer_row.width)
        answers, finite = np.empty(shape, np.float32), np.empty(len(values), np.bool_)
        bind = self._binding.bind_cpu_input
        bind(self.signature.input, np.ascontiguousarray(values))
        if self.signature.sequence_lens is not None:
            if counts is None:
                counts = np.full(len(values), values.shape[1], np.int32)
            bind(self.signature.sequence_lens, counts)
        bind(resident_graph.SOURCE_ROWS, source_rows)
        bind(resident_graph.TARGET_ROWS, resident_graph.places(target_rows))
        for name, array in ((self.signature.output, answers), (resident_graph.FINITE, finite)):
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(self._binding)
        return answers, finite

    def warm_up(self, max_rows: int, piece_steps: int) -> RunCost:
        """Run the shapes that serving will use, so that no caller pays for first runs, and measure what they cost.

        Moves no session's row. Raises ModelError where a run fails.
        """
        try:
            return measure_cost(self._run_of_zeros, max_rows, piece_steps)
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            raise ModelError(f"{self.signature.name}: a run of it fails: {error}") from error

    def _run_of_zeros(self, num_rows: int, num_steps: int) -> Callable[[], object]:
        values = np.zeros((num_rows, num_steps, len(self.signature.features)), np.float32)
        rows = np.full(num_rows, resident_graph.NOWHERE, np.intp)
        return partial(self.run, values, None, rows, rows)
