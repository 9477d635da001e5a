"""Gates and memories derived from a file's nodes, against the operators' equations by hand and the nodes' outputs."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from longshort_model.synthetic import write_random_model
from longshort_service.explain_graph import NothingToExplain, can_derive, derive
from longshort_service.explain_survey import EXPLAINED
from onnx import TensorProto, helper, numpy_helper
from recurrent_nodes import Case, by_hand, sigmoid

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def run(model: onnx.ModelProto, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip([node.name for node in session.get_outputs()], session.run(None, feeds), strict=True))


def check(case: Case, curves: dict[int, Any] | None = None, tolerance: float = 2e-5) -> dict[str, Any]:
    """Hold a case's derived graph against the equations, and its other outputs against the file as it was."""
    model = case.model()
    before = model.SerializeToString()
    derived, notes = derive(model)
    assert notes == []
    assert model.SerializeToString() == before
    onnx.checker.check_model(derived, full_check=True)
    found, alone, expected = run(derived, case.feeds()), run(model, case.feeds()), by_hand(case, curves)
    for name, array in alone.items():
        assert found[name].tobytes() == array.tobytes()
    assert sorted(found) == sorted([*alone, *expected])
    for name, array in expected.items():
        assert found[name].dtype == case.dtype
        np.testing.assert_allclose(found[name], array, rtol=tolerance, atol=tolerance, err_msg=name)
    return found


@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"has_bias": False},
        {"has_states": False},
        {"has_bias": False, "has_states": False},
        {"lengths": (5, 2, 4)},
        {"lengths": (1, 3, 3), "has_states": False},
        {"batch": 1, "time": 1},
        {"hidden": 1, "features": 1},
    ],
    ids=str,
)
def test_gates_and_memories_are_those_of_the_equations(op_type: str, direction: str, given: dict[str, Any]):
    found = check(Case(op_type, direction, **given))
    suffixes = {"forward": [""], "reverse": ["_reverse"], "bidirectional": ["", "_reverse"]}[direction]
    names = {f"layer0.{what}{suffix}" for what in EXPLAINED[op_type] for suffix in suffixes}
    assert names == {name for name in found if name.startswith("layer0.")}


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("lengths", [(), (2, 5, 3)])
def test_memories_agree_with_the_node_s_own_last_ones(direction: str, lengths: tuple[int, ...]):
    """Y_h and Y_c are the node's word on where it ended: a direction from the end to the beginning ends at 0."""
    case = Case("LSTM", direction, lengths=lengths, has_peepholes=True)
    found = check(case)
    for d in range(case.num_directions):
        is_reverse = direction == "reverse" or d == 1
        suffix = "_reverse" if is_reverse else ""
        for row in range(case.batch):
            end = 0 if is_reverse else (lengths[row] if lengths else case.time) - 1
            for what, last in (("hidden_state", "Y_h"), ("cell_state", "Y_c")):
                memory = found[f"layer0.{what}{suffix}"][row, end]
                np.testing.assert_allclose(memory, found[last][d, row], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("attributes", [{}, {"input_forget": 1}, {"clip": 0.7}], ids=str)
def test_peepholes_coupled_gates_and_clips_of_an_lstm_are_followed(
    direction: str, attributes: dict[str, Any]
):
    check(Case("LSTM", direction, has_peepholes=True, attributes=attributes))
    check(Case("LSTM", direction, has_bias=False, attributes=attributes))


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("given", [{}, {"has_bias": False}, {"lengths": (2, 5, 3)}], ids=str)
@pytest.mark.parametrize("attributes", [{}, {"clip": 0.7}], ids=str)
def test_gru_that_resets_after_its_weights_is_told_from_one_that_resets_before(
    direction: str, given: dict[str, Any], attributes: dict[str, Any]
):
    before = check(Case("GRU", direction, **given, attributes=attributes))
    after = check(Case("GRU", direction, **given, attributes={"linear_before_reset": 1, **attributes}))
    name = "layer0.candidate_reverse" if direction == "reverse" else "layer0.candidate"
    assert np.abs(before[name] - after[name]).max() > 0.01


@pytest.mark.parametrize(
    "curve", ["Relu", "Softsign", "Softplus", "HardSigmoid", "LeakyRelu", "Elu", "Tanh", "Sigmoid"]
)
def test_other_activations_are_followed(curve: str):
    check(Case("LSTM", attributes={"activations": [curve, "Softsign", "Tanh"]}))
    check(Case("LSTM", attributes={"activations": ["Sigmoid", curve, "Relu"]}))
    check(Case("GRU", attributes={"activations": ["Sigmoid", curve]}))
    check(Case("RNN", attributes={"activations": [curve]}))


def test_numbers_of_activations_go_to_the_curves_that_take_them_in_order():
    attributes = {
        "activations": ["HardSigmoid", "LeakyRelu", "Tanh", "Sigmoid", "ThresholdedRelu", "Tanh"],
        "activation_alpha": [0.3, 0.2, 0.1],
        "activation_beta": [0.4],
    }
    curves = {
        0: lambda x: np.clip(0.3 * x + 0.4, 0, 1),
        1: lambda x: np.where(x >= 0, x, 0.2 * x),
        4: lambda x: np.where(x > 0.1, x, 0),
    }
    check(Case("LSTM", "bidirectional", attributes=attributes), curves)


@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("opset", [9, 10, 12, 13, 16, 20, 22, 23])
def test_every_opset_from_nine_on_will_do(op_type: str, opset: int):
    check(Case(op_type, "bidirectional", opset=opset, lengths=(5, 2, 4), attributes={"clip": 2.0}))


@pytest.mark.parametrize("op_type", ["LSTM", "GRU"])
def test_half_precision_is_explained_in_half_precision(op_type: str):
    check(Case(op_type, "bidirectional", dtype="float16", attributes={"clip": 2.0}), tolerance=0.02)


@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
def test_node_that_keeps_its_hidden_states_to_itself_is_explained(op_type: str):
    found = check(Case(op_type, gives=("Y_h",)))
    assert "Y" not in found


def chain(num_layers: int, **attributes: Any) -> onnx.ModelProto:
    """Return LSTMs one after the other, all of one set of weights."""
    case = Case("LSTM", features=4, has_states=False)
    model = case.model()
    unit = model.graph.node.pop()
    tensor = "X"
    for n in range(num_layers):
        node = model.graph.node.add()
        node.CopyFrom(unit)
        node.name, node.input[0], node.output[:] = f"unit{n}", tensor, [f"Y{n}"]
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        tensor = f"flat{n}"
        model.graph.node.append(helper.make_node("Squeeze", [f"Y{n}", "one"], [tensor]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, [None] * 3))
    return model


def test_layers_are_counted_as_the_graph_has_them():
    model = chain(3)
    derived, notes = derive(model)
    assert notes == []
    found = run(derived, Case("LSTM", features=4, has_states=False).feeds())
    assert {name.partition(".")[0] for name in found} == {"flat2", "layer0", "layer1", "layer2"}
    np.testing.assert_array_equal(found["layer2.hidden_state"], found["flat2"].swapaxes(0, 1))


def test_derived_graph_of_a_trained_model_agrees_with_the_explain_file_beside_it(tmp_path: Path):
    """`longshort train` writes explain.onnx itself, all gates at once from the hidden states; the two tell the same."""
    write_random_model(tmp_path / "model.onnx", hidden=8, layers=2, features=2, explain=True)
    derived, notes = derive(onnx.load(tmp_path / "model.onnx"))
    assert notes == []
    rng = np.random.default_rng(4)
    states = {name: rng.normal(size=(2, 3, 8)).astype("f") for name in ("h0", "c0")}
    feeds = {"x": rng.normal(size=(3, 5, 2)).astype("f"), "sequence_lens": np.full(3, 5, np.int32), **states}
    found, shipped = run(derived, feeds), run(onnx.load(tmp_path / "explain.onnx"), feeds)
    assert set(found) == set(shipped)
    for name, array in shipped.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


# -- What is left out -----


def reason_of(model: onnx.ModelProto) -> str:
    before = model.SerializeToString()
    assert not can_derive(model)
    with pytest.raises(NothingToExplain) as caught:
        derive(model)
    assert model.SerializeToString() == before
    return str(caught.value)


def test_file_without_a_recurrent_node_has_nothing_to_explain():
    node = helper.make_node("Relu", ["x"], ["y"])
    graph = helper.make_graph(
        [node],
        "none",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    assert reason_of(helper.make_model(graph)) == "the graph has no node of type LSTM, GRU or RNN"


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (Case("LSTM", attributes={"layout": 1}), "its first axis is the batch (layout 1)"),
        (Case("GRU", opset=8), "the graph is of opset 8, explained are those from 9 on"),
        (
            Case("LSTM", attributes={"activations": ["Affine", "Tanh", "Tanh"]}),
            "its activation Affine is not known here",
        ),
        (
            Case("LSTM", "bidirectional", attributes={"activations": ["Sigmoid", "Tanh", "Tanh"]}),
            "it has 3 activations for 2 directions",
        ),
        (Case("RNN", "sideways"), "its direction is 'sideways'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_not_be_exact_is_left_out_with_its_reason(case: Case, reason: str):
    assert reason_of(case.model()) == f"layer0, {case.op_type} 'unit', is left out: {reason}."


def test_node_without_outputs_is_left_out():
    model = Case("GRU").model()
    del model.graph.node[0].output[:]
    assert reason_of(model) == "layer0, GRU 'unit', is left out: it gives out nothing."


def test_weights_that_are_no_floating_point_numbers_are_left_out():
    model = Case("RNN").model()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.int64), tensor.name))
    assert reason_of(model) == "layer0, RNN 'unit', is left out: its weights W are INT64."


def test_file_with_names_of_ours_is_left_as_it_is():
    model = Case("RNN").model()
    model.graph.node.append(helper.make_node("Identity", ["X"], ["layer0.hidden_state"]))
    assert "the graph has a tensor layer0.hidden_state of its own" in reason_of(model)


def test_file_with_names_that_begin_as_ours_do_is_left_as_it_is():
    model = chain(2)
    model.graph.node.append(helper.make_node("Identity", ["X"], ["longshort.explain.own"]))
    assert reason_of(model).count("the graph has a tensor longshort.explain.own of its own") == 2


def test_operator_of_another_domain_is_named():
    model = Case("LSTM").model()
    model.graph.node[0].op_type, model.graph.node[0].domain = "DynamicQuantizeLSTM", "com.microsoft"
    assert reason_of(model) == (
        "DynamicQuantizeLSTM 'unit' is left out: it is no operator of the standard, but of com.microsoft."
    )


def test_nodes_of_subgraphs_and_functions_are_named_and_those_beside_them_explained():
    model = Case("GRU").model()
    unit = model.graph.node[0]
    branch = helper.make_graph([unit], "branch", [], [onnx.ValueInfoProto(name="Y")])
    outer = helper.make_graph(
        [helper.make_node("If", ["flag"], ["deep"], then_branch=branch, else_branch=branch)],
        "outer",
        [],
        [onnx.ValueInfoProto(name="deep")],
    )
    model.graph.node.append(
        helper.make_node("If", ["flag"], ["Z"], name="fork", then_branch=branch, else_branch=outer)
    )
    model.functions.append(
        helper.make_function("own", "Block", ["X"], ["Y"], [unit], [helper.make_opsetid("", 17)])
    )
    _, notes = derive(model)
    assert notes == [
        *["GRU 'unit' in If 'fork' is left out: only nodes of the graph itself are explained."] * 3,
        "GRU 'unit' in the function Block is left out: only nodes of the graph itself are explained.",
    ]


def test_layer_that_is_left_out_keeps_its_number():
    model = chain(3)
    model.graph.node[2].attribute.append(helper.make_attribute("activations", ["ScaledTanh", "Tanh", "Tanh"]))
    assert can_derive(model)
    derived, notes = derive(model)
    assert notes == ["layer1, LSTM 'unit1', is left out: its activation ScaledTanh is not known here."]
    assert {node.name.partition(".")[0] for node in derived.graph.output} == {"flat2", "layer0", "layer2"}


# -- Where weights come from -----


def test_type_of_weights_that_the_graph_computes_is_inferred():
    model = Case("LSTM", dtype="float16").model()
    node = model.graph.node[0]
    node.input[1] = "computed"
    model.graph.node.insert(0, helper.make_node("Identity", ["W"], ["computed"]))
    derived, _ = derive(model)
    found = run(derived, Case("LSTM", dtype="float16").feeds())
    expected = by_hand(Case("LSTM", dtype="float16"))
    np.testing.assert_allclose(
        found["layer0.cell_state"], expected["layer0.cell_state"], rtol=0.02, atol=0.02
    )


@pytest.mark.parametrize("is_imported", [True, False])
def test_weights_whose_type_nobody_can_tell_are_left_out(is_imported: bool):  # noqa: FBT001
    """Shape inference passes over an operator that it does not know, and raises where its domain is not imported."""
    model = Case("LSTM").model()
    model.graph.node[0].input[1] = "computed"
    model.graph.node.insert(0, helper.make_node("Mystery", ["W"], ["computed"], domain="own"))
    if is_imported:
        model.opset_import.append(helper.make_opsetid("own", 1))
    assert "its weights computed are UNDEFINED" in reason_of(model)


def test_reasons_of_a_file_with_many_nodes_are_cut_short():
    model = chain(5, layout=1)
    reason = reason_of(model)
    assert reason.count("is left out: its first axis is the batch (layout 1).") == 3
    assert reason.endswith("So are 2 others.")


# -- Files of others' making -----


def torch_model(op_type: str, num_layers: int, *, is_bidirectional: bool) -> tuple[Any, onnx.ModelProto]:
    """Return a torch module and what PyTorch's exporter makes of it; its batch comes first."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(3)
    unit = getattr(torch.nn, op_type)(
        2, 4, num_layers=num_layers, bidirectional=is_bidirectional, batch_first=True
    )
    file = io.BytesIO()
    axes = {"x": {0: "batch", 1: "time"}, "y": {0: "batch", 1: "time"}}
    torch.onnx.export(
        unit,
        (torch.zeros(2, 3, 2),),
        file,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes=axes,
        dynamo=False,
    )
    return unit, onnx.load_from_string(file.getvalue())


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffixes", [("",), ("", "_reverse")])
@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
def test_file_of_pytorch_s_exporter_is_explained_as_pytorch_computes(op_type: str, suffixes: tuple[str, ...]):
    import torch

    unit, model = torch_model(op_type, 2, is_bidirectional=len(suffixes) == 2)
    derived, notes = derive(model)
    assert notes == []
    values = np.random.default_rng(1).normal(size=(3, 6, 2)).astype("f")
    found = run(derived, {"x": values})
    with torch.no_grad():
        expected = unit(torch.from_numpy(values))[0].numpy()
    last = np.concatenate([found[f"layer1.hidden_state{suffix}"] for suffix in suffixes], axis=2)
    np.testing.assert_allclose(last, expected, rtol=1e-5, atol=1e-6)
    weights = {name: array.detach().numpy() for name, array in unit.named_parameters()}
    for suffix in suffixes:
        layer = {what: found[f"layer0.{what}{suffix}"] for what in EXPLAINED[op_type]}
        before = np.roll(layer["hidden_state"], -1 if suffix else 1, axis=1)
        before[:, -1 if suffix else 0] = 0
        of_x = values @ weights[f"weight_ih_l0{suffix}"].T + weights[f"bias_ih_l0{suffix}"]
        of_hidden = before @ weights[f"weight_hh_l0{suffix}"].T + weights[f"bias_hh_l0{suffix}"]
        for what, gate in torch_gates(op_type, of_x, of_hidden).items():
            np.testing.assert_allclose(layer[what], gate, rtol=1e-5, atol=1e-6, err_msg=what + suffix)


def torch_gates(op_type: str, of_x: NDArray[Any], of_hidden: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return a layer's gates as the pages of torch.nn have them, in PyTorch's order of weights."""
    if op_type == "LSTM":
        i, f, g, o = np.split(of_x + of_hidden, 4, axis=2)
        return {
            "input_gate": sigmoid(i),
            "forget_gate": sigmoid(f),
            "candidate": np.tanh(g),
            "output_gate": sigmoid(o),
        }
    if op_type == "RNN":
        return {"hidden_state": np.tanh(of_x + of_hidden)}
    (xr, xz, xn), (hr, hz, hn) = np.split(of_x, 3, axis=2), np.split(of_hidden, 3, axis=2)
    reset = sigmoid(xr + hr)
    return {"reset_gate": reset, "update_gate": sigmoid(xz + hz), "candidate": np.tanh(xn + reset * hn)}
