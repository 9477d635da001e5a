"""`longshort export`: modules as users write them become files that are served, or are refused and nothing is written.

Each file is called here by onnxruntime through the signature alone, as the service calls it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner

pytest.importorskip("torch")

import torch
import user_modules
from longshort_model import exporters, module_export, module_taken, user_module
from longshort_model.export import ExportError
from longshort_model.export_command import export as command
from longshort_model.module_export import Exported, Words, export_module
from longshort_model.module_face import Face, parse
from longshort_model.module_taken import take
from longshort_service.signature import Memory, MissingValue
from longshort_service.signature_json import METADATA_KEY, from_json, to_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshort_service.signature import Signature
    from numpy.typing import NDArray

pytestmark = pytest.mark.torch

SUPPORT = Path(user_modules.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "export.md"
TOKEN = parse("token:time,batch:int64:0..10")
WORDS_STATES = (parse("h:1,?,5"), parse("count:batch:int64"))
STEP_OF_THREE = parse("x:batch,3")


@dataclasses.dataclass
class Served:
    """A version's file, called with what its signature says: sessions of their own, step by step or many at once."""

    folder: Path

    def __post_init__(self) -> None:
        self.session = onnxruntime.InferenceSession(
            self.folder / "model.onnx", providers=["CPUExecutionProvider"]
        )
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.signature: Signature = from_json(metadata[METADATA_KEY])

    def start(self, batch: int) -> list[NDArray[Any]]:
        made = []
        for state in self.signature.states:
            row: Any = (
                np.load(self.folder / state.initial_file) if state.initial_file else np.array(state.initial)
            )
            full = np.broadcast_to(row, state.row_shape()).astype(state.dtype)
            made.append(np.repeat(np.expand_dims(full, state.batch_axis), batch, axis=state.batch_axis))
        return made

    def run(
        self, inputs: list[NDArray[Any]], states: list[NDArray[Any]]
    ) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        feed = {port.name: tensor for port, tensor in zip(self.signature.inputs, inputs, strict=True)}
        feed |= {state.input: tensor for state, tensor in zip(self.signature.states, states, strict=True)}
        names = [
            *(port.name for port in self.signature.answers),
            *(state.output for state in self.signature.states),
        ]
        made = self.session.run(names, feed)
        return made[: len(self.signature.answers)], made[len(self.signature.answers) :]


def exported(module: Any, tmp_path: Path, *tensors: list[Face], **words: Any) -> tuple[Exported, Served]:
    torch.manual_seed(5)
    taken = take(module.eval(), *(tensors or ((), ())))
    made = export_module(taken, Words("mine", **words), tmp_path)
    assert made.folder == tmp_path / "mine" / "1"
    return made, Served(made.folder)


CASES: dict[str, tuple[Callable[[], Any], tuple[Any, ...]]] = {
    "lstm": (user_modules.Lstm, ()),
    "lstm of two layers": (lambda: user_modules.Lstm(layers=2), ()),
    "memories in a tuple": (user_modules.Nested, ()),
    "memories in a tuple that initial_states does not have": (user_modules.OneMemory, ()),
    "memories in a tuple, by flags": (
        user_modules.OneMemory,
        ((parse("x:batch,time,3"),), (parse("h:1,batch,8"), parse("c:1,batch,8"))),
    ),
    "indices of several tables": (user_modules.TwoTables, ()),
    "gru": (user_modules.Gru, ()),
    "a constant that Python reads": (user_modules.ReadsItsConstants, ()),
    "rnn": (user_modules.Rnn, ()),
    "cells in a loop": (user_modules.CellLoop, ()),
    "causal convolution": (user_modules.CausalConv, ()),
    "state space": (user_modules.StateSpace, ()),
    "state space in double": (lambda: user_modules.StateSpace(torch.float64), ()),
    "state space in half": (lambda: user_modules.StateSpace(torch.float16), ()),
    "no time axis": (user_modules.NoTime, ((STEP_OF_THREE,), ())),
    "cell in double": (user_modules.DoubleCell, ((parse("x:batch,3:float64"),), ())),
    "words": (user_modules.Words, ((TOKEN,), WORDS_STATES)),
}
TOLERANCES = {"float16": 2e-2, "float32": 1e-5, "float64": 1e-12, "int64": 0.0}


@pytest.mark.parametrize("case", CASES)
def test_a_file_gives_step_by_step_what_the_module_gives_for_the_whole(case: str, tmp_path: Path) -> None:
    """40 steps of three sessions: the module is called once with all, the file with one step at a time."""
    make, tensors = CASES[case]
    torch.manual_seed(11)
    module = make()
    _, served = exported(module, tmp_path, *tensors)
    signature = served.signature
    taken = take(module, *(tensors or ((), ())))
    generator = torch.Generator().manual_seed(9)
    steps, batch = 40, 3
    inputs = [face.draw(generator, batch, steps) for face in taken.inputs]
    if taken.has_time:
        *expected, last = taken.call([*inputs, *(face.start(batch) for face in taken.states)])
    states = served.start(batch)
    for t in range(steps):
        if not taken.has_time:  # the module takes one step a call
            inputs = [face.draw(generator, batch, 1) for face in taken.inputs]
            *expected, last = taken.call([*inputs, *(torch.from_numpy(state) for state in states)])
        given = []
        for face, port, tensor in zip(taken.inputs, signature.inputs, inputs, strict=True):
            axis = face.axis("time")
            one = tensor if axis is None else tensor.select(axis, t)
            given.append((one if port.time_axis is None else one.unsqueeze(port.time_axis)).numpy())
        answers, states = served.run(given, states)
        for face, port, answer, right in zip(
            taken.answers, signature.answers, answers, expected, strict=False
        ):
            axis = face.axis("time")
            one = right if axis is None else right.select(axis, t)
            got = answer if port.time_axis is None else answer.take(0, port.time_axis)
            assert got.dtype == port.dtype
            np.testing.assert_allclose(
                got, one.numpy(), atol=TOLERANCES[port.dtype], rtol=TOLERANCES[port.dtype]
            )
    np.testing.assert_allclose(states[-1], last.numpy(), atol=1e-2 if "half" in case else 1e-5)


def test_the_signature_says_where_batch_and_time_lie(tmp_path: Path) -> None:
    _, served = exported(user_modules.Words(), tmp_path, (TOKEN,), WORDS_STATES)
    signature = served.signature
    token, y, total = *signature.inputs, *signature.answers
    assert (token.name, token.shape, token.dtype) == ("token", (), "int64")
    assert (token.batch_axis, token.time_axis) == (1, 0)
    assert (y.shape, y.batch_axis, y.time_axis) == ((5,), 1, 0)
    assert (total.name, total.shape) == ("y1", ())
    assert [(s.input, s.shape, s.batch_axis, s.dtype) for s in signature.states] == [
        ("h", (1, -1, 5), 1, "float32"),
        ("count", (-1,), 0, "int64"),
    ]
    assert [c.name for c in signature.outputs] == [*(f"y0[{k}]" for k in range(5)), "y1"]
    assert [c.name for c in signature.features] == ["token"]


def test_an_lstms_memories_are_told_apart_and_a_grus_one_is_not_named(tmp_path: Path) -> None:
    _, lstm = exported(user_modules.Lstm(), tmp_path / "lstm")
    assert {s.input: s.memory for s in lstm.signature.states} == {
        "h": Memory.SHORT_TERM,
        "c": Memory.LONG_TERM,
    }
    _, gru = exported(user_modules.Gru(), tmp_path / "gru")
    assert [s.memory for s in gru.signature.states] == [None]


def test_states_that_do_not_begin_at_zero_keep_their_beginning(tmp_path: Path) -> None:
    _, conv = exported(user_modules.CausalConv(), tmp_path / "conv")
    assert [state.initial for state in conv.signature.states] == [0.0, 0.5]
    made, space = exported(user_modules.StateSpace(), tmp_path / "space")
    assert space.signature.states[0].initial_file == "s.npy"
    np.testing.assert_array_equal(np.load(made.folder / "s.npy"), np.arange(6, dtype=np.float32))
    made, count = exported(user_modules.Count(), tmp_path / "count")
    assert (
        count.signature.states[0].initial_file == "n.npy"
    )  # a signature's number is a float: it would begin one less
    assert np.load(made.folder / "n.npy").tolist() == [2**60 + 1]


def test_a_loop_over_time_is_served_one_step_a_run_and_that_is_said(tmp_path: Path) -> None:
    made, served = exported(user_modules.CellLoop(), tmp_path)
    assert made.way.endswith("one step a run")
    assert len(made.refused) == 2
    assert served.signature.steps_alone
    assert (served.signature.inputs[0].shape, served.signature.inputs[0].time_axis) == ((3,), None)


def test_a_module_that_answers_the_last_step_alone_is_served_one_step_a_run(tmp_path: Path) -> None:
    module = user_modules.LastOnly()
    made, served = exported(module, tmp_path)
    assert (made.way, made.refused) == ("torch.onnx, traced, one step a run", ())
    values, states = torch.randn(3, 20, 3), served.start(3)
    for t in range(20):
        (answer,), states = served.run([values[:, t].numpy()], states)
        with torch.no_grad():
            expected, _ = module(values[:, : t + 1], *module.initial_states(3))
        np.testing.assert_allclose(answer, expected.numpy(), atol=1e-6)


def test_a_recurrent_layer_stays_one_node(tmp_path: Path) -> None:
    made, _ = exported(user_modules.Lstm(layers=2), tmp_path)
    nodes = [node.op_type for node in onnx.load(made.folder / "model.onnx").graph.node]
    assert nodes.count("LSTM") == 2
    assert "Loop" not in nodes


def test_the_file_names_nothing_of_the_machine_that_made_it() -> None:
    for name, way in (("traced", exporters.by_tracing), ("dynamo", exporters.by_dynamo)):
        torch.manual_seed(0)
        model = way(take(user_modules.Lstm().eval(), (), ()))
        content = model.SerializeToString()
        assert b"user_modules" not in content, name
        assert b".py" not in content, name
        assert {tensor.name for tensor in model.graph.output} == {"y", "next_h", "next_c"}
        assert not model.graph.value_info


def test_dynamo_is_taken_where_tracing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> onnx.ModelProto:
        raise ExportError("not today")

    ways = [
        dataclasses.replace(way, export=fails) if "traced" in way.name else way for way in module_export.WAYS
    ]
    monkeypatch.setattr(module_export, "WAYS", ways)
    for k in (1, 2):  # the second export in one process fails over what the first one leaves behind
        made, _ = exported(user_modules.Lstm(), tmp_path / str(k))
        assert made.way == "torch.onnx, dynamo"
        assert "not today" in made.refused[0]


def test_the_same_module_gives_the_same_fingerprint_and_other_weights_another(tmp_path: Path) -> None:
    prints = []
    for k, seed in enumerate((1, 1, 2)):
        torch.manual_seed(seed)
        prints.append(exported(user_modules.Gru(), tmp_path / str(k))[1].signature.fingerprint)
    assert prints[0] == prints[1] != prints[2]
    assert len(prints[0]) == 64


REFUSED = {
    "IgnoresItsState": "state h is never read",
    "BatchStatistics": "depends on the other rows",
    "BatchNormInTraining": "depends on the other rows",
    "AlwaysDropsOut": "other answers the second time",
    "RemembersBesideItsStates": "other answers the second time",
    "DecidesByValues": "forward takes numbers out of its tensors (user_modules.py, line",
    "SeesTheFuture": "sees later steps",
    "ForgetsItsCache": "its states do not hold all that it needs",
    "ForgetsItsCacheAtTheEnd": "its states do not hold all that it needs",
    "BatchOfThree": "the module fails for tensors [5, 7, 3], [1, 5, 8]",
    "GrowingState": "state h goes in as [1, 3, 8] float32 and comes out as [1, 3, 16] float32",
    "StateInAnotherDtype": "comes out as [1, 3, 8] float64",
    "ReturnsNoAnswer": "it must return (y, *states)",
    "ReturnsADict": "not dict",
    "StartsAtRandom": "sessions begin alike",
    "Stateless": "it has no states",
    "AnInputAStep": "example_inputs returns 7 or 11 tensors at other sizes of batch and time",
    "AStateARow": "initial_states returns 3 or 5 tensors at other sizes of batch and time",
    "ExampleOfNothing": "not NoneType",
    "StartsAtNothing": "not NoneType",
    "TruthAsState": "h is bool",
    "Raises": "ZeroDivisionError: in forward (user_modules.py, line",
    "LstmInHalf": "dies of the file",
    "GruInHalf": "dies of the file",
    "LstmInDouble": "LSTM operator does not support double",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused_in_a_line_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    done = run_command(tmp_path, "export", f"user_modules:{name}")
    assert done.exit_code == 2, done.output
    assert REFUSED[name] in done.output
    assert not list(tmp_path.iterdir())


def run_command(folder: Path, *arguments: str) -> Any:
    assert arguments[0] == "export"
    return CliRunner().invoke(command, [*arguments[1:], "--out", str(folder)])


def bake_the_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """As dynamo does with an example of one row: the numbers are wrong at another batch, and nothing complains."""
    first = onnx.numpy_helper.from_array(np.array([0]), "first_row")
    model.graph.initializer.append(first)
    for node in model.graph.node:
        node.input[:] = ["one_row" if name == "h" else name for name in node.input]
    pick = onnx.helper.make_node("Gather", ["h", "first_row"], ["picked"], axis=1)
    grow = onnx.helper.make_node("Mul", ["zeros", "h"], ["zeroed"])
    zero = onnx.numpy_helper.from_array(np.array(0, np.float32), "zeros")
    model.graph.initializer.append(zero)
    spread = onnx.helper.make_node("Add", ["picked", "zeroed"], ["one_row"])
    for node in (spread, grow, pick):
        model.graph.node.insert(0, node)
    return model


def ignore_the_state(model: onnx.ModelProto) -> onnx.ModelProto:
    for node in model.graph.node:
        node.input[:] = ["no_h" if name == "h" else name for name in node.input]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.float32), "zeros"))
    model.graph.node.insert(0, onnx.helper.make_node("Mul", ["zeros", "h"], ["no_h"]))
    return model


def shift_a_weight(model: onnx.ModelProto) -> onnx.ModelProto:
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    array = onnx.numpy_helper.to_array(largest).copy()
    array.flat[7] += 0.01
    largest.CopyFrom(onnx.numpy_helper.from_array(array, largest.name))
    return model


@pytest.mark.parametrize("damage", [bake_the_batch, ignore_the_state, shift_a_weight])
def test_a_file_that_does_something_else_than_the_module_is_refused(
    damage: Callable[[onnx.ModelProto], onnx.ModelProto], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(way: Any) -> Any:
        return dataclasses.replace(way, export=lambda taken: damage(way.export(taken)))

    monkeypatch.setattr(module_export, "WAYS", [damaged(module_export.WAYS[0])])
    with pytest.raises(ExportError) as caught:
        exported(user_modules.Gru(), tmp_path)
    assert "differs from PyTorch" in str(caught.value)
    assert not list(tmp_path.iterdir())


# The command.


def test_the_command_imports_from_the_current_folder_and_takes_arguments_weights_and_names(
    tmp_path: Path,
) -> None:
    torch.manual_seed(3)
    module = user_modules.Gru(hidden=6, layers=2)
    torch.save({"state_dict": module.state_dict()}, tmp_path / "gru.pt")
    (tmp_path / "my_models.py").write_text("from user_modules import Gru as Wave\n")
    arguments = ["my_models:Wave", "--kwargs", '{"hidden": 6, "layers": 2}', "--weights", "gru.pt"]
    words = [
        "--feature",
        "a",
        "--feature",
        "b",
        "--feature",
        "hour",
        "--output",
        "next_a",
        "--output",
        "next_b",
    ]
    more = ["--forecast", "next_a=a", "--forecast", "next_b=b", "--missing", "repeat_last", "--name", "wave"]
    done = subprocess.run(
        [sys.executable, "-m", "longshort_service", "export", *arguments, *words, *more],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SUPPORT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.startswith("models/wave/1, torch.onnx, traced, within ")
    assert "next: longshort serve models" in done.stdout
    served = Served(tmp_path / "models" / "wave" / "1")
    assert [c.name for c in served.signature.features] == ["a", "b", "hour"]
    assert served.signature.known_features() == [2]
    assert served.signature.missing is MissingValue.REPEAT_LAST
    values = torch.randn(2, 4, 3)
    with torch.no_grad():
        expected, _ = module.eval()(values, *module.initial_states(2))
    (y,), _ = served.run([values.numpy()], served.start(2))
    np.testing.assert_allclose(y, expected.numpy(), atol=1e-6)


def test_the_module_of_the_docs_is_exported_by_the_command_of_the_docs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = PAGE.read_text(encoding="utf-8")
    (tmp_path / "my_models.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    line = page.partition("```\n")[2].splitlines()[0]
    assert line.startswith("longshort export my_models:Wave ")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    wave = user_module.load("my_models:Wave", {})
    torch.save(wave.state_dict(), "wave.pt")
    done = CliRunner().invoke(command, line.split()[2:])
    monkeypatch.delitem(sys.modules, "my_models")
    assert done.exit_code == 0, done.output
    served = Served(tmp_path / "models" / "wave" / "1")
    values = torch.randn(2, 4, 3)
    (y,), _ = served.run([values.numpy()], served.start(2))
    np.testing.assert_allclose(y, wave(values, *wave.initial_states(2))[0].numpy(), atol=1e-6)


def test_every_flag_of_the_command_is_on_its_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    flags = [flag for parameter in command.params for flag in parameter.opts if flag.startswith("--")]
    assert len(flags) == 14
    assert [flag for flag in flags if f"`{flag}`" not in page] == []


def test_a_function_and_a_module_are_exported_like_a_class(tmp_path: Path) -> None:
    made = run_command(tmp_path, "export", "user_modules:make", "--kwargs", '{"kind": "Rnn", "hidden": 5}')
    assert made.exit_code == 0, made.output
    assert Served(tmp_path / "make" / "1").signature.states[0].shape == (1, -1, 5)
    there = run_command(tmp_path, "export", "user_modules:a_module", "--name", "there", "--version", "4")
    assert there.exit_code == 0, there.output
    assert (tmp_path / "there" / "4" / "model.onnx").exists()
    again = run_command(tmp_path, "export", "user_modules:a_module", "--name", "there", "--version", "4")
    assert (again.exit_code, "never changes" in again.output) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["user_modules"], "name it as module:ClassName"),
        (["no_such_module:Net"], "No module named 'no_such_module'; looked in this folder too"),
        (["user_modules:NoSuch"], "user_modules has no NoSuch"),
        (["user_modules:a_number"], "gives a int, no torch.nn.Module"),
        (["user_modules:a_module", "--kwargs", '{"hidden": 3}'], "is a module already"),
        (["user_modules:Gru", "--kwargs", '{"hiden": 3}'], "unexpected keyword argument 'hiden'"),
        (["user_modules:Gru", "--kwargs", "hidden=3"], "--kwargs is no JSON"),
        (["user_modules:Gru", "--kwargs", "[3]"], "--kwargs must be a JSON object"),
        (["user_modules:Gru", "--weights", "no.pt"], "no.pt"),
        (["user_modules:Gru", "--weights", __file__], "no file of weights alone"),
        (["user_modules:Gru", "--name", "../out"], "cannot be the model's name"),
        (["user_modules:Gru", "--forecast", "y"], "OUTPUT=FEATURE"),
        (["user_modules:Gru", "--forecast", "y=x"], "no such channel"),
        (["user_modules:Gru", "--feature", "a"], "--feature names 1 numbers, there are 3: x[0], x[1], x[2]"),
        (["user_modules:Gru", "--answer", "a", "--answer", "b"], "forward returns 1 answers, 2 are named"),
        (["user_modules:Words"], "Words has no example_inputs(...) to ask"),
        (["user_modules:Words", "--input", "t:time,batch:int64"], "Words has no initial_states(...) to ask"),
        (["user_modules:Gru", "--input", "x"], "NAME:SIZE,SIZE"),
        (["user_modules:Gru", "--input", "x:batch,time,three"], "'three' is no size"),
        (["user_modules:Gru", "--input", "x:4,time,3"], "it needs batch among its sizes once"),
        (["user_modules:Gru", "--input", "x:batch,time,3:bool"], "bool is none of float16"),
        (["user_modules:Gru", "--input", "x:batch,time,3:float32:5"], "'5' is no range"),
        (["user_modules:Gru", "--input", "x:batch,time,3:float32:0..nan"], "'0..nan' is no range"),
        (["user_modules:Gru", "--input", "x:batch,time,3:float16:0..70000"], "is beyond float16"),
        (["user_modules:Gru", "--input", "x:batch,time,3:int32:0..3000000000"], "is beyond int32"),
        (["user_modules:Gru", "--input", "x:batch,time,3:int64:0..1.5"], "'0..1.5' is no range"),
        (["user_modules:Gru", "--answer", "x"], "two tensors are named x"),
        (["user_modules:Gru", "--answer", "next_h"], "two tensors are named next_h"),
        (["user_modules:Gru", "--answer", "a b"], "'a b' cannot be a tensor's name"),
        (["user_modules:Gru", "--input", "x:batch,time,4"], "the module fails for tensors [3, 7, 4]"),
        (["user_modules:Gru", "--state", "h:batch,8"], "the module fails for tensors"),
        (["user_modules:Gru", "--state", "h:time,batch,8"], "state h has an axis of time"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = run_command(tmp_path, "export", *arguments)
    assert done.exit_code == 2
    assert said in done.output
    assert not list(tmp_path.iterdir())


def test_a_module_that_imports_its_neighbours_late_or_moves_away_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "late_parts.py").write_text("from user_modules import Gru\n")
    (tmp_path / "late_whole.py").write_text(
        "import os\nos.chdir('/')\ndef make():\n    from late_parts import Gru\n    return Gru()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert isinstance(user_module.load("late_whole:make", {}), user_modules.Gru)


def test_a_script_that_ends_the_process_when_it_is_imported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_script.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(ExportError) as caught:
        user_module.load("a_script:Net", {})
    assert "ends its process when it is imported" in str(caught.value)


def test_weights_of_another_module_are_refused(tmp_path: Path) -> None:
    torch.save(user_modules.Rnn().state_dict(), tmp_path / "rnn.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for file, said in (("rnn.pt", "size mismatch"), ("list.pt", "holds a list, no state dict")):
        with pytest.raises(ExportError) as caught:
            user_module.load("user_modules:Gru", {}, tmp_path / file)
        assert said in str(caught.value)


def test_without_pytorch_the_error_says_which_extra_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    rooms = ("module_export", "module_face", "module_calls", "module_taken", "module_checks", "module_parity")
    for name in (*rooms, "user_module", "exporters"):
        monkeypatch.delitem(sys.modules, f"longshort_model.{name}", raising=False)
        monkeypatch.delattr(f"longshort_model.{name}", raising=False)
    done = CliRunner().invoke(command, ["user_modules:Gru"])
    assert done.exit_code == 2
    assert "the train extra" in done.output


def test_a_model_of_whole_numbers_draws_them_from_the_range_that_was_given() -> None:
    face = parse("token:batch,time:int32:3..5")
    drawn = face.draw(torch.Generator().manual_seed(0), 50, 50)
    assert drawn.dtype == torch.int32
    assert set(drawn.flatten().tolist()) == {3, 4, 5}
    between = parse("x:batch,time:float32:-2..-1").draw(torch.Generator().manual_seed(0), 50, 50)
    assert -2 <= float(between.min()) < -1.9
    assert -1.1 < float(between.max()) <= -1


def test_an_axis_that_is_neither_batch_nor_time_is_refused() -> None:
    tensors = [torch.zeros(2 * batch, time) for batch, time in module_taken.SIZES]
    with pytest.raises(ExportError) as caught:
        module_taken.sizes_of("x", tensors)
    assert "neither of them" in str(caught.value)


def test_what_is_said_of_a_file_is_json_free_of_surprises(tmp_path: Path) -> None:
    made, served = exported(user_modules.Gru(), tmp_path, description="Waves.", state_family="waves")
    assert json.loads(to_json(made.signature)) == json.loads(to_json(served.signature))
    assert (served.signature.description, served.signature.state_family) == ("Waves.", "waves")
