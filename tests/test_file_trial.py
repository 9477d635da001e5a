"""Files that would end, stop or fill the process that loads them: that one is not the service."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from longshort_service import file_trial
from longshort_service.config import ServeConfig
from longshort_service.engine import Engine
from longshort_service.explain_file import open_explain
from longshort_service.file_trial import can_optimise
from longshort_service.graph_check import ModelError
from longshort_service.metrics import Metrics
from longshort_service.model_loader import UNOPTIMISED, ModelLoader
from longshort_service.model_signature import resolve
from onnx import TensorProto, helper
from wild_graphs import Nodes, value_info, write_cell, write_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SHIPPED = Path(file_trial.__file__).parent / "models" / "metro" / "1" / "model.onnx"
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def write_half(path: Path, operator: str, dtype: str = "float16") -> Path:
    """Write a recurrent node as PyTorch's exporter has it: batch first outside, time first within."""
    nodes, rng = Nodes(), np.random.default_rng(0)

    def weights(*shape: int) -> str:
        return nodes.constant((rng.standard_normal(shape) * 0.3).astype("float16").astype(dtype))

    letters = "hc" if operator == "LSTM" else "h"
    gates = GATES[operator]
    flipped = nodes.add("Transpose", "x", perm=[1, 0, 2])
    tensors = [flipped, weights(1, gates * 8, 3), weights(1, gates * 8, 8), weights(1, 2 * gates * 8), ""]
    tensors += [f"{letter}_in" for letter in letters]
    results = ["all", *(f"{letter}_out" for letter in letters)]
    nodes.nodes.append(helper.make_node(operator, tensors, results, hidden_size=8))
    back = nodes.add("Transpose", nodes.add("Squeeze", "all", nodes.constant([1])), perm=[1, 0, 2])
    nodes.add("Add", nodes.add("MatMul", back, weights(8, 2)), weights(2), output="y")
    states: list[tuple[str, tuple[str | int | None, ...]]] = [(letter, (1, "batch", 8)) for letter in letters]
    return write_model(
        path,
        nodes,
        [
            value_info("x", dtype, ("batch", "time", 3)),
            *(value_info(f"{letter}_in", dtype, axes) for letter, axes in states),
        ],
        [
            value_info("y", dtype, ("batch", "time", 2)),
            *(value_info(f"{letter}_out", dtype, axes) for letter, axes in states),
        ],
    )


def answers_of(engine: Engine, values: NDArray[Any]) -> NDArray[np.float64]:
    """Return one session's answers to values `[time, 3]`, step by step."""
    states, found = engine.initial_states(1), []
    signature = engine.signature
    for value in values:
        row = signature.value_row.pack([value[None, None].astype(signature.inputs[0].dtype)])
        answer, states = engine.run(row, None, states)
        found.append(signature.answer_row.unpack(answer)[0][0, 0].astype(np.float64))
    return np.stack(found)


@pytest.mark.parametrize("operator", GATES)
def test_recurrent_node_in_float16_is_served_at_a_lower_optimisation_and_right(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, operator: str
):
    """onnxruntime 1.32 ends its process by a segmentation fault where it optimises these in full."""
    path = write_half(tmp_path / "m" / "1" / "model.onnx", operator)
    model = ModelLoader(ServeConfig(repository=tmp_path, max_sessions=8), Metrics()).load("m", 1, path.parent)
    engine = model.lane.engine
    warnings = [record.getMessage() for record in caplog.records]
    assert (f"m/1: {UNOPTIMISED}" in warnings) == (not engine.is_optimised)  # other processors may take it
    whole = write_half(tmp_path / "whole" / "1" / "model.onnx", operator, "float32")
    assert can_optimise(whole.parent, whole)
    values = np.random.default_rng(1).standard_normal((6, 3)).astype(np.float16)
    reference = Engine(
        whole, provider="cpu", intra_op_num_threads=1, signature=resolve(whole.parent, whole).signature
    )
    np.testing.assert_allclose(answers_of(engine, values), answers_of(reference, values), atol=5e-3)
    assert model.can_explain
    assert open_explain(path, engine).is_optimised == engine.is_optimised


def test_file_that_ends_a_process_only_at_full_optimisation_is_run_at_the_basic_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write_cell(tmp_path / "1" / "model.onnx")
    kill = f"import os, sys; sys.argv[-1] == 'basic' or os.kill(os.getpid(), {signal.SIGSEGV.value})"
    levels = ended_by(monkeypatch, kill)
    assert not can_optimise(path.parent, path)
    assert levels == ["full", "basic"]


def test_file_with_a_signature_is_not_tried(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(file_trial, "_try", lambda *_: pytest.fail("a process was started"))
    assert can_optimise(SHIPPED.parent, SHIPPED)


def test_file_that_ends_every_process_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_cell(tmp_path / "1" / "model.onnx")
    kill = f"import os; os.kill(os.getpid(), {signal.SIGABRT.value})"
    levels = ended_by(monkeypatch, kill)
    with pytest.raises(ModelError, match=r"model\.onnx: it ends the process that loads it \(SIGABRT\)"):
        can_optimise(path.parent, path)
    assert levels == ["full", "basic"]


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (f"import os; os.kill(os.getpid(), {signal.SIGKILL.value})", "ended with -9: $"),
        ("raise SystemExit('no module of that name')", "ended with 1: no module of that name$"),
        ("import sys; print('m: is this and that', end=''); sys.exit(3)", "^m: is this and that$"),
    ],
    ids=["killed", "not started", "refused"],
)
def test_process_that_ends_otherwise_is_told_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, said: str
):
    """A machine that is out of memory for a moment must not have the file run otherwise from then on."""
    path = write_cell(tmp_path / "1" / "model.onnx")
    levels = ended_by(monkeypatch, program)
    with pytest.raises(ModelError, match=said):
        can_optimise(path.parent, path)
    assert levels == ["full"]


def ended_by(monkeypatch: pytest.MonkeyPatch, program: str) -> list[str]:
    """Have another program run instead; return the levels that it was asked for."""
    levels: list[str] = []
    run = subprocess.run

    def run_other(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        levels.append(command[-1])
        return run([sys.executable, "-c", program, command[-1]], **options)

    monkeypatch.setattr(subprocess, "run", run_other)
    return levels


def write_loop(path: Path, num_rounds: int) -> Path:
    """Write a graph of a few bytes that goes round so many times."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["v", "v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, None),
        ],
    )
    nodes = Nodes()
    nodes.add("Add", "x", "s_in", output="s_out")
    given = [nodes.constant(np.int64(num_rounds)), nodes.constant(np.bool_(True)), "x"]  # noqa: FBT003
    nodes.nodes.append(helper.make_node("Loop", given, ["y"], body=body))
    return _write_pair(path, nodes)


def _write_pair(path: Path, nodes: Nodes) -> Path:
    return write_model(
        path,
        nodes,
        [value_info(name, "float32", ("batch", 3)) for name in ("x", "s_in")],
        [value_info(name, "float32", ("batch", 3)) for name in ("y", "s_out")],
    )


def test_graph_that_never_ends_is_refused(tmp_path: Path):
    path = write_loop(tmp_path / "3" / "model.onnx", 3)
    assert can_optimise(path.parent, path)
    path = write_loop(tmp_path / "1" / "model.onnx", 2**62)
    with pytest.raises(ModelError, match="takes longer than 5 s"):
        can_optimise(path.parent, path, trial_s=5)


def test_graph_that_asks_for_any_amount_of_memory_as_it_runs_is_refused(tmp_path: Path):
    """Its shapes say nothing: they are computed."""
    nodes = Nodes()
    nodes.add("Add", "x", "s_in", output="s_out")
    shape = nodes.add("Mul", nodes.add("Shape", "x"), nodes.constant(np.array([2**16, 2**16])))
    much = nodes.add("ReduceSum", nodes.add("ConstantOfShape", shape), keepdims=0)
    nodes.add("Add", "x", much, output="y")
    path = _write_pair(tmp_path / "1" / "model.onnx", nodes)
    with pytest.raises(ModelError, match="a run of it fails"):
        can_optimise(path.parent, path)


def test_graph_of_functions_that_call_each_other_without_end_is_refused(tmp_path: Path):
    calls = [helper.make_node("f", ["a"], ["b"], domain="me")]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("me", 1)]
    path = write_loop(tmp_path / "1" / "model.onnx", 1)
    model = onnx.load(path)
    model.functions.append(helper.make_function("me", "f", ["a"], ["b"], calls, opsets))
    model.opset_import.append(opsets[1])
    model.graph.node.append(helper.make_node("f", ["x"], ["z"], domain="me"))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="onnxruntime cannot load it"):
        can_optimise(path.parent, path)


def test_program_says_what_is_wrong_with_a_file(tmp_path: Path, capfdbinary: Any, monkeypatch: Any):
    """In this process, so that what it does is seen: without its limits."""
    monkeypatch.setattr(file_trial, "_limit_process", lambda _: None)
    path = write_cell(tmp_path / "1" / "model.onnx")
    assert file_trial.main(path.parent, path, file_trial.FULL) == 0
    path.write_bytes(b"no model")
    assert file_trial.main(path.parent, path, file_trial.FULL) == file_trial.REFUSED
    for error, said in (
        (MemoryError(), b"there is no memory for what it asks for"),
        (RecursionError("too deep"), b"it is damaged: RecursionError('too deep')"),
    ):
        monkeypatch.setattr("longshort_service.model_signature.resolve", raising(error))
        assert file_trial.main(path.parent, path, file_trial.FULL) == file_trial.REFUSED
        sys.stdout.flush()
        assert capfdbinary.readouterr().out.endswith(said)


def raising(error: Exception) -> Any:
    def work(*_: object) -> None:
        raise error

    return work
