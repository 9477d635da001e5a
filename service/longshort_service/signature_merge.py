"""What a file's own signature says, in the words of signature.toml, and what is said beside it put over it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from longshort_service.signature_file import BATCH, TIME, Said, SaidState, SaidTensor, Window

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from longshort_service.graph_facts import GraphFacts
    from longshort_service.ports import Port
    from longshort_service.signature import Channel, Signature
    from longshort_service.signature_file import Axes

_TABLES = ("inputs", "states", "session_constants", "constants")


def said_of(signature: Signature, facts: GraphFacts) -> Said:
    """Return what a signature says."""
    windows = {
        state.window_of: (state.row_shape()[state.window_axis], state.window_axis, state.initial)
        for state in signature.states
        if state.window_of
    }
    inputs = _tensors(signature.inputs, signature.features)
    for name, (size, own, initial) in windows.items():
        axes = inputs[name].axes or ()
        place = [k for k, axis in enumerate(axes) if isinstance(axis, int)][own]
        inputs[name] = dataclasses.replace(inputs[name], window=Window(size, place, initial))
    named = {port.name for port in signature.answers} | {state.output for state in signature.states}
    return Said(
        name=signature.name,
        description=signature.description,
        missing=signature.missing,
        step_s=signature.step_s,
        state_family=signature.state_family,
        rows_alone=signature.rows_alone,
        steps_alone=signature.single_steps,
        sequence_lens=signature.sequence_lens,
        inputs=inputs,
        outputs=_tensors(signature.answers, signature.outputs)
        | {fact.name: SaidTensor(ignore=True) for fact in facts.outputs if fact.name not in named},
        states={
            state.input: SaidState(
                state.output,
                _state_axes(state.shape, state.batch_axis, is_unbatched=state.is_unbatched),
                state.initial_file or state.initial,
                state.memory,
            )
            for state in signature.states
            if state.output
        },
        session_constants={
            state.input: SaidState(
                "",
                _state_axes(state.shape, state.batch_axis, is_unbatched=state.is_unbatched),
                state.initial_file or state.initial,
            )
            for state in signature.states
            if state.is_constant
        },
        constants={constant.input: constant.file or constant.value for constant in signature.constants},
        forecast=signature.forecast or None,
    )


def merged(said: Said, base: Said) -> Said:
    """Return `said`, and what it leaves out as `base` has it. Who is given another part in it loses that of `base`."""
    parts = {name for table in _TABLES for name in getattr(said, table)}
    fields = {
        field.name: getattr(base, field.name)
        if getattr(said, field.name) in (None, False)
        else getattr(said, field.name)
        for field in dataclasses.fields(Said)
    }
    for table in _TABLES:
        own, other = getattr(said, table), getattr(base, table)
        kept = {name: value for name, value in other.items() if name not in parts or name in own}
        fields[table] = _table(own, kept)
    taken = {state.output for state in said.states.values()}
    # An output that the file's own signature leaves out is an answer where signature.toml speaks of it.
    outputs = {
        name: own
        for name, own in base.outputs.items()
        if name not in taken and not (own.ignore and name in said.outputs)
    }
    fields["outputs"] = _table(said.outputs, outputs)
    return Said(**fields)


def _table(own: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {**other, **{name: _over(value, other.get(name)) for name, value in own.items()}}


def _over(own: Any, other: Any) -> Any:
    """Return a record with what it leaves at its default as another has it; what is no record as it is."""
    if other is None or not isinstance(own, (SaidTensor, SaidState)):
        return own
    given = {
        field.name: getattr(own, field.name)
        for field in dataclasses.fields(own)
        if getattr(own, field.name) != field.default
    }
    return dataclasses.replace(other, **given)


def _tensors(ports: tuple[Port, ...], channels: Collection[Channel]) -> dict[str, SaidTensor]:
    left = list(channels)
    tensors = {}
    for port in ports:
        names, left = tuple(left[: port.num_elements]), left[port.num_elements :]
        tensors[port.name] = SaidTensor(_port_axes(port), names)
    return tensors


def _port_axes(port: Port) -> Axes:
    places = {port.batch_axis: BATCH, port.time_axis: TIME}
    rest = iter(port.shape)
    num_axes = len(port.shape) + (port.batch_axis is not None) + (port.time_axis is not None)
    return tuple(places[axis] if axis in places else next(rest) for axis in range(num_axes))


def _state_axes(shape: tuple[int, ...], batch_axis: int, *, is_unbatched: bool) -> Axes:
    if is_unbatched:
        return shape[:batch_axis] + shape[batch_axis + 1 :]
    return tuple(BATCH if axis == batch_axis else size for axis, size in enumerate(shape))
