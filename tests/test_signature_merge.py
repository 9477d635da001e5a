"""What signature.toml says beside a file that carries its signature goes before it, zeros and refusals among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import pytest
from click.testing import CliRunner
from longshort_service.cli import main
from longshort_service.graph_check import ModelError
from longshort_service.model_signature import resolve
from longshort_service.signature import Memory, Signature
from longshort_service.signature_json import METADATA_KEY, to_json
from onnx import helper
from wild_graphs import value_info, write_cell

if TYPE_CHECKING:
    from pathlib import Path

X = ("batch", "time", 3)


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    """Return a cell whose own signature has it start with 3, and leaves out an output."""
    path = write_cell(tmp_path / "m" / "1" / "model.onnx", values=X)
    signature = said(path, '[states.s0]\noutput = "next_s0"\ninitial = 3\n')
    (path.parent / "signature.toml").unlink()
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Identity", ["x"], ["extra"]))
    model.graph.output.append(value_info("extra", "float32", X))
    helper.set_model_props(model, {METADATA_KEY: to_json(signature)})
    onnx.save(model, path)
    return path


def said(path: Path, text: str) -> Signature:
    (path.parent / "signature.toml").write_text(text)
    return resolve(path.parent, path).signature


@pytest.mark.parametrize(
    ("lines", "initial"),
    [("", 3.0), ("initial = 0", 0.0), ("initial = 5", 5.0), ('memory = "long_term"', 3.0)],
)
def test_state_starts_with_what_is_said_and_with_the_file_s_where_nothing_is(
    signed: Path, lines: str, initial: float
):
    assert said(signed, f"[states.s0]\n{lines}\n").states[0].initial == initial


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("", ["y"]),
        ("[outputs.extra]\nignore = false\n", ["y", "extra"]),
        ('[outputs.extra]\nnames = ["a", "b", "c"]\n', ["y", "extra"]),
        ("[outputs.extra]\nignore = true\n", ["y"]),
    ],
)
def test_output_that_the_file_s_signature_leaves_out_answers_where_it_is_spoken_of(
    signed: Path, text: str, answers: list[str]
):
    assert [port.name for port in said(signed, text).answers] == answers


def test_output_cannot_be_an_answer_and_a_state(signed: Path):
    text = '[states.s0]\noutput = "next_s0"\n[outputs.next_s0]\nnames = ["a", "b"]\n'
    with pytest.raises(ModelError, match="'next_s0' is said to be two things"):
        said(signed, text)


@pytest.mark.parametrize(("dtype", "initial"), [("int32", "0.5"), ("int32", "1e12"), ("float16", "1e6")])
def test_window_begins_with_numbers_that_its_input_can_hold(tmp_path: Path, dtype: str, initial: str):
    path = write_cell(tmp_path / "model.onnx", values=("batch", 5), dtype=dtype)
    with pytest.raises(ModelError, match=f"initial of the window of x: .* is no {dtype}"):
        said(path, f"[inputs.x]\nwindow = {{ size = 2, initial = {initial} }}\n")


def test_chunk_whose_length_is_called_n_is_no_batch(tmp_path: Path):
    path = write_cell(tmp_path / "model.onnx", values=(1, "n", 3), states=[(1, 4)], batch="none", time="n")
    port = resolve(path.parent, path).signature.inputs[0]
    assert (port.batch_axis, port.time_axis, port.shape) == (None, 1, (1, 3))


def test_state_of_which_axes_are_asked_is_one_table_in_the_skeleton(tmp_path: Path):
    path = write_cell(tmp_path / "m" / "1" / "model.onnx", states=[("batch", "hidden")], names=[("h0", "hn")])
    toml = path.parent / "signature.toml"
    toml.write_text('[states.h0]\noutput = "hn"\ninitial = 2\nmemory = "short_term"\n')
    assert CliRunner().invoke(main, ["describe", str(path.parent), "--write", "--force"]).exit_code == 0
    text = toml.read_text().replace('# axes = ["batch", 64]', '# axes = ["batch", 5]')
    keys = ("# [", "# axes", "# output", "# initial", "# memory")
    lines = [line.removeprefix("# ") if line.startswith(keys) else line for line in text.splitlines()]
    (state,) = said(path, "\n".join(lines)).states
    assert (state.shape, state.initial, state.memory) == ((-1, 5), 2.0, Memory.SHORT_TERM)
