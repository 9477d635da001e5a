"""Which recurrent nodes of a file can be explained, and why the others cannot.

Looks at the nodes and at the types of their weights; changes nothing, loads no files and runs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import onnx
from onnx import TensorProto

from longshort_service import recurrent_node
from longshort_service.recurrent_node import LeftOut, Recurrent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

OLDEST_OPSET: Final = 9  # where Scan has its present form, and Where and NonZero begin
PREFIX: Final = "longshort.explain"  # what the names of the derived graph's own tensors begin with
EXPLAINED: Final = {
    "LSTM": ("forget_gate", "input_gate", "candidate", "output_gate", "cell_state", "hidden_state"),
    "GRU": ("update_gate", "reset_gate", "candidate", "hidden_state"),
    "RNN": ("hidden_state",),
}
_FLOATS: Final = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True, slots=True)
class Layer:
    """A recurrent node that can be explained: the `number`-th of its graph, at `place` among all nodes."""

    number: int
    place: int
    said: Recurrent
    elem_type: int  # of its numbers, as onnx.TensorProto counts them


def output_name(number: int, what: str, *, is_reverse: bool) -> str:
    """Return what the tensor for one of EXPLAINED of a layer's direction is called."""
    return f"layer{number}.{what}{'_reverse' if is_reverse else ''}"


def survey(model: onnx.ModelProto) -> tuple[list[Layer], list[str]]:
    """Return the layers that can be explained, and a sentence for each recurrent node that cannot."""
    layers: list[Layer] = []
    notes: list[str] = []
    taken = {name for node in model.graph.node for name in node.output}
    taken |= {value.name for value in model.graph.input} | {tensor.name for tensor in model.graph.initializer}
    own_prefix = min((name for name in taken if name.startswith(PREFIX)), default="")
    types = _Types(model)
    places = [place for place, node in enumerate(model.graph.node) if recurrent_node.is_recurrent(node)]
    for n, place in enumerate(places):
        node = model.graph.node[place]
        try:
            said = _read(model, node, n, taken, own_prefix)
            layers.append(Layer(n, place, said, types.of(said.weights)))
        except LeftOut as reason:
            notes.append(f"layer{n}, {_label(node)}, is left out: {reason}.")
    notes += [f"{what} is left out: only nodes of the graph itself are explained." for what in _inner(model)]
    notes += [
        f"{_label(node)} is left out: it is no operator of the standard, but of {node.domain}."
        for node in model.graph.node
        if not recurrent_node.is_recurrent(node) and _sounds_recurrent(node)
    ]
    return layers, notes


def _read(
    model: onnx.ModelProto, node: onnx.NodeProto, n: int, taken: set[str], own_prefix: str
) -> Recurrent:
    """Return what a node says. `taken` are the graph's names, `own_prefix` one of them that begins as ours do."""
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < OLDEST_OPSET:
        raise LeftOut(f"the graph is of opset {opset}, explained are those from {OLDEST_OPSET} on")
    said = recurrent_node.read(node)
    names = {
        output_name(n, what, is_reverse=is_reverse)
        for what in EXPLAINED[said.op_type]
        for is_reverse in said.is_reverse
    }
    clash = min(names & taken, default=own_prefix)
    if clash:
        raise LeftOut(f"the graph has a tensor {clash} of its own")
    return said


class _Types:
    """The number types of a graph's tensors; what the file does not say is inferred when it is first asked for."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._known = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        self._known |= _declared(model.graph)
        self._is_inferred = False

    def of(self, name: str) -> int:
        """Return the type of a tensor. Raises LeftOut where it is unknown or holds no floating-point numbers."""
        if name not in self._known and not self._is_inferred:
            self._is_inferred = True
            self._infer()
        elem_type = self._known.get(name, TensorProto.UNDEFINED)
        if elem_type not in _FLOATS:
            raise LeftOut(f"its weights {name} are {TensorProto.DataType.Name(elem_type)}")
        return elem_type

    def _infer(self) -> None:
        try:
            inferred = onnx.shape_inference.infer_shapes(self._model)
        except (onnx.shape_inference.InferenceError, ValueError):  # too large is a ValueError
            return  # what is not known is left out
        self._known = _declared(inferred.graph) | self._known


def _declared(graph: onnx.GraphProto) -> dict[str, int]:
    return {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.HasField("tensor_type")
    }


def _inner(model: onnx.ModelProto) -> Iterator[str]:
    """Return the recurrent nodes in subgraphs and functions, as a reader would look for them."""
    for node in model.graph.node:
        for graph in _subgraphs(node):
            for inner in _walk(graph.node):
                yield f"{_label(inner)} in {_label(node)}"
    for function in model.functions:
        for inner in _walk(function.node):
            yield f"{_label(inner)} in the function {function.name}"


def _walk(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        if recurrent_node.is_recurrent(node):
            yield node
        for graph in _subgraphs(node):
            yield from _walk(graph.node)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _sounds_recurrent(node: onnx.NodeProto) -> bool:
    return any(kind in node.op_type for kind in recurrent_node.GATES)


def _label(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name!r}" if node.name else str(node.op_type)
