"""Finding what a user's module takes and gives, by asking it and calling it at several sizes.

Owns the finding of axes and of initial states, and what is refused there. Exports nothing.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any, Final

import torch
from longshort_service.ports import DTYPES
from torch import Tensor

from longshort_model.export import ExportError
from longshort_model.module_calls import Flat, Taken, call, leaves
from longshort_model.module_face import BATCH, TIME, Face
from longshort_model.user_module import failure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

# Batch and time of the calls that axes are found with, and of the example that is exported. No size is 1, which
# exporters take for a constant, and none is what a layer is likely to have.
SIZES: Final = ((3, 7), (5, 7), (3, 11))


def take(
    module: nn.Module, inputs: Sequence[Face], states: Sequence[Face], output_names: Sequence[str] = ()
) -> Taken:
    """Find what a module takes and gives. Raises ExportError where that cannot be served.

    Inputs and states are those given, or else what its own `example_inputs(batch, time)` and
    `initial_states(batch)` return.
    """
    names = _parameter_names(module)
    if not inputs:
        example = _own(module, "example_inputs", "--input, such as --input x:batch,time,3")
        inputs = _inputs_of([list(leaves(example(*sizes))) for sizes in SIZES], names)
    trees: tuple[Any, ...] = tuple(face.start(1) for face in states)
    if not states:
        initial = _own(module, "initial_states", "--state for each, such as --state h:1,batch,64")
        given = [initial(batch) for batch, _ in SIZES[:2]]
        _check_counts("initial_states", given)
        made = [[tree] if isinstance(tree, Tensor) else list(tree) for tree in given]
        if _takes_one_state(module, len(inputs)) and len(made[0]) > 1:
            made = [[tuple(tree)] for tree in made]
        trees = tuple(made[0])
        states = _states_of(made, names[len(inputs) :])
    if not states:
        raise ExportError(
            "it has no states, and needs no longshort: --state, or initial_states(batch), gives them"
        )
    for face in (*inputs, *states):
        _check_face(face)
    timed = [face.name for face in states if TIME in face.sizes]
    if timed:
        raise ExportError(
            f"state {timed[0]} has an axis of time: a state is what one step leaves to the next"
        )
    if _takes_one_state(module, len(inputs)) and len(trees) > 1:
        trees = (trees,)  # forward(x, memory), with nn.LSTM's two in it
    flat = Flat(module, len(inputs), trees).eval()
    return Taken(flat, tuple(inputs), tuple(states), _answers_of(flat, inputs, states, output_names))


def _own(module: nn.Module, name: str, flag: str) -> Callable[..., Any]:
    method = getattr(module, name, None)
    if not callable(method):
        kind = type(module).__name__
        raise ExportError(f"{kind} has no {name}(...) to ask; give it one, or say it with {flag}")

    def ask(*sizes: int) -> Any:
        try:
            return method(*sizes)
        except Exception as error:
            raise ExportError(f"{name}{sizes} fails: {failure(error)}") from error

    return ask


def _parameter_names(module: nn.Module) -> list[str]:
    """Return the names of what `forward` takes one by one; what it takes as *states has none."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(module.forward).parameters
    except ValueError:  # compiled: it has no names to ask for
        return []
    return [name for name, p in parameters.items() if p.kind in kinds]


def _takes_one_state(module: nn.Module, num_inputs: int) -> bool:
    """Whether `forward` has room for one thing after its inputs: several states come to it in a tuple."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except ValueError:
        return False
    is_open = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
    return not is_open and len(_parameter_names(module)) == num_inputs + 1


def _inputs_of(made: list[list[Any]], names: list[str]) -> list[Face]:
    faces = []
    _check_counts("example_inputs", made)
    for k, tensors in enumerate(zip(*made, strict=True)):
        name = names[k] if k < len(names) else f"x{k}"
        face = Face(name, sizes_of(name, tensors), tensors[0].dtype)
        _check_face(face)
        pool = torch.cat([face.samples_of(tensor.detach()) for tensor in tensors])
        faces.append(dataclasses.replace(face, pool=pool))
    return faces


def _states_of(made: list[list[Any]], names: list[str]) -> list[Face]:
    faces = []
    for k, branches in enumerate(zip(*made, strict=True)):
        base = names[k] if k < len(names) else f"state{k}"
        parts = list(zip(*(leaves(branch) for branch in branches), strict=True))
        for n, (one, other) in enumerate(parts):
            name = base if len(parts) == 1 else f"{base}{n}"
            sizes = sizes_of(name, (one, other, one))
            if BATCH not in sizes:
                raise ExportError(
                    f"state {name} is {list(one.shape)} for every batch: it needs an axis for it"
                )
            axis = sizes.index(BATCH)
            first = one.detach().select(axis, 0)
            for tensor in (one, other):
                if not torch.equal(tensor, first.unsqueeze(axis).expand(tensor.shape)):
                    raise ExportError(
                        f"initial_states gives rows of {name} that differ; sessions begin alike"
                    )
            faces.append(Face(name, sizes, one.dtype, initial=first.clone()))
    return faces


def _check_counts(method: str, trees: Sequence[Any]) -> None:
    """Raise ExportError unless what a method has returned for each of some sizes is as many tensors each time."""
    counts = sorted({len(list(leaves(tree))) for tree in trees})
    if len(counts) > 1:
        raise ExportError(
            f"{method} returns {' or '.join(map(str, counts))} tensors at other sizes of batch and time: "
            "it must return as many each time"
        )


def sizes_of(name: str, tensors: Sequence[Tensor]) -> tuple[int | str, ...]:
    """Return the sizes of a tensor of which there is one for each of SIZES. Raises ExportError if they fit none."""
    sizes: list[int | str] = []
    if len({tensor.ndim for tensor in tensors}) > 1:
        raise ExportError(f"{name} has another number of axes at another batch or time")
    for axis in zip(*(tensor.shape for tensor in tensors), strict=True):
        if len(set(axis)) == 1:
            sizes.append(int(axis[0]))
        elif axis == tuple(batch for batch, _ in SIZES):
            sizes.append(BATCH)
        elif axis == tuple(time for _, time in SIZES):
            sizes.append(TIME)
        else:
            raise ExportError(
                f"{name} has an axis of {axis} where batch and time are {SIZES}: neither of them"
            )
    if sizes.count(BATCH) > 1 or sizes.count(TIME) > 1:
        raise ExportError(f"{name} has more than one axis of batch or time: {sizes}")
    return tuple(sizes)


def _check_face(face: Face) -> None:
    if face.dtype_name not in DTYPES:
        raise ExportError(f"{face.name} is {face.dtype_name}; longshort serves {', '.join(DTYPES)}")
    if BATCH not in face.sizes:
        raise ExportError(f"{face.name} is {list(face.sizes)} for every batch: it needs an axis for it")


def _answers_of(
    flat: Flat, inputs: Sequence[Face], states: Sequence[Face], names: Sequence[str]
) -> tuple[Face, ...]:
    generator = torch.Generator().manual_seed(0)
    made = [
        call(flat, [*(f.draw(generator, batch, time) for f in inputs), *(f.start(batch) for f in states)])
        for batch, time in SIZES
    ]
    num_answers = len(made[0]) - len(states)
    if num_answers < 1:
        raise ExportError(
            f"forward returns {len(made[0])} tensors for {len(states)} states: it must return (y, *states)"
        )
    if names and len(names) != num_answers:
        raise ExportError(f"forward returns {num_answers} answers, {len(names)} are named")
    for k, face in enumerate(states):
        for (batch, time), tensors in zip(SIZES, made, strict=True):
            new = tensors[num_answers + k]
            if tuple(new.shape) != face.shape(batch, time) or new.dtype != face.dtype:
                raise ExportError(
                    f"state {face.name} goes in as {list(face.shape(batch, time))} {face.dtype_name} and comes out "
                    f"as {list(new.shape)} {str(new.dtype).removeprefix('torch.')}"
                )
    base = "answer" if any(face.name.startswith("y") for face in (*inputs, *states)) else "y"
    chosen = list(names) or ([base] if num_answers == 1 else [f"{base}{k}" for k in range(num_answers)])
    answers = []
    for k, name in enumerate(chosen):
        tensors = [one[k] for one in made]
        answers.append(Face(name, sizes_of(name, tensors), tensors[0].dtype))
        _check_face(answers[-1])
    if not any(TIME in face.sizes for face in inputs) and any(TIME in face.sizes for face in answers):
        raise ExportError("an answer has a time axis where no input has one")
    return tuple(answers)
