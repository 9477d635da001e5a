"""`longshort describe` of the models that ship, of random ones, and of what is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from graphs import write_adder
from longshort_model.replay import Replay
from longshort_model.synthetic import write_random_model
from longshort_service.cli import main
from program import PROGRAM, SHIPPED, the_line
from wild_graphs import write_cell


@pytest.mark.parametrize("path", ["metro", "metro/1", "metro/1/model.onnx"])
def test_describe_tells_a_model_from_its_folder_its_version_and_its_file(path):
    done = CliRunner().invoke(main, ["describe", str(SHIPPED / path)])
    assert done.exit_code == 0
    signature = Replay(SHIPPED / "metro" / "1" / "model.onnx").signature
    said = done.output
    assert said.startswith("metro, version 1\n")
    for word in ("vehicles/h", "10 % quantile", "every 1 h", "median is fed back as vehicles", "512 bytes"):
        assert word in said
    assert f"mae {signature.scores['mae']:.4g}" in said
    assert signature.fingerprint in said
    assert signature.trained_on in said


def test_describe_takes_the_highest_version_and_says_which_others_there_are(tmp_path):
    for version in (2, 10):
        write_random_model(tmp_path / f"m/{version}/model.onnx", name="m", hidden=4, features=2, outputs=1)
    said = CliRunner().invoke(main, ["describe", str(tmp_path / "m")]).output
    assert said.startswith("m, version 10 (beside it: 2)\n")
    for word in ("at any time", "forecast     no", "explain      yes (derived", "32 bytes"):
        assert word in said


def test_describe_says_when_nothing_explains_a_model(tmp_path):
    write_adder(tmp_path / "adder/1/model.onnx")
    said = CliRunner().invoke(main, ["describe", str(tmp_path / "adder")]).output
    assert "explain      no (explain.onnx is not beside it, and it cannot be derived from the file)" in said


def test_describe_takes_the_name_of_a_shipped_model_where_no_folder_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(main, ["describe", "metro"]).output.startswith("metro, version 1\n")
    write_random_model(tmp_path / "metro/7/model.onnx", name="metro", hidden=4)
    assert CliRunner().invoke(main, ["describe", "metro"]).output.startswith("metro, version 7\n")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /dev/full")
def test_describe_to_a_full_disk_is_one_line():
    with Path("/dev/full").open("w") as full:
        command = [*PROGRAM, "describe", str(SHIPPED / "metro")]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "No space left" in the_line(done)


def test_describe_prints_the_signature_as_json():
    done = CliRunner().invoke(main, ["describe", str(SHIPPED / "parking"), "--json"])
    assert json.loads(done.output)["name"] == "parking"


def test_describe_of_what_is_no_model_is_one_line_and_exit_code_two(tmp_path):
    (tmp_path / "file.onnx").write_text("no model")
    (tmp_path / "some" / "build").mkdir(parents=True)
    (tmp_path / "some" / "build" / "model.onnx").write_text("in no repository: build is no version")
    for path, said in (
        (
            tmp_path / "nowhere",
            "no such file or folder, and no model that ships (metro, metro-calendar, parking)",
        ),
        (tmp_path, f"{tmp_path}: no model.onnx in it\n"),
        (tmp_path / "file.onnx", "is no ONNX file"),
        (SHIPPED, f"no model.onnx in it; there is {SHIPPED / 'metro'}"),
    ):
        done = CliRunner().invoke(main, ["describe", str(path)])
        assert done.exit_code == 2
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


def test_describe_lets_no_words_of_a_file_write_on_the_terminal(tmp_path):
    folder = write_cell(tmp_path / "m" / "1" / "model.onnx").parent
    (folder / "signature.toml").write_text('description = "\\u001b[31mred"\n')
    done = CliRunner().invoke(main, ["describe", str(folder)], color=True)
    assert r"\x1b[31mred" in done.output
    assert "\x1b" not in done.output


def test_describe_of_a_folder_in_the_place_of_signature_toml_is_refused(tmp_path):
    folder = write_cell(tmp_path / "m" / "1" / "model.onnx").parent
    (folder / "signature.toml").mkdir()
    done = CliRunner().invoke(main, ["describe", str(folder)])
    assert done.exit_code != 0
    assert "signature.toml" in done.output
    assert "Traceback" not in done.output
