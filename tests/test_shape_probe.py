"""Runs that show what shapes a graph's outputs have: what they are given is bounded before it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from longshort_service.graph_check import ModelError
from longshort_service.model_signature import resolve
from wild_graphs import Nodes, value_info, write_cell, write_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("size", [2_000_000_000, 99_999_999_999_999])
def test_values_of_any_size_are_refused_before_a_run_of_them_is_made(tmp_path: Path, size: int):
    path = write_cell(tmp_path / "model.onnx", values=("batch", "samples"), declared=None)
    (tmp_path / "signature.toml").write_text(f'[inputs.x]\naxes = ["batch", {size}]\n')
    with pytest.raises(ModelError, match="that is not served"):
        resolve(tmp_path, path)


def test_window_of_a_single_number_is_refused_before_a_run(tmp_path: Path):
    nodes = Nodes()
    nodes.add("Identity", "gain", output="y")
    nodes.add("Identity", "s", output="next_s")
    path = write_model(
        tmp_path / "model.onnx",
        nodes,
        [value_info("gain", "float32", ()), value_info("s", "float32", ("batch", 2))],
        [value_info("y", "float32", None), value_info("next_s", "float32", ("batch", 2))],
    )
    (tmp_path / "signature.toml").write_text("[inputs.gain]\naxes = []\nwindow = { size = 1 }\n")
    with pytest.raises(ModelError, match="is none that holds values"):
        resolve(tmp_path, path)
