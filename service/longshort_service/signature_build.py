"""A signature of what is known of a model: roles and axes of its tensors, and what signature.toml says beside them.

Bounds what a session costs before anything is made of it, and reads the .npy files that a signature names.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from longshort_service.graph_check import ModelError
from longshort_service.ports import Port
from longshort_service.signature import Channel, Constant, MissingValue, Signature, SignatureError, State
from longshort_service.signature_file import BATCH, TIME, SaidState, SaidTensor
from longshort_service.tensor_file import read_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from longshort_service.graph_facts import GraphFacts, TensorFact
    from longshort_service.signature_axes import Found
    from longshort_service.signature_file import Axes, Said
    from longshort_service.signature_roles import Roles

MAX_ROW_NUMBERS: Final = 2**18  # of one step's values, or answers: 1 MB; each number has a name
MAX_STATE_BYTES: Final = 2**24  # of one session; what is stored and exported of it is one message
MAX_RANK: Final = 8
# Their scale is taken over all rows and steps of a run, so that each feels its neighbours.
DYNAMIC_QUANTISATION: Final = frozenset(
    {"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulIntegerToFloat"}
)


def build(
    facts: GraphFacts, roles: Roles, found: Found, said: Said, name: str
) -> tuple[Signature, tuple[str, ...]]:
    """Return the signature, and why its rows run alone where they do. Raises ModelError."""
    windows = [
        _window(fact, found.inputs[fact.name], said) for fact in roles.values if _has_window(fact, said)
    ]
    inputs = tuple(_port(fact, found.inputs[fact.name]) for fact in roles.values)
    answers = tuple(_port(fact, found.outputs[fact.name]) for fact in roles.answers)
    states = [
        *(
            _state(state.input, state.output.name, found, said.states.get(state.input.name, SaidState()))
            for state in roles.states
        ),
        *(_state(fact, "", found, said.session_constants[fact.name]) for fact in roles.session_constants),
        *windows,
    ]
    constants = tuple(
        _constant(fact, said.constants[fact.name]) for fact in facts.inputs if fact.name in said.constants
    )
    check_costs(inputs, answers, states, constants)
    reasons = _reasons_alone(facts, found, said)
    try:
        signature = Signature(
            name=said.name or name,
            description=said.description or "",
            features=_channels(inputs, said.inputs, "inputs"),
            outputs=_channels(answers, said.outputs, "outputs"),
            states=tuple(states),
            sequence_lens=roles.sequence_lens,
            missing=said.missing or MissingValue.REJECT,
            forecast=said.forecast or (),
            step_s=said.step_s,
            state_family=said.state_family or "",
            inputs=inputs,
            answers=answers,
            constants=constants,
            rows_alone=bool(reasons),
        )
    except SignatureError as error:
        raise ModelError(f"what is said of the model contradicts itself: {error}") from error
    return signature, reasons


def check_costs(
    inputs: Sequence[Port], answers: Sequence[Port], states: Sequence[State], constants: Sequence[Constant]
) -> None:
    """Raise ModelError where a session or a model would cost more than is served: nothing of it has been made yet."""
    for name, shape in (
        *((port.name, port.shape) for port in (*inputs, *answers)),
        *((state.input, state.row_shape()) for state in states),
    ):
        if len(shape) > MAX_RANK:
            raise ModelError(f"{name} has {len(shape)} axes beside batch and time: {MAX_RANK} are served")
    for what, ports in (("values", inputs), ("answers", answers)):
        numbers = sum(port.num_elements for port in ports)
        if not 0 < numbers <= MAX_ROW_NUMBERS:
            raise ModelError(f"one step's {what} are {numbers} numbers: 1 to {MAX_ROW_NUMBERS} are served")
    num_bytes = sum(math.prod(state.row_shape()) * np.dtype(state.dtype).itemsize for state in states)
    if num_bytes > MAX_STATE_BYTES:
        raise ModelError(f"the states of one session are {num_bytes} bytes: {MAX_STATE_BYTES} are served")
    for constant in constants:
        num_bytes = math.prod(constant.shape) * np.dtype(constant.dtype).itemsize
        if not 0 <= num_bytes <= MAX_STATE_BYTES:
            raise ModelError(
                f"the constant {constant.input} is {num_bytes} bytes: {MAX_STATE_BYTES} are served"
            )


def _place(axes: Axes, axis: str) -> int | None:
    return axes.index(axis) if axis in axes else None


def _port(fact: TensorFact, axes: Axes) -> Port:
    shape = tuple(axis for axis in axes if isinstance(axis, int))
    return Port(fact.name, shape, fact.dtype, _place(axes, BATCH), _place(axes, TIME))


def _has_window(fact: TensorFact, said: Said) -> bool:
    return fact.name in said.inputs and said.inputs[fact.name].window is not None


def _window(fact: TensorFact, axes: Axes, said: Said) -> State:
    """Return the state that holds an input's window: of its step's shape, as long as the window."""
    window = said.inputs[fact.name].window
    place = -1 if window is None else window.axis
    if window is None or not -len(axes) <= place < len(axes) or not isinstance(axes[place], int):
        raise ModelError(
            f"[inputs.{fact.name}] window: axis {place} of {list(axes)} is none that holds values"
        )
    if TIME in axes:
        raise ModelError(
            f"[inputs.{fact.name}] window: an input with a time axis has its past in it: give its size"
        )
    _check_number(window.initial, fact, "initial of the window")
    before = [k for k, axis in enumerate(axes) if isinstance(axis, int)]
    own = before.index(place % len(axes))
    shape = [axis for axis in axes if isinstance(axis, int)]
    shape[own] = window.size
    return State(
        f"{fact.name}.window",
        "",
        (-1, *shape),
        0,
        window.initial,
        dtype=fact.dtype,
        window_of=fact.name,
        window_axis=own,
    )


def _state(fact: TensorFact, output: str, found: Found, said: SaidState) -> State:
    axes = found.states[fact.name]
    is_unbatched = BATCH not in axes
    if is_unbatched:
        axes = (BATCH, *axes)
    initial = 0.0 if isinstance(said.start, str) else said.start
    _check_number(initial, fact, "initial")
    return State(
        input=fact.name,
        output=output,
        shape=tuple(axis if isinstance(axis, int) else -1 for axis in axes),
        batch_axis=axes.index(BATCH),
        initial=initial,
        memory=said.memory,
        dtype=fact.dtype,
        is_unbatched=is_unbatched,
        initial_file=said.start if isinstance(said.start, str) else "",
    )


def _constant(fact: TensorFact, said: float | str) -> Constant:
    shape = tuple(axis if isinstance(axis, int) else 1 for axis in fact.axes or ())
    if isinstance(said, str):
        return Constant(fact.name, shape, fact.dtype, file=said)
    _check_number(said, fact, "the constant")
    return Constant(fact.name, shape, fact.dtype, said)


def _check_number(number: float, fact: TensorFact, what: str) -> None:
    limits = np.iinfo(fact.dtype) if fact.dtype.startswith("int") else np.finfo(fact.dtype)
    is_whole = number == math.floor(number) or not fact.dtype.startswith("int")
    if not is_whole or not float(limits.min) <= number <= float(limits.max):
        raise ModelError(f"{what} of {fact.name}: {number} is no {fact.dtype}")


def _channels(ports: tuple[Port, ...], said: Mapping[str, SaidTensor], table: str) -> tuple[Channel, ...]:
    found: list[Channel] = []
    for port in ports:
        names = said.get(port.name, SaidTensor()).names
        if names and len(names) != port.num_elements:
            raise ModelError(
                f"[{table}.{port.name}] names: {len(names)} are named, a step of it has {port.num_elements} numbers"
            )
        found += names or default_channels(port)
    return tuple(found)


def default_channels(port: Port) -> tuple[Channel, ...]:
    """Return names for a tensor's numbers: its own, with places where there are several: x[0], x[1]."""
    if port.num_elements == 1:
        return (Channel(port.name),)
    sizes = [size for size in port.shape if size > 1]
    return tuple(
        Channel(f"{port.name}[{','.join(map(str, places))}]")
        for places in itertools.product(*(range(size) for size in sizes))
    )


def _reasons_alone(facts: GraphFacts, found: Found, said: Said) -> tuple[str, ...]:
    reasons = []
    if said.rows_alone:
        reasons.append("runs one session at a time, as signature.toml says")
    fixed = [
        name
        for tensors in (found.inputs, found.states, found.outputs)
        for name, axes in tensors.items()
        if BATCH not in axes
    ]
    if fixed:
        reasons.append(
            f"runs one session at a time: {', '.join(fixed)} {'has' if len(fixed) == 1 else 'have'} no axis for a "
            "batch, or one that is fixed at 1. Exported with a dynamic batch it would be served faster"
        )
    if fixed and (frozen := _sizes_of_an_example(facts, found)):
        reasons.append(
            f"{frozen} is taken as one step of one session. If its first axis is the batch of the example that the "
            "file was exported with, export it with dynamic axes: here that batch is one session"
        )
    dynamic = sorted({name for _, name in facts.operators} & DYNAMIC_QUANTISATION)
    if dynamic:
        reasons.append(
            f"runs one session and one step at a time: {', '.join(dynamic)} takes its scale from all rows of a run, so "
            "that each would feel the others. Static quantisation would be served faster"
        )
    return tuple(reasons)


def _sizes_of_an_example(facts: GraphFacts, found: Found) -> str:
    """Return a value whose first axis looks like the batch of an example: no axis is open, the states have it too."""
    tensors = {fact.name: fact.axes or () for fact in facts.inputs}
    if any(not isinstance(axis, int) for axes in tensors.values() for axis in axes):
        return ""
    sizes = {axis for name in found.states for axis in tensors[name]}
    for name in found.inputs:
        first, *rest = tensors[name] or (1,)
        if rest and first != 1 and first in sizes:
            return f"{name} {list(tensors[name])}"
    return ""


def read_arrays(signature: Signature, folder: Path) -> dict[str, NDArray[Any]]:
    """Return by graph input what a signature's files hold. Raises ModelError."""
    arrays = {
        state.input: read_tensor(folder, state.initial_file, state.row_shape(), state.dtype, state.input)
        for state in signature.states
        if state.initial_file
    }
    arrays |= {
        constant.input: read_tensor(folder, constant.file, constant.shape, constant.dtype, constant.input)
        for constant in signature.constants
        if constant.file
    }
    return arrays
