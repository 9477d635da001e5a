"""What running a row alone and in company finds out of real graphs, each of which feels others in its own way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from longshort_service.engine import Engine
from longshort_service.model_signature import resolve
from longshort_service.row_probe import Findings, probe_rows
from wild_graphs import Nodes, value_info, write_cell, write_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

X = ("batch", "time", 3)
STATE = ("batch", 3)


def findings_of(path: Path, *, exact: bool = True) -> Findings:
    resolved = resolve(path.parent, path)
    engine = Engine(path, provider="cpu", intra_op_num_threads=1, signature=resolved.signature)
    return probe_rows(engine, exact=exact)


def write_graph(path: Path, body: Callable[[Nodes], tuple[str, str]]) -> Path:
    """Write a graph over x and s; `body` returns what is added to x, and what is added to s."""
    nodes = Nodes()
    to_answer, to_state = body(nodes)
    nodes.add("Add", "x", to_answer, output="y")
    nodes.add("Add", "s", to_state, output="next_s")
    return write_model(
        path,
        nodes,
        [value_info("x", "float32", X), value_info("s", "float32", STATE)],
        [value_info("y", "float32", X), value_info("next_s", "float32", STATE)],
    )


def size_of(nodes: Nodes, axis: int) -> str:
    """Return the number of rows (axis 0) or steps (axis 1) of a run, as an int64."""
    return nodes.add("Gather", nodes.add("Shape", "x"), nodes.constant(np.int64(axis)))


def zeros(nodes: Nodes) -> str:
    return nodes.constant(np.float32(0))


def from_rows(num_rows: int, amount: float) -> Callable[[Nodes], tuple[str, str]]:
    """Return a body that adds `amount` to each answer from so many rows on."""

    def body(nodes: Nodes) -> tuple[str, str]:
        many = nodes.add("GreaterOrEqual", size_of(nodes, 0), nodes.constant(np.int64(num_rows)))
        return nodes.add("Where", many, nodes.constant(np.float32(amount)), zeros(nodes)), zeros(nodes)

    return body


def from_the_row_before(nodes: Nodes) -> tuple[str, str]:
    """Each row's state gains the one of the row above it, the first its own."""
    before = nodes.add("Sub", nodes.add("Range", *row_numbers(nodes)), nodes.constant(np.int64(1)))
    above = nodes.add("Gather", "s", nodes.add("Max", before, nodes.constant(np.int64(0))), axis=0)
    return zeros(nodes), nodes.add("Add", above, nodes.add("ReduceSum", "x", nodes.constant([1]), keepdims=0))


def row_numbers(nodes: Nodes) -> tuple[str, str, str]:
    return nodes.constant(np.int64(0)), size_of(nodes, 0), nodes.constant(np.int64(1))


def from_the_number_of_steps(nodes: Nodes) -> tuple[str, str]:
    """Each state gains the number of steps in the run, over how many that are: 1 a step only where they are one."""
    steps = nodes.add("Cast", size_of(nodes, 1), to=1)
    return zeros(nodes), nodes.add("Mul", steps, steps)


def from_the_rows_answers(nodes: Nodes) -> tuple[str, str]:
    """Each answer is scaled by the greatest number of all rows in its own step alone."""
    return nodes.add("ReduceMax", "x", axes=[0], keepdims=1), zeros(nodes)


def test_cell_whose_rows_and_steps_are_equal_shares_its_runs(tmp_path: Path):
    path = write_cell(tmp_path / "model.onnx", dtype="int64")
    assert findings_of(path) == Findings()


@pytest.mark.parametrize("body", [from_the_rows_answers, from_the_row_before])
def test_row_that_depends_on_its_neighbour_runs_alone_by_answers_or_by_states(
    tmp_path: Path, body: Callable[[Nodes], tuple[str, str]]
):
    found = findings_of(write_graph(tmp_path / "model.onnx", body))
    assert "among 2 rows one differs from itself alone" in found.rows_alone


@pytest.mark.parametrize("num_rows", [2, 3, 8, 17, 67])
def test_row_that_differs_only_from_some_batch_size_on_is_found_at_each_size_that_is_tried(
    tmp_path: Path, num_rows: int
):
    found = findings_of(write_graph(tmp_path / "model.onnx", from_rows(num_rows, 1.0)))
    assert f"among {num_rows} rows one differs from itself alone" in found.rows_alone
    assert found.steps_alone == ""


def test_rounding_in_company_counts_where_runs_are_exact_and_not_elsewhere(tmp_path: Path):
    path = write_graph(tmp_path / "model.onnx", from_rows(3, 1e-5))
    assert "by rounding" in findings_of(path).rows_alone
    assert findings_of(path, exact=False) == Findings()


def test_steps_that_depend_on_how_many_share_a_run_run_alone_and_keep_their_batch_mates(tmp_path: Path):
    found = findings_of(write_graph(tmp_path / "model.onnx", from_the_number_of_steps))
    assert "2 steps in one run differ from one by one" in found.steps_alone
    assert found.rows_alone == ""


def test_graph_that_takes_no_two_rows_runs_each_alone_and_says_so(tmp_path: Path):
    """A batch of one that a Reshape has baked in fails in company."""

    def body(nodes: Nodes) -> tuple[str, str]:
        rows = size_of(nodes, 0)
        is_one = nodes.add("Equal", rows, nodes.constant(np.int64(1)))
        place = nodes.add("Where", is_one, nodes.constant(np.int64(0)), nodes.constant(np.int64(9)))
        return nodes.add("Gather", nodes.constant(np.zeros(1, np.float32)), place), zeros(nodes)

    found = findings_of(write_graph(tmp_path / "model.onnx", body))
    assert "a run of 2 rows fails" in found.rows_alone
    assert found.steps_alone == ""
