"""The ONNX graph of an LSTM with its head: from weights in NumPy to a model file.

Owns the weights' form outside PyTorch, the two graphs (`model.onnx`, `explain.onnx`) and their fingerprint.
Knows neither PyTorch nor whether the weights are any good: `export` checks that.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx
from longshort_service.signature import MissingValue
from longshort_service.signature_json import METADATA_KEY, to_json
from onnx import helper

from longshort_model import explain_graph
from longshort_model.onnx_nodes import Nodes

if TYPE_CHECKING:
    from longshort_service.signature import Signature
    from numpy.typing import NDArray


HOURS_OF_WEEK: Final = 168


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

    With a `calendar` two more features follow, the hour of the day and the weekday (0 is Monday): each hour of the
    week has learnt numbers, which the first layer sees beside the normalised values. A table and no sine: that has
    the trouble of the softplus.
    """

    layers: tuple[Layer, ...]
    head_weights: NDArray[np.float32]  # [outputs, hidden]
    head_bias: NDArray[np.float32]  # [outputs]
    mean: NDArray[np.float32]  # [features]
    scale: NDArray[np.float32]  # [features]
    columns: tuple[int, ...]  # [outputs]: the feature whose last value an output starts from
    band_factors: NDArray[np.float32] | None = None  # [2]
    calendar: NDArray[np.float32] | None = None  # [168, width]

    @property
    def num_features(self) -> int:
        """How many numbers a value has: hour and weekday are two."""
        return len(self.mean) + (0 if self.calendar is None else 2)

    def first_layer_inputs(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return what the first layer sees of raw values [..., features]: normalised, the calendar looked up."""
        num_values = len(self.mean)
        normal: NDArray[np.floating] = (values[..., :num_values] - self.mean) / self.scale
        if self.calendar is None:
            return normal
        hour, weekday = (values[..., num_values + k].astype(np.int64) for k in (0, 1))
        return np.concatenate([normal, self.calendar[weekday % 7 * 24 + hour % 24]], axis=-1)

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
    g = Nodes()
    features, outputs, hidden = weights.num_features, len(weights.columns), weights.hidden
    values, calendar = "x", ""
    if weights.calendar is not None:
        values, calendar = g.split("x", 2, axis=2, sizes=[len(weights.mean), 2])
    if missing is MissingValue.PASS:
        values = g.add("Where", [g.add("IsNaN", [values]), g.constant("mean", weights.mean), values])
    centred = g.add("Sub", [values, g.constant("mean", weights.mean)])
    normal = g.add("Div", [centred, g.constant("scale", weights.scale)])
    if weights.calendar is not None:
        normal = g.add("Concat", [normal, _calendar(g, weights.calendar, calendar)], axis=2)
    sequence = g.add("Transpose", [normal], perm=[1, 0, 2])  # [time, batch, features]
    short_terms = g.split("h0", len(weights.layers), axis=0)
    long_terms = g.split("c0", len(weights.layers), axis=0)
    ends: list[tuple[str, str]] = []
    for n, layer in enumerate(weights.layers):
        before = sequence
        sequence, *end = _lstm(g, n, layer, [before, short_terms[n], long_terms[n]])
        ends.append((end[0], end[1]))
        if explain:
            explain_graph.explain(g, n, [before, sequence, short_terms[n], long_terms[n]])
    g.add("Concat", [h for h, _ in ends], outputs=["hn"], axis=0)
    g.add("Concat", [c for _, c in ends], outputs=["cn"], axis=0)
    _head(g, weights, g.add("Transpose", [sequence], perm=[1, 0, 2]), values)
    memory = [len(weights.layers), "batch", hidden]
    inputs = {"x": ["batch", "time", features], "h0": memory, "c0": memory}
    results = {"y": ["batch", "time", outputs], "hn": memory, "cn": memory}
    if explain:
        for n in range(len(weights.layers)):
            results |= {f"layer{n}.{what}": ["batch", "time", hidden] for what in explain_graph.EXPLAINED}
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
    helper.set_model_props(model, {METADATA_KEY: to_json(signature)})
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _calendar(g: Nodes, table: NDArray[np.float32], hour_and_weekday: str) -> str:
    """Add the look-up of [batch, time, 2] in `table`; return [batch, time, width].

    Modulo 24 and 7: an index beyond the table would fail the run, and everyone's in it.
    """
    whole = g.add("Cast", [hour_and_weekday], to=onnx.TensorProto.INT64)
    within = g.add("Mod", [whole, g.constant("calendar.sizes", np.array([24, 7]))])
    hours = g.add("Mul", [within, g.constant("calendar.hours", np.array([1, 24]))])
    index = g.add("ReduceSum", [hours, g.constant("calendar.axis", np.array([2]))], keepdims=0)
    return g.add("Gather", [g.constant("calendar", table), index], axis=0)


def _lstm(g: Nodes, n: int, layer: Layer, inputs: list[str]) -> tuple[str, str, str]:
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


def _head(g: Nodes, weights: Weights, hidden_states: str, values: str) -> None:
    """Add the head. Its scale is multiplied into the weights: a node costs a microsecond at every step."""
    columns = np.array(weights.columns)
    unit = weights.scale[columns]  # [outputs]
    if weights.band_factors is not None:
        unit = unit * np.abs(np.array([1, *weights.band_factors], np.float32))
    product = g.add("MatMul", [hidden_states, g.constant("head.W", weights.head_weights.T * unit)])
    change = g.add("Add", [product, g.constant("head.b", weights.head_bias * unit)])  # [batch, time, outputs]
    if weights.band_factors is not None:
        median, raw = g.split(change, 2, axis=2, sizes=[1, 2])
        signs = g.constant("head.signs", np.sign(weights.band_factors))
        distance = g.add("Mul", [g.add("Abs", [raw]), signs])
        change = g.add("Concat", [median, g.add("Add", [median, distance])], axis=2)
    last = (
        values
        if len(weights.mean) == 1
        else g.add("Gather", [values, g.constant("columns", columns)], axis=2)
    )
    g.add("Add", [last, change], outputs=["y"])
