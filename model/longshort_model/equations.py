"""The LSTM unit as its equations say, in NumPy: the yardstick that an exported file is held against.

Slow and plain on purpose. docs/the-lstm-unit.md walks through it; Hochreiter & Schmidhuber 1997, with the
forget gate of Gers, Schmidhuber & Cummins 2000.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longshort_model.graph import Layer

    Array = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of a layer computes; every field [batch, hidden]."""

    forget_gate: Array
    input_gate: Array
    candidate: Array
    output_gate: Array
    cell_state: Array  # the new long-term memory
    hidden_state: Array  # the new short-term memory


def step(layer: Layer, value: Array, short_term: Array, long_term: Array) -> Step:
    """Return one step for `value` [batch, inputs] and the memories [batch, hidden] before it."""
    sums = value @ layer.input_weights.T + short_term @ layer.hidden_weights.T + layer.bias
    i, f, g, o = np.split(sums, 4, axis=-1)
    forget_gate, input_gate, candidate, output_gate = sigmoid(f), sigmoid(i), np.tanh(g), sigmoid(o)
    cell_state = forget_gate * long_term + input_gate * candidate
    return Step(
        forget_gate, input_gate, candidate, output_gate, cell_state, output_gate * np.tanh(cell_state)
    )


def sequence(layer: Layer, values: Array, short_term: Array, long_term: Array) -> list[Step]:
    """Return the steps for `values` [batch, time, inputs], one after the other."""
    steps = []
    for t in range(values.shape[1]):
        steps.append(step(layer, values[:, t], short_term, long_term))
        short_term, long_term = steps[-1].hidden_state, steps[-1].cell_state
    return steps


def sigmoid(sums: Array) -> Array:
    """Return 1 / (1 + exp(-sums)), written so that it does not overflow."""
    result: Array = 0.5 * (1 + np.tanh(0.5 * sums))
    return result
