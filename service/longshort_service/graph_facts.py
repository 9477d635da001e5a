"""What a graph takes and gives, as its file says: names, dtypes, axes, operators. Runs nothing.

Needs onnx; only files that do not say it themselves are read with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import onnx
from onnx import AttributeProto, TensorProto

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    Axis = int | str | None

_DTYPES: Final[dict[Any, str]] = {
    TensorProto.FLOAT16: "float16",
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
}
# Weights say nothing about shapes; short tensors are shapes and axes themselves.
_LONGEST_SHAPE: Final = 64


@dataclass(frozen=True, slots=True)
class TensorFact:
    """A graph's input or output. An axis is a size, a symbol, or None where nothing is said; `axes` None: no rank."""

    name: str
    dtype: str
    axes: tuple[Axis, ...] | None

    @property
    def open_axes(self) -> tuple[int, ...]:
        """The places of axes whose size the file leaves open."""
        return tuple(place for place, axis in enumerate(self.axes or ()) if not isinstance(axis, int))


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What there is to infer a signature from. `operators` are (domain, name), nested graphs' among them.

    `external_files` hold weights that are not in the file itself.
    """

    inputs: tuple[TensorFact, ...]
    outputs: tuple[TensorFact, ...]
    operators: frozenset[tuple[str, str]]
    external_files: tuple[Path, ...] = ()

    def input(self, name: str) -> TensorFact:
        """Return the input of a name. Raises KeyError."""
        return {fact.name: fact for fact in self.inputs}[name]

    def output(self, name: str) -> TensorFact:
        """Return the output of a name. Raises KeyError."""
        return {fact.name: fact for fact in self.outputs}[name]


def facts_of(
    model: onnx.ModelProto, inferred: Sequence[onnx.ValueInfoProto], external_files: Sequence[Path] = ()
) -> GraphFacts:
    """Return what a graph says of itself; sizes of outputs that it leaves out are taken from what is `inferred`."""
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    inputs = tuple(_fact(value) for value in model.graph.input if value.name not in weights)
    outputs = tuple(_fact(value) for value in model.graph.output)
    known = {value.name: _fact(value) for value in inferred}
    return GraphFacts(
        inputs,
        tuple(_completed(fact, known.get(fact.name)) for fact in outputs),
        frozenset((node.domain or "ai.onnx", node.op_type) for node in nodes_of(model)),
        tuple(external_files),
    )


def inferred_values(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return what can be inferred of a graph's tensors, its outputs among them; nothing where that fails."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    for tensor in light.graph.initializer:
        if len(tensor.dims) != 1 or tensor.dims[0] > _LONGEST_SHAPE:
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
    try:
        graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    except Exception:  # noqa: BLE001  C++ raises what it likes; what is not known is asked
        return []
    return [*graph.value_info, *graph.output]


def nodes_of(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield all nodes of a model: its graph's, those of graphs within them, and its functions'."""
    left: list[onnx.NodeProto] = [
        *model.graph.node,
        *(node for function in model.functions for node in function.node),
    ]
    while left:
        node = left.pop()
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                left.extend(attribute.g.node)
            elif attribute.type == AttributeProto.GRAPHS:
                left.extend(inner for graph in attribute.graphs for inner in graph.node)


def tensors_of(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield all tensors that a model holds: weights, of graphs within others too, and constants of nodes."""
    graphs = [model.graph]
    for node in nodes_of(model):
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == AttributeProto.TENSORS:
                yield from attribute.tensors
            elif attribute.type == AttributeProto.SPARSE_TENSOR:
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            elif attribute.type == AttributeProto.GRAPH:
                graphs.append(attribute.g)
            elif attribute.type == AttributeProto.GRAPHS:
                graphs.extend(attribute.graphs)
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)


def _fact(value: onnx.ValueInfoProto) -> TensorFact:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return TensorFact(value.name, (kind or "unknown type").removesuffix("_type"), None)
    tensor = value.type.tensor_type
    number = tensor.elem_type
    dtype = _DTYPES.get(number)
    if dtype is None:
        names = {value: name for name, value in TensorProto.DataType.items()}
        dtype = names.get(number, f"type {number}").lower()
    if not tensor.HasField("shape"):
        return TensorFact(value.name, dtype, None)
    return TensorFact(value.name, dtype, tuple(_axis(axis) for axis in tensor.shape.dim))


def _axis(axis: onnx.TensorShapeProto.Dimension) -> Axis:
    if axis.WhichOneof("value") == "dim_value":
        size: int = axis.dim_value
        return size if size > 0 else None  # exporters write 0 and -1 for what they do not know
    return axis.dim_param or None


def _completed(fact: TensorFact, inferred: TensorFact | None) -> TensorFact:
    """Return what a file declares of an output, with inferred sizes where it declares none."""
    if inferred is None or inferred.axes is None:
        return fact
    if fact.axes is None:
        return TensorFact(fact.name, fact.dtype, inferred.axes)
    if len(fact.axes) != len(inferred.axes):
        return fact
    axes = tuple(
        better if isinstance(better, int) and not isinstance(axis, int) else axis
        for axis, better in zip(fact.axes, inferred.axes, strict=True)
    )
    return TensorFact(fact.name, fact.dtype, axes)
