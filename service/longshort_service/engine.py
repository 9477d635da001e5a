"""onnxruntime: load a file, check it against its signature, warm up, run. Knows nothing else.

An engine is used from one thread at a time; its caller sees to that.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np
import onnxruntime as ort

from longshort_service import signature as signatures
from longshort_service.batching import RunCost
from longshort_service.small_run import SmallRun

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from longshort_service.signature import Signature

PROVIDERS: Final = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# TensorFloat-32 keeps 10 bits of a product's factors: answers would be 1e-3 off the CPU's instead of 1e-5.
PROVIDER_OPTIONS: Final[dict[str, dict[str, str]]] = {"cpu": {}, "cuda": {"use_tf32": "0"}}


class ModelError(Exception):
    """A model file that cannot be served; the message says why and what to do."""


class Engine:
    """One loaded model file.

    `provider` is "cpu" or "cuda". Raises ModelError where the file is missing, is no ONNX, carries no valid signature
    or does not keep it, or where the provider is not there.
    """

    def __init__(self, path: Path, *, provider: str, intra_op_num_threads: int) -> None:
        self._session = open_session(
            str(path), label=str(path), provider=provider, intra_op_num_threads=intra_op_num_threads
        )
        self.provider = PROVIDERS[provider]
        self.build = ort.__version__
        self.signature = self._read_signature(path)
        self._check_graph(path)
        self._run_outputs = [self.signature.output, *(state.output for state in self.signature.states)]
        self._state_inputs = [state.input for state in self.signature.states]
        self.output_names = [node.name for node in self._session.get_outputs()]

    def run(
        self, values: NDArray[np.float32], counts: NDArray[np.int32] | None, states: list[NDArray[np.float32]]
    ) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
        """Run `values` `[batch, time, features]` on from `states`; return answers `[batch, time, outputs]`, new states.

        `counts` `[batch]` says how many steps of each row are real; None: all. Answers beyond a row's count are
        padding. Raises whatever onnxruntime raises; the inputs are not changed.
        """
        answers, *new_states = self._session.run(self._run_outputs, self._feeds(values, counts, states))
        return answers, new_states

    def small_run(self, num_rows: int) -> SmallRun:
        """Return the run of one step of a few sessions, with memory of its own that is used again each time."""
        return SmallRun(self._session, self.signature, num_rows)

    def run_all(
        self, values: NDArray[np.float32], states: list[NDArray[np.float32]]
    ) -> dict[str, NDArray[np.float32]]:
        """Run as `run` does and return every output of the graph by its name."""
        outputs = self._session.run(self.output_names, self._feeds(values, None, states))
        return dict(zip(self.output_names, outputs, strict=True))

    def initial_states(self, num_rows: int) -> list[NDArray[np.float32]]:
        """Return the states that a session starts with, for `num_rows` of them."""
        return [
            np.full(state.with_batch(num_rows), state.initial, np.float32) for state in self.signature.states
        ]

    def warm_up(self, max_rows: int, piece_steps: int) -> RunCost:
        """Run the shapes that serving will use, so that no caller pays for first runs, and measure what they cost.

        Raises ModelError where a run fails or its results are not of the shapes that the signature promises.
        """
        try:
            self._check_results()
            return measure_cost(self._run_of_zeros, max_rows, piece_steps)
        except ModelError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            raise ModelError(f"{self.signature.name}: a run of it fails: {error}") from error

    def _check_results(self) -> None:
        """Hold what a run returns against the signature, at a batch and a time of more than one."""
        num_rows, num_steps = 2, 3
        values = np.zeros((num_rows, num_steps, len(self.signature.features)), np.float32)
        answers, states = self.run(values, None, self.initial_states(num_rows))
        promised: list[tuple[str, tuple[int, ...], NDArray[np.float32]]] = [
            (self.signature.output, (num_rows, num_steps, len(self.signature.outputs)), answers)
        ]
        for spec, state in zip(self.signature.states, states, strict=True):
            promised.append((spec.output, spec.with_batch(num_rows), state))
        for name, shape, array in promised:
            if array.shape != shape or array.dtype != np.float32:
                raise ModelError(
                    f"{self.signature.name}: for {num_rows} rows of {num_steps} steps {name} is {array.dtype} "
                    f"{list(array.shape)}, the signature promises float32 {list(shape)}"
                )

    def _run_of_zeros(self, num_rows: int, num_steps: int) -> Callable[[], object]:
        values = np.zeros((num_rows, num_steps, len(self.signature.features)), np.float32)
        return partial(self.run, values, None, self.initial_states(num_rows))

    def _feeds(
        self, values: NDArray[np.float32], counts: NDArray[np.int32] | None, states: list[NDArray[np.float32]]
    ) -> dict[str, NDArray[np.generic]]:
        feeds: dict[str, NDArray[np.generic]] = dict(zip(self._state_inputs, states, strict=True))
        feeds[self.signature.input] = values
        if self.signature.sequence_lens is not None:
            if counts is None:
                counts = np.full(len(values), values.shape[1], np.int32)
            feeds[self.signature.sequence_lens] = counts
        return feeds

    def _read_signature(self, path: Path) -> Signature:
        text = self._session.get_modelmeta().custom_metadata_map.get(signatures.METADATA_KEY)
        if text is None:
            raise ModelError(
                f"{path}: the file carries no {signatures.METADATA_KEY}: export it with longshort"
            )
        try:
            return signatures.from_json(text)
        except signatures.SignatureError as error:
            raise ModelError(f"{path}: {error}") from error

    def _check_graph(self, path: Path) -> None:
        """Hold the graph's inputs and outputs against the signature."""
        signature = self.signature
        inputs = {node.name: node for node in self._session.get_inputs()}
        outputs = {node.name: node for node in self._session.get_outputs()}
        expected = {signature.input, *(state.input for state in signature.states)}
        if signature.sequence_lens is not None:
            expected.add(signature.sequence_lens)
        if set(inputs) != expected:
            raise ModelError(
                f"{path}: the graph's inputs are {sorted(inputs)}, the signature's {sorted(expected)}"
            )
        missing = {signature.output, *(state.output for state in signature.states)} - set(outputs)
        if missing:
            raise ModelError(f"{path}: the graph has no output {', '.join(sorted(missing))}")
        widths = [
            (inputs[signature.input], len(signature.features)),
            (outputs[signature.output], len(signature.outputs)),
        ]
        for node, width in widths:
            if len(node.shape) != 3 or (isinstance(node.shape[2], int) and node.shape[2] != width):
                raise ModelError(
                    f"{path}: {node.name} is {node.shape}, the signature says [batch, time, {width}]"
                )
        for state in signature.states:
            declared = inputs[state.input].shape
            fixed = [size if isinstance(size, int) else None for size in declared]
            fits = len(fixed) == len(state.shape) and all(
                have is None or want in (-1, have) for have, want in zip(fixed, state.shape, strict=True)
            )
            if not fits:
                raise ModelError(
                    f"{path}: {state.input} is {declared}, the signature says {list(state.shape)}"
                )
            if fixed[state.batch_axis] is not None:
                raise ModelError(f"{path}: the batch of {state.input} is fixed at {fixed[state.batch_axis]}")


def open_session(
    model: str | bytes, *, label: str, provider: str, intra_op_num_threads: int
) -> ort.InferenceSession:
    """Load a model, a path or its bytes, for `provider`, "cpu" or "cuda"; errors call it `label`.

    Raises ModelError where onnxruntime cannot load it, or where the provider is not there or does not start.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; what matters comes back as an exception
    name = PROVIDERS[provider]
    if provider == "cuda" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # finds CUDA and cuDNN in PyTorch's or the nvidia packages' folders
    if name not in ort.get_available_providers():
        raise ModelError(f"onnxruntime has no {name} here: docs/configuration.md says how to install it")
    try:
        session = ort.InferenceSession(model, options, providers=[(name, PROVIDER_OPTIONS[provider])])
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise ModelError(f"{label}: onnxruntime cannot load it: {error}") from error
    if session.get_providers()[0] != name:
        raise ModelError(f"{label}: {name} did not start; its CUDA libraries may be missing")
    return session


def measure_cost(
    prepare: Callable[[int, int], Callable[[], object]], max_rows: int, piece_steps: int
) -> RunCost:
    """Return what runs cost, where `prepare(rows, steps)` gives one to make; the largest batch is run to be warm."""
    rows, steps = min(64, max_rows), min(64, piece_steps)
    single = _shortest_s(prepare(1, 1))
    wide = _shortest_s(prepare(rows, 1)) if rows > 1 else single
    long = _shortest_s(prepare(1, steps)) if steps > 1 else single
    prepare(max_rows, 1)()
    each_row_step = max(wide - single, 0.0) / max(rows - 1, 1)
    each_step = max((long - single) / max(steps - 1, 1) - each_row_step, 0.0)
    return RunCost(max(single - each_step - each_row_step, 1e-6), each_step, each_row_step)


def _shortest_s(run: Callable[[], object]) -> float:
    durations = []
    for _ in range(5):
        begin = time.perf_counter()
        run()
        durations.append(time.perf_counter() - begin)
    return min(durations)
