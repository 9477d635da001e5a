"""The ONNX graph of an LSTM with its head: from weights in NumPy to a model file.

Owns the weights' form outside PyTorch, the two graphs (`model.onnx`, `explain.onnx`) and their fingerprint.
Knows neither PyTorch nor whether the weights are any good: `export` checks that.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from longshort_service.signature import METADATA_KEY, MissingValue
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from longshort_service.signature import Signature
    from numpy.typing import NDArray

OPSET: Final = 17  # LSTM-14; every onnxruntime since 1.12 reads it
IR_VERSION: Final = 8  # the one that belongs to opset 17
EXPLAINED: Final = ("forget_gate", "input_gate", "candidate", "output_gate", "cell_state", "hidden_state")


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one LSTM layer, all f32, their rows in PyTorch's gate order i, f, g, o."""

    input_weights: NDArray[np.float32]  # [4 * hidden, inputs]
    hidden_weights: NDArray[np.float32]  # [4 * hidden, hidden]
    bias: NDArray[np.float32]  # [4 * hidden], PyTorch's b_ih + b_hh


@dataclass(frozen=True, slots=True)
class Weights:
    """An LSTM and its head. Output k is `x[column k] + scale[column k] * head`: the head predicts a change.

    With `band_factors` there are three outputs: a median, and a bound below and one above it, whose distances
    are |head| times the factors (the first negative), so that they never cross. Not softplus: onnxruntime's
    rounds the last elements of an array otherwise than the others, and a row would depend on its neighbours.
    """

    layers: tuple[Layer, ...]
    head_weights: NDArray[np.float32]  # [outputs, hidden]
    head_bias: NDArray[np.float32]  # [outputs]
    mean: NDArray[np.float32]  # [features]
    scale: NDArray[np.float32]  # [features]
    columns: tuple[int, ...]  # [outputs]: the feature whose last value an output starts from
    band_factors: NDArray[np.float32] | None = None  # [2]

    @property
    def hidden(self) -> int:
        """The size of each memory of a layer."""
        return int(self.layers[0].hidden_weights.shape[1])


def reorder(gates: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows [4 * hidden, ...] in ONNX's gate order i, o, f, c instead of PyTorch's i, f, g, o."""
    i, f, g, o = np.split(gates, 4)
    return np.concatenate([i, o, f, g])


def build(
    weights: Weights, *, missing: MissingValue = MissingValue.REPEAT_LAST, explain: bool = False
) -> onnx.ModelProto:
    """Return the model without metadata; with `explain` it also returns every layer's gates and memories.

    Under MissingValue.PASS a NaN is taken for its feature's mean. Steps of a row beyond its `sequence_lens`
    have outputs without meaning.
    """
    g = _Graph()
    features, outputs, hidden = len(weights.mean), len(weights.columns), weights.hidden
    values = "x"
    if missing is MissingValue.PASS:
        values = g.add("Where", [g.add("IsNaN", ["x"]), g.constant("mean", weights.mean), "x"])
    centred = g.add("Sub", [values, g.constant("mean", weights.mean)])
    normal = g.add("Div", [centred, g.constant("scale", weights.scale)])
    sequence = g.add("Transpose", [normal], perm=[1, 0, 2])  # [time, batch, features]
    short_terms = g.split("h0", len(weights.layers), axis=0)
    long_terms = g.split("c0", len(weights.layers), axis=0)
    ends: list[tuple[str, str]] = []
    for n, layer in enumerate(weights.layers):
        before = sequence
        sequence, *end = _lstm(g, n, layer, [before, short_terms[n], long_terms[n]])
        ends.append((end[0], end[1]))
        if explain:
            _explain(g, n, [before, sequence, short_terms[n], long_terms[n]])
    g.add("Concat", [h for h, _ in ends], outputs=["hn"], axis=0)
    g.add("Concat", [c for _, c in ends], outputs=["cn"], axis=0)
    _head(g, weights, g.add("Transpose", [sequence], perm=[1, 0, 2]), values)
    memory = [len(weights.layers), "batch", hidden]
    inputs = {"x": ["batch", "time", features], "h0": memory, "c0": memory}
    results = {"y": ["batch", "time", outputs], "hn": memory, "cn": memory}
    if explain:
        for n in range(len(weights.layers)):
            results |= {f"layer{n}.{what}": ["batch", "time", hidden] for what in EXPLAINED}
    return g.model(inputs, results)


def fingerprint(model: onnx.ModelProto) -> str:
    """Return the hexadecimal SHA-256 over the graph and its weights, whatever the metadata."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def sign(weights: Weights, signature: Signature) -> tuple[Signature, bytes, bytes]:
    """Return the signature with its fingerprint, and the bytes of `model.onnx` and `explain.onnx`.

    Both carry the fingerprint of the model, so that a reader sees that they belong together. The same weights
    and signature give the same bytes.
    """
    model = build(weights, missing=signature.missing)
    signed = dataclasses.replace(signature, fingerprint=fingerprint(model))
    explaining = build(weights, missing=signature.missing, explain=True)
    return signed, _serialize(model, signed), _serialize(explaining, signed)


def _serialize(model: onnx.ModelProto, signature: Signature) -> bytes:
    helper.set_model_props(model, {METADATA_KEY: signature.to_json()})
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _lstm(g: _Graph, n: int, layer: Layer, inputs: list[str]) -> tuple[str, str, str]:
    """Add one layer; return its sequence [time, batch, hidden] and its memories [1, batch, hidden]."""
    before, short_term, long_term = inputs
    bias = reorder(layer.bias)
    tensors = [
        g.constant(f"layer{n}.W", reorder(layer.input_weights)[None]),
        g.constant(f"layer{n}.R", reorder(layer.hidden_weights)[None]),
        g.constant(f"layer{n}.B", np.concatenate([bias, np.zeros_like(bias)])[None]),
    ]
    names = [f"layer{n}.{what}" for what in ("Y", "Y_h", "Y_c")]
    g.add(
        "LSTM",
        [before, *tensors, "sequence_lens", short_term, long_term],
        outputs=names,
        hidden_size=layer.hidden_weights.shape[1],
    )
    sequence = g.add("Squeeze", [names[0], g.constant("directions_axis", np.array([1]))])
    return sequence, names[1], names[2]


def _head(g: _Graph, weights: Weights, hidden_states: str, values: str) -> None:
    columns = np.array(weights.columns)
    product = g.add("MatMul", [hidden_states, g.constant("head.W", weights.head_weights.T)])
    change = g.add("Add", [product, g.constant("head.b", weights.head_bias)])  # [batch, time, outputs]
    if weights.band_factors is not None:
        median, raw = g.split(change, 2, axis=2, sizes=[1, 2])
        distance = g.add("Mul", [g.add("Abs", [raw]), g.constant("head.band_factors", weights.band_factors)])
        change = g.add("Concat", [median, g.add("Add", [median, distance])], axis=2)
    last = g.add("Gather", [values, g.constant("head.columns", columns)], axis=2)
    raw_change = g.add("Mul", [change, g.constant("head.scale", weights.scale[columns])])
    g.add("Add", [last, raw_change], outputs=["y"])


def _explain(g: _Graph, n: int, tensors: list[str]) -> None:
    """Recompute a layer's gates at once from the hidden states shifted by one, and its cells by a Scan.

    The LSTM operator returns neither; see docs/design/0002-export.md.
    """
    before, sequence, short_term, long_term = tensors
    first_axis = g.constant("first_axis", np.array([0]))
    shifted = g.add(
        "Concat",
        [
            short_term,
            g.add(
                "Slice",
                [sequence, g.constant("zero", np.array([0])), g.constant("last", np.array([-1])), first_axis],
            ),
        ],
        axis=0,
    )
    of_input = g.add("MatMul", [before, g.matrix(f"layer{n}.W")])
    of_hidden = g.add("MatMul", [shifted, g.matrix(f"layer{n}.R")])
    bias = g.add("Add", g.split(g.add("Squeeze", [f"layer{n}.B", first_axis]), 2, axis=0))
    sums = g.add("Add", [g.add("Add", [of_input, of_hidden]), bias])  # [time, batch, 4 * hidden]
    i, o, f, c = g.split(sums, 4, axis=2)
    gates = {
        "input_gate": g.add("Sigmoid", [i]),
        "output_gate": g.add("Sigmoid", [o]),
        "forget_gate": g.add("Sigmoid", [f]),
        "candidate": g.add("Tanh", [c]),
    }
    written = g.add("Mul", [gates["input_gate"], gates["candidate"]])
    cell0 = g.add("Squeeze", [long_term, first_axis])  # [batch, hidden]
    last_cell, cells = g.fresh(), g.fresh()
    g.add(
        "Scan",
        [cell0, gates["forget_gate"], written],
        outputs=[last_cell, cells],
        body=_cell_update(),
        num_scan_inputs=2,
    )
    for what, tensor in {**gates, "cell_state": cells, "hidden_state": sequence}.items():
        g.add("Transpose", [tensor], outputs=[f"layer{n}.{what}"], perm=[1, 0, 2])


def _cell_update() -> onnx.GraphProto:
    """One step of a Scan: L' = f * L + written."""
    nodes = [
        helper.make_node("Mul", ["forget", "cell"], ["kept"]),
        helper.make_node("Add", ["kept", "written"], ["next_cell"]),
        helper.make_node("Identity", ["next_cell"], ["cell_state"]),
    ]

    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)

    return helper.make_graph(
        nodes,
        "cell_update",
        [value("cell"), value("forget"), value("written")],
        [value("next_cell"), value("cell_state")],
    )


class _Graph:
    """Collects nodes and constants; a constant of the same name is kept once."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.names = 0

    def fresh(self) -> str:
        self.names += 1
        return f"t{self.names}"

    def add(self, operator: str, inputs: list[str], *, outputs: list[str] | None = None, **how: Any) -> str:
        names = outputs or [self.fresh()]
        self.nodes.append(helper.make_node(operator, inputs, names, **how))
        return names[0]

    def constant(self, name: str, array: NDArray[Any]) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def matrix(self, name: str) -> str:
        """Return W [1, rows, columns] as [columns, rows]; onnxruntime folds it at loading."""
        square = self.add("Squeeze", [name, self.constant("first_axis", np.array([0]))])
        return self.add("Transpose", [square], perm=[1, 0])

    def split(self, name: str, parts: int, *, axis: int, sizes: list[int] | None = None) -> list[str]:
        if parts == 1:
            return [name]
        names = [self.fresh() for _ in range(parts)]
        extra = (
            [] if sizes is None else [self.constant("split." + "_".join(map(str, sizes)), np.array(sizes))]
        )
        self.add("Split", [name, *extra], outputs=names, axis=axis)
        return names

    def model(self, inputs: dict[str, list[Any]], outputs: dict[str, list[Any]]) -> onnx.ModelProto:
        def declared(shapes: dict[str, list[Any]]) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]

        lengths = helper.make_tensor_value_info("sequence_lens", TensorProto.INT32, ["batch"])
        graph = helper.make_graph(
            self.nodes,
            "longshort",
            [*declared(inputs), lengths],
            declared(outputs),
            list(self.constants.values()),
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="longshort",
        )
