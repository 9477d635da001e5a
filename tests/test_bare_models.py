"""Files that nobody signed: each dtype, rank, axis and number of states is told from the graph and runs as alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from longshort_service.engine import Engine
from longshort_service.model_signature import resolve
from longshort_service.row_probe import probe_rows, random_rows
from wild_graphs import expected, write_cell

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = ("float16", "float32", "float64", "int32", "int64")
STATES = {
    "one": [("batch", 2)],
    "a number": [("batch",)],
    "batch second": [(2, "batch", 3)],
    "batch last": [(2, 2, "batch")],
    "four ranks": [("batch",), (1, "batch", 2), ("batch", 2, 2, 1), (2, "batch", 1, 2, 2)],
    "seven": [("batch", k) for k in range(1, 8)],
}
VALUES = {
    "a row": ("batch", "time", 3),
    "a number": ("batch", "time"),
    "a matrix": ("batch", "time", 2, 3),
    "time last": ("batch", 3, "time"),
    "one step": ("batch", 4),
    "a chunk": ("batch", 2, 2, 2),
    "time of one": ("batch", 1, 3),
}


def engine_of(path: Path) -> Engine:
    resolved = resolve(path.parent, path)
    return Engine(
        path,
        provider="cpu",
        intra_op_num_threads=1,
        signature=resolved.signature,
        arrays=resolved.arrays,
    )


def behaves_as_alone(engine: Engine, state_sizes: list[int], num_rows: int = 5, num_steps: int = 4) -> None:
    """Run rows of whole numbers together, and hold each against what is known of it alone."""
    signature = engine.signature
    (port,) = signature.inputs
    rng = np.random.default_rng(3)
    given = rng.integers(0, 3, (num_rows, num_steps, *port.shape)).astype(port.dtype)
    answers, states = engine.run(signature.value_row.pack([given]), None, engine.initial_states(num_rows))
    (got,) = signature.answer_row.unpack(answers)
    for row in range(num_rows):
        wanted = expected(given[row], state_sizes)
        assert got[row].dtype == np.dtype(port.dtype)
        assert got[row].tobytes() == wanted.astype(port.dtype).tobytes()
        for spec, state in zip(signature.states, states, strict=True):
            assert (state.take(row, spec.batch_axis) == given[row].sum()).all()


def runs_to_the_bit_as_alone(engine: Engine) -> None:
    """Run rows of any numbers together, one step, and hold each against itself alone."""
    values = random_rows(engine.signature.value_row, 9, 1)
    answers, states = engine.run(values, None, engine.initial_states(9))
    for row in range(9):
        alone, own = engine.run(values[row : row + 1], None, engine.initial_states(1))
        assert answers[row].tobytes() == alone[0].tobytes()
        for spec, state, mine in zip(engine.signature.states, states, own, strict=True):
            assert state.take(row, spec.batch_axis).tobytes() == mine.take(0, spec.batch_axis).tobytes()


def sizes(states: Any) -> list[int]:
    return [int(np.prod([axis for axis in axes if isinstance(axis, int)])) for axes in states]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("states", STATES.values(), ids=STATES)
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_cell_of_any_dtype_rank_and_axis_is_inferred_and_runs_batched_as_alone(
    tmp_path: Path, dtype: str, states: Any, values: Any
):
    engine = engine_of(write_cell(tmp_path / "model.onnx", dtype=dtype, states=states, values=values))
    signature = engine.signature
    assert not signature.rows_alone
    assert signature.steps_alone == ("time" not in values)
    assert [state.batch_axis for state in signature.states] == [axes.index("batch") for axes in states]
    assert {state.dtype for state in signature.states} == {dtype}
    behaves_as_alone(engine, sizes(states))
    findings = probe_rows(engine, exact=True)
    # A sum over rows that lie otherwise in memory is rounded otherwise.
    assert dtype.startswith("float") or not findings.warnings
    engine.use_signature(findings.applied_to(signature))
    runs_to_the_bit_as_alone(engine)


@pytest.mark.parametrize("dtype", ["float32", "int64"])
@pytest.mark.parametrize(
    "values", [(1, "time", 3), (1, 3), (3,), (1, 2, 3)], ids=["time", "step", "no batch", "matrix"]
)
@pytest.mark.parametrize("states", [[(1, 2)], [(2, 1, 3), (1, 1)], [(2,)]], ids=["one", "two", "no batch"])
def test_batch_that_is_fixed_at_one_runs_rows_alone_and_is_told(
    tmp_path: Path, dtype: str, values: Any, states: Any
):
    path = write_cell(tmp_path / "model.onnx", dtype=dtype, states=states, values=values)
    resolved = resolve(tmp_path, path)
    assert resolved.signature.rows_alone
    assert "runs one session at a time" in resolved.warnings[0]
    assert "fixed at 1" in resolved.warnings[0]
    behaves_as_alone(engine_of(path), sizes(states))


@pytest.mark.parametrize("values", [("time", "batch", 3), ("time", "batch"), ("time", "batch", 2, 2)])
def test_first_axis_that_is_time_is_served_where_it_is_said(tmp_path: Path, values: Any):
    path = write_cell(tmp_path / "model.onnx", values=values, states=[(1, "batch", 2)])
    axes = ", ".join('"*"' if isinstance(axis, int) else f'"{axis}"' for axis in values)
    (tmp_path / "signature.toml").write_text(f"[inputs.x]\naxes = [{axes}]\n")
    engine = engine_of(path)
    assert (engine.signature.inputs[0].time_axis, engine.signature.inputs[0].batch_axis) == (0, 1)
    behaves_as_alone(engine, [2])


def test_one_session_s_time_as_the_first_axis_is_served_where_it_is_said(tmp_path: Path):
    path = write_cell(tmp_path / "model.onnx", values=("time", 3), states=[(1, 1, 2)])
    (tmp_path / "signature.toml").write_text('[inputs.x]\naxes = ["time", "*"]\n')
    engine = engine_of(path)
    assert engine.signature.rows_alone
    assert not engine.signature.steps_alone
    behaves_as_alone(engine, [2])


@pytest.mark.parametrize(
    "declared", [None, ("batch", "Addy_dim_1", 3), (None, None, None), ("batch", None, 3)]
)
def test_axes_of_answers_that_the_file_does_not_declare_are_seen_in_a_run(tmp_path: Path, declared: Any):
    engine = engine_of(write_cell(tmp_path / "model.onnx", declared=declared))
    (port,) = engine.signature.answers
    assert (port.batch_axis, port.time_axis, port.shape) == (0, 1, (3,))
    behaves_as_alone(engine, [2])


NAMES = [
    [("h0", "hn"), ("c0", "cn")],
    [("h", "hN"), ("c", "cN")],
    [("state", "stateN")],
    [("x_state", "next_x_state")],
    [("h_in", "h_out"), ("c_in", "c_out")],
    [("hin", "hout")],
    [("cache_3", "new_cache_3"), ("cache_4", "new_cache_4")],
    [("past.0", "present.0"), ("past.1", "present.1")],
    [("lstmH", "updatedLstmH")],
    [("prev_h", "h"), ("prev_c", "c")],
    [("a", "foo")],
]


@pytest.mark.parametrize("names", NAMES, ids=[given[0][0] for given in NAMES])
def test_states_are_paired_whatever_their_maker_called_them(tmp_path: Path, names: Any):
    states = [("batch", 2)] * len(names)
    path = write_cell(tmp_path / "model.onnx", states=states, names=names)
    signature = resolve(tmp_path, path).signature
    assert [(state.input, state.output) for state in signature.states] == names


def test_states_without_names_in_common_are_paired_by_shape_and_it_is_told(tmp_path: Path):
    path = write_cell(
        tmp_path / "model.onnx",
        states=[("batch", 5), (2, "batch", 5)],
        names=[("a", "foo"), ("b", "bar")],
    )
    resolved = resolve(tmp_path, path)
    assert [(state.input, state.output) for state in resolved.signature.states] == [
        ("a", "foo"),
        ("b", "bar"),
    ]
    assert "a and foo were paired by their shapes alone" in resolved.warnings
    assert resolved.table is not None
    assert "paired by shape" in resolved.table
