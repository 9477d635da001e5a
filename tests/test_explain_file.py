"""Models without an explain.onnx, explained by a running service with what is derived of their own nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from inside import service
from longshort.v1 import model_pb2, sequence_pb2, types_pb2
from longshort_service.engine import Engine
from longshort_service.explain_file import can_explain, open_explain
from longshort_service.ports import Port
from longshort_service.signature import Channel, MissingValue, Signature, State
from longshort_service.signature_json import METADATA_KEY, to_json
from onnx import TensorProto, helper
from recurrent_nodes import Case, by_hand
from wire import Caller, key, refusal_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

FLOAT = TensorProto.FLOAT


def write(
    folder: Path, case: Case, *, has_time: bool = True, has_files: bool = False, is_signed: bool = True
) -> NDArray[Any]:
    """Write a model of a case's node, from zeros on, and return the values `[time, features]` of its first row.

    Without `has_time` it takes one step a run; with `has_files` its weights lie in files of their own.
    """
    model, hidden = case.model(), case.hidden
    unit = model.graph.node.pop()
    memories = ["h", "c"] if case.op_type == "LSTM" else ["h"]
    unit.input[5:] = memories
    unit.output[:] = ["Y", *(f"{name}_next" for name in memories)]
    if has_time:
        nodes = [
            helper.make_node("Transpose", ["x"], ["X"], perm=[1, 0, 2]),
            unit,
            helper.make_node("Constant", [], ["axis"], value_ints=[1]),
            helper.make_node("Squeeze", ["Y", "axis"], ["sequence"]),
            helper.make_node("Transpose", ["sequence"], ["y"], perm=[1, 0, 2]),
        ]
    else:
        nodes = [
            helper.make_node("Constant", [], ["axis"], value_ints=[0]),
            helper.make_node("Unsqueeze", ["x", "axis"], ["X"]),
            unit,
            helper.make_node("Squeeze", ["h_next", "axis"], ["y"]),
        ]
    steps = ["batch", "time"] if has_time else ["batch"]
    states = [(name, [1, "batch", hidden]) for name in memories]
    graph = helper.make_graph(
        nodes,
        "model",
        [
            helper.make_tensor_value_info("x", FLOAT, [*steps, case.features]),
            *(helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in states),
        ],
        [
            helper.make_tensor_value_info("y", FLOAT, [*steps, hidden]),
            *(helper.make_tensor_value_info(f"{name}_next", FLOAT, shape) for name, shape in states),
        ],
        model.graph.initializer,
    )
    model.graph.CopyFrom(graph)
    time_axis = 1 if has_time else None
    signature = Signature(
        name="unit",
        features=tuple(Channel(f"x{k}") for k in range(case.features)),
        outputs=tuple(Channel(f"y{k}") for k in range(hidden)),
        states=tuple(State(name, f"{name}_next", (1, -1, hidden), 1) for name in memories),
        missing=MissingValue.REJECT,
        inputs=(Port("x", (case.features,), time_axis=time_axis),),
        answers=(Port("y", (hidden,), time_axis=time_axis),),
        fingerprint="00",
    )
    if is_signed:
        helper.set_model_props(model, {METADATA_KEY: to_json(signature)})
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx", save_as_external_data=has_files, size_threshold=0)
    values: NDArray[Any] = case.arrays()["X"][:, 0]
    return values


async def explained(caller: Caller, session: str, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    request = sequence_pb2.ExplainRequest(session=key(session), values=values.ravel())
    response = await caller.sequence.Explain(request)
    assert all(tensor.dtype == types_pb2.DATA_TYPE_FLOAT32 for tensor in response.tensors)
    return {
        tensor.name: np.frombuffer(tensor.data, "<f4").reshape(tensor.shape) for tensor in response.tensors
    }


@pytest.mark.parametrize(
    "given", [{}, {"has_time": False}, {"has_files": True}, {"is_signed": False}], ids=str
)
@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
def test_service_explains_a_file_by_its_own_nodes_as_the_equations_have_it(
    run: Callable[..., Any], tmp_path: Path, op_type: str, given: dict[str, Any]
):
    """From the memories of a session that has seen values, which does not move."""
    case = Case(op_type, has_states=False, attributes={"linear_before_reset": 1} if op_type == "GRU" else {})
    values = write(tmp_path / "unit" / "1", case, **given)
    assert (tmp_path / "unit" / "1" / "model.onnx").stat().st_size < 4000
    expected = {name: array[0] for name, array in by_hand(case).items()}

    async def scenario() -> None:
        async with service(tmp_path, max_sessions=8) as (_, caller):
            await caller.step("s", values[:3].ravel(), 0, "unit")
            found = await explained(caller, "s", values[3:])
            again = await explained(caller, "s", values[3:])
            assert {name: array.tobytes() for name, array in found.items()} == {
                name: array.tobytes() for name, array in again.items()
            }
            assert set(found) == {"y", "h_next", *(["c_next"] if op_type == "LSTM" else []), *expected}
            for name, array in expected.items():
                np.testing.assert_allclose(found[name], array[3:], rtol=1e-5, atol=1e-6, err_msg=name)
            np.testing.assert_array_equal(found["y"], found["layer0.hidden_state"])
            np.testing.assert_array_equal(found["h_next"][0], found["y"][-1])
            answer = (await caller.step("s", values[3:].ravel(), 3, "")).answer
            np.testing.assert_array_equal(np.reshape(answer.values, (2, case.hidden)), found["y"])

    run(scenario())


def test_models_say_whether_they_can_be_explained_and_why_not(run: Callable[..., Any], tmp_path: Path):
    write(tmp_path / "plain" / "1", Case("GRU"))
    write(tmp_path / "odd" / "1", Case("LSTM", attributes={"activations": ["Affine", "Tanh", "Tanh"]}))

    async def scenario() -> None:
        async with service(tmp_path, max_sessions=8) as (_, caller):
            response = await caller.models.ListModels(model_pb2.ListModelsRequest())
            assert {model.name: model.explains for model in response.models} == {"plain": True, "odd": False}
            await caller.step("s", [1, 2], 0, "odd")
            for _ in range(2):
                with pytest.raises(Exception, match="its activation Affine is not known here") as caught:
                    await explained(caller, "s", np.ones(2))
                assert refusal_of(caught.value) == ("FAILED_PRECONDITION", "EXPLAIN_UNAVAILABLE")

    run(scenario())


def test_node_that_is_left_out_beside_others_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write(tmp_path / "1", Case("GRU"))
    file = tmp_path / "1" / "model.onnx"
    model = onnx.load(file)
    model.graph.node.extend([model.graph.node[1], model.graph.node[1]])
    for place, node in enumerate(model.graph.node[-2:]):
        node.name, node.output[:] = f"more{place}", [f"more{place}"]
        node.attribute.append(helper.make_attribute("activations", ["Sigmoid", ("Affine", "Relu")[place]]))
    onnx.save(model, file)
    engine = open_explain(file, Engine(file, provider="cpu", intra_op_num_threads=1))
    assert [record.getMessage() for record in caplog.records] == [
        f"explaining {file}: layer1, GRU 'more0', is left out: its activation Affine is not known here."
    ]
    layers = {name.partition(".")[0] for name in engine.output_names}
    assert layers == {"y", "h_next", "layer0", "layer2"}


def test_explain_file_beside_a_model_goes_before_what_could_be_derived(
    run: Callable[..., Any], tmp_path: Path
):
    folder = tmp_path / "unit" / "1"
    values = write(folder, Case("GRU"))
    model = onnx.load(folder / "model.onnx")
    model.graph.node.append(helper.make_node("Identity", ["y"], ["own"]))
    model.graph.output.append(helper.make_tensor_value_info("own", FLOAT, ["batch", "time", 4]))
    onnx.save(model, folder / "explain.onnx")

    async def scenario() -> None:
        async with service(tmp_path, max_sessions=8) as (_, caller):
            await caller.step("s", values[0], 0, "unit")
            found = await explained(caller, "s", values[1:])
            assert sorted(found) == ["h_next", "own", "y"]

    run(scenario())


def test_file_that_cannot_be_read_explains_nothing(tmp_path: Path):
    assert not can_explain(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"this is no model")
    assert not can_explain(tmp_path / "model.onnx")
