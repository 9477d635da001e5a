"""A graph is held against its signature before it runs: names, dtypes, shapes, axes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from longshort_service.graph_check import ModelError, check_graph, graph_shape, promised_results
from longshort_service.ports import Port
from longshort_service.signature import Channel, Constant, Signature, State

FLOAT, LONG = "tensor(float)", "tensor(int64)"


@dataclass
class Node:
    name: str
    shape: list[Any]
    type: str = FLOAT


@dataclass
class Graph:
    inputs: list[Node] = field(default_factory=list)
    outputs: list[Node] = field(default_factory=list)

    def get_inputs(self) -> list[Node]:
        return self.inputs

    def get_outputs(self) -> list[Node]:
        return self.outputs


SIGNATURE = Signature(
    "general",
    tuple(Channel(f"x{k}") for k in range(7)),
    (Channel("y"),),
    (
        State("h", "hn", (2, -1, 4), 1),
        State("cache", "cache_out", (-1, 3), 0, is_unbatched=True),
        State("samples.window", "", (-1, 2), 0, window_of="samples"),
        State("who", "", (-1, 5), 0),
    ),
    inputs=(Port("x", (2,), batch_axis=1, time_axis=0), Port("samples", (5,), time_axis=None)),
    answers=(Port("y", (1,), time_axis=None),),
    constants=(Constant("rate", (), "int64"),),
    rows_alone=True,
)


def graph() -> Graph:
    return Graph(
        [
            Node("x", ["t", "n", 2]),
            Node("samples", ["n", 7]),
            Node("h", [2, "n", 4]),
            Node("cache", [3]),
            Node("who", [1, 5]),
            Node("rate", [], LONG),
        ],
        [Node("y", ["n", 1]), Node("hn", [None, None, None]), Node("cache_out", [3]), Node("more", [])],
    )


def test_graph_that_keeps_its_signature_passes():
    check_graph(SIGNATURE, graph(), "f")
    undeclared = graph()
    undeclared.outputs[0].shape = []
    check_graph(SIGNATURE, undeclared, "f")


@pytest.mark.parametrize(
    ("place", "change", "complaint"),
    [
        ("x", {"shape": ["t", "n", 3]}, r"the signature says \[time, batch, 2\]"),
        ("x", {"shape": ["t", "n"]}, r"\[time, batch, 2\]"),
        ("x", {"type": LONG}, "the signature says float32"),
        ("samples", {"shape": ["n", 5]}, r"\[batch, 7\]"),
        ("h", {"shape": [2, "n", 5]}, r"\[2, -1, 4\]"),
        ("h", {"type": LONG}, "float32"),
        ("cache", {"shape": [4]}, r"\[3\]"),
        ("rate", {"shape": [1]}, "rate is"),
        ("rate", {"type": FLOAT}, "int64"),
        ("who", {"name": "whom"}, "the graph's inputs are"),
    ],
)
def test_input_that_does_not_is_named(place: str, change: dict[str, Any], complaint: str):
    changed = graph()
    changed.inputs = [replace(node, **change) if node.name == place else node for node in changed.inputs]
    with pytest.raises(ModelError, match=f"f: .*{complaint}"):
        check_graph(SIGNATURE, changed, "f")


@pytest.mark.parametrize(
    ("place", "change", "complaint"),
    [
        ("y", {"shape": ["n", 2]}, r"\[batch, 1\]"),
        ("hn", {"name": "ho"}, "no output hn"),
        ("y", {"type": LONG}, "float32"),
    ],
)
def test_output_that_does_not_is_named(place: str, change: dict[str, Any], complaint: str):
    changed = graph()
    changed.outputs = [replace(node, **change) if node.name == place else node for node in changed.outputs]
    with pytest.raises(ModelError, match=complaint):
        check_graph(SIGNATURE, changed, "f")


@pytest.mark.parametrize("fixed", ["x", "h", "who"])
def test_batch_that_is_fixed_is_refused_unless_rows_run_alone(fixed: str):
    """In the common graph `who` is fixed at 1 and `cache` has no batch axis."""
    batched = tuple(state for state in SIGNATURE.states if state.input != "cache")
    signature = replace(SIGNATURE, states=batched)
    inputs = [node for node in graph().inputs if node.name != "cache"]
    for node in inputs:
        node.shape = [
            size if size not in (1, "n") else 1 if node.name == fixed else "n" for size in node.shape
        ]
    check_graph(signature, Graph(inputs, graph().outputs), "f")
    with pytest.raises(ModelError, match=f"the batch of {fixed} is fixed at 1: its sessions need rows_alone"):
        check_graph(replace(signature, rows_alone=False), Graph(inputs, graph().outputs), "f")


@pytest.mark.parametrize("name", ["x", "cache"])
def test_tensor_without_a_batch_is_refused_unless_rows_run_alone(name: str):
    changed = graph()
    signature = SIGNATURE
    if name == "x":
        signature = replace(SIGNATURE, inputs=(Port("x", (2,), batch_axis=None), SIGNATURE.inputs[1]))
        changed.inputs[0].shape = ["t", 2]
    check_graph(signature, changed, "f")
    with pytest.raises(ModelError, match=f"{name} has no batch axis: its sessions need rows_alone"):
        check_graph(replace(signature, rows_alone=False), changed, "f")


def test_windows_lengthen_the_input_that_they_go_before():
    states = (State("x.window", "", (-1, 2, 9), 0, window_of="x", window_axis=0),)
    signature = Signature(
        "alone",
        tuple(Channel(f"x{k}") for k in range(9)),
        (Channel("y"),),
        states,
        inputs=(Port("x", (1, 9), batch_axis=None, time_axis=None),),
        rows_alone=True,
    )
    check_graph(signature, Graph([Node("x", [3, 9])], [Node("y", ["b", "t", 1])]), "f")


def test_shapes_and_results_are_those_of_the_axes():
    assert graph_shape(Port("p", (4, 5), batch_axis=2, time_axis=0)) == [-1, 4, -1, 5]
    assert list(promised_results(SIGNATURE, 1, 1)) == [
        ("y", "float32", (1, 1)),
        ("hn", "float32", (2, 1, 4)),
        ("cache_out", "float32", (3,)),
    ]
    plain = Signature("plain", (Channel("x"),), (Channel("y"),), ())
    assert list(promised_results(plain, 2, 3)) == [("y", "float32", (2, 3, 1))]
