"""Model files in onnxruntime: what is loaded, what is refused and why, and what a run gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import write_adder
from longshort_model.synthetic import write_random_model
from longshort_service.engine import Engine
from longshort_service.graph_check import ModelError
from longshort_service.signature import Channel, Signature, State
from longshort_service.signature_json import METADATA_KEY, to_json
from oracle import OracleModel, OracleSession

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def load(path: Path) -> Engine:
    return Engine(path, provider="cpu", intra_op_num_threads=1)


def signed_as(path: Path, text: str | None) -> Path:
    """Give a file another signature."""
    model = onnx.load(path)
    del model.metadata_props[:]
    if text is not None:
        onnx.helper.set_model_props(model, {METADATA_KEY: text})
    onnx.save(model, path)
    return path


@pytest.fixture
def adder(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    write_adder(path)
    return path


def adder_signature(**changes: Any) -> str:
    fields = {
        "name": "adder",
        "features": (Channel("x"),),
        "outputs": (Channel("y"),),
        "states": (State("s0", "sn", (-1, 1), 0),),
    } | changes
    return to_json(Signature(**fields))


def test_good_file_is_loaded_with_its_signature(adder: Path):
    engine = load(adder)
    assert engine.signature.name == "adder"
    assert engine.provider == "CPUExecutionProvider"
    assert [state.shape for state in engine.initial_states(3)] == [(3, 1)]


def test_run_is_what_stepping_alone_gives_with_unequal_counts(tmp_path: Path):
    path = tmp_path / "model.onnx"
    write_random_model(path, name="m", hidden=16, layers=2)
    engine = load(path)
    rng = np.random.default_rng(1)
    counts = np.array([3, 1, 7], np.int32)
    values = np.zeros((3, 7, 1), np.float32)
    sessions = [OracleSession(OracleModel(path)) for _ in counts]
    expected = []
    for row, (count, session) in enumerate(zip(counts, sessions, strict=True)):
        values[row, :count] = rng.normal(size=(count, 1))
        expected.append(session.feed(values[row, :count]))
    answers, states = engine.run(values, counts, engine.initial_states(3))
    for row, count in enumerate(counts):
        assert answers[row, :count].tobytes() == expected[row].tobytes()
        for state, memory in zip(states, sessions[row].memory(), strict=True):
            assert np.ascontiguousarray(state[:, row]).tobytes() == memory.tobytes()


def test_run_changes_none_of_its_inputs(adder: Path):
    engine = load(adder)
    values, states = np.ones((2, 3, 1), np.float32), engine.initial_states(2)
    engine.run(values, None, states)
    assert values.tolist() == [[[1]] * 3] * 2
    assert states[0].tolist() == [[0], [0]]


def test_run_all_gives_every_output_by_name(adder: Path):
    engine = load(adder)
    outputs = engine.run_all(np.ones((2, 1), np.float32), engine.initial_states(1))
    assert {name: array.tolist() for name, array in outputs.items()} == {"y": [[1], [2]], "sn": [2]}


def test_initial_value_of_a_state_is_the_signature_s(adder: Path):
    signed_as(adder, adder_signature(states=(State("s0", "sn", (-1, 1), 0, initial=7.0),)))
    engine = load(adder)
    answers, _ = engine.run(np.ones((1, 1, 1), np.float32), None, engine.initial_states(1))
    assert answers.tolist() == [[[8]]]


@pytest.mark.parametrize(("max_rows", "piece_steps"), [(1, 1), (1, 8), (8, 1), (512, 64)])
def test_warming_up_measures_a_cost_that_grows_with_rows_and_steps(
    adder: Path, max_rows: int, piece_steps: int
):
    cost = load(adder).warm_up(max_rows, piece_steps)
    assert 0 < cost.run(1, 1) < 0.1
    assert cost.run(1, 1) <= cost.run(2, 1) <= cost.run(2, 2)


def test_missing_file_is_a_model_error(tmp_path: Path):
    with pytest.raises(ModelError, match="cannot load"):
        load(tmp_path / "nothing.onnx")


@pytest.mark.parametrize("content", [b"", b"this is no model", b"\x08\x07"])
def test_file_that_is_no_onnx_is_a_model_error(tmp_path: Path, content: bytes):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError):
        load(path)


def test_truncated_file_is_a_model_error(adder: Path):
    adder.write_bytes(adder.read_bytes()[:-200])
    with pytest.raises(ModelError):
        load(adder)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "carries no longshort.signature"),
        ("{}", "damaged"),
        (adder_signature().replace('"format": 1', '"format": 9'), "format 9"),
        (adder_signature(input="values"), "the graph's inputs are"),
        (adder_signature(sequence_lens="lens"), "the graph's inputs are"),
        (adder_signature(states=()), "the graph's inputs are"),
        (adder_signature(output="z"), "no output z"),
        (adder_signature(states=(State("s0", "s1", (-1, 1), 0),)), "no output s1"),
        (adder_signature(features=(Channel("a"), Channel("b"))), r"says \[batch, time, 2\]"),
        (adder_signature(outputs=(Channel("a"), Channel("b"))), r"says \[batch, time, 2\]"),
        (adder_signature(states=(State("s0", "sn", (-1, 2), 0),)), r"says \[-1, 2\]"),
        (adder_signature(states=(State("s0", "sn", (-1, 1, 1), 0),)), r"says \[-1, 1, 1\]"),
        (adder_signature(states=(State("s0", "sn", (1, -1), 1),)), "is fixed at 1"),
        (adder_signature(input="s0", states=(State("x", "sn", (-1, 1, 1), 0),)), "the signature says"),
    ],
)
def test_file_that_does_not_keep_its_signature_is_a_model_error(
    adder: Path, text: str | None, complaint: str
):
    with pytest.raises(ModelError, match=complaint):
        load(signed_as(adder, text))


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="this onnxruntime has the provider",
)
def test_provider_that_is_not_there_is_a_model_error(adder: Path):
    with pytest.raises(ModelError, match=r"docs/configuration\.md says how to install it"):
        Engine(adder, provider="cuda", intra_op_num_threads=1)


def changed(path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """Change a file's graph and leave its signature."""
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    return path


def test_answer_of_the_last_step_alone_is_refused_at_warm_up(adder: Path):
    def keep_last(model: onnx.ModelProto) -> None:
        last = onnx.helper.make_node("Slice", ["totals", "minus_one", "ends", "axes"], ["y"])
        model.graph.node.remove(model.graph.node[-1])
        model.graph.node.append(last)
        for name, value in (("minus_one", -1), ("ends", 2**31)):
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([value], np.int64), name))

    with pytest.raises(
        ModelError, match=r"y is float32 \[2, 1, 1\], the signature promises float32 \[2, 3, 1\]"
    ):
        load(changed(adder, keep_last)).warm_up(4, 4)


def test_answers_of_another_dtype_are_refused(adder: Path):
    def widen(model: onnx.ModelProto) -> None:
        model.graph.node[-1].output[0] = "single"
        model.graph.node.append(onnx.helper.make_node("Cast", ["single"], ["y"], to=onnx.TensorProto.DOUBLE))
        model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE

    with pytest.raises(ModelError, match=r"y is tensor\(double\)"):
        load(changed(adder, widen))


def test_run_that_fails_at_warm_up_is_a_model_error(adder: Path):
    def break_table(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name == "fatal":
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(0, np.float32), "fatal"))

    with pytest.raises(ModelError, match="a run of it fails"):
        load(changed(adder, break_table)).warm_up(4, 4)


def test_run_that_the_graph_itself_fails_on_writes_nothing(adder: Path, capfd: pytest.CaptureFixture[str]):
    # Values from outside may make a run fail: a line for each would flood what an operator reads.
    states = [np.zeros((2, 1), np.float32)]
    with pytest.raises(Exception, match="running Concat"):
        load(adder).run(np.zeros((3, 1, 1), np.float32), None, states)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("is_plain", [True, False])
def test_row_and_step_that_run_alone_give_the_same_wherever_among_others_they_lay(
    tmp_path: Path, *, is_plain: bool
):
    # onnxruntime adds 13 numbers up in another order where their array begins beside a multiple of 16 bytes.
    nodes = [
        onnx.helper.make_node("ReduceSum", ["x", "last"], ["y"]),
        onnx.helper.make_node("ReduceSum", ["s", "last"], ["total"]),
        onnx.helper.make_node("Add", ["s", "total"], ["sn"]),
    ]
    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "sums",
        [
            onnx.helper.make_tensor_value_info("x", floats, ["batch", "time", 13]),
            onnx.helper.make_tensor_value_info("s", floats, ["batch", 13]),
        ],
        [
            onnx.helper.make_tensor_value_info("y", floats, ["batch", "time", 1]),
            onnx.helper.make_tensor_value_info("sn", floats, ["batch", 13]),
        ],
        [onnx.helper.make_tensor("last", onnx.TensorProto.INT64, [1], [-1])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    signature = Signature(
        "sums",
        tuple(Channel(f"x{k}") for k in range(13)),
        (Channel("y"),),
        (State("s", "sn", (-1, 13), 0),),
        rows_alone=not is_plain,
        single_steps=not is_plain,
    )
    engine = Engine(tmp_path / "model.onnx", provider="cpu", intra_op_num_threads=1, signature=signature)
    rng = np.random.default_rng(0)
    values = rng.standard_normal((40, 5, 13)).astype(np.float32)
    states = rng.standard_normal((40, 13)).astype(np.float32)
    together = engine.run(values, None, [states]) if not is_plain else None
    for row in range(40):
        own = [states[row : row + 1].copy()]
        for step in range(5):
            answers, own = engine.run(values[row : row + 1, step : step + 1].copy(), None, own)
            if together is not None:
                assert together[0][row, step].tobytes() == answers.tobytes()
            else:
                lying, _ = engine.run(values[row : row + 1, step : step + 1], None, [states[row : row + 1]])
                assert lying.tobytes() == answers.tobytes()
        if together is not None:
            assert together[1][0][row].tobytes() == own[0].tobytes()
