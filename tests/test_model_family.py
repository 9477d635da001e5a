"""Models of every dtype, rank, axis and number of states: batched, cut and interleaved they are what they are alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from family import Member, members
from longshort_service.engine import Engine

if TYPE_CHECKING:
    from pathlib import Path

    from longshort_service.arena import States
    from numpy.typing import NDArray

FAMILY = list(members())


def values_of(member: Member, num_rows: int, num_steps: int) -> NDArray[Any]:
    """Return whole numbers `[rows, steps, *shape]` that every dtype holds, and whose sums it holds as well."""
    random = np.random.default_rng(7)
    return random.integers(-3, 4, (num_rows, num_steps, *member.shape)).astype(member.dtype)


def step(engine: Engine, member: Member, values: NDArray[Any], states: States) -> tuple[NDArray[Any], States]:
    rows = engine.signature.value_row.pack([values])
    answers, states = engine.run(rows, None, states)
    (unpacked,) = engine.signature.answer_row.unpack(answers)
    assert unpacked.dtype == member.dtype
    return unpacked, states


@pytest.mark.parametrize("member", FAMILY, ids=lambda member: member.name)
def test_rows_in_company_and_steps_in_pieces_are_those_of_a_session_alone(member: Member, tmp_path: Path):
    engine = Engine(member.write(tmp_path / "model.onnx"), provider="cpu", intra_op_num_threads=1)
    num_rows, num_steps = 5, 6
    values = values_of(member, num_rows, num_steps)
    engine.warm_up(4, 1 if engine.signature.steps_alone else 4)
    states = engine.initial_states(num_rows)
    together = []
    for begin, end in ((0, 1), (1, 4), (4, 6)):
        answers, states = step(engine, member, values[:, begin:end], states)
        together.append(answers)
    found = np.concatenate(together, axis=1)
    for row in range(num_rows):
        np.testing.assert_array_equal(found[row], member.answer(values[row]))
    alone = engine.initial_states(1)
    for k in range(num_steps):
        answers, alone = step(engine, member, values[2:3, k : k + 1], alone)
        np.testing.assert_array_equal(answers[0, 0], found[2, k])
    for state, one, spec in zip(states, alone, engine.signature.states, strict=True):
        np.testing.assert_array_equal(state.take(2, spec.batch_axis), one.take(0, spec.batch_axis))
