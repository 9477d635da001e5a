"""One step of an LSTM and of a GRU, written as ONNX nodes that give out what the operators keep to themselves.

The equations are those of https://onnx.ai/onnx/operators. A step is the body of a Scan; it starts from the hidden state
that the operator itself had before it, so that nothing drifts from what the operator did.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from longshort_service.recurrent_node import Curve, Recurrent


class Nodes:
    """Nodes under way, with names that nobody else uses: `prefix` is unique. Numbers are of the type `elem_type`."""

    def __init__(self, prefix: str, elem_type: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.elem_type = elem_type
        self._prefix = prefix

    def fresh(self) -> str:
        """Return a name that is not yet used."""
        return f"{self._prefix}/{len(self.nodes)}"

    def add(self, op_type: str, inputs: Sequence[str], outputs: Sequence[str] = (), **attributes: Any) -> str:
        """Add a node and return the name of its first output."""
        outputs = outputs or [self.fresh()]
        self.nodes.append(helper.make_node(op_type, inputs, outputs, name=f"{outputs[0]}.node", **attributes))
        return outputs[0]

    def integers(self, values: Sequence[int] | int) -> str:
        """Return a constant i64: a scalar for a number, a vector for several."""
        return self.add("Constant", [], value=numpy_helper.from_array(np.asarray(values, np.int64)))

    def number(self, value: float) -> str:
        """Return a scalar constant."""
        return self.add("Constant", [], value=helper.make_tensor("", self.elem_type, [], [value]))

    def pick(self, tensor: str, index: int, axis: int) -> str:
        """Return the part of a tensor at a place of an axis, without that axis."""
        return self.add("Gather", [tensor, self.integers(index)], axis=axis)


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of one direction of a node by gate; the names are those of the outer graph, seen from the body.

    The bias of the input is part of the sums that a step is given.
    """

    hidden: dict[str, str]  # [hidden, hidden]
    hidden_bias: dict[str, str] = field(default_factory=dict)  # [hidden]; empty: none
    peepholes: dict[str, str] = field(default_factory=dict)  # [hidden]; empty: none


@dataclass(frozen=True, slots=True)
class Cell:
    """A step under construction: where its gates come from, and what cuts and bends their sums."""

    body: Nodes
    said: Recurrent
    weights: Weights
    gate_curve: Curve
    candidate_curve: Curve
    sums: dict[str, str]  # by gate: the input's part, [batch, hidden]

    def lstm(self, hidden: str, cell: str) -> dict[str, str]:
        """Return gates and cell state after a step from `hidden` and `cell`, each `[batch, hidden]`."""
        add = self.body.add
        i = self._gate("input", hidden, cell)
        coupled = self.said.couples_gates
        f = add("Sub", [self.body.number(1), i]) if coupled else self._gate("forget", hidden, cell)
        g = self._bend(self.candidate_curve, self._sum("candidate", hidden))
        next_cell = add("Add", [add("Mul", [f, cell]), add("Mul", [i, g])])
        o = self._gate("output", hidden, next_cell)
        return {
            "forget_gate": f,
            "input_gate": i,
            "candidate": g,
            "output_gate": o,
            "cell_state": next_cell,
        }

    def gru(self, hidden: str) -> dict[str, str]:
        """Return the gates of a step from `hidden` `[batch, hidden]`."""
        update, reset = self._gate("update", hidden), self._gate("reset", hidden)
        if self.said.resets_after:
            cut = self.body.add("Mul", [reset, self._from_hidden("candidate", hidden)])
            total = self.body.add("Add", [self.sums["candidate"], cut])
        else:
            total = self._sum("candidate", self.body.add("Mul", [reset, hidden]))
        return {
            "update_gate": update,
            "reset_gate": reset,
            "candidate": self._bend(self.candidate_curve, total),
        }

    def _gate(self, gate: str, hidden: str, cell: str = "") -> str:
        total = self._sum(gate, hidden)
        if cell and gate in self.weights.peepholes:
            seen = self.body.add("Mul", [self.weights.peepholes[gate], cell])
            total = self.body.add("Add", [total, seen])
        return self._bend(self.gate_curve, total)

    def _sum(self, gate: str, hidden: str) -> str:
        return self.body.add("Add", [self.sums[gate], self._from_hidden(gate, hidden)])

    def _from_hidden(self, gate: str, hidden: str) -> str:
        product = self.body.add("MatMul", [hidden, self.weights.hidden[gate]])
        if gate not in self.weights.hidden_bias:
            return product
        return self.body.add("Add", [product, self.weights.hidden_bias[gate]])

    def _bend(self, curve: Curve, total: str) -> str:
        clip = self.said.clip
        if clip is not None:  # with Min and Max: Clip takes its limits in another way before opset 11
            total = self.body.add("Min", [total, self.body.number(clip)])
            total = self.body.add("Max", [total, self.body.number(-clip)])
        return self.body.add(curve.op_type, [total], (), **curve.attributes)
