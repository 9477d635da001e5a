"""Each file that is refused, or served more slowly than it might be, with the sentence that says why."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from longshort_service.engine import Engine
from longshort_service.graph_check import ModelError
from longshort_service.model_file import MAX_MODEL_BYTES
from longshort_service.model_signature import NotInferred, resolve
from longshort_service.row_probe import probe_rows
from longshort_service.signature import Channel, Signature, State
from longshort_service.signature_json import METADATA_KEY, to_json
from onnx import TensorProto, helper
from wild_graphs import Nodes, value_info, write_cell, write_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def refusal(path: Path) -> str:
    """Return what is said of a file that is refused."""
    with pytest.raises(ModelError) as refused:
        resolve(path.parent, path)
    text = str(refused.value)
    assert text.startswith(str(path))  # it names the file
    return text


def changed(path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    return write_cell(tmp_path / "cell" / "1" / "model.onnx")


@pytest.mark.parametrize(
    "content", [b"", b"no model at all", b"\x00" * 64, b"\x08\x08\x12\x02me", b"\x0a\xff"]
)
def test_file_that_is_no_onnx(tmp_path: Path, content: bytes):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert "is no ONNX file" in refusal(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>Not found</html>", "a page of HTML"),
        (b"PK\x03\x04\x00\x00archive/data.pkl", "torch.save"),
        (b"\x08\x08\x12\x02me", "copy it again"),
    ],
)
def test_file_that_is_something_else_is_called_what_it_is(tmp_path: Path, content: bytes, said: str):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert said in refusal(path)


@pytest.mark.parametrize("text", [b"next_s0", b"CumSum", b"batch"])
def test_names_that_are_no_text(cell: Path, text: bytes):
    cell.write_bytes(cell.read_bytes().replace(text, b"\xff" * len(text)))
    assert "is no UTF-8" in refusal(cell)


@pytest.mark.parametrize("text", [b"next_s0", b"CumSum", b"batch"])
def test_names_that_would_write_on_terminals(cell: Path, text: bytes):
    cell.write_bytes(cell.read_bytes().replace(text, b"\x1b[31m\n~"[: len(text)].ljust(len(text))))
    assert "cannot be printed" in refusal(cell)


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_file_that_was_cut_off(cell: Path, kept: float):
    content = cell.read_bytes()
    cell.write_bytes(content[: int(len(content) * kept)])
    assert "is no ONNX file" in refusal(cell)


def test_graph_inside_that_is_damaged(cell: Path):
    graph = b"\x3a\x04\xff\xff\xff\xff"  # field 7, four bytes that are no message
    cell.write_bytes(b"\x08\x08" + graph)
    assert "is no ONNX file" in refusal(cell)


def test_file_over_two_gigabytes_is_refused_unread(tmp_path: Path):
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(MAX_MODEL_BYTES + 1)  # sparse: it takes no room
    assert "files over 2 GB" in refusal(path)


def with_weights_in(path: Path, location: str) -> Path:
    """Have a file's first tensor lie elsewhere."""

    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return changed(path, change)


def test_weights_over_two_gigabytes_beside_a_small_graph(cell: Path):
    with (cell.parent / "weights.bin").open("wb") as file:
        file.truncate(MAX_MODEL_BYTES)
    assert "files over 2 GB" in refusal(with_weights_in(cell, "weights.bin"))


@pytest.mark.parametrize(
    "location", ["/etc/hostname", "../outside.bin", "link.bin", "a/../../outside.bin", "", "."]
)
@pytest.mark.parametrize("is_signed", [False, True])
def test_weights_that_lie_outside_of_the_folder(cell: Path, location: str, *, is_signed: bool):
    (cell.parent.parent / "outside.bin").write_bytes(b"\0" * 64)
    (cell.parent / "link.bin").symlink_to(cell.parent.parent / "outside.bin")
    with_weights_in(cell, location)
    if is_signed:
        changed(cell, sign)
    assert "must be a file in the model's own folder" in refusal(cell)


def sign(model: onnx.ModelProto) -> None:
    signature = Signature(
        name="cell",
        features=tuple(Channel(f"x{k}") for k in range(3)),
        outputs=tuple(Channel(f"y{k}") for k in range(3)),
        states=(State("s0", "next_s0", (-1, 2), 0),),
    )
    helper.set_model_props(model, {METADATA_KEY: to_json(signature)})


@pytest.mark.parametrize("nested", [False, True])
def test_custom_operators_are_named_with_their_domain(tmp_path: Path, *, nested: bool):
    nodes = Nodes()
    if nested:
        inner = [helper.make_node("Fancy", ["x"], ["inner"], domain="my.company")]
        branch = helper.make_graph(inner, "branch", [], [value_info("inner", "float32", None)])
        condition = nodes.constant(np.array(1, bool))
        nodes.add("If", condition, output="y", then_branch=branch, else_branch=branch)
    else:
        nodes.add("Fancy", "x", output="y", domain="my.company")
    nodes.add("Identity", "s0", output="next_s0")
    path = write_model(
        tmp_path / "model.onnx",
        nodes,
        [value_info("x", "float32", ("batch", 3)), value_info("s0", "float32", ("batch", 2))],
        [value_info("y", "float32", ("batch", 3)), value_info("next_s0", "float32", ("batch", 2))],
        domains=["my.company"],
    )
    assert "custom operators, which onnxruntime does not bring: Fancy of my.company" in refusal(path)


def test_domains_that_are_listed_and_not_used_are_nothing(cell: Path):
    changed(cell, lambda model: model.opset_import.extend([helper.make_opsetid("org.pytorch.aten", 1)]))
    assert resolve(cell.parent, cell).signature.name == "cell"


@pytest.mark.parametrize(
    ("values", "states", "said"),
    [
        (("batch", 2**20, 2**10), [("batch", 2)], "bytes; 2147483648 is the limit"),
        (("batch", 2**18 + 1), [("batch", 2)], "one step's values are 262145 numbers"),
        (("batch", 3), [("batch", 2**23)], "the states of one session are 33554432 bytes"),
        (("batch", 3), [("batch", 2**40)], "bytes; 2147483648 is the limit"),
        (("batch", 3), [("batch", 2, 1, 1, 1, 1, 1, 1, 1, 1)], "9 axes beside batch and time"),
    ],
)
def test_dimensions_beyond_all_measure_are_refused_before_anything_is_allocated(
    tmp_path: Path, values: Any, states: Any, said: str
):
    assert said in refusal(write_cell(tmp_path / "model.onnx", values=values, states=states))


@pytest.mark.parametrize("size", [2**40, -1])
def test_constant_that_a_signature_makes_huge_is_refused_before_it_is_allocated(cell: Path, size: int):
    def change(model: onnx.ModelProto) -> None:
        sign(model)
        own = json.loads(model.metadata_props[0].value)
        own["constants"] = [{"input": "c", "shape": [size], "dtype": "float64"}]
        helper.set_model_props(model, {METADATA_KEY: json.dumps(own)})

    assert f"the constant c is {8 * size} bytes: 16777216 are served" in refusal(changed(cell, change))


def test_tensor_that_says_it_is_larger_than_its_file(cell: Path):
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].dims[:] = [2**20, 2**20]

    assert "in a file of" in refusal(changed(cell, change))


def test_constant_that_a_few_bytes_blow_up(cell: Path):
    """Eight bytes that onnxruntime would make a hundred gigabytes of, folding constants as it loads."""

    def change(model: onnx.ModelProto) -> None:
        shape = helper.make_tensor("shape", TensorProto.INT64, [2], [2**20, 2**15])
        model.graph.initializer.append(shape)
        model.graph.node.append(helper.make_node("ConstantOfShape", ["shape"], ["bomb"]))

    assert "2147483648 is the limit" in refusal(changed(cell, change))


def retyped(path: Path, name: str, *, elem_type: int | None = None, axes: Any = None) -> Path:
    """Have a file say another thing of one of its inputs or outputs."""

    def change(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            if value.name == name:
                tensor = value.type.tensor_type
                number = elem_type or tensor.elem_type
                old = [axis.dim_param or axis.dim_value for axis in tensor.shape.dim]
                value.CopyFrom(helper.make_tensor_value_info(name, number, axes or old))

    return changed(path, change)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (
            {"axes": ("batch", 5)},
            "the state s0 is float32 [batch, 2], its next value next_s0 is float32 [batch, 5]",
        ),
        ({"axes": ("batch", 2, 1)}, "float32 [batch, 2, 1]: it does not fit"),
        ({"elem_type": TensorProto.DOUBLE}, "its next value next_s0 is float64 [batch, 2]: it does not fit"),
    ],
)
def test_state_whose_output_does_not_fit_its_input(cell: Path, what: dict[str, Any], said: str):
    assert said in refusal(retyped(cell, "next_s0", **what))


def test_state_that_grows_with_every_step(tmp_path: Path):
    path = write_cell(tmp_path / "model.onnx")
    asked = refusal(retyped(path, "s0", axes=("batch", "past")))
    assert "Which inputs are states" in asked


@pytest.mark.parametrize("elem_type", [TensorProto.BOOL, TensorProto.STRING, TensorProto.UINT8])
def test_dtypes_that_are_not_served_are_named(cell: Path, elem_type: int):
    assert "served are float16, float32, float64, int32, int64" in refusal(
        retyped(cell, "x", elem_type=elem_type)
    )


def test_output_that_is_no_tensor_is_named_with_the_line_that_leaves_it_out(cell: Path):
    def change(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("SequenceConstruct", ["y"], ["list"]))
        model.graph.output.append(
            helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, ["batch", "time", 3])
        )

    text = refusal(changed(cell, change))
    assert "list is sequence" in text
    assert "[outputs.list] ignore = true" in text
    (cell.parent / "signature.toml").write_text("[outputs.list]\nignore = true\n")
    assert [port.name for port in resolve(cell.parent, cell).signature.answers] == ["y"]


@pytest.mark.parametrize(
    ("values", "states", "lines"),
    [
        (("time", "batch", 3), [(1, "batch", 2)], '[inputs.x]\naxes = ["time", "batch", "*"]'),
        (("time", 3), [(1, 1, 2)], '[inputs.x]\naxes = ["time", "*"]'),
        ((None, None, 3), [(1, None, 2)], "[inputs.x]\naxes = ["),
    ],
)
def test_first_axis_that_is_time_is_refused_with_the_lines_that_declare_it(
    tmp_path: Path, values: Any, states: Any, lines: str
):
    path = write_cell(tmp_path / "model.onnx", values=values, states=states)
    with pytest.raises(NotInferred) as refused:
        resolve(tmp_path, path)
    assert "Is the first axis of x" in refused.value.asked
    assert lines in refused.value.asked


def with_input(path: Path, name: str, dtype: int, axes: list[Any]) -> Path:
    """Give a file one more input, which its graph takes and does not use."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.input.append(helper.make_tensor_value_info(name, dtype, axes))

    return changed(path, change)


def test_single_number_for_all_is_asked_for(cell: Path):
    text = refusal(with_input(cell, "sr", TensorProto.INT64, []))
    assert "[constants]\nsr = 16000" in text
    (cell.parent / "signature.toml").write_text("[constants]\nsr = 8000\n")
    assert resolve(cell.parent, cell).signature.constants[0].value == 8000


def test_vector_without_time_is_asked_for(cell: Path):
    text = refusal(with_input(cell, "speaker", TensorProto.FLOAT, ["batch", 4]))
    assert "[session_constants.speaker]\ninitial = 0" in text
    (cell.parent / "signature.toml").write_text("[session_constants]\nspeaker = 0.5\n")
    states = resolve(cell.parent, cell).signature.states
    assert [(s.input, s.is_constant, s.initial) for s in states] == [("s0", False, 0), ("speaker", True, 0.5)]


def test_graph_without_states_is_told_to_be_exported_with_them(tmp_path: Path):
    nodes = Nodes()
    nodes.add("Identity", "x", output="y")
    axes = ("batch", "time", 3)
    path = write_model(
        tmp_path / "model.onnx", nodes, [value_info("x", "float32", axes)], [value_info("y", "float32", axes)]
    )
    assert "no state among its inputs" in refusal(path)


def test_dynamic_quantisation_runs_rows_and_steps_alone_by_its_operator_s_name(cell: Path):
    def change(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]))

    resolved = resolve(cell.parent, changed(cell, change))
    assert resolved.signature.rows_alone
    assert resolved.signature.steps_alone
    assert "DynamicQuantizeLinear takes its scale from all rows" in resolved.warnings[0]


def engine_of(path: Path) -> Engine:
    resolved = resolve(path.parent, path)
    return Engine(path, provider="cpu", intra_op_num_threads=1, signature=resolved.signature)


def write_peeker(path: Path, axis: int) -> Path:
    """Write a cell that takes the mean over an axis from its answers: over the batch, or over all steps."""
    nodes = Nodes()
    mean = nodes.add("ReduceMean", "x", axes=[axis], keepdims=1)
    nodes.add("Sub", "x", mean, output="y")
    nodes.add("Identity", "s0", output="next_s0")
    x = ("batch", "time", 3)
    return write_model(
        path,
        nodes,
        [value_info("x", "float32", x), value_info("s0", "float32", ("batch", 2))],
        [value_info("y", "float32", x), value_info("next_s0", "float32", ("batch", 2))],
    )


def test_rows_that_feel_their_neighbours_are_found_by_running_them(tmp_path: Path):
    findings = probe_rows(engine_of(write_peeker(tmp_path / "model.onnx", axis=0)), exact=False)
    assert "runs one session at a time" in findings.rows_alone
    assert findings.steps_alone == ""


def test_answers_that_look_ahead_are_found_by_stepping(tmp_path: Path):
    engine = engine_of(write_peeker(tmp_path / "model.onnx", axis=1))
    findings = probe_rows(engine, exact=False)
    assert "runs one step at a time" in findings.steps_alone
    assert findings.rows_alone == ""
    signature = findings.applied_to(engine.signature)
    assert signature.steps_alone
    engine.use_signature(signature)
    assert probe_rows(engine, exact=True).warnings == ()


def test_batch_that_an_exporter_baked_in_runs_rows_alone(tmp_path: Path):
    """The file says that its batch is open, and makes one row of all that it is given."""
    nodes = Nodes()
    shaped = nodes.add("Reshape", "x", nodes.constant(np.array([1, -1, 3])))
    nodes.add("CumSum", shaped, nodes.constant(np.int64(1)), output="y")
    nodes.add("Identity", "s0", output="next_s0")
    axes = ("batch", "time", 3)
    path = write_model(
        tmp_path / "model.onnx",
        nodes,
        [value_info("x", "float32", axes), value_info("s0", "float32", ("batch", 2))],
        [value_info("y", "float32", axes), value_info("next_s0", "float32", ("batch", 2))],
    )
    resolved = resolve(tmp_path, path)
    assert resolved.signature.rows_alone
    assert "y has no axis for a batch" in resolved.warnings[0]
    engine_of(path).check_results()


def test_input_that_only_has_a_state_s_shape_beside_states_with_names_is_asked_for(tmp_path: Path):
    """A goal as wide as the action: taken for a state it would be the action of the step before."""
    nodes = Nodes()
    nodes.add(
        "Add", "goal", nodes.add("Slice", "obs", *map(nodes.constant, ([0], [4], [1]))), output="action"
    )
    nodes.add("Identity", "h_in", output="h_out")
    nodes.add("Identity", "obs", output="seen")
    path = write_model(
        tmp_path / "model.onnx",
        nodes,
        [
            value_info("obs", "float32", ("batch", 10)),
            value_info("goal", "float32", ("batch", 4)),
            value_info("h_in", "float32", ("batch", 2)),
        ],
        [
            value_info("action", "float32", ("batch", 4)),
            value_info("seen", "float32", ("batch", 10)),
            value_info("h_out", "float32", ("batch", 2)),
        ],
    )
    text = refusal(path)
    assert (
        "Is goal, float32 [batch, 4], a state whose next value is action, or a value of every step?" in text
    )
    assert "Is obs" not in text
    for lines, states in (
        ('[inputs.goal]\naxes = ["batch", "*"]\n', ["h_in"]),
        ('[states]\ngoal = "action"\n', ["goal", "h_in"]),
    ):
        (tmp_path / "signature.toml").write_text(lines)
        assert [state.input for state in resolve(tmp_path, path).signature.states] == states
