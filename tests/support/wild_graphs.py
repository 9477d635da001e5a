"""Small recurrent graphs of every dtype, rank and axis, as makers of models outside write them: none is signed.

A cell adds up: each state gains the sum of a step's values in every element, each answer is its value and the sum of
all states. Small whole numbers go through every dtype without rounding, so that answers are known exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

Axes = tuple[str | int | None, ...]
ELEM_TYPES = {
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
}


class Nodes:
    """A graph under construction: nodes, constants, and names for what lies between."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, array: Any) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output


def value_info(name: str, dtype: str, axes: Axes | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, ELEM_TYPES[dtype], None if axes is None else list(axes))


def write_model(
    path: Path,
    nodes: Nodes,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    domains: Sequence[str] = (),
) -> Path:
    graph = helper.make_graph(nodes.nodes, "wild", list(inputs), list(outputs), nodes.constants)
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def write_cell(
    path: Path,
    *,
    values: Axes = ("batch", "time", 3),
    states: Sequence[Axes] = (("batch", 2),),
    dtype: str = "float32",
    names: Sequence[tuple[str, str]] | None = None,
    declared: Axes | str | None = "as values",
    batch: str = "batch",
    time: str = "time",
    value_names: tuple[str, str] = ("x", "y"),
) -> Path:
    """Write a cell. Axes that are called `batch` and `time` are those; a graph without one has none.

    `declared` is what the file says of the answer's axes, None nothing.
    """
    names = names or [(f"s{k}", f"next_s{k}") for k in range(len(states))]
    nodes = Nodes()
    inner = "float32" if dtype == "float16" else dtype
    told = ELEM_TYPES[inner]
    canonical = _to_front(nodes, nodes.add("Cast", value_names[0], to=told), values, (batch, time))
    num_shape = len([axis for axis in values if axis not in (batch, time)])
    sums = canonical
    if num_shape:
        sums = nodes.add(
            "ReduceSum", sums, nodes.constant(np.arange(2, 2 + num_shape)), keepdims=0
        )  # [batch, time]
    running = nodes.add("CumSum", sums, nodes.constant(np.int64(1)))
    last = nodes.add("Gather", running, nodes.constant(np.int64(-1)), axis=1)  # [batch]
    total = ""
    for axes, (given, result) in zip(states, names, strict=True):
        state = _to_front(nodes, nodes.add("Cast", given, to=told), axes, (batch,))  # [batch, ...]
        rank = sum(axis != batch for axis in axes)
        step = nodes.add("Reshape", last, nodes.constant(np.array([-1] + [1] * rank, np.int64)))
        new = _from_front(nodes, nodes.add("Add", state, step), axes, (batch,))
        nodes.add("Cast", new, to=ELEM_TYPES[dtype], output=result)
        size = int(np.prod([axis for axis in axes if isinstance(axis, int)]))
        own = state
        if rank:
            own = nodes.add("ReduceSum", own, nodes.constant(np.arange(1, 1 + rank)), keepdims=0)
        own = nodes.add("Unsqueeze", own, nodes.constant(np.array([1])))
        own = nodes.add("Add", own, nodes.add("Mul", running, nodes.constant(np.array(size, inner))))
        total = nodes.add("Add", total, own) if total else own
    shape = nodes.add("Unsqueeze", total, nodes.constant(np.arange(2, 2 + num_shape))) if num_shape else total
    answer = _from_front(nodes, nodes.add("Add", canonical, shape), values, (batch, time))
    nodes.add("Cast", answer, to=ELEM_TYPES[dtype], output=value_names[1])
    return write_model(
        path,
        nodes,
        [
            value_info(value_names[0], dtype, values),
            *(value_info(given, dtype, axes) for axes, (given, _) in zip(states, names, strict=True)),
        ],
        [
            value_info(value_names[1], dtype, values if declared == "as values" else declared),  # type: ignore[arg-type]
            *(value_info(result, dtype, axes) for axes, (_, result) in zip(states, names, strict=True)),
        ],
    )


def expected(values: NDArray[Any], state_sizes: Sequence[int]) -> NDArray[Any]:
    """Return what a cell answers to one session's values `[time, ...]`, from states of zeros of so many elements."""
    sums = values.reshape(len(values), -1).sum(axis=1).cumsum()
    total = (sums * sum(state_sizes)).reshape(-1, *(1,) * (values.ndim - 1))
    return values + total


def _to_front(nodes: Nodes, name: str, axes: Axes, wanted: tuple[str, ...]) -> str:
    """Bring a tensor's batch (and time) to the front, as axes of one element where it has none."""
    there = [axes.index(axis) for axis in wanted if axis in axes]
    rest = [place for place in range(len(axes)) if place not in there]
    if [*there, *rest] != list(range(len(axes))):
        name = nodes.add("Transpose", name, perm=[*there, *rest])
    missing = [place for place, axis in enumerate(wanted) if axis not in axes]
    return nodes.add("Unsqueeze", name, nodes.constant(np.array(missing, np.int64))) if missing else name


def _from_front(nodes: Nodes, name: str, axes: Axes, wanted: tuple[str, ...]) -> str:
    """Undo `_to_front`."""
    missing = [place for place, axis in enumerate(wanted) if axis not in axes]
    if missing:
        name = nodes.add("Squeeze", name, nodes.constant(np.array(missing, np.int64)))
    there = [axes.index(axis) for axis in wanted if axis in axes]
    order = [*there, *(place for place in range(len(axes)) if place not in there)]
    if order == list(range(len(axes))):
        return name
    return nodes.add("Transpose", name, perm=[order.index(place) for place in range(len(axes))])
