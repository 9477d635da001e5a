"""The states that a session begins in: the model's own, what its opening gives, and the constants it keeps. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longshort_service import errors

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from longshort_service.arena import States
    from longshort_service.served_model import ServedModel
    from longshort_service.signature import State


def begin_states(model: ServedModel, given: Mapping[str, NDArray[Any]]) -> States | None:
    """Return the states of a session that is opened with `given`, by the inputs of states, without the batch axis.

    None: the model's own. Raises WrongShape for what fits no state, ValueNotFinite for NaN, ConstantMissing where a
    constant of the session has no default and is not given.
    """
    specs = model.signature.states
    by_input = {spec.input: spec for spec in specs}
    for name, array in given.items():
        _check(model.name, name, array, by_input)
    _check_constants(model, given)
    if not given:
        return None
    own = model.arena.memory.initial_row()
    return [given.get(spec.input, state) for spec, state in zip(specs, own, strict=True)]


def begin_again(model: ServedModel, states: Sequence[NDArray[Any]]) -> States:
    """Return the states that a session which was in `states` begins anew in: the model's own, with its constants.

    States of another file, which fit the model nowhere, are let go of. Raises ConstantMissing where the model needs
    constants and they are among them.
    """
    specs, own = model.signature.states, model.arena.memory.initial_row()
    if [(state.dtype, state.shape) for state in states] != [(state.dtype, state.shape) for state in own]:
        _check_constants(model, ())
        return own
    return [
        before if spec.is_constant else begin for spec, before, begin in zip(specs, states, own, strict=True)
    ]


def _check_constants(model: ServedModel, given: Container[str]) -> None:
    for spec in model.signature.states:
        if spec.is_constant and not spec.initial_file and spec.input not in given:
            raise errors.ConstantMissing(
                f"{model.name} needs {spec.input} ({spec.dtype} {list(spec.row_shape())}) of each session: "
                "give it in `initial` when the session is created, or over the Open Inference Protocol as an input "
                "tensor of that name with sequence_start",
                model=model.name,
                constant=spec.input,
            )


def _check(model_name: str, name: str, array: NDArray[Any], by_input: Mapping[str, State]) -> None:
    spec = by_input.get(name)
    if spec is None or spec.window_of:
        known = ", ".join(spec.input for spec in by_input.values() if not spec.window_of) or "none"
        raise errors.WrongShape(f"{model_name} has no state {name!r} to begin with; there are: {known}")
    if (array.dtype.name, array.shape) != (spec.dtype, spec.row_shape()):
        raise errors.WrongShape(
            f"{name} is {spec.dtype} {list(spec.row_shape())}, not {array.dtype.name} {list(array.shape)}"
        )
    if (array != array).any():  # noqa: PLR0124  NaN alone is not itself; infinity may be meant
        raise errors.ValueNotFinite(
            f"{name} holds NaN: no answer of a session that begins so would be a number"
        )
