"""onnxruntime: load a file, check it against its signature, warm up, run. Knows nothing else.

An engine is used from one thread at a time; its caller sees to that.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnxruntime as ort

from longshort_service.batching import RunCost
from longshort_service.general_run import GeneralRun, for_graph, from_graph
from longshort_service.graph_check import ModelError, check_graph, promised_results
from longshort_service.host_states import layouts_of
from longshort_service.ports import DTYPES
from longshort_service.signature import SignatureError
from longshort_service.signature_json import METADATA_KEY, from_json
from longshort_service.small_run import SmallRun
from longshort_service.step_results import joined

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from longshort_service.arena import States
    from longshort_service.general_run import Graph
    from longshort_service.host_states import StateLayout
    from longshort_service.signature import Signature

PROVIDERS: Final = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# TensorFloat-32 keeps 10 bits of a product's factors: answers would be 1e-3 off the CPU's instead of 1e-5.
PROVIDER_OPTIONS: Final[dict[str, dict[str, str]]] = {"cpu": {}, "cuda": {"use_tf32": "0"}}


class Engine:
    """One loaded model file, a path or the bytes of one.

    `provider` is "cpu" or "cuda". `signature` says what the file's tensors are; None: the file carries it. `arrays`
    holds what the signature's files hold: constants, and what states start with, by graph input. `is_optimised`: False
    for a graph that onnxruntime cannot optimise in full. Raises ModelError where the file is missing, is no ONNX,
    carries no valid signature or does not keep it, or where the provider is not there.
    """

    def __init__(
        self,
        file: Path | bytes,
        *,
        provider: str,
        intra_op_num_threads: int,
        signature: Signature | None = None,
        arrays: Mapping[str, NDArray[Any]] | None = None,
        label: str = "",
        is_optimised: bool = True,
    ) -> None:
        self._label = label or str(file)
        self.is_optimised = is_optimised
        self._session = open_session(
            file if isinstance(file, bytes) else str(file),
            label=self._label,
            provider=provider,
            intra_op_num_threads=intra_op_num_threads,
            is_optimised=is_optimised,
        )
        self.provider = PROVIDERS[provider]
        self.build = ort.__version__
        self.arrays = dict(arrays or {})
        self.signature = self._read_signature() if signature is None else signature
        check_graph(self.signature, self._session, self._label)
        self.output_names = [node.name for node in self._session.get_outputs()]
        self._general = self._general_run(self._run_graph)
        self._run_outputs = [self.signature.output, *(state.output for state in self.signature.states)]
        self._state_inputs = [state.input for state in self.signature.states]

    @property
    def layouts(self) -> list[StateLayout]:
        """How one session's states lie in memory, and what they start with."""
        return layouts_of(self.signature, self.arrays)

    def use_signature(self, signature: Signature) -> None:
        """Run by another signature of the same graph from now on: one whose rows, or steps, run alone."""
        self.signature = signature
        self._general = self._general_run(self._run_graph)

    def run(
        self, values: NDArray[np.float32], counts: NDArray[np.int32] | None, states: States
    ) -> tuple[NDArray[np.float32], States]:
        """Run `values` `[batch, time, width]` on from `states`; return answers `[batch, time, width]`, new states.

        Values and answers are rows as the signature's layouts have them. `counts` `[batch]` says how many steps of each
        row are real; None: all. Answers beyond a row's count are padding. Raises whatever onnxruntime raises; the
        inputs are not changed.
        """
        if self._general is not None:
            return self._general(values, counts, states)
        answers, *new_states = self._session.run(self._run_outputs, self._feeds(values, counts, states))
        return answers, new_states

    def small_run(self, num_rows: int) -> SmallRun:
        """Return the run of one step of a few sessions, with memory of its own that is used again each time.

        The caller has seen that the signature is plain.
        """
        return SmallRun(self._session, self.signature, num_rows)

    def run_all(self, values: NDArray[np.float32], states: States) -> dict[str, NDArray[Any]]:
        """Run rows `[time, width]` of one session on from `states` `[..., 1, ...]`; return every output of the graph.

        Answers have their time first, `[time, ...]`, without a batch axis; states are those after the last step,
        without theirs. What the signature does not name is as `step_results.joined` says, where it is of a dtype that
        a row can have.
        """
        runs: list[dict[str, NDArray[Any]]] = []

        def run(names: Sequence[str], feeds: dict[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
            runs.append(
                dict(zip(self.output_names, self._session.run(self.output_names, feeds), strict=True))
            )
            return [runs[-1][name] for name in names]

        GeneralRun(run, self.signature, self._constants())(values[None], None, states)
        ports = {port.name: port for port in self.signature.answers}
        states_of = {state.output: state for state in self.signature.states if state.output}
        found = {}
        for name in self.output_names:
            arrays = [result[name] for result in runs]
            if name in states_of:
                state = states_of[name]
                found[name] = arrays[-1] if state.is_unbatched else arrays[-1].take(0, state.batch_axis)
            elif name in ports:
                found[name] = np.concatenate([from_graph(ports[name], array)[0] for array in arrays])
            elif isinstance(arrays[0], np.ndarray) and arrays[0].dtype.name in DTYPES:
                found[name] = joined(arrays, is_stepped=self.signature.steps_alone)
        return found

    def initial_states(self, num_rows: int) -> States:
        """Return the states that a session starts with, for `num_rows` of them."""
        return [
            np.repeat(np.expand_dims(layout.initial_row(), layout.batch_axis), num_rows, layout.batch_axis)
            for layout in self.layouts
        ]

    def warm_up(self, max_rows: int, piece_steps: int) -> RunCost:
        """Run the shapes that serving will use, so that no caller pays for first runs, and measure what they cost.

        Raises ModelError where a run fails or its results are not of the shapes that the signature promises.
        """
        self.check_results()
        try:
            return measure_cost(self._run_of_zeros, max_rows, piece_steps)
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            raise ModelError(f"{self.signature.name}: a run of it fails: {error}") from error

    def is_alive(self) -> bool:
        """Whether a run of zeros from the initial states still works: what failed was not the engine then."""
        try:
            self._run_of_zeros(1, 1)()
        except Exception:  # noqa: BLE001  onnxruntime's exceptions share no base but Exception
            return False
        return True

    def check_results(self) -> None:
        """Hold what a run returns against the signature, at a batch and a time of more than one where it takes them.

        Raises ModelError where a run fails or its results are not of the shapes that the signature promises.
        """
        try:
            self._check_results()
        except ModelError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            raise ModelError(f"{self.signature.name}: a run of it fails: {error}") from error

    def _check_results(self) -> None:
        signature = self.signature
        num_rows, num_steps = 1 if signature.rows_alone else 2, 1 if signature.steps_alone else 3
        values = np.zeros((num_rows, num_steps, signature.value_row.width), np.float32)
        seen: dict[str, NDArray[Any]] = {}

        def run(names: Sequence[str], feeds: dict[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
            results: Sequence[NDArray[Any]] = self._session.run(names, feeds)
            seen.update(zip(names, results, strict=True))
            for name, dtype, shape in promised_results(signature, num_rows, num_steps):
                if seen[name].shape != shape or seen[name].dtype != dtype:
                    raise ModelError(
                        f"{signature.name}: for {num_rows} rows of {num_steps} steps {name} is {seen[name].dtype} "
                        f"{list(seen[name].shape)}, the signature promises {dtype} {list(shape)}"
                    )
            return results

        GeneralRun(run, signature, self._constants())(values, None, self.initial_states(num_rows))

    def _run_of_zeros(self, num_rows: int, num_steps: int) -> Callable[[], object]:
        values = np.zeros((num_rows, num_steps, self.signature.value_row.width), np.float32)
        return partial(self.run, values, None, self.initial_states(num_rows))

    def _general_run(self, graph: Graph) -> GeneralRun | None:
        """Return what runs a graph that does not take rows as they are; None for one that does."""
        return None if self.signature.is_plain else GeneralRun(graph, self.signature, self._constants())

    def _run_graph(self, names: Sequence[str], feeds: dict[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        results: Sequence[NDArray[Any]] = self._session.run(names, feeds)
        return results

    def _constants(self) -> dict[str, NDArray[Any]]:
        return {
            constant.input: self.arrays[constant.input]
            if constant.file
            else np.full(constant.shape, constant.value, constant.dtype)
            for constant in self.signature.constants
        }

    def _feeds(
        self, values: NDArray[np.float32], counts: NDArray[np.int32] | None, states: States
    ) -> dict[str, NDArray[Any]]:
        feeds: dict[str, NDArray[Any]] = dict(zip(self._state_inputs, map(for_graph, states), strict=True))
        feeds[self.signature.input] = for_graph(values)
        if self.signature.sequence_lens is not None:
            if counts is None:
                counts = np.full(len(values), values.shape[1], np.int32)
            feeds[self.signature.sequence_lens] = counts
        return feeds

    def _read_signature(self) -> Signature:
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise ModelError(f"{self._label}: the file carries no {METADATA_KEY}: export it with longshort")
        try:
            return from_json(text)
        except SignatureError as error:
            raise ModelError(f"{self._label}: {error}") from error


def open_session(
    model: str | bytes, *, label: str, provider: str, intra_op_num_threads: int, is_optimised: bool = True
) -> ort.InferenceSession:
    """Load a model, a path or its bytes, for `provider`, "cpu" or "cuda"; errors call it `label`.

    `is_optimised`: as far as onnxruntime can; otherwise by what does not depend on the device.

    Raises ModelError where onnxruntime cannot load it, or where the provider is not there or does not start.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_num_threads
    options.inter_op_num_threads = 1
    # Fatal only: an error comes back as an exception, and values from outside may make one in every run.
    options.log_severity_level = 4
    if not is_optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
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
