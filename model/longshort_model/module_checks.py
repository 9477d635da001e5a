"""Whether a user's module can be served at all, whatever it is exported with.

Owns the questions that are put to PyTorch alone: a session's answers must follow from its own values, step by step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from longshort_model.export import ExportError
from longshort_model.module_face import BATCH, TIME
from longshort_model.user_module import place_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from longshort_model.module_calls import Taken
    from longshort_model.module_face import Face

STEPS: Final = 9
ROWS: Final = 4
# Of rounding between two ways of computing the same, relative to a tensor's greatest number.
LOOSE: Final = {torch.float16: 3e-2, torch.float32: 1e-4, torch.float64: 1e-10}

# The functions by which Python gets at numbers, by their __name__.
TAKE_NUMBERS_OUT: Final = frozenset(
    (
        *("__bool__", "__int__", "__float__", "__complex__", "__index__", "__contains__", "__array__"),
        *("item", "tolist", "numpy", "is_nonzero", "equal", "allclose"),
    )
)


def check(taken: Taken) -> None:
    """Raise ExportError unless the module is a function of its inputs and states, row by row and step by step."""
    generator = torch.Generator().manual_seed(1)
    inputs, states = drawn(taken, generator, ROWS, STEPS)
    whole = taken.call([*inputs, *states])
    _check_repeatable(taken, inputs, states, whole)
    _check_finite(taken, whole)
    _check_rows(taken, inputs, states, whole)
    _check_no_number_leaves(taken, inputs, states)
    _check_states_are_read(taken, inputs, states, whole)
    if any(TIME in face.sizes for face in taken.inputs):
        _check_steps(taken, inputs, states, whole)


def drawn(
    taken: Taken, generator: torch.Generator, batch: int, time: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Return inputs of a batch and a time, and states that are not where sessions begin.

    The states are those after a few steps of each row, so that they are some that the module can be in.
    """
    warm = [face.draw(generator, batch, STEPS) for face in taken.inputs]
    states = [face.start(batch) for face in taken.states]
    # Twice: a module without a time axis moves one step at a call.
    for _ in range(2 if taken.has_time else STEPS):
        states = taken.call([*warm, *states])[len(taken.answers) :]
        warm = [face.draw(generator, batch, STEPS) for face in taken.inputs]
    for k, (state, face) in enumerate(zip(states, taken.states, strict=True)):
        if state.dtype.is_floating_point and torch.equal(state, face.start(batch)):
            states[k] = torch.randn(state.shape, generator=generator).to(state.dtype)
    return [face.draw(generator, batch, time) for face in taken.inputs], states


def _check_repeatable(taken: Taken, inputs: list[Tensor], states: list[Tensor], whole: list[Tensor]) -> None:
    again = taken.call([*inputs, *states])
    if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(whole, again, strict=True)):
        raise ExportError(
            "the same call gives other answers the second time: something in it is random (dropout that eval() does "
            "not end?) or is remembered beside its states"
        )


def _check_finite(taken: Taken, whole: list[Tensor]) -> None:
    for name, tensor in zip(_names(taken), whole, strict=True):
        if tensor.dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
            raise ExportError(f"{name} is not finite for values such as these; give their range with --input")


def _check_rows(taken: Taken, inputs: list[Tensor], states: list[Tensor], whole: list[Tensor]) -> None:
    faces = (*taken.inputs, *taken.states)
    for row in (0, ROWS - 1):
        alone = taken.call(
            [_part(face, tensor, BATCH, row) for face, tensor in zip(faces, (*inputs, *states), strict=True)]
        )
        for face, one, all_rows in zip(_outputs(taken), alone, whole, strict=True):
            if not _alike(one, _part(face, all_rows, BATCH, row)):
                raise ExportError(
                    f"{face.name} of a row depends on the other rows of its batch (a mean over the batch, as a "
                    "BatchNorm that keeps no statistics takes it?): sessions must not notice each other"
                )


class _NumberTakenOut(RuntimeError):
    """Raised where the module's Python code asks a tensor for a number."""


class _Watch(TorchFunctionMode):
    """Raise _NumberTakenOut where Python takes a number out of what was computed from `values`."""

    def __init__(self, values: Iterable[Tensor]) -> None:
        super().__init__()
        self._followed: dict[int, Tensor] = {}  # by storage, kept so that no address comes twice
        self._follow(values)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Stand between Python and PyTorch for one call."""
        del types
        given = _tensors_of((args, kwargs))
        name = getattr(func, "__name__", "")
        if any(_storage(tensor) in self._followed for tensor in given):
            if name in TAKE_NUMBERS_OUT:
                raise _NumberTakenOut
            result = func(*args, **(kwargs or {}))
            self._follow(_tensors_of(result) if name != "__setitem__" else given[:1])
            return result
        return func(*args, **(kwargs or {}))

    def _follow(self, tensors: Iterable[Tensor]) -> None:
        self._followed.update((_storage(tensor), tensor) for tensor in tensors)


def _tensors_of(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _check_no_number_leaves(taken: Taken, inputs: list[Tensor], states: list[Tensor]) -> None:
    """Refuse a Python `if` over values: a traced file keeps the branch of its example, and comparing may miss it."""
    values = [tensor.clone() for tensor in (*inputs, *states)]
    try:
        with torch.no_grad(), _Watch(values):
            taken.module(*values)
    except _NumberTakenOut as error:
        raise ExportError(
            f"forward takes numbers out of its tensors{place_of(error)}, with an if over values, float() or .item(): "
            "a file keeps what they were in the example; torch.where and its like stay with tensors"
        ) from error


def _check_steps(taken: Taken, inputs: list[Tensor], states: list[Tensor], whole: list[Tensor]) -> None:
    now = states
    num_answers = len(taken.answers)
    for step in range(STEPS):
        parts = [_part(face, tensor, TIME, step) for face, tensor in zip(taken.inputs, inputs, strict=True)]
        made = taken.call([*parts, *now])
        now = made[num_answers:]
        for face, one, all_steps in zip(taken.answers, made, whole, strict=False):
            is_of_the_end = (
                TIME not in face.sizes and step < STEPS - 1
            )  # the answer is to the last step alone
            if not is_of_the_end and not _alike(one, _part(face, all_steps, TIME, step)):
                raise ExportError(
                    f"{face.name} at step {step} differs between one call of {STEPS} steps and {STEPS} calls of one: "
                    "it sees later steps, as a bidirectional layer does, or its states do not hold all that it needs"
                )
    for face, one, end in zip(taken.states, now, whole[num_answers:], strict=True):
        if not _alike(one, end):
            raise ExportError(f"{STEPS} calls of one step leave another {face.name} than one call of {STEPS}")


def _check_states_are_read(
    taken: Taken, inputs: list[Tensor], states: list[Tensor], whole: list[Tensor]
) -> None:
    for k, face in enumerate(taken.states):
        start = face.start(ROWS)
        if torch.equal(start, states[k]):
            continue
        made = taken.call([*inputs, *states[:k], start, *states[k + 1 :]])
        if all(torch.equal(one, other) for one, other in zip(made, whole, strict=True)):
            raise ExportError(
                f"state {face.name} is never read: with another one all answers and new states are the same"
            )


def _part(face: Face, tensor: Tensor, what: str, index: int) -> Tensor:
    """Return one row or one step of a tensor, with the axis left in."""
    axis = face.axis(what)
    return tensor if axis is None else tensor.narrow(axis, index, 1)


def _outputs(taken: Taken) -> tuple[Face, ...]:
    return (*taken.answers, *taken.states)


def _names(taken: Taken) -> list[str]:
    return [face.name for face in _outputs(taken)]


def _alike(one: Tensor, other: Tensor) -> bool:
    if not one.dtype.is_floating_point:
        return torch.equal(one, other)
    size = float(other.abs().max()) if other.numel() else 0.0
    return float((one - other).abs().max()) <= LOOSE[one.dtype] * max(size, 1e-6)
