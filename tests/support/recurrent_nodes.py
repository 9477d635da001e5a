"""Files with one recurrent node each, and what such a node does, written in NumPy as the operators' pages have it.

https://onnx.ai/onnx/operators: LSTM, GRU, RNN. One row at a time, one step after the other, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True)
class Case:
    """A node and what it is run on. Everything that a test varies has a default."""

    op_type: str
    direction: str = "forward"
    has_bias: bool = True
    has_states: bool = True
    lengths: tuple[int, ...] = ()
    has_peepholes: bool = False
    dtype: str = "float32"
    opset: int = 17
    gives: tuple[str, ...] = ("Y", "Y_h", "Y_c")
    attributes: dict[str, Any] = field(default_factory=dict)
    batch: int = 3
    time: int = 5
    features: int = 2
    hidden: int = 4

    @property
    def num_directions(self) -> int:
        return 2 if self.direction == "bidirectional" else 1

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what the node is given, by the operator's names."""
        rng = np.random.default_rng(7)
        rows, d, h = GATES[self.op_type] * self.hidden, self.num_directions, self.hidden

        def drawn(*shape: int) -> NDArray[Any]:
            return rng.normal(size=shape).astype(self.dtype)

        found = {
            "X": drawn(self.time, self.batch, self.features),
            "W": drawn(d, rows, self.features),
            "R": drawn(d, rows, h),
        }
        if self.has_bias:
            found["B"] = drawn(d, 2 * rows)
        if self.lengths:
            found["sequence_lens"] = np.array(self.lengths, np.int32)
        if self.has_states:
            found["initial_h"] = drawn(d, self.batch, h)
            if self.op_type == "LSTM":
                found["initial_c"] = drawn(d, self.batch, h)
        if self.has_peepholes:
            found["P"] = drawn(d, 3 * h)
        return found

    def model(self) -> onnx.ModelProto:
        """Return a file with the node; weights are initializers, the rest is given at every run."""
        arrays = self.arrays()
        order = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
        order = order if self.op_type == "LSTM" else order[:6]
        inputs = [name if name in arrays else "" for name in order]
        names = ("Y", "Y_h", "Y_c")[: 3 if self.op_type == "LSTM" else 2]
        outputs = [name if name in self.gives else "" for name in names]
        given = {"direction": self.direction, "hidden_size": self.hidden, **self.attributes}
        node = helper.make_node(self.op_type, inputs, outputs, name="unit", **given)
        weights = [name for name in ("W", "R", "B", "P") if name in arrays]
        elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        graph = helper.make_graph(
            [node],
            "one",
            [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim
                )
                for name, array in arrays.items()
                if name not in weights
            ],
            [
                helper.make_tensor_value_info(name, elem_type, [None] * (4 if name == "Y" else 3))
                for name in outputs
                if name
            ],
            [numpy_helper.from_array(arrays[name], name) for name in weights],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)

    def feeds(self) -> dict[str, NDArray[Any]]:
        return {name: array for name, array in self.arrays().items() if name not in ("W", "R", "B", "P")}


def sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    return 1 / (1 + np.exp(-x))


CURVES: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "Sigmoid": sigmoid,
    "Tanh": np.tanh,
    "Relu": lambda x: np.maximum(x, 0),
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Softplus": lambda x: np.log1p(np.exp(x)),
    "HardSigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "LeakyRelu": lambda x: np.where(x >= 0, x, 0.01 * x),
    "Elu": lambda x: np.where(x >= 0, x, np.exp(x) - 1),
}


def by_hand(
    case: Case, curves: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] | None = None
) -> dict[str, NDArray[Any]]:
    """Return all gates and memories of a case `[batch, time, hidden]`, by the names that explain gives them.

    `curves` replaces curves that are not in CURVES, by their place in `activations`.
    """
    found: dict[str, NDArray[Any]] = {}
    arrays = {name: array.astype(np.float64) for name, array in case.arrays().items()}
    defaults = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}[
        case.op_type
    ]
    names = case.attributes.get("activations", defaults * case.num_directions)
    step_of = {"LSTM": _lstm_step, "GRU": _gru_step, "RNN": _rnn_step}[case.op_type]
    for d in range(case.num_directions):
        is_reverse = case.direction == "reverse" or d == 1
        places = range(d * len(defaults), (d + 1) * len(defaults))
        bent = [(curves or {}).get(place) or CURVES[names[place]] for place in places]
        given = {name: array[d] for name, array in arrays.items() if name not in ("X", "sequence_lens")}
        for row in range(case.batch):
            length = case.lengths[row] if case.lengths else case.time
            hidden = given["initial_h"][row] if case.has_states else np.zeros(case.hidden)
            cell = given["initial_c"][row] if "initial_c" in given else np.zeros(case.hidden)
            for t in reversed(range(length)) if is_reverse else range(length):
                step = step_of(case, given, bent, arrays["X"][t, row], (hidden, cell))
                hidden, cell = step["hidden_state"], step.get("cell_state", cell)
                for what, value in step.items():
                    name = f"layer0.{what}{'_reverse' if is_reverse else ''}"
                    found.setdefault(name, np.zeros((case.batch, case.time, case.hidden)))[row, t] = value
    return found


def _sums(case: Case, given: dict[str, Any], x: Any, hidden: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """Return the parts of x and of the hidden state with their biases, and the hidden state's biases, by gate."""
    num = GATES[case.op_type]
    bias = given.get("B", np.zeros(2 * num * case.hidden))
    of_x, of_hidden = np.split(bias, 2)
    return (
        np.split(given["W"] @ x + of_x, num),
        np.split(given["R"] @ hidden + of_hidden, num),
        np.split(of_hidden, num),
    )


def _cut(case: Case, x: Any) -> Any:
    clip = case.attributes.get("clip", np.inf)
    return np.clip(x, -clip, clip)


def _lstm_step(
    case: Case, given: dict[str, Any], curves: list[Any], x: Any, memories: tuple[Any, Any]
) -> dict[str, Any]:
    hidden, cell = memories
    of_x, of_hidden, _ = _sums(case, given, x, hidden)
    i, o, f, c = (a + b for a, b in zip(of_x, of_hidden, strict=True))
    pi, po, pf = np.split(given.get("P", np.zeros(3 * case.hidden)), 3)
    bend_gate, bend_candidate, bend_cell = curves
    i = bend_gate(_cut(case, i + pi * cell))
    f = 1 - i if case.attributes.get("input_forget") else bend_gate(_cut(case, f + pf * cell))
    c = bend_candidate(_cut(case, c))
    next_cell = f * cell + i * c
    o = bend_gate(_cut(case, o + po * next_cell))
    return {
        "forget_gate": f,
        "input_gate": i,
        "candidate": c,
        "output_gate": o,
        "cell_state": next_cell,
        "hidden_state": o * bend_cell(next_cell),
    }


def _gru_step(
    case: Case, given: dict[str, Any], curves: list[Any], x: Any, memories: tuple[Any, Any]
) -> dict[str, Any]:
    hidden = memories[0]
    of_x, of_hidden, bias = _sums(case, given, x, hidden)
    bend_gate, bend_candidate = curves
    z, r = (bend_gate(_cut(case, of_x[k] + of_hidden[k])) for k in range(2))
    if case.attributes.get("linear_before_reset"):
        from_hidden = r * of_hidden[2]
    else:
        from_hidden = given["R"][2 * case.hidden :] @ (r * hidden) + bias[2]
    candidate = bend_candidate(_cut(case, of_x[2] + from_hidden))
    return {
        "update_gate": z,
        "reset_gate": r,
        "candidate": candidate,
        "hidden_state": (1 - z) * candidate + z * hidden,
    }


def _rnn_step(
    case: Case, given: dict[str, Any], curves: list[Any], x: Any, memories: tuple[Any, Any]
) -> dict[str, Any]:
    hidden = memories[0]
    of_x, of_hidden, _ = _sums(case, given, x, hidden)
    return {"hidden_state": curves[0](_cut(case, of_x[0] + of_hidden[0]))}
