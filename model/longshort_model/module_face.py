"""A tensor that a user's module takes or gives: its axes, its dtype, how values for it are drawn.

Owns the flags' form of a tensor. Calls no module.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import torch
from longshort_service.ports import DTYPES
from torch import Tensor

BATCH: Final = "batch"
TIME: Final = "time"


@dataclass(frozen=True, slots=True)
class Face:
    """One tensor: its name, its sizes (numbers, BATCH or TIME), its dtype, and what its values may be.

    Values are steps of `pool`, [samples, *step shape], where there is one, else drawn between `low` and `high`, else
    normally distributed.
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
        if self.pool is not None:  # whole steps of it: each number of a step may have a range of its own
            axes = self._free_axes()
            sample = torch.randint(len(self.pool), [shape[axis] for axis in axes], generator=generator)
            return self.pool[sample].movedim(list(range(len(axes))), axes).contiguous()
        if not self.dtype.is_floating_point:
            low, high = int(self.low or 0), int(1 if self.high is None else self.high)
            return torch.randint(low, high + 1, shape, generator=generator).to(self.dtype)
        if self.low is not None and self.high is not None:
            drawn = self.low + (self.high - self.low) * torch.rand(shape, generator=generator)
        else:
            drawn = torch.randn(shape, generator=generator)
        return drawn.to(self.dtype)

    def samples_of(self, tensor: Tensor) -> Tensor:
        """Return the steps [samples, *step shape] of a tensor of this face."""
        axes = self._free_axes()
        return tensor.movedim(axes, list(range(len(axes)))).flatten(0, len(axes) - 1)

    def start(self, batch: int) -> Tensor:
        """Return the state of `batch` sessions before their first step."""
        axis = self.axis(BATCH)
        if self.initial is None or axis is None:
            return torch.zeros(self.shape(batch, 1), dtype=self.dtype)
        return self.initial.unsqueeze(axis).expand(self.shape(batch, 1)).clone()

    def _free_axes(self) -> list[int]:
        return [axis for axis in (self.axis(BATCH), self.axis(TIME)) if axis is not None]


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
    number_type: torch.dtype = getattr(torch, dtype or "float32")
    low, high = _bounds(bounds, number_type)
    return Face(name, tuple(sizes), number_type, low, high)


def _bounds(text: str, dtype: torch.dtype) -> tuple[float | None, float | None]:
    if not text:
        return None, None
    low, dots, high = text.partition("..")
    is_float = dtype.is_floating_point
    try:
        bounds = (float(low), float(high)) if is_float else (int(low), int(high))
    except ValueError:
        dots = ""
    if not dots or not bounds[0] <= bounds[1]:
        raise ValueError(f"{text!r} is no range: LOW..HIGH, both of which may occur")
    limits = torch.finfo(dtype) if is_float else torch.iinfo(dtype)
    if bounds[0] < limits.min or bounds[1] >= limits.max:
        raise ValueError(f"{text!r} is beyond {str(dtype).removeprefix('torch.')}")
    return bounds
