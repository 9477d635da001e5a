"""A run in memory that onnxruntime knows is a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from longshort_service.engine import Engine

if TYPE_CHECKING:
    from pathlib import Path


def load(repository: Path, adders: Path, name: str) -> Engine:
    root = adders if name == "adder" else repository
    return Engine(root / name / "1" / "model.onnx", provider="cpu", intra_op_num_threads=1)


@pytest.mark.parametrize("num_rows", [1, 2, 5])
@pytest.mark.parametrize("name", ["adder", "metro", "wide", "deep"])
def test_small_run_is_a_run_of_one_step(repository: Path, adders: Path, name: str, num_rows: int):
    engine = load(repository, adders, name)
    small, states = engine.small_run(num_rows), engine.initial_states(num_rows)
    axes = [spec.batch_axis for spec in engine.signature.states]
    rng = np.random.default_rng(7)
    for _ in range(3):
        values = rng.normal(size=small.values.shape).astype(np.float32)
        answers, new_states = engine.run(values[:, None], None, states)
        small.values[...] = values
        for row in range(num_rows):
            for target, state, axis in zip(small.states[row], states, axes, strict=True):
                target[...] = state.take([row], axis=axis)
        small.run()
        assert small.answers.tobytes() == answers.tobytes()
        assert small.finite_rows() == [True] * num_rows
        for row in range(num_rows):
            for new_state, state, axis in zip(small.new_states[row], new_states, axes, strict=True):
                assert new_state.tobytes() == state.take([row], axis=axis).tobytes()
        states = new_states


def test_row_that_is_not_finite_is_told_from_its_neighbours(repository: Path, adders: Path):
    small = load(repository, adders, "adder").small_run(3)
    small.values[:, 0] = [1, 3e38, 2]
    small.states[1][0][...] = 3e38
    small.run()
    assert small.finite_rows() == [True, False, True]
