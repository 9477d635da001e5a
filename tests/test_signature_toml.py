"""signature.toml: what it may say, what is refused, how it stands over a file's own signature, and its skeleton."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from graphs import write_adder
from longshort_model.synthetic import write_random_model
from longshort_service.cli import main
from longshort_service.engine import Engine
from longshort_service.graph_check import ModelError
from longshort_service.model_signature import Resolved, resolve
from longshort_service.signature import Channel, Feedback, Memory, MissingValue
from longshort_service.signature_file import Said, SaidState, SaidTensor, Window, read
from wild_graphs import write_cell


def said(path: Path, text: str) -> Resolved:
    (path.parent / "signature.toml").write_text(text)
    return resolve(path.parent, path)


def refused(path: Path, text: str) -> str:
    with pytest.raises(ModelError) as error:
        said(path, text)
    return str(error.value)


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    return write_cell(tmp_path / "oven" / "3" / "model.onnx")


def test_descriptions_names_and_units_are_taken_over(cell: Path):
    signature = said(
        cell,
        """
        name = "Oven"
        description = "the temperature"
        missing = "repeat_last"
        step_s = 60
        state_family = "ovens"
        [inputs.x]
        names = ["a", { name = "b", unit = "K" }, "c"]
        [outputs.y]
        names = ["a", "b", { name = "low", quantile = 0.1 }]
        [states.s0]
        output = "next_s0"
        initial = 1.5
        memory = "long_term"
        [forecast]
        a = "b"
        """,
    ).signature
    assert (signature.name, signature.description, signature.state_family) == (
        "Oven",
        "the temperature",
        "ovens",
    )
    assert (signature.missing, signature.step_s) == (MissingValue.REPEAT_LAST, 60.0)
    assert signature.features == (Channel("a"), Channel("b", "K"), Channel("c"))
    assert signature.outputs[2] == Channel("low", "", 0.1)
    assert (signature.states[0].initial, signature.states[0].memory) == (1.5, Memory.LONG_TERM)
    assert signature.forecast == (Feedback("b", "a"),)


def test_without_names_a_model_is_called_as_its_folder_and_numbers_as_their_tensor(cell: Path):
    signature = resolve(cell.parent, cell).signature
    assert signature.name == "oven"
    assert [channel.name for channel in signature.features] == ["x[0]", "x[1]", "x[2]"]


WRONG = [
    ("nonsense = 1", "the file has a key 'nonsense'; known are name, description, missing"),
    ("[inputs.x]\nshape = [1]", "[inputs.x] has a key 'shape'; known are axes, names, window"),
    ("[outputs.y]\nwindow = 1", "[outputs.y] has a key 'window'"),
    ("[states.s0]\nto = 'next_s0'", "[states.s0] has a key 'to'"),
    ("not toml", "is no TOML"),
    ("name = 1", "name must be a text"),
    ("rows_alone = 1", "rows_alone must be true or false"),
    ("missing = 'zero'", "missing must be reject, repeat_last or pass"),
    ("step_s = 0", "step_s must be greater than 0"),
    ("step_s = nan", "step_s must be a finite number"),
    ("inputs = 3", "inputs must be a table"),
    ("[inputs.x]\naxes = 'batch'", "inputs.x.axes must be a list"),
    ("[inputs.x]\naxes = ['batch', 'tim', '*']", "each axis is"),
    ("[inputs.x]\naxes = ['batch', 'batch', '*']", "one axis at most is the batch"),
    ("[inputs.x]\naxes = ['batch', 'time']", "x has 3 axes"),
    ("[inputs.x]\naxes = ['batch', '*', 3]", "leaves the size of axis 1 open"),
    ("[inputs.x]\naxes = ['batch', 'time', 4]", "axis 2 is 3 in the file, not 4"),
    ("[inputs.x]\naxes = ['batch', 4, 'time']", "axis 2 is fixed at 3 in the file and cannot be the time"),
    ("[inputs.x]\nnames = ['a']", "1 are named, a step of it has 3 numbers"),
    ("[inputs.x]\nnames = ['a', 'a', 'b']", "a feature is named twice"),
    ("[inputs.x]\nnames = [{unit = 'K'}]", "has no name"),
    ("[inputs.x]\nwindow = { size = 0 }", "needs a size of 1 or more"),
    ("[inputs.x]\nwindow = { size = 2 }", "How long is axis 1 of x"),
    (
        "[inputs.x]\naxes = ['batch', 'time', '*']\nwindow = { size = 2 }",
        "with a time axis has its past in it",
    ),
    ("[inputs.x]\naxes = ['batch', 2, '*']\nwindow = { size = 3 }", "a window of 3 leaves nothing of 3"),
    ("[inputs.x]\naxes = ['batch', 2, '*']\nwindow = { size = 1, axis = 0 }", "is none that holds values"),
    ("[inputs.z]", "[inputs] names 'z': the graph has x, s0"),
    ("[outputs.z]", "[outputs] names 'z': the graph has y, next_s0"),
    ("[outputs.y]\nignore = true\n[states]\ns0 = 'next_s0'", "nothing is left to answer with"),
    ("[constants]\nx = 1\n[states]\ns0 = 'next_s0'", "nothing is left to carry values"),
    ("[states]\ns0 = 'z'", "[states] names 'z'"),
    ("[states]\ns0 = 'y'", "the state s0 is float32 [batch, 2], its next value y is"),
    ("[states.s0]\noutput = 'next_s0'\naxes = ['time', 'batch']", "a state has no axis of time"),
    ("[states.s0]\noutput = 'next_s0'\ninitial = inf", "must be a finite number"),
    ("[states.s0]\noutput = 'next_s0'\ninitial = 1e300", "1e+300 is no float32"),
    ("[states.s0]\noutput = 'next_s0'\nmemory = 'medium'", "must be long_term or short_term"),
    ("[session_constants.x]\naxes = ['time']", "a constant of one session has no axis of time"),
    ("[constants]\ns0 = 1\n[states]\ns0 = 'next_s0'", "'s0' is said to be two things"),
    ("[constants]\nx = true", "constants.x must be a number"),
    ("[states.s0]\noutput = 'next_s0'\ninitial = 9007199254740993", "has more digits than are kept"),
    ("sequence_lens = 's0'", "s0 is not int32 [batch]"),
    ("[forecast]\ny = 'x'", "There is no output 'x'; the first are y[0], y[1], y[2]"),
    ("[states.s0]\ninitial = 1", "[states.s0] needs output, its next value: one of y, next_s0"),
    ("[forecast]\ny = 1", "forecast.y must be a text"),
]


@pytest.mark.parametrize(("text", "complaint"), WRONG, ids=[text for text, _ in WRONG])
def test_what_is_wrong_is_refused_with_the_place(cell: Path, text: str, complaint: str):
    assert complaint in refused(cell, text)


def test_file_that_is_too_long_to_be_one_is_refused(cell: Path):
    assert "more than 1048576 bytes" in refused(cell, "#" * 2**20 + "\n")


def save(path: Path, array: Any, **more: Any) -> None:
    np.save(path, array, **more)


def test_states_start_with_what_a_tensor_file_holds(cell: Path):
    save(cell.parent / "start.npy", np.array([3.0, 4.0], np.float32))
    text = '[states.s0]\noutput = "next_s0"\ninitial = "start.npy"\n'
    resolved = said(cell, text)
    engine = Engine(
        cell,
        provider="cpu",
        intra_op_num_threads=1,
        signature=resolved.signature,
        arrays=resolved.arrays,
    )
    assert engine.initial_states(2)[0].tolist() == [[3, 4], [3, 4]]
    answers, _ = engine.run(np.zeros((1, 1, 3), np.float32), None, engine.initial_states(1))
    assert answers.tolist() == [[[7, 7, 7]]]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda p: save(p, np.zeros(2, np.float64)), "is float64 [2], it must be float32 [2]"),
        (lambda p: save(p, np.zeros((2, 1), np.float32)), "is float32 [2, 1], it must be float32 [2]"),
        (
            lambda p: save(p, np.array([{}, {}]), allow_pickle=True),
            "holds pickled objects, which are not read",
        ),
        (lambda p: p.write_bytes(b"no tensor"), "is no .npy file"),
        (lambda p: p.symlink_to("/etc/hostname"), "no file 'start.npy'"),
        (lambda p: p.mkdir(), "no file 'start.npy'"),
        (lambda _: None, "no file 'start.npy'"),
    ],
)
def test_tensor_files_that_will_not_do_are_refused(cell: Path, make: Any, complaint: str):
    make(cell.parent / "start.npy")
    assert complaint in refused(cell, '[states.s0]\noutput = "next_s0"\ninitial = "start.npy"\n')


def test_tensor_file_that_promises_more_than_it_has_is_refused(cell: Path):
    file = cell.parent / "start.npy"
    save(file, np.zeros(2, np.float32))
    file.write_bytes(file.read_bytes()[:-1])
    assert "ends too early" in refused(cell, '[states.s0]\noutput = "next_s0"\ninitial = "start.npy"\n')


@pytest.mark.parametrize("location", ["../start.npy", "/etc/hostname", "\\u0000", "a" * 5000])
def test_tensor_files_outside_of_the_folder_are_not_read(cell: Path, location: str):
    save(cell.parent.parent / "start.npy", np.zeros(2, np.float32))
    text = f'[states.s0]\noutput = "next_s0"\ninitial = "{location}"\n'
    assert "a .npy beside the model is needed" in refused(cell, text)


def test_window_is_what_comes_before_the_new_values(tmp_path: Path):
    path = write_cell(tmp_path / "model.onnx", values=("batch", 5), states=[("batch", 1)])
    resolved = said(path, "[inputs.x]\nwindow = { size = 2, initial = 7 }\n")
    engine = Engine(path, provider="cpu", intra_op_num_threads=1, signature=resolved.signature)
    assert len(resolved.signature.features) == 3
    rows = np.array([[[1, 2, 3], [4, 5, 6]]], np.float32)
    answers, _ = engine.run(rows, None, engine.initial_states(1))
    first, second = [7, 7, 1, 2, 3], [2, 3, 4, 5, 6]
    total = sum(first)
    assert answers[0, 0].tolist() == [value + total for value in first]
    assert answers[0, 1].tolist() == [value + total + sum(second) for value in second]


def test_unsigned_file_keeps_its_fingerprint_while_its_words_change_and_not_its_numbers(cell: Path):
    plain = resolve(cell.parent, cell).signature.fingerprint
    words = said(cell, 'description = "other words"\n[inputs.x]\nnames = ["a", "b", "c"]\n').signature
    numbers = said(cell, '[states.s0]\noutput = "next_s0"\ninitial = 1\n').signature
    again = said(cell, '[states.s0]\noutput = "next_s0"\ninitial = 2\n').signature
    assert words.fingerprint == plain
    assert len({plain, numbers.fingerprint, again.fingerprint}) == 3
    other = write_cell(cell.parent.parent / "4" / "model.onnx", states=[("batch", 4)])
    assert resolve(other.parent, other).signature.fingerprint != plain


def test_signed_file_says_itself_what_signature_toml_leaves_out(tmp_path: Path):
    path = tmp_path / "metro" / "1" / "model.onnx"
    write_random_model(path, name="m", hidden=4, layers=2, features=2, outputs=3, missing=MissingValue.PASS)
    own = resolve(path.parent, path).signature
    corrected = said(path, 'description = "corrected"\n').signature
    assert corrected == dataclasses.replace(own, description="corrected")
    assert corrected.fingerprint == own.fingerprint
    assert corrected.is_plain
    moved = said(path, "[states.c0]\ninitial = 1\n").signature
    assert [(s.input, s.output, s.initial) for s in moved.states] == [
        (s.input, s.output, 1.0 if s.input == "c0" else 0.0) for s in own.states
    ]
    assert moved.fingerprint != own.fingerprint


def test_signed_file_alone_needs_no_more_than_its_signature(tmp_path: Path):
    path = tmp_path / "adder" / "1" / "model.onnx"
    signature = write_adder(path)
    resolved = resolve(path.parent, path)
    assert resolved == Resolved(signature, {})


def test_skeleton_of_what_is_inferred_loads_as_it_is_and_changes_nothing(cell: Path):
    before = resolve(cell.parent, cell).signature
    done = CliRunner().invoke(main, ["describe", str(cell.parent), "--write"])
    assert done.exit_code == 0
    assert "nothing has to be added" in done.output
    assert resolve(cell.parent, cell).signature == before


@pytest.mark.parametrize("number", [16777217.0, 1234567.0, -0.0, 0.1, 1e-30, -3e38])
def test_skeleton_keeps_numbers_to_the_last_digit(cell: Path, number: float):
    text = f'[states.s0]\noutput = "next_s0"\ninitial = {number!r}\n'
    before = said(cell, text).signature
    assert CliRunner().invoke(main, ["describe", str(cell.parent), "--write", "--force"]).exit_code == 0
    after = resolve(cell.parent, cell).signature
    assert repr(after.states[0].initial) == repr(number)
    assert after == before


def test_skeleton_is_not_written_over_without_force_and_keeps_what_was_said_with_it(cell: Path):
    toml = cell.parent / "signature.toml"
    toml.write_text('description = "mine"\n')
    done = CliRunner().invoke(main, ["describe", str(cell.parent), "--write"])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "--force writes it anew" in done.stderr
    assert toml.read_text() == 'description = "mine"\n'
    done = CliRunner().invoke(main, ["describe", str(cell.parent), "--write", "--force"])
    assert done.exit_code == 0
    assert 'description = "mine"' in toml.read_text()
    assert '[states.s0]\noutput = "next_s0"' in toml.read_text()


def test_skeleton_asks_in_comments_and_loads_when_they_are_answered(tmp_path: Path):
    path = write_cell(
        tmp_path / "m" / "1" / "model.onnx", values=("time", "batch", 3), states=[(1, "batch", 2)]
    )
    done = CliRunner().invoke(main, ["describe", str(path.parent)])
    assert done.exit_code == 2
    assert "Is the first axis of x" in done.stdout  # the question and its lines; the error is one line
    assert done.stderr.count("\n") == 1
    done = CliRunner().invoke(main, ["describe", str(path.parent), "--write"])
    assert "1 question is open" in done.output
    toml = path.parent / "signature.toml"
    lines = toml.read_text().splitlines()
    answered = [line.removeprefix("# ") if line.startswith(("# [", "# axes")) else line for line in lines]
    toml.write_text("\n".join(answered))
    done = CliRunner().invoke(main, ["describe", str(path.parent)])
    assert done.exit_code == 0
    assert "float32 [time, batch, 3]" in done.output


def test_names_that_toml_cannot_write_bare_are_quoted(tmp_path: Path):
    name = 'a "b".c\\d é'
    path = write_cell(tmp_path / "m" / "1" / "model.onnx", names=[(f"{name}_in", f"{name}_out")])
    before = resolve(path.parent, path).signature
    assert CliRunner().invoke(main, ["describe", str(path.parent), "--write"]).exit_code == 0
    assert resolve(path.parent, path).signature == before


PAGE = Path(__file__).parent.parent / "docs" / "bring-your-own.md"


def test_examples_on_the_page_are_signatures(tmp_path: Path):
    blocks = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        (tmp_path / "signature.toml").write_text(block)
        read(tmp_path / "signature.toml")


def test_page_has_every_key_that_is_known():
    page = PAGE.read_text()
    for kind in (Said, SaidTensor, SaidState, Window):
        assert [field.name for field in dataclasses.fields(kind) if field.name not in page] == []
