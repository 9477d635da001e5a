"""Holding a graph against its signature, before it runs: names, dtypes, shapes. Runs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from longshort_service.ports import Port
    from longshort_service.signature import Signature

_DTYPES: Final = {
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}


class ModelError(Exception):
    """A model file that cannot be served; the message says why and what to do."""


class Node(Protocol):
    """A graph's input or output as onnxruntime describes it; an axis is a number, a name or None."""

    name: str
    type: str
    shape: Sequence[int | str | None]


class Graph(Protocol):
    """What onnxruntime says of a loaded graph."""

    def get_inputs(self) -> Sequence[Node]:
        """Return its inputs."""

    def get_outputs(self) -> Sequence[Node]:
        """Return its outputs."""


def check_graph(signature: Signature, graph: Graph, label: str) -> None:
    """Raise ModelError where a graph's inputs and outputs are not those of its signature; `label` names the file."""
    inputs = {node.name: node for node in graph.get_inputs()}
    outputs = {node.name: node for node in graph.get_outputs()}
    expected = set(signature.graph_inputs())
    if set(inputs) != expected:
        raise ModelError(
            f"{label}: the graph's inputs are {sorted(inputs)}, the signature's {sorted(expected)}"
        )
    wanted = {port.name for port in signature.answers}
    missing = (wanted | {state.output for state in signature.states if state.output}) - set(outputs)
    if missing:
        raise ModelError(f"{label}: the graph has no output {', '.join(sorted(missing))}")
    windows = {
        state.window_of: (state.window_axis, state.row_shape()[state.window_axis])
        for state in signature.states
        if state.window_of
    }
    for port in signature.inputs:
        shape = _with_window(port, windows.get(port.name))
        _check_node(inputs[port.name], port.dtype, shape, label, port)
    for port in signature.answers:
        if len(outputs[port.name].shape):  # undeclared: its results are held against the signature at warm-up
            _check_node(outputs[port.name], port.dtype, graph_shape(port), label, port)
    for state in signature.states:
        if not state.window_of:
            shape = list(state.row_shape() if state.is_unbatched else state.shape)
            _check_node(inputs[state.input], state.dtype, shape, label)
    for constant in signature.constants:
        _check_node(inputs[constant.input], constant.dtype, list(constant.shape), label)
    if not signature.rows_alone:
        _check_batch(signature, inputs, label)


def graph_shape(port: Port) -> list[int]:
    """Return the shape of a port in its graph, with -1 where the graph has its batch and its time."""
    axes = [axis for axis in (port.batch_axis, port.time_axis) if axis is not None]
    rest = iter(port.shape)
    return [-1 if axis in axes else next(rest) for axis in range(len(port.shape) + len(axes))]


def promised_results(
    signature: Signature, num_rows: int, num_steps: int
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield name, dtype and shape of what a run of so many rows and steps must give."""
    for port in signature.answers:
        shape = graph_shape(port)
        for axis, size in ((port.batch_axis, num_rows), (port.time_axis, num_steps)):
            if axis is not None:
                shape[axis] = size
        yield port.name, port.dtype, tuple(shape)
    for state in signature.states:
        if state.output:
            yield (
                state.output,
                state.dtype,
                state.row_shape() if state.is_unbatched else state.with_batch(num_rows),
            )


def _with_window(port: Port, window: tuple[int, int] | None) -> list[int]:
    """Return the shape of a port in its graph, where a window goes before its values."""
    if window is None:
        return graph_shape(port)
    axis, size = window
    shape = list(port.shape)
    shape[axis] += size
    if port.batch_axis is not None:
        shape.insert(port.batch_axis, -1)
    return shape


def _check_node(node: Node, dtype: str, shape: Sequence[int], label: str, port: Port | None = None) -> None:
    """Hold a node against a dtype and a shape in which -1 is any size; `port` tells which axes those are."""
    declared = list(node.shape)
    fits = len(declared) == len(shape) and all(
        not isinstance(have, int) or want in (-1, have) for have, want in zip(declared, shape, strict=True)
    )
    if not fits:
        said: list[int | str] = list(shape)
        for axis, name in () if port is None else ((port.batch_axis, "batch"), (port.time_axis, "time")):
            if axis is not None:
                said[axis] = name
        raise ModelError(f"{label}: {node.name} is {declared}, the signature says {said}".replace("'", ""))
    if _DTYPES.get(node.type) != dtype:
        raise ModelError(f"{label}: {node.name} is {node.type}, the signature says {dtype}")


def _check_batch(signature: Signature, inputs: Mapping[str, Node], label: str) -> None:
    """Raise ModelError where a tensor of the graph cannot hold many sessions."""
    tensors = [(port.name, port.batch_axis) for port in signature.inputs]
    tensors += [
        (state.input, None if state.is_unbatched else state.batch_axis)
        for state in signature.states
        if not state.window_of
    ]
    for name, axis in tensors:
        if axis is None:
            raise ModelError(f"{label}: {name} has no batch axis: its sessions need rows_alone")
        if isinstance(inputs[name].shape[axis], int):
            raise ModelError(
                f"{label}: the batch of {name} is fixed at {inputs[name].shape[axis]}: its sessions need rows_alone"
            )
