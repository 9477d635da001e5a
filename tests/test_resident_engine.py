"""The engine whose states stay on its device, here the CPU: bit for bit what Engine gives, and what it leaves alone.

The device's own tests are in test_gpu.py; the code is the same, only the provider's name is another.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import FATAL, write_adder
from longshort_service.engine import Engine
from longshort_service.graph_check import ModelError
from longshort_service.model_signature import resolve
from longshort_service.resident_engine import ResidentEngine
from longshort_service.resident_graph import UnsuitableGraph
from longshort_service.signature import Channel, Signature, State
from longshort_service.signature_json import METADATA_KEY, to_json
from onnx import TensorProto, helper
from wild_graphs import write_cell

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHIPPED = Path(__file__).parents[1] / "service" / "longshort_service" / "models"
NUM_ROWS = 12


def load(path: Path, num_rows: int = NUM_ROWS) -> ResidentEngine:
    engine = ResidentEngine(path, provider="cpu", intra_op_num_threads=1, num_rows=num_rows)
    engine.states.initialise(np.arange(num_rows))
    return engine


def rows(*numbers: int) -> NDArray[np.intp]:
    return np.array(numbers, np.intp)


def write_odd(path: Path) -> None:
    """Write a model of states that are not an LSTM's.

    Their batch axes are the last, the first (a row of one number) and the middle, and two of them change places at
    each run, so that what a state becomes does not depend on what it was.
    """
    shapes = {"a": (3, 2, -1), "b": (3, 2, -1), "c": (-1,), "d": (2, -1, 5)}
    axes = {"a": 2, "b": 2, "c": 0, "d": 1}
    nodes = [
        helper.make_node("Identity", ["b0"], ["an"]),
        helper.make_node("Add", ["a0", "one"], ["bn"]),
        helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=0),
        helper.make_node("Add", ["c0", "sum"], ["cn"]),
        helper.make_node("Mul", ["d0", "half"], ["dn"]),
        helper.make_node("Identity", ["x"], ["y"]),
    ]

    def declared(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
        sizes = ["batch" if size == -1 else size for size in shape]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)

    def both(end: str) -> list[onnx.ValueInfoProto]:
        return [declared(f"{name}{end}", shape) for name, shape in shapes.items()]

    values = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "time", 1])
    answers = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "time", 1])
    constants = {
        "one": np.array(1, np.float32),
        "half": np.array(0.5, np.float32),
        "axes": np.array([1, 2], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "odd",
        [values, *both("0")],
        [answers, *both("n")],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    signature = Signature(
        name="odd",
        features=(Channel("x"),),
        outputs=(Channel("y"),),
        states=tuple(State(f"{n}0", f"{n}n", shapes[n], axes[n], initial=ord(n)) for n in shapes),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, {METADATA_KEY: to_json(signature)})
    onnx.save(model, path)


@pytest.fixture(params=["metro", "wide", "deep", "adder", "odd", "shipped metro", "shipped parking"])
def path(request, repository, tmp_path) -> Path:
    name = request.param
    if name.startswith("shipped "):
        return SHIPPED / name.removeprefix("shipped ") / "1" / "model.onnx"
    if name in ("metro", "wide", "deep"):
        return repository / name / "1" / "model.onnx"
    written = tmp_path / "model.onnx"
    write_adder(written) if name == "adder" else write_odd(written)
    return written


@pytest.fixture
def adder(tmp_path) -> Path:
    written = tmp_path / "model.onnx"
    write_adder(written)
    return written


def sum_in(engine: ResidentEngine, row: int) -> float:
    """Return the state of an adder."""
    return float(engine.states.read(row)[0][0])


def one_each(
    engine: ResidentEngine, *values: float, source: Any, target: Any
) -> tuple[list[float], list[bool]]:
    answers, finite = engine.run(np.array(values, np.float32).reshape(-1, 1, 1), None, source, target)
    return answers[:, 0, 0].tolist(), finite.tolist()


def test_any_batches_of_sessions_are_answered_bit_for_bit_as_by_the_ordinary_engine(path):
    resident, plain = load(path), Engine(path, provider="cpu", intra_op_num_threads=1)
    random = np.random.default_rng(0)
    expected = [plain.initial_states(1) for _ in range(NUM_ROWS)]
    width = len(plain.signature.features)
    for _ in range(60):
        batch = random.permutation(NUM_ROWS)[: random.integers(1, NUM_ROWS + 1)]
        values = random.normal(size=(len(batch), random.integers(1, 9), width)).astype(np.float32)
        counts = None
        if plain.signature.sequence_lens is not None and random.random() < 0.5:
            counts = random.integers(1, values.shape[1] + 1, len(batch)).astype(np.int32)
        together = [
            np.concatenate([expected[row][k] for row in batch], axis=state.batch_axis)
            for k, state in enumerate(plain.signature.states)
        ]
        answers, finite = resident.run(values, counts, batch, batch)
        right, after = plain.run(values, counts, together)
        assert answers.tobytes() == right.tobytes()
        assert finite.all()
        for position, row in enumerate(batch):
            expected[row] = [
                array.take([position], axis=state.batch_axis)
                for array, state in zip(after, plain.signature.states, strict=True)
            ]
    for row in range(NUM_ROWS):
        for mine, state, spec in zip(
            resident.states.read(row), expected[row], plain.signature.states, strict=True
        ):
            assert mine.tobytes() == state.take(0, axis=spec.batch_axis).tobytes()


def test_500_carried_steps_are_one_message_of_500(repository):
    engine = load(repository / "deep" / "1" / "model.onnx")
    values = np.random.default_rng(1).normal(size=(2, 500, 1)).astype(np.float32)
    at_once, _ = engine.run(values, None, rows(0, 1), rows(0, 1))
    for step in range(500):
        answers, _ = engine.run(values[:, step : step + 1], None, rows(2, 3), rows(2, 3))
        assert answers.tobytes() == at_once[:, step : step + 1].tobytes()
    assert [state.tobytes() for state in engine.states.read(2)] == [
        s.tobytes() for s in engine.states.read(0)
    ]


def test_target_is_written_and_source_stays(adder):
    engine = load(adder)
    one_each(engine, 5, source=rows(0), target=rows(0))
    assert one_each(engine, 1, 2, source=rows(0, 0), target=rows(3, 4)) == ([6, 7], [True, True])
    assert [sum_in(engine, row) for row in (0, 3, 4)] == [5, 6, 7]


def test_rows_may_be_read_and_written_crosswise_in_one_run(adder):
    engine = load(adder)
    one_each(engine, 10, 20, source=rows(0, 1), target=rows(0, 1))
    assert one_each(engine, 1, 2, source=rows(0, 1), target=rows(1, 0)) == ([11, 22], [True, True])
    assert [sum_in(engine, row) for row in (0, 1)] == [22, 11]


def test_target_of_minus_one_is_nowhere(adder):
    engine = load(adder)
    assert one_each(engine, 1, 2, 3, source=rows(0, 1, 2), target=rows(-1, -1, 2))[0] == [1, 2, 3]
    assert [sum_in(engine, row) for row in range(NUM_ROWS)] == [0, 0, 3] + [0] * (NUM_ROWS - 3)


def test_row_that_is_not_finite_does_not_move_and_its_neighbours_do(adder):
    engine = load(adder)
    one_each(engine, 3e38, 1, 1, source=rows(0, 1, 2), target=rows(0, 1, 2))
    answers, finite = one_each(engine, 3e38, 1, np.nan, source=rows(0, 1, 2), target=rows(0, 1, 2))
    assert finite == [False, True, False]
    assert answers[:2] == [np.inf, 2]
    assert [sum_in(engine, row) for row in (0, 1, 2)] == [np.float32(3e38), 2, 1]


def test_last_piece_that_is_not_finite_leaves_the_session_s_row_and_not_what_its_scratch_row_holds(adder):
    engine = load(adder)
    one_each(engine, 1, source=rows(0), target=rows(0))
    one_each(engine, 3e38, source=rows(0), target=rows(5))
    assert one_each(engine, 3e38, source=rows(5), target=rows(0))[1] == [False]
    assert sum_in(engine, 0) == 1


def test_largest_finite_numbers_are_finite(adder):
    """Zeros are added up in the check, not the numbers themselves: 3e38 in answer and state do not overflow."""
    engine = load(adder)
    assert one_each(engine, 3e38, -3e38, source=rows(0, 1), target=rows(0, 1))[1] == [True, True]


def test_row_whose_answer_alone_is_not_finite_does_not_move(tmp_path):
    path = tmp_path / "model.onnx"
    write_adder(path, bias=3e38)
    engine = load(path)
    assert one_each(engine, 3e38, 1, source=rows(0, 1), target=rows(0, 1))[1] == [False, True]
    assert [sum_in(engine, row) for row in (0, 1)] == [0, 1]


def test_row_not_finite_at_one_step_of_a_long_message_does_not_move(repository):
    engine = load(repository / "deep" / "1" / "model.onnx")
    before = engine.states.read(0)
    values = np.zeros((2, 100, 1), np.float32)
    values[0, 70] = np.nan
    _, finite = engine.run(values, None, rows(0, 1), rows(0, 1))
    assert finite.tolist() == [False, True]
    assert [state.tobytes() for state in engine.states.read(0)] == [state.tobytes() for state in before]


def test_run_that_fails_moves_no_row_and_the_next_one_is_well(adder):
    engine = load(adder)
    one_each(engine, 1, 2, source=rows(0, 1), target=rows(0, 1))
    with pytest.raises(Exception, match="indices element out of data bounds"):
        one_each(engine, 5, FATAL, source=rows(0, 1), target=rows(0, 1))
    assert [sum_in(engine, row) for row in (0, 1)] == [1, 2]
    assert one_each(engine, 1, 1, source=rows(0, 1), target=rows(0, 1))[0] == [2, 3]


def test_inputs_are_not_changed_and_answers_are_the_caller_s(adder):
    engine = load(adder)
    values, source, target = np.ones((2, 3, 1), np.float32), rows(0, 1), rows(0, 1)
    first, _ = engine.run(values, None, source, target)
    engine.run(values, None, source, target)
    assert (values == 1).all()
    assert (source.tolist(), target.tolist()) == ([0, 1], [0, 1])
    assert first.tolist() == [[[1], [2], [3]]] * 2


def test_values_may_be_a_view_with_gaps(adder):
    engine = load(adder)
    values = np.arange(12, dtype=np.float32).reshape(2, 6, 1)[:, ::2]
    answers, _ = engine.run(values, None, rows(0, 1), rows(0, 1))
    assert answers[:, :, 0].tolist() == [[0, 2, 6], [6, 14, 24]]


def bytes_in_memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for the memory in use")
def test_pool_is_written_in_place_and_never_copied(repository):
    """A copy of the pool would bring all of it into memory, and take as long as thousands of steps."""
    num_rows = 1_000_000
    before = bytes_in_memory()
    engine = ResidentEngine(
        repository / "metro" / "1" / "model.onnx", provider="cpu", intra_op_num_threads=1, num_rows=num_rows
    )
    far = rows(0, num_rows // 2, num_rows - 1)
    engine.states.initialise(far)
    for _ in range(3):
        engine.run(np.ones((3, 1, 1), np.float32), None, far, far)
    engine.states.read(num_rows - 1)
    assert bytes_in_memory() - before < num_rows * engine.states.row_bytes / 4


@pytest.mark.parametrize(("max_rows", "piece_steps"), [(1, 1), (8, 1), (64, 16)])
def test_warming_up_measures_a_cost_and_moves_no_session(adder, max_rows, piece_steps):
    engine = load(adder)
    one_each(engine, 7, source=rows(0), target=rows(0))
    cost = engine.warm_up(max_rows, piece_steps)
    assert 0 < cost.run(1, 1) <= cost.run(2, 2)
    assert [sum_in(engine, row) for row in range(NUM_ROWS)] == [7] + [0] * (NUM_ROWS - 1)


def test_what_engine_refuses_is_refused(tmp_path, adder):
    with pytest.raises(ModelError, match="cannot load"):
        load(tmp_path / "nothing.onnx")
    model = onnx.load(adder)
    del model.metadata_props[:]
    onnx.save(model, adder)
    with pytest.raises(ModelError, match="carries no"):
        load(adder)


def test_graph_that_cannot_be_wrapped_is_refused_by_name(tmp_path):
    path = tmp_path / "model.onnx"
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", "time", 1]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "echo", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    signature = Signature("echo", features=(Channel("x"),), outputs=(Channel("y"),), states=())
    helper.set_model_props(model, {METADATA_KEY: to_json(signature)})
    onnx.save(model, path)
    with pytest.raises(UnsuitableGraph, match="the graph has no states"):
        load(path)


def test_state_of_another_shape_with_as_many_numbers_is_refused(adder):
    """The wrapped graph lays states out flat and would not notice."""
    model = onnx.load(adder)
    last = next(node for node in model.graph.node if node.output[0] == "sn")
    last.output[0] = "flat"
    model.graph.node.append(helper.make_node("Transpose", ["flat"], ["sn"]))
    onnx.save(model, adder)
    with pytest.raises(ModelError, match=r"sn is float32 \[1, 2\], the signature promises float32 \[2, 1\]"):
        load(adder)


def test_run_that_fails_at_warm_up_is_a_model_error(adder, monkeypatch):
    engine = load(adder)
    monkeypatch.setattr(engine, "run", lambda *_: 1 / 0)
    with pytest.raises(ModelError, match="adder: a run of it fails: division by zero"):
        engine.warm_up(4, 4)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="this onnxruntime has the provider",
)
def test_provider_that_is_not_there_is_a_model_error(adder):
    with pytest.raises(ModelError, match=r"docs/configuration\.md says how to install it"):
        ResidentEngine(adder, provider="cuda", intra_op_num_threads=1, num_rows=4)


def test_file_without_a_signature_of_its_own_runs_by_the_one_that_is_given(tmp_path: Path):
    """Its states start with what a file beside it holds."""
    path = write_cell(tmp_path / "model.onnx", states=[("batch", 2)])
    np.save(tmp_path / "start.npy", np.array([3, 4], np.float32))
    (tmp_path / "signature.toml").write_text('[states.s0]\noutput = "next_s0"\ninitial = "start.npy"\n')
    resolved = resolve(tmp_path, path)
    engine = ResidentEngine(
        path,
        provider="cpu",
        intra_op_num_threads=1,
        num_rows=2,
        signature=resolved.signature,
        arrays=resolved.arrays,
    )
    engine.states.initialise(np.arange(2))
    assert engine.states.read(1)[0].tolist() == [3, 4]
    engine.run(np.ones((1, 1, 3), np.float32), None, rows(1), rows(0))
    assert engine.states.read(0)[0].tolist() == [6, 7]
