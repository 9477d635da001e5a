"""Which axis of each answer is the batch and which the time: said, or told by the values' symbols, or seen in a run.

Pure but for the run, which is given.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from longshort_service.signature_axes import ask_axes, taken
from longshort_service.signature_file import AS_IS, BATCH, TIME
from longshort_service.signature_roles import Question, described, key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from longshort_service.graph_facts import TensorFact
    from longshort_service.signature_axes import Found
    from longshort_service.signature_file import Axes, Said, SaidTensor
    from longshort_service.signature_roles import Roles

    # Runs the graph on zeros with so many rows and steps in these axes; returns shapes of outputs, None where it fails.
    SeeShapes = Callable[[Found, int, int], Mapping[str, Sequence[int]] | None]

# Rows and steps of the runs that show what an output's axes are: where a size follows, so does the axis.
PROBES: Final = (((2, 3), (3, 5)), ((1, 3), (1, 5)), ((1, 1), (1, 1)))


def find_answer_axes(roles: Roles, said: Said, found: Found, see_shapes: SeeShapes) -> None:
    """Note the axes of answers: said, by the symbols of the values, or as runs of two sizes show them.

    The axes of all values and states are known. Raises ModelError where what is said of one does not fit it.
    """
    known = _symbols_of(roles, found)
    unknown: list[TensorFact] = []
    for fact in roles.answers:
        tensor: SaidTensor | None = said.outputs.get(fact.name)
        if tensor is not None and tensor.axes is not None and _is_complete(fact, tensor.axes):
            found.outputs[fact.name] = taken(fact, tensor.axes, "outputs")
            continue
        axes = tuple(
            axis if isinstance(axis, int) else known.get(axis or "", AS_IS) for axis in fact.axes or (None,)
        )
        wanted = {axis for own in found.inputs.values() for axis in own if axis in (BATCH, TIME)}
        if fact.axes is None or AS_IS in axes or not wanted <= set(axes):
            unknown.append(fact)
        found.outputs[fact.name] = axes
    if unknown:
        _see_outputs(unknown, said, found, see_shapes)
        _check_time(roles, said, found)


def _check_time(roles: Roles, said: Said, found: Found) -> None:
    """Ask for the size of an axis that was taken for time, where a run shows that no answer follows it."""
    if any(TIME in axes for axes in found.outputs.values()):
        return
    for fact in roles.values:
        tensor = said.inputs.get(fact.name)
        if TIME in found.inputs[fact.name] and not (tensor and tensor.axes):
            found.questions.append(
                ask_axes(
                    fact, roles, f"How long is axis {found.inputs[fact.name].index(TIME)} of {fact.name}?"
                )
            )


def _is_complete(fact: TensorFact, axes: Axes) -> bool:
    """Return whether a "*" stands only where the file says a size."""
    return fact.axes is not None and all(
        axis != AS_IS or isinstance(size, int) for axis, size in zip(axes, fact.axes, strict=False)
    )


def _symbols_of(roles: Roles, found: Found) -> dict[str, str]:
    """Return what the symbols of the values' axes stand for."""
    return {
        symbol: axis
        for fact in roles.values
        for symbol, axis in zip(fact.axes or (), found.inputs.get(fact.name, ()), strict=False)
        if isinstance(symbol, str) and axis in (BATCH, TIME) and isinstance(axis, str)
    }


def _see_outputs(unknown: Sequence[TensorFact], said: Said, found: Found, see_shapes: SeeShapes) -> None:
    """Note the axes of answers as runs show them: of several rows, or of one where the graph takes no more."""
    seen: dict[str, Axes | None] = {}
    for probes in PROBES:
        runs = [see_shapes(found, *sizes) for sizes in probes]
        shapes = [run for run in runs if run is not None]
        if len(shapes) == len(runs):
            seen = {fact.name: _followed([run[fact.name] for run in shapes], probes) for fact in unknown}
            if None not in seen.values():
                break
    for fact in unknown:
        axes = seen.get(fact.name)
        if axes is None:
            found.questions.append(
                Question(
                    f"Which axes has the output {fact.name}, {described(fact)}?",
                    (f"[outputs.{key(fact.name)}]", 'axes = ["batch", "time", 1]'),
                )
            )
            continue
        tensor = said.outputs.get(fact.name)
        found.outputs[fact.name] = axes
        if tensor is not None and tensor.axes is not None:
            sizes = tuple(axis if isinstance(axis, int) else None for axis in axes)
            found.outputs[fact.name] = taken(dataclasses.replace(fact, axes=sizes), tensor.axes, "outputs")


def _followed(shapes: Sequence[Sequence[int]], probes: Sequence[tuple[int, int]]) -> Axes | None:
    """Return an output's axes: what has the sizes of the rows or of the steps in both runs is that."""
    first, second = shapes[0], shapes[-1]
    if len(first) != len(second):
        return None
    axes: list[str | int] = []
    for sizes in zip(first, second, strict=True):
        if sizes[0] == sizes[1]:
            axes.append(sizes[0])
        elif sizes == tuple(probe[0] for probe in probes):
            axes.append(BATCH)
        elif sizes == tuple(probe[1] for probe in probes):
            axes.append(TIME)
        else:
            return None
    return tuple(axes) if axes.count(BATCH) <= 1 and axes.count(TIME) <= 1 else None
