"""A model's graph with its states inside: rows of a pool are read, stepped and written back by the graph itself.

Owns the wrapped graph, the two graphs that move rows in and out, and the layout of a pool. Knows no provider and runs
nothing. Needs onnx, which the `gpu` extra brings.

A pool is `[rows, segments, width]` f32; a row holds all states of a session one after the other, so that one Gather
and one ScatterND serve all of them: on a device each node costs a launch. Rows lie in segments because onnxruntime's
ScatterND on CUDA gives each index one thread: a row written by one thread would take as long as the model's step.
ScatterElements has a thread for each number, but counts in 32 bits, and a pool may have more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from longshort_service.signature import Signature, State

POOL: Final = "longshort.pool"  # [rows, segments, width] f32
NEXT_POOL: Final = "longshort.next_pool"  # the same memory, bound by the caller
SOURCE_ROWS: Final = "longshort.source_rows"  # [batch] i64
TARGET_ROWS: Final = "longshort.target_rows"  # [batch, 1, 2] i64: the row, then 0
FINITE: Final = "longshort.finite"  # [batch] bool
ROWS: Final = "longshort.rows"  # [batch, segments, width] f32

NOWHERE: Final = -1  # as a row to write: the pool's last one, which is nobody's
WIDEST_SEGMENT: Final = 4  # numbers that one thread writes, one after the other
OLDEST_OPSET: Final = 13  # where Split and ReduceSum take their sizes and axes as inputs
_OPSET: Final = 17
_IR_VERSION: Final = 8


class UnsuitableGraph(ValueError):
    """A graph that cannot be wrapped; the message says why."""


@dataclass(frozen=True, slots=True)
class PoolLayout:
    """How the states of one session lie in a row, in numbers (f32)."""

    segments: int
    width: int

    @classmethod
    def of(cls, row_shapes: Sequence[tuple[int, ...]]) -> PoolLayout:
        """Return the layout for states of these shapes, without their batch axis."""
        size = sum(math.prod(shape) for shape in row_shapes)
        width = math.gcd(size, WIDEST_SEGMENT)
        return cls(size // width, width)

    @property
    def size(self) -> int:
        """The numbers in a row."""
        return self.segments * self.width


def resident(model: onnx.ModelProto, signature: Signature) -> onnx.ModelProto:
    """Return the model with its states taken from rows of a pool and put back into rows.

    Inputs: the values and, where the signature has them, the sequence lengths, as before; the pool, the rows to start
    from, and the rows to write. Outputs: the answers as before; which rows are finite, answers and states; and the
    pool, which the caller binds to the memory of the input, so that only the written rows are touched. What is not
    finite goes to NOWHERE instead of its target. Where two write the same row, its content is any mixture of theirs.

    The scatter depends on all new states and answers, and thereby on the gather, of which there is one for all states:
    no row changes before all are read, nor where a node of the model fails. `model` is not changed. Raises
    UnsuitableGraph.
    """
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < OLDEST_OPSET:
        raise UnsuitableGraph(
            f"the graph is of opset {opset}, states stay on the device from {OLDEST_OPSET} on"
        )
    if not signature.states:
        raise UnsuitableGraph("the graph has no states to keep on the device")
    layout = PoolLayout.of([state.row_shape() for state in signature.states])
    before, after = _Nodes("in"), _Nodes("out")
    _gather(before, signature.states, layout)
    _scatter(after, signature, layout)
    values = [node for node in model.graph.input if node.name in (signature.input, signature.sequence_lens)]
    answers = [node for node in model.graph.output if node.name == signature.output]
    finite = helper.make_tensor_value_info(FINITE, TensorProto.BOOL, ["batch"])
    graph = helper.make_graph(
        [*before.nodes, *model.graph.node, *after.nodes],
        model.graph.name,
        [*values, _pool(POOL, layout), _source_rows(), _target_rows()],
        [*answers, finite, _pool(NEXT_POOL, layout)],
        [*model.graph.initializer, *before.constants, *after.constants],
        sparse_initializer=model.graph.sparse_initializer,
    )
    wrapped = onnx.ModelProto()
    wrapped.CopyFrom(model)
    wrapped.graph.CopyFrom(graph)
    return wrapped


def reading(layout: PoolLayout) -> onnx.ModelProto:
    """Return a graph that gives rows of a pool."""
    nodes = _Nodes("read")
    nodes.add("Gather", [POOL, SOURCE_ROWS], ROWS, axis=0)
    return nodes.model([_pool(POOL, layout), _source_rows()], [_rows(layout)])


def writing(layout: PoolLayout) -> onnx.ModelProto:
    """Return a graph that puts rows into a pool."""
    nodes = _Nodes("write")
    nodes.add("ScatterND", [POOL, _places(nodes, TARGET_ROWS, layout), ROWS], NEXT_POOL)
    return nodes.model([_pool(POOL, layout), _target_rows(), _rows(layout)], [_pool(NEXT_POOL, layout)])


def places(rows: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return rows `[batch]` in the form in which the graphs take the rows to write."""
    found = np.zeros((len(rows), 1, 2), np.int64)
    found[:, 0, 0] = rows
    return found


class _Nodes:
    """Collects nodes and constants under names of their own."""

    def __init__(self, prefix: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._prefix = f"longshort.{prefix}"

    def add(self, operator: str, inputs: list[str], output: str = "", **how: Any) -> str:
        """Add an operator and return the name of its output."""
        name = output or self._fresh(self.nodes)
        self.nodes.append(helper.make_node(operator, inputs, [name], name=f"{name}.node", **how))
        return name

    def split(self, name: str, sizes: list[int]) -> list[str]:
        """Return the parts of the rows of a matrix."""
        if len(sizes) == 1:
            return [name]
        parts = [f"{name}.{k}" for k in range(len(sizes))]
        lengths = self.constant(np.array(sizes, np.int64))
        self.nodes.append(helper.make_node("Split", [name, lengths], parts, axis=1))
        return parts

    def constant(self, array: NDArray[np.int64] | NDArray[np.float32]) -> str:
        """Keep an array and return its name."""
        name = self._fresh(self.constants) + ".constant"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def reshape(self, name: str, shape: Sequence[int], output: str = "") -> str:
        """Return the same numbers in another shape."""
        return self.add("Reshape", [name, self.constant(np.array(shape, np.int64))], output)

    def model(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """Return a model of these nodes alone."""
        graph = helper.make_graph(self.nodes, self._prefix, inputs, outputs, self.constants)
        opset = [helper.make_opsetid("", _OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=_IR_VERSION)

    def _fresh(self, those: Sequence[object]) -> str:
        return f"{self._prefix}.{len(those)}"


def _gather(nodes: _Nodes, states: Sequence[State], layout: PoolLayout) -> None:
    """Add what gives each state input its rows, `[..., batch, ...]`."""
    old = nodes.add("Gather", [POOL, SOURCE_ROWS], axis=0)
    flat = nodes.reshape(old, [-1, layout.size])
    parts = nodes.split(flat, [math.prod(state.row_shape()) for state in states])
    for state, part in zip(states, parts, strict=True):
        axis = state.batch_axis
        if math.prod(state.shape[:axis]) == 1:  # the same order of numbers: no transposition
            nodes.reshape(part, state.shape, state.input)
            continue
        rows = nodes.reshape(part, [-1, *state.row_shape()])
        order = [*range(1, axis + 1), 0, *range(axis + 1, len(state.shape))]
        nodes.add("Transpose", [rows], state.input, perm=order)


def _scatter(nodes: _Nodes, signature: Signature, layout: PoolLayout) -> None:
    """Add what checks the new states and the answers and puts the states into their rows."""
    flat = []
    for state in signature.states:
        axis, rows = state.batch_axis, state.output
        if math.prod(state.shape[:axis]) != 1:
            order = [axis, *(k for k in range(len(state.shape)) if k != axis)]
            rows = nodes.add("Transpose", [rows], perm=order)
        flat.append(nodes.reshape(rows, [-1, math.prod(state.row_shape())]))
    new = flat[0] if len(flat) == 1 else nodes.add("Concat", flat, axis=1)
    answers = nodes.add("Flatten", [signature.output], axis=1)
    everything = nodes.add("Concat", [new, answers], axis=1)
    # x - x is 0 for what is finite and NaN for the rest, and zeros add up without overflow.
    zeros = nodes.add("Sub", [everything, everything])
    total = nodes.add("ReduceSum", [zeros, nodes.constant(np.array([1], np.int64))], keepdims=0)
    finite = nodes.add("Equal", [total, nodes.constant(np.array(0, np.float32))], FINITE)
    mask = nodes.reshape(finite, [-1, 1, 1])
    nowhere = nodes.constant(np.array([[[NOWHERE, 0]]], np.int64))
    targets = nodes.add("Where", [mask, TARGET_ROWS, nowhere])
    segments = nodes.reshape(new, [-1, layout.segments, layout.width])
    nodes.add("ScatterND", [POOL, _places(nodes, targets, layout), segments], NEXT_POOL)


def _places(nodes: _Nodes, targets: str, layout: PoolLayout) -> str:
    """Return the place of every segment of rows to write, `[batch, segments, 2]` i64."""
    offsets = np.zeros((1, layout.segments, 2), np.int64)
    offsets[0, :, 1] = np.arange(layout.segments)
    return nodes.add("Add", [targets, nodes.constant(offsets)])


def _pool(name: str, layout: PoolLayout) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", layout.segments, layout.width])


def _source_rows() -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(SOURCE_ROWS, TensorProto.INT64, ["batch"])


def _target_rows() -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(TARGET_ROWS, TensorProto.INT64, ["batch", 1, 2])


def _rows(layout: PoolLayout) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(ROWS, TensorProto.FLOAT, ["batch", layout.segments, layout.width])
