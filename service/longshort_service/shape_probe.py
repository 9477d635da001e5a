"""Runs of a graph on zeros, where only a run shows what shapes its outputs have."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from longshort_service.engine import open_session
from longshort_service.graph_check import ModelError
from longshort_service.signature_file import BATCH, TIME, SaidState
from longshort_service.tensor_file import read_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from longshort_service.graph_facts import GraphFacts, TensorFact
    from longshort_service.signature_axes import Found
    from longshort_service.signature_file import Axes, Said
    from longshort_service.signature_roles import Roles

MAX_PROBE_BYTES: Final = 2**28  # of one input; what is served of values or states is a fifth of that


class ShapeProbe:
    """Asks the graph in `file` for the shapes of its outputs. Loads it when it is first asked."""

    def __init__(self, file: Path, facts: GraphFacts, roles: Roles, said: Said) -> None:
        self._file = file
        self._facts = facts
        self._roles = roles
        self._said = said
        self._session: Any = None  # onnxruntime's

    def __call__(self, found: Found, num_rows: int, num_steps: int) -> Mapping[str, Sequence[int]] | None:
        """Return the shapes of all outputs for so many rows and steps; None where the graph does not take them.

        Raises ModelError where the file cannot be loaded, or a constant's file not be read.
        """
        if self._session is None:
            self._session = open_session(
                str(self._file),
                label=str(self._file),
                provider="cpu",
                intra_op_num_threads=1,
                is_optimised=False,  # shapes are the same, and some files load only so
            )
        feeds = self._feeds(found, num_rows, num_steps)
        names = [fact.name for fact in self._facts.outputs]
        try:
            results = self._session.run(names, feeds)
        except Exception:  # noqa: BLE001  onnxruntime's exceptions share no base but Exception
            return None
        return {name: np.shape(result) for name, result in zip(names, results, strict=True)}

    def _feeds(self, found: Found, num_rows: int, num_steps: int) -> dict[str, NDArray[Any]]:
        sizes = {BATCH: num_rows, TIME: num_steps}
        feeds: dict[str, NDArray[Any]] = {}
        for fact in self._roles.values:
            feeds[fact.name] = _zeros(fact, self._with_window(fact, found.inputs[fact.name]), sizes)
        for fact in (*(state.input for state in self._roles.states), *self._roles.session_constants):
            said = self._said.states.get(fact.name) or self._said.session_constants.get(
                fact.name, SaidState()
            )
            feeds[fact.name] = _zeros(fact, found.states[fact.name], sizes)
            if not isinstance(said.start, str):
                feeds[fact.name] += np.asarray(said.start, fact.dtype)
        for name, value in self._said.constants.items():
            fact = self._facts.input(name)
            shape = tuple(axis if isinstance(axis, int) else 1 for axis in fact.axes or ())
            feeds[name] = (
                read_tensor(self._file.parent, value, shape, fact.dtype, name)
                if isinstance(value, str)
                else np.full(shape, value, fact.dtype)
            )
        if self._roles.sequence_lens is not None:
            feeds[self._roles.sequence_lens] = np.full(num_rows, num_steps, np.int32)
        return feeds

    def _with_window(self, fact: TensorFact, axes: Axes) -> Axes:
        """Return the axes of a graph's input whose axes are those of a step's values."""
        said = self._said.inputs.get(fact.name)
        if said is None or said.window is None:
            return axes
        if not -len(axes) <= said.window.axis < len(axes):
            return axes  # refused where the window is made
        place = said.window.axis % len(axes)
        axis = axes[place]
        return (*axes[:place], axis + said.window.size, *axes[place + 1 :]) if isinstance(axis, int) else axes


def _zeros(fact: TensorFact, axes: Axes, sizes: Mapping[str, int]) -> NDArray[Any]:
    """Return zeros for a graph's input. Raises ModelError where they are more than any model that is served takes."""
    shape = [sizes[axis] if isinstance(axis, str) else axis for axis in axes]
    num_bytes = math.prod(shape) * np.dtype(fact.dtype).itemsize
    if num_bytes > MAX_PROBE_BYTES:
        raise ModelError(
            f"{fact.name} is {num_bytes} bytes for a few rows and steps, {shape}: that is not served"
        )
    return np.zeros(shape, fact.dtype)
