"""Files that nobody signed, as the service loads them: what it logs, how it then runs them, what has no room."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from longshort_service.config import ServeConfig
from longshort_service.graph_check import ModelError
from longshort_service.logs import TextFormatter
from longshort_service.metrics import Metrics
from longshort_service.model_loader import ModelLoader
from wild_graphs import write_cell

if TYPE_CHECKING:
    from pathlib import Path

    from longshort_service.repository import Model


def load(path: Path, max_sessions: int = 8) -> Model:
    config = ServeConfig(repository=path.parent.parent.parent, max_sessions=max_sessions)
    return ModelLoader(config, Metrics()).load("m", 1, path.parent)


def test_what_was_inferred_is_logged_in_one_table(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        load(write_cell(tmp_path / "m" / "1" / "model.onnx", states=[(2, "batch", 3)]))
    (record,) = [record for record in caplog.records if "as inferred" in record.getMessage()]
    assert record.levelno == logging.INFO
    lines = TextFormatter().format(record).splitlines()
    assert lines[0].endswith("the signature of m/1, as inferred")
    assert lines[1].split() == ["values", "x", "float32", "[batch,", "time,", "3]", "inferred"]
    assert lines[2].split() == ["answers", "y", "float32", "[batch,", "time,", "3]", "inferred"]
    assert lines[3].startswith("    state    s0 -> next_s0  float32 [2, batch, 3] from 0")
    assert lines[3].endswith("paired by name")


def test_why_a_model_runs_rows_alone_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model = load(write_cell(tmp_path / "m" / "1" / "model.onnx", values=(1, "time", 3), states=[(1, 2)]))
    assert model.signature.rows_alone
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("m/1: runs one session at a time: x, s0" in text for text in warnings)


@pytest.mark.parametrize(
    ("values", "state", "is_told"), [((2, 5, 3), (1, 2, 8), True), ((1, 5, 3), (1, 1, 8), False)]
)
def test_sizes_of_an_example_that_were_left_in_a_file_are_a_warning(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    values: tuple[int, ...],
    state: tuple[int, ...],
    *,
    is_told: bool,
):
    load(write_cell(tmp_path / "m" / "1" / "model.onnx", values=values, states=[state]))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("x [2, 5, 3] is taken as one step of one session" in text for text in warnings) == is_told


def test_rows_for_which_there_is_no_memory_are_refused_with_the_setting_that_asks_for_them(tmp_path: Path):
    """States that are within bounds for one session are not for a million."""
    path = write_cell(tmp_path / "m" / "1" / "model.onnx", states=[("batch", 2**22)], values=("batch", 1))
    with pytest.raises(ModelError, match=r"no memory for its rows at 100000000 sessions \(--max-sessions\)"):
        load(path, max_sessions=100_000_000)
