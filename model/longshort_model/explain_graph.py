"""The gates and memories of a layer as further outputs of its graph.

The LSTM operator returns neither gates nor cell states, so they are computed again beside it; that nearly
doubles the run, which is why `explain.onnx` is a file of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import onnx
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from longshort_model.onnx_nodes import Nodes

EXPLAINED: Final = ("forget_gate", "input_gate", "candidate", "output_gate", "cell_state", "hidden_state")


def explain(g: Nodes, n: int, tensors: list[str]) -> None:
    """Add `layer<n>.<what>` [batch, time, hidden] for each of EXPLAINED.

    `tensors` names the layer's input and hidden states [time, batch, ...] and its memories before the first
    step [1, batch, hidden]. The gates are computed at once from the hidden states shifted by one, the cells by a
    Scan.
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
