"""One run of a graph whose tensors are not simply rows: several inputs, other dtypes, axes, windows, constants.

Owns the way from rows to what the graph takes and back. Does not know onnxruntime: it is given the graph as a function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from longshort_service.arena import States
    from longshort_service.ports import Port
    from longshort_service.signature import Signature, State

    Graph = Callable[[Sequence[str], dict[str, NDArray[Any]]], Sequence[NDArray[Any]]]

# onnxruntime adds up in another order where an array does not begin at such an address: its last bits would depend on
# where among others a row or a step has come to lie.
ALIGNMENT: Final = 16


class GeneralRun:
    """Runs `graph(output names, feeds)` over rows of values and states as the house has them.

    `constants` holds what each of the signature's constants is. A model whose rows must be alone is run once for each
    row, one that takes a single step once for each step: its callers need not know.
    """

    def __init__(self, graph: Graph, signature: Signature, constants: Mapping[str, NDArray[Any]]) -> None:
        self._graph = graph
        self._signature = signature
        self._constants = constants
        self._windows = {state.window_of: k for k, state in enumerate(signature.states) if state.window_of}
        self._carried = [k for k, state in enumerate(signature.states) if state.output]
        self._outputs = [
            *(port.name for port in signature.answers),
            *(signature.states[k].output for k in self._carried),
        ]

    def __call__(
        self, values: NDArray[np.float32], counts: NDArray[np.int32] | None, states: States
    ) -> tuple[NDArray[np.float32], States]:
        """Run `values` `[batch, time, width]` on from `states`; return answers `[batch, time, width]`, new states.

        `counts` `[batch]` says how many steps of each row are real; None: all. Raises what the graph raises; the
        arguments are not changed.
        """
        if not self._signature.rows_alone or len(values) == 1:
            return self._run_steps(values, counts, states)
        answers: list[NDArray[np.float32]] = []
        parts: list[States] = []
        for row in range(len(values)):
            own = slice(row, row + 1)
            part = [state[_at(spec, own)] for spec, state in zip(self._signature.states, states, strict=True)]
            answer, part = self._run_steps(values[own], None if counts is None else counts[own], part)
            answers.append(answer)
            parts.append(part)
        joined = [
            np.concatenate(rows, axis=spec.batch_axis)
            for spec, rows in zip(self._signature.states, zip(*parts, strict=True), strict=True)
        ]
        return np.concatenate(answers), joined

    def _run_steps(
        self, values: NDArray[np.float32], counts: NDArray[np.int32] | None, states: States
    ) -> tuple[NDArray[np.float32], States]:
        if not self._signature.steps_alone or values.shape[1] == 1:
            return self._run(values, counts, states)
        answers = []
        for step in range(values.shape[1]):
            answer, states = self._run(values[:, step : step + 1], None, states)
            answers.append(answer)
        return np.concatenate(answers, axis=1), states

    def _run(
        self, values: NDArray[np.float32], counts: NDArray[np.int32] | None, states: States
    ) -> tuple[NDArray[np.float32], States]:
        signature, new_states = self._signature, list(states)
        feeds: dict[str, NDArray[Any]] = dict(self._constants)
        for port, tensor in zip(signature.inputs, signature.value_row.unpack(values), strict=True):
            place = self._windows.get(port.name)
            given = tensor
            if place is not None:
                given, new_states[place] = _with_window(signature.states[place], states[place], tensor)
            feeds[port.name] = to_graph(port, given)
        for spec, state in zip(signature.states, states, strict=True):
            if not spec.window_of:
                feeds[spec.input] = for_graph(state[0] if spec.is_unbatched else state)
        if signature.sequence_lens is not None:
            if counts is None:
                counts = np.full(len(values), values.shape[1], np.int32)
            feeds[signature.sequence_lens] = for_graph(counts)
        results = self._graph(self._outputs, feeds)
        num_answers = len(signature.answers)
        answers = [
            from_graph(port, result)
            for port, result in zip(signature.answers, results[:num_answers], strict=True)
        ]
        for place, result in zip(self._carried, results[num_answers:], strict=True):
            new_states[place] = result[None] if signature.states[place].is_unbatched else result
        return signature.answer_row.pack(answers), new_states


def to_graph(port: Port, tensor: NDArray[Any]) -> NDArray[Any]:
    """Return a tensor `[batch, time, ...]` with its axes where the graph has them; an axis it lacks has one element."""
    if port.time_axis is None:
        tensor = tensor[:, 0]
        tensor = tensor[0] if port.batch_axis is None else np.moveaxis(tensor, 0, port.batch_axis)
    elif port.batch_axis is None:
        tensor = np.moveaxis(tensor[0], 0, port.time_axis)
    else:
        tensor = np.moveaxis(tensor, (0, 1), (port.batch_axis, port.time_axis))
    return for_graph(tensor)


def for_graph(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array as the graph is to see it, wherever it lay: contiguous, and aligned to ALIGNMENT."""
    array = np.asarray(array, order="C")  # not `ascontiguousarray`: it makes an array of a single number
    return array.copy() if array.ctypes.data % ALIGNMENT else array


def from_graph(port: Port, array: NDArray[Any]) -> NDArray[Any]:
    """Return what the graph gave as `[batch, time, *shape]`: what `to_graph` does, undone."""
    if port.time_axis is None:
        array = array[None] if port.batch_axis is None else np.moveaxis(array, port.batch_axis, 0)
        return array[:, None]
    if port.batch_axis is None:
        return np.moveaxis(array, port.time_axis, 0)[None]
    return np.moveaxis(array, (port.batch_axis, port.time_axis), (0, 1))


def _with_window(
    spec: State, window: NDArray[Any], tensor: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the window and one step's values `[batch, 1, ...]` in a row, and the window after them."""
    axis = spec.window_axis + 1  # behind the batch
    window = np.moveaxis(window, spec.batch_axis, 0)
    joined = np.concatenate([window, tensor[:, 0]], axis=axis)
    size = window.shape[axis]
    last: list[slice] = [slice(None)] * joined.ndim
    last[axis] = slice(joined.shape[axis] - size, None)
    return joined[:, None], np.moveaxis(joined[tuple(last)], 0, spec.batch_axis)


def _at(spec: State, rows: slice) -> tuple[slice, ...]:
    return (*(slice(None),) * spec.batch_axis, rows)
