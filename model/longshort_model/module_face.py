"""What a user's module takes and gives: its tensors, their axes, how values for them are drawn.

Owns the flags' form of a tensor and the finding of axes by calling at several sizes. Exports nothing.
"""

from __future__ import annotations

import inspect
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from longshort_service.ports import DTYPES
from torch import Tensor, nn

from longshort_model.export import ExportError
from longshort_model.user_module import failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

BATCH: Final = "batch"
TIME: Final = "time"
# Batch and time of the calls that axes are found with, and of the example that is exported. No size is 1, which
# exporters take for a constant, and none is what a layer is likely to have.
SIZES: Final = ((3, 7), (5, 7), (3, 11))


@dataclass(frozen=True, slots=True)
class Face:
    """One tensor: its name, its sizes (numbers, BATCH or TIME), its dtype, and what its values may be.

    Values are drawn from `pool` where there is one, else between `low` and `high`, else normally distributed.
    `initial` is a session's part of a state before its first step.
    """

    name: str
    sizes: tuple[int | str, ...]
    dtype: torch.dtype
    low: float | None = None
    high: float | None = None
    pool: Tensor | None = field(default=None, compare=False)
    initial: Tensor | None = field(default=None, compare=False)

    @property
    def dtype_name(self) -> str:
        """The dtype as the signature has it."""
        return str(self.dtype).removeprefix("torch.")

    def axis(self, what: str) -> int | None:
        """Return the place of BATCH or TIME, None where there is none."""
        return self.sizes.index(what) if what in self.sizes else None

    def step_shape(self) -> tuple[int, ...]:
        """Return the shape of one step of one session."""
        return tuple(size for size in self.sizes if isinstance(size, int))

    def shape(self, batch: int, time: int) -> tuple[int, ...]:
        """Return the shape at a batch and a time."""
        sizes = {BATCH: batch, TIME: time}
        return tuple(size if isinstance(size, int) else sizes[size] for size in self.sizes)

    def without_time(self) -> Face:
        """Return the same tensor at one step, without a time axis."""
        kept = tuple(size for size in self.sizes if size != TIME)
        return Face(self.name, kept, self.dtype, self.low, self.high, self.pool, self.initial)

    def draw(self, generator: torch.Generator, batch: int, time: int) -> Tensor:
        """Return values as the module may meet them."""
        shape = self.shape(batch, time)
        if self.pool is not None:
            return self.pool[torch.randint(len(self.pool), shape, generator=generator)]
        if not self.dtype.is_floating_point:
            low, high = int(self.low or 0), int(1 if self.high is None else self.high)
            return torch.randint(low, high + 1, shape, generator=generator).to(self.dtype)
        if self.low is not None and self.high is not None:
            drawn = self.low + (self.high - self.low) * torch.rand(shape, generator=generator)
        else:
            drawn = torch.randn(shape, generator=generator)
        return drawn.to(self.dtype)

    def start(self, batch: int) -> Tensor:
        """Return the state of `batch` sessions before their first step."""
        axis = self.axis(BATCH)
        if self.initial is None or axis is None:
            return torch.zeros(self.shape(batch, 1), dtype=self.dtype)
        return self.initial.unsqueeze(axis).expand(self.shape(batch, 1)).clone()


class Flat(nn.Module):
    """A module as tensors in and tensors out: states that lie in tuples are taken out of them and put back."""

    def __init__(self, module: nn.Module, num_inputs: int, states: tuple[Any, ...]) -> None:
        super().__init__()
        self.module, self.num_inputs = module, num_inputs
        self.nesting = [_nesting(state) for state in states]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Call the module with inputs and states, one after the other; return outputs and new states alike."""
        rest = iter(tensors[self.num_inputs :])
        states = [_filled(nesting, rest) for nesting in self.nesting]
        return tuple(leaves(self.module(*tensors[: self.num_inputs], *states)))


class OneStep(nn.Module):
    """A module with a time axis as one without: it is called with a time of one step."""

    def __init__(self, flat: nn.Module, inputs: Sequence[Face], outputs: Sequence[Face]) -> None:
        super().__init__()
        self.flat = flat
        self.before = [face.axis(TIME) for face in inputs]
        self.after = [face.axis(TIME) for face in outputs]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return outputs and new states of one step."""
        given = [
            tensor if axis is None else tensor.unsqueeze(axis)
            for tensor, axis in itertools.zip_longest(tensors, self.before)
        ]
        made = self.flat(*given)
        return tuple(
            tensor if axis is None else tensor.squeeze(axis)
            for tensor, axis in itertools.zip_longest(made, self.after)
        )


@dataclass(frozen=True, slots=True)
class Taken:
    """A module with what it takes and gives, found by calling it. Its outputs are answers, then new states."""

    module: nn.Module
    inputs: tuple[Face, ...]
    states: tuple[Face, ...]
    answers: tuple[Face, ...]

    @property
    def has_time(self) -> bool:
        """Whether every input and every answer has a time axis."""
        return all(TIME in face.sizes for face in (*self.inputs, *self.answers))

    def call(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Run the module on copies of inputs and states. Raises ExportError where its code fails."""
        return call(self.module, tensors)

    def one_step(self) -> Taken:
        """Return the same module taken one step at a time; itself where no tensor has a time axis."""
        faces = (*self.inputs, *self.answers)
        if not any(TIME in face.sizes for face in faces):
            return self
        return Taken(
            OneStep(self.module, self.inputs, self.answers).eval(),
            tuple(face.without_time() for face in self.inputs),
            self.states,
            tuple(face.without_time() for face in self.answers),
        )


def _nesting(tree: Any) -> Any:
    """Return nested tuples and lists as nested tuples, with None in the place of each tensor."""
    return None if isinstance(tree, Tensor) else tuple(_nesting(branch) for branch in tree)


def _filled(nesting: Any, tensors: Iterator[Tensor]) -> Any:
    return next(tensors) if nesting is None else tuple(_filled(branch, tensors) for branch in nesting)


def leaves(tree: Any) -> Iterator[Tensor]:
    """Give the tensors of nested tuples and lists. Raises ExportError for anything else."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for branch in tree:
            yield from leaves(branch)
    else:
        raise ExportError(
            f"forward and initial_states deal in tensors and tuples of them, not {type(tree).__name__}"
        )


def call(function: Callable[..., Any], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors that `function` gives for copies of these. Raises ExportError where it fails."""
    try:
        with torch.no_grad():
            return list(leaves(function(*(tensor.clone() for tensor in tensors))))
    except ExportError:
        raise
    except Exception as error:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors)
        raise ExportError(f"the module fails for tensors {shapes}: {failure(error)}") from error


def parse(text: str) -> Face:
    """Read NAME:SIZE,SIZE,...[:DTYPE[:LOW..HIGH]], a size being a number, `batch` (or `?`) or `time`.

    Raises ValueError with what is wrong.
    """
    name, _, rest = text.partition(":")
    shape, _, rest = rest.partition(":")
    dtype, _, bounds = rest.partition(":")
    if not name.isidentifier() or not shape:
        raise ValueError("it has the form NAME:SIZE,SIZE,... as in x:batch,time,3")
    sizes: list[int | str] = []
    for size in (part.strip() for part in shape.split(",")):
        word = BATCH if size == "?" else size
        if word not in (BATCH, TIME) and not (size.isascii() and size.isdigit() and int(size) > 0):
            raise ValueError(f"{size!r} is no size: a number above 0, batch or time")
        sizes.append(word if word in (BATCH, TIME) else int(size))
    if sizes.count(BATCH) != 1 or sizes.count(TIME) > 1:
        raise ValueError("it needs batch among its sizes once, and time at most once")
    if (dtype or "float32") not in DTYPES:
        raise ValueError(f"{dtype} is none of {', '.join(DTYPES)}")
    low, high = _bounds(bounds)
    return Face(name, tuple(sizes), getattr(torch, dtype or "float32"), low, high)


def _bounds(text: str) -> tuple[float | None, float | None]:
    if not text:
        return None, None
    low, dots, high = text.partition("..")
    try:
        bounds = float(low), float(high)
    except ValueError:
        dots = ""
    if not dots or bounds[0] > bounds[1]:
        raise ValueError(f"{text!r} is no range: LOW..HIGH, both of which may occur")
    return bounds


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
        inputs = _inputs_of([_listed(example(*sizes)) for sizes in SIZES], names)
    trees: tuple[Any, ...] = tuple(face.start(1) for face in states)
    if not states:
        initial = _own(module, "initial_states", "--state for each, such as --state h:1,batch,64")
        made = [_listed(initial(batch)) for batch, _ in SIZES[:2]]
        trees = tuple(made[0])
        states = _states_of(made, names[len(inputs) :])
    if not states:
        raise ExportError(
            "it has no states, and needs no longshort: --state, or initial_states(batch), gives them"
        )
    for face in (*inputs, *states):
        _check_face(face)
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


def _listed(tree: Any) -> list[Any]:
    return [tree] if isinstance(tree, Tensor) else list(tree)


def _parameter_names(module: nn.Module) -> list[str]:
    """Return the names of what `forward` takes one by one; what it takes as *states has none."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(module.forward).parameters
    except ValueError:  # compiled: it has no names to ask for
        return []
    return [name for name, p in parameters.items() if p.kind in kinds]


def _inputs_of(made: list[list[Any]], names: list[str]) -> list[Face]:
    faces = []
    for k, tensors in enumerate(zip(*(leaves(one) for one in made), strict=True)):
        name = names[k] if k < len(names) else f"x{k}"
        pool = torch.cat([tensor.flatten() for tensor in tensors])
        faces.append(Face(name, sizes_of(name, tensors), tensors[0].dtype, pool=pool))
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
    chosen = list(names) or (["y"] if num_answers == 1 else [f"y{k}" for k in range(num_answers)])
    answers = []
    for k, name in enumerate(chosen):
        tensors = [one[k] for one in made]
        answers.append(Face(name, sizes_of(name, tensors), tensors[0].dtype))
        _check_face(answers[-1])
    if not any(TIME in face.sizes for face in inputs) and any(TIME in face.sizes for face in answers):
        raise ExportError("an answer has a time axis where no input has one")
    return tuple(answers)
