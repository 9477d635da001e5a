"""The explain graph of any file: the gates and memories of its LSTM, GRU and RNN nodes as further outputs.

The operators give out neither gates nor cell states, so a Scan beside each node computes them again, step by step from
the node's own hidden states. Owns the derived graph; loads no files and runs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import onnx
from onnx import TensorProto, helper

from longshort_service.explain_cells import Cell, Nodes, Weights
from longshort_service.explain_survey import EXPLAINED, PREFIX, output_name, survey
from longshort_service.recurrent_node import PEEPHOLES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from longshort_service.recurrent_node import Recurrent


MAX_REASONS: Final = 3  # in a message; real files have dozens of nodes in branches


class NothingToExplain(ValueError):
    """A file without a recurrent node that can be explained; the message says why."""


def derive(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return the model with gates and memories as further outputs, and a sentence for each node that is left out.

    The n-th recurrent node of the graph is layer n, left out or not. Of each, `layer<n>.<what>` is
    `[batch, time, hidden]` in the node's own number type: for an LSTM forget_gate, input_gate, candidate, output_gate,
    cell_state and hidden_state; for a GRU update_gate, reset_gate, candidate and hidden_state; for an RNN hidden_state.
    Those of a direction from the end to the beginning are called `<what>_reverse`. Steps beyond a row's
    `sequence_lens` are zero. All other outputs are as before; `model` is not changed, and its external data is not
    looked at. Raises NothingToExplain.
    """
    layers, notes = survey(model)
    if not layers:
        reasons = " ".join(notes[:MAX_REASONS]) or "the graph has no node of type LSTM, GRU or RNN"
        more = f" So are {len(notes) - MAX_REASONS} others." if len(notes) > MAX_REASONS else ""
        raise NothingToExplain(reasons + more)
    derived = onnx.ModelProto()
    derived.CopyFrom(model)
    for layer in layers:
        n, said, elem_type = layer.number, layer.said, layer.elem_type
        node = derived.graph.node[layer.place]
        hidden_states = _hidden_states(node, f"{PREFIX}.layer{n}.Y")
        for direction, is_reverse in enumerate(said.is_reverse):
            nodes = Nodes(f"{PREFIX}.layer{n}.{direction}", elem_type)
            found = _explain(nodes, said, direction, hidden_states)
            for what in EXPLAINED[said.op_type]:
                name = output_name(n, what, is_reverse=is_reverse)
                nodes.add("Transpose", [found[what]], [name], perm=[1, 0, 2])
                derived.graph.output.append(
                    helper.make_tensor_value_info(name, elem_type, [None, None, said.hidden_size])
                )
            derived.graph.node.extend(nodes.nodes)
    return derived, notes


def can_derive(model: onnx.ModelProto) -> bool:
    """Whether `derive` has something to explain. Takes far less time than deriving."""
    return bool(survey(model)[0])


def _hidden_states(node: onnx.NodeProto, name: str) -> str:
    """Return the name of a node's hidden states `[time, directions, batch, hidden]`, which it is given if need be."""
    if not node.output[0]:
        node.output[0] = name
    return str(node.output[0])


def _explain(nodes: Nodes, said: Recurrent, direction: int, hidden_states: str) -> dict[str, str]:
    """Add nodes that compute what a direction of a node did; return the tensors `[time, batch, hidden]` by name."""
    sequence = nodes.pick(hidden_states, direction, axis=1)
    if not said.gates:
        return {"hidden_state": sequence}
    sums, weights = _weights(nodes, said, direction)
    starts = [_start(nodes, said.hidden0, direction, sequence)]
    if said.op_type == "LSTM":
        starts.append(_start(nodes, said.cell0, direction, sequence))
    scanned = [sequence, *sums.values()]
    if said.lengths:
        scanned.append(_is_real(nodes, said))
    body, outputs = _body(nodes, said, direction, weights)
    is_reverse = int(said.is_reverse[direction])
    names = {what: f"{nodes.fresh()}.{what}" for what in outputs}
    last = [f"{nodes.fresh()}.last{k}" for k in range(len(starts))]
    nodes.add(
        "Scan",
        [*starts, *scanned],
        [*last, *names.values()],
        body=body,
        num_scan_inputs=len(scanned),
        scan_input_directions=[is_reverse] * len(scanned),
        scan_output_directions=[is_reverse] * len(outputs),
    )
    return {**names, "hidden_state": sequence}


def _weights(nodes: Nodes, said: Recurrent, direction: int) -> tuple[dict[str, str], Weights]:
    """Add the input's part of each gate's sum, `[time, batch, hidden]`, and the weights of the hidden state."""

    def matrices(tensor: str) -> dict[str, str]:
        flat = nodes.add("Transpose", [nodes.pick(tensor, direction, axis=0)], perm=[1, 0])
        stacked = nodes.add("Reshape", [flat, nodes.integers([0, len(said.gates), -1])])
        return {gate: nodes.pick(stacked, k, axis=1) for k, gate in enumerate(said.gates)}

    def rows(tensor: str, labels: Iterable[str]) -> dict[str, str]:
        labels = list(labels)
        flat = nodes.pick(tensor, direction, axis=0)
        stacked = nodes.add("Reshape", [flat, nodes.integers([len(labels), -1])])
        return {label: nodes.pick(stacked, k, axis=0) for k, label in enumerate(labels)}

    sums = {gate: nodes.add("MatMul", [said.x, matrix]) for gate, matrix in matrices(said.weights).items()}
    of_hidden: dict[str, str] = {}
    if said.bias:
        both = rows(said.bias, [f"{of}.{gate}" for of in ("input", "hidden") for gate in said.gates])
        sums = {gate: nodes.add("Add", [total, both[f"input.{gate}"]]) for gate, total in sums.items()}
        of_hidden = {gate: both[f"hidden.{gate}"] for gate in said.gates}
    peepholes = rows(said.peepholes, PEEPHOLES) if said.peepholes else {}
    return sums, Weights(matrices(said.hidden_weights), of_hidden, peepholes)


def _start(nodes: Nodes, given: str, direction: int, sequence: str) -> str:
    """Return the state before the first step, `[batch, hidden]`: the given one, or zeros."""
    if given:
        return nodes.pick(given, direction, axis=0)
    shape = nodes.add("Shape", [nodes.pick(sequence, 0, axis=0)])
    return nodes.add("ConstantOfShape", [shape], value=helper.make_tensor("", nodes.elem_type, [1], [0]))


def _is_real(nodes: Nodes, said: Recurrent) -> str:
    """Return which steps lie within their row's length, `[time, batch, 1]` bool. Range would need opset 11."""
    num_steps = nodes.add("Gather", [nodes.add("Shape", [said.x]), nodes.integers([0])], axis=0)
    ones = nodes.add(
        "ConstantOfShape", [num_steps], value=helper.make_tensor("", TensorProto.INT64, [1], [1])
    )
    steps = nodes.add("Reshape", [nodes.add("NonZero", [ones]), nodes.integers([-1, 1, 1])])
    lengths = nodes.add("Cast", [said.lengths], to=TensorProto.INT64)
    return nodes.add("Less", [steps, nodes.add("Reshape", [lengths, nodes.integers([1, -1, 1])])])


def _body(
    outer: Nodes, said: Recurrent, direction: int, weights: Weights
) -> tuple[onnx.GraphProto, list[str]]:
    """Return a Scan's step over the hidden states, the gates' sums and what is real, and what it gives out."""
    body = Nodes(f"{outer.fresh()}.step", outer.elem_type)
    names = {
        what: f"{body.fresh()}.{what}"
        for what in ("hidden", "cell", "next_hidden", "next_cell", "sequence", "is_real")
    }
    sums = {gate: f"{body.fresh()}.sum.{gate}" for gate in said.gates}
    cell = Cell(body, said, weights, said.gate_curves[direction], said.candidate_curves[direction], sums)
    if said.op_type == "LSTM":
        found = cell.lstm(names["hidden"], names["cell"])
        states = {"hidden": names["sequence"], "cell": found["cell_state"]}
    else:
        found = cell.gru(names["hidden"])
        states = {"hidden": names["sequence"]}
    inputs = [*(names[state] for state in states), names["sequence"], *sums.values()]
    if said.lengths:  # padding moves no state: from the end on it comes first
        inputs.append(names["is_real"])
        zero = body.number(0)
        found = {what: body.add("Where", [names["is_real"], tensor, zero]) for what, tensor in found.items()}
        states = {
            state: body.add("Where", [names["is_real"], tensor, names[state]])
            for state, tensor in states.items()
        }
    outputs = [
        body.add("Identity", [tensor], [f"{body.fresh()}.out"])
        for tensor in (*states.values(), *found.values())
    ]
    graph = helper.make_graph(
        body.nodes,
        "step",
        [onnx.ValueInfoProto(name=name) for name in inputs],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    return graph, list(found)
