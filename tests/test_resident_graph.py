"""The wrapped graph as a graph: valid, its names, what it refuses. What it computes is in test_resident_engine.py."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from graphs import write_adder
from longshort_service import resident_graph
from longshort_service.resident_graph import PoolLayout, UnsuitableGraph
from longshort_service.signature_json import METADATA_KEY, from_json


def signature_of(model: onnx.ModelProto):
    (text,) = (entry.value for entry in model.metadata_props if entry.key == METADATA_KEY)
    return from_json(text)


@pytest.mark.parametrize("name", ["metro", "wide", "deep"])
def test_wrapped_graph_is_valid_and_takes_rows_instead_of_states(repository, name):
    model = onnx.load(repository / name / "1" / "model.onnx")
    before = model.SerializeToString()
    wrapped = resident_graph.resident(model, signature_of(model))
    onnx.checker.check_model(wrapped, full_check=True)
    assert [node.name for node in wrapped.graph.input] == [
        "x",
        "sequence_lens",
        "longshort.pool",
        "longshort.source_rows",
        "longshort.target_rows",
    ]
    assert [node.name for node in wrapped.graph.output] == ["y", "longshort.finite", "longshort.next_pool"]
    assert model.SerializeToString() == before


@pytest.mark.parametrize("graph", [resident_graph.reading, resident_graph.writing])
def test_graphs_that_move_rows_are_valid(graph):
    onnx.checker.check_model(graph(PoolLayout(5, 4)), full_check=True)


def test_states_of_one_layer_are_not_transposed(repository):
    """A transposition is a launch on a device, and moves nothing where only one layer lies before the batch."""
    for name, expected in (("metro", 0), ("deep", 4)):
        model = onnx.load(repository / name / "1" / "model.onnx")
        wrapped = resident_graph.resident(model, signature_of(model))
        counts = [sum(n.op_type == "Transpose" for n in m.graph.node) for m in (model, wrapped)]
        assert counts[1] - counts[0] == expected


@pytest.mark.parametrize(
    ("shapes", "segments", "width"),
    [([(1, 64), (1, 64)], 32, 4), ([(2, 3)], 3, 2), ([(5,)], 5, 1), ([()], 1, 1), ([(3,), (5,)], 2, 4)],
)
def test_row_lies_in_equal_segments_of_at_most_four_numbers(shapes, segments, width):
    layout = PoolLayout.of(shapes)
    assert (layout.segments, layout.width) == (segments, width)
    assert layout.size == segments * width


def test_places_are_rows_and_zeros():
    assert resident_graph.places(np.array([4, 2])).tolist() == [[[4, 0]], [[2, 0]]]


def test_graph_of_an_old_opset_and_one_without_states_are_refused(tmp_path):
    path = tmp_path / "model.onnx"
    signature = write_adder(path)
    model = onnx.load(path)
    with pytest.raises(UnsuitableGraph, match="no states"):
        resident_graph.resident(model, dataclasses.replace(signature, states=()))
    model.opset_import[0].version = 12
    with pytest.raises(UnsuitableGraph, match="opset 12"):
        resident_graph.resident(model, signature)
