"""Calling a user's module with tensors, one after the other, whatever its `forward` deals in.

Owns the forms in which a module is called and exported. What its tensors are, `module_taken` finds out.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from longshort_model.export import ExportError
from longshort_model.module_face import TIME
from longshort_model.user_module import failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from longshort_model.module_face import Face


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


def leaves(tree: Any) -> Iterator[Tensor]:
    """Give the tensors of nested tuples and lists. Raises ExportError for anything else."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for branch in tree:
            yield from leaves(branch)
    else:
        raise ExportError(
            f"forward, example_inputs and initial_states deal in tensors and tuples of them, not {type(tree).__name__}"
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


def _nesting(tree: Any) -> Any:
    """Return nested tuples and lists as nested tuples, with None in the place of each tensor."""
    return None if isinstance(tree, Tensor) else tuple(_nesting(branch) for branch in tree)


def _filled(nesting: Any, tensors: Iterator[Tensor]) -> Any:
    return next(tensors) if nesting is None else tuple(_filled(branch, tensors) for branch in nesting)
