"""What an ONNX node of type LSTM, GRU or RNN says: its inputs by name, its directions, the curves of its gates.

Reads nodes only; the operators are those of https://onnx.ai/onnx/operators. Where that page leaves open which numbers
of `activation_alpha` belong to which curve, onnxruntime's reading holds: the node is run by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import onnx

# The gates of a node in the order of its weights, and the rows of its peepholes.
GATES: Final = {
    "LSTM": ("input", "output", "forget", "candidate"),
    "GRU": ("update", "reset", "candidate"),
    "RNN": (),
}
PEEPHOLES: Final = ("input", "output", "forget")
# The numbers that a curve takes, with onnxruntime's defaults. Affine and ScaledTanh are no operators of their own.
_CURVES: Final[dict[str, tuple[str, dict[str, float]]]] = {
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "relu": ("Relu", {}),
    "softsign": ("Softsign", {}),
    "softplus": ("Softplus", {}),
    "leakyrelu": ("LeakyRelu", {"alpha": 0.01}),
    "thresholdedrelu": ("ThresholdedRelu", {"alpha": 0.0}),
    "elu": ("Elu", {"alpha": 1.0}),
    "hardsigmoid": ("HardSigmoid", {"alpha": 0.2, "beta": 0.5}),
}
_DEFAULT_CURVES: Final = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ()}
_INPUTS: Final = ("x", "weights", "hidden_weights", "bias", "lengths", "hidden0", "cell0", "peepholes")
_DIRECTIONS: Final = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


class LeftOut(ValueError):
    """A recurrent node that cannot be explained; the message goes on from "is left out: "."""


@dataclass(frozen=True, slots=True)
class Curve:
    """An operator from a sum to a gate, with its attributes."""

    op_type: str
    attributes: dict[str, float]


@dataclass(frozen=True, slots=True)
class Recurrent:
    """A recurrent node. Names of tensors are "" where the node has none.

    `is_reverse` has an entry for each direction, in the order of axis 0 of the weights; `gate_curves` and
    `candidate_curves` too.
    """

    op_type: str
    x: str  # [time, batch, features]
    weights: str  # [directions, gates * hidden, features]
    hidden_weights: str  # [directions, gates * hidden, hidden]
    bias: str  # [directions, 2 * gates * hidden]
    lengths: str  # [batch] i32
    hidden0: str  # [directions, batch, hidden]
    cell0: str  # [directions, batch, hidden]
    peepholes: str  # [directions, 3 * hidden]
    is_reverse: tuple[bool, ...]
    gate_curves: tuple[Curve, ...]
    candidate_curves: tuple[Curve, ...]
    hidden_size: int | None
    clip: float | None  # sums are cut to [-clip, clip]
    couples_gates: bool  # LSTM: the forget gate is 1 - the input gate
    resets_after: bool  # GRU: the reset gate cuts the weighted sum, not the memory before it

    @property
    def gates(self) -> tuple[str, ...]:
        """Its gates in the order of its weights."""
        return GATES[self.op_type]


def is_recurrent(node: onnx.NodeProto) -> bool:
    """Whether it is one of the standard's three recurrent operators."""
    return node.domain in ("", "ai.onnx") and node.op_type in GATES


def read(node: onnx.NodeProto) -> Recurrent:
    """Return what a node says for which `is_recurrent` holds. Raises LeftOut."""
    given = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    if given.get("layout", 0) != 0:
        raise LeftOut("its first axis is the batch (layout 1)")
    if not node.output:
        raise LeftOut("it gives out nothing")
    direction = _text(given.get("direction", "forward"))
    if direction not in _DIRECTIONS:
        raise LeftOut(f"its direction is {direction!r}")
    is_reverse = _DIRECTIONS[direction]
    curves = _read_curves(node.op_type, given, len(is_reverse))
    a_direction = len(_DEFAULT_CURVES[node.op_type])
    return Recurrent(
        op_type=node.op_type,
        **dict(zip(_INPUTS, [*node.input, *[""] * (len(_INPUTS) - len(node.input))], strict=True)),
        is_reverse=is_reverse,
        gate_curves=tuple(curves[::a_direction] if a_direction else ()),
        candidate_curves=tuple(curves[1::a_direction] if a_direction else ()),
        hidden_size=given.get("hidden_size"),
        clip=given.get("clip"),
        couples_gates=bool(given.get("input_forget", 0)),
        resets_after=bool(given.get("linear_before_reset", 0)),
    )


def _read_curves(op_type: str, given: dict[str, Any], num_directions: int) -> list[Curve]:
    """Return the curves of all directions, one after the other. An RNN's is not needed: it has no gates."""
    defaults = _DEFAULT_CURVES[op_type]
    names = [_text(name) for name in given.get("activations", ())] if defaults else []
    names = names or [*defaults] * num_directions
    if len(names) != len(defaults) * num_directions:
        raise LeftOut(f"it has {len(names)} activations for {num_directions} directions")
    numbers: dict[str, list[float]] = {
        "alpha": list(given.get("activation_alpha", ())),
        "beta": list(given.get("activation_beta", ())),
    }
    return [_take_curve(name, numbers) for name in names]


def _take_curve(name: str, numbers: dict[str, list[float]]) -> Curve:
    """Return a curve, and take the numbers that it needs from the front of those not yet taken."""
    if name.lower() not in _CURVES:
        raise LeftOut(f"its activation {name} is not known here")
    op_type, defaults = _CURVES[name.lower()]
    taken = {}
    for which, default in defaults.items():
        left = numbers[which]
        taken[which] = left[0] if left else default
        numbers[which] = left[1:]
    return Curve(op_type, taken)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
