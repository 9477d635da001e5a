"""The proof that an exported file does what the user's module does in PyTorch.

Owns the comparison: other sizes than the example's, states that are not zero, 500 carried steps. DESIGN: a file that
does not pass is not written.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnxruntime
import torch

from longshort_model.export import CARRIED_STEPS, OWN_DRIFTS, ExportError
from longshort_model.exporters import output_name
from longshort_model.module_checks import drawn
from longshort_model.module_face import BATCH, TIME

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from longshort_model.module_calls import Taken
    from longshort_model.module_face import Face

# Of a file's distance from PyTorch in double precision, relative to how much a number varies.
TOLERANCES: Final = {"float16": 2e-2, "float32": 2e-5, "float64": 1e-11}
OTHER_SIZES: Final = ((2, 5), (5, 16), (1, 1))  # batch and time; none is the example's
CARRIED_ROWS: Final = 3
LEAST_SPREAD: Final = 1e-2  # of a tensor's greatest number: what varies less is not looked at more closely
FEWEST_DRAWS: Final = 8  # of a number, over rows and steps, to say how much it varies


@dataclass(frozen=True, slots=True)
class Parity:
    """What was found: the greatest distance from PyTorch, and whether rows in company are to the bit those alone."""

    distance: float
    rows_are_exact: bool


class File:
    """An exported file in onnxruntime, called with the tensors of a module's face."""

    def __init__(self, content: bytes, taken: Taken) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # as the service runs it
        options.log_severity_level = 4  # what fails is raised too
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ExportError(f"onnxruntime does not load the file: {_first_line(error)}") from error
        self._inputs = [face.name for face in (*taken.inputs, *taken.states)]
        self._outputs = [
            *(face.name for face in taken.answers),
            *(output_name(face) for face in taken.states),
        ]

    def run(self, tensors: list[Tensor]) -> list[NDArray[Any]]:
        """Return answers and new states. Raises ExportError where onnxruntime does not run it."""
        feed = {name: tensor.contiguous().numpy() for name, tensor in zip(self._inputs, tensors, strict=True)}
        try:
            made: list[NDArray[Any]] = self._session.run(self._outputs, feed)
        except Exception as error:
            shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors)
            raise ExportError(f"onnxruntime does not run it for {shapes}: {_first_line(error)}") from error
        return made


def check_loads(path: Path) -> None:
    """Raise ExportError where onnxruntime dies of the file: it is loaded in a process of its own.

    onnxruntime 1.32 ends with a segmentation fault while it optimises an LSTM in float16.
    """
    script = (
        "import sys, onnxruntime as o; o.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
    )
    done = subprocess.run(  # noqa: S603  our own interpreter
        [sys.executable, "-c", script, str(path)], capture_output=True, check=False, timeout=300
    )
    if done.returncode < 0:
        raise ExportError(
            f"onnxruntime {onnxruntime.__version__} dies of the file (signal {-done.returncode}); would float32 do?"
        )


def check(taken: Taken, content: bytes) -> Parity:
    """Raise ExportError unless the file gives what PyTorch gives."""
    file = File(content, taken)
    judge = _Judge(taken)
    generator = torch.Generator().manual_seed(3)
    for batch, time in OTHER_SIZES:
        inputs, states = drawn(taken, generator, batch, time)
        sizes = f"batch {batch}, time {time}" if taken.has_time else f"batch {batch}"
        judge.compare(sizes, file.run([*inputs, *states]), *judge.references(inputs, states))
    started = [face.start(4) for face in taken.states]
    inputs, states = drawn(taken, generator, 4, 6)
    judge.compare(
        "from the initial states", file.run([*inputs, *started]), *judge.references(inputs, started)
    )
    _check_carried(taken, file, judge, generator)
    return Parity(judge.greatest, _rows_are_exact(taken, file, inputs, states))


def _check_carried(taken: Taken, file: File, judge: _Judge, generator: torch.Generator) -> None:
    inputs, states = drawn(taken, generator, CARRIED_ROWS, CARRIED_STEPS)
    steps = [
        [_step(face, tensor, t) for face, tensor in zip(taken.inputs, inputs, strict=True)]
        if taken.has_time
        else [face.draw(generator, CARRIED_ROWS, 1) for face in taken.inputs]
        for t in range(CARRIED_STEPS)
    ]
    made, now = [], states
    for step in steps:
        got = file.run([*step, *now])
        made.append(got[: len(taken.answers)])
        now = [torch.from_numpy(new) for new in got[len(taken.answers) :]]
    answers = [_joined(face, [one[k] for one in made]) for k, face in enumerate(taken.answers)]
    carried = [*answers, *(state.numpy() for state in now)]
    exact, own = (judge.carried(steps, states, is_double=is_double) for is_double in (True, False))
    judge.compare(f"{CARRIED_STEPS} carried steps", carried, exact, own)
    if taken.has_time:
        judge.compare(f"one call of {CARRIED_STEPS} steps", file.run([*inputs, *states]), exact, own)


class _Judge:
    """PyTorch's word on what is right, in double precision where the module can be had in it."""

    def __init__(self, taken: Taken) -> None:
        self.taken = taken
        self.greatest = 0.0
        self._double = _in_double(taken)

    def references(
        self, inputs: list[Tensor], states: list[Tensor]
    ) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        """Return answers and new states in double precision, and in the module's own."""
        return (
            [t.numpy() for t in self._double.call(self._widened([*inputs, *states]))],
            [t.numpy() for t in self.taken.call([*inputs, *states])],
        )

    def carried(
        self, steps: list[list[Tensor]], states: list[Tensor], *, is_double: bool
    ) -> list[NDArray[Any]]:
        """Return the answers to steps called one by one, joined along time, and the states after them."""
        taken, widen = (self._double, self._widened) if is_double else (self.taken, list)
        now, made = widen(states), []
        for step in steps:
            got = taken.call([*widen(step), *now])
            made.append([t.numpy() for t in got[: len(taken.answers)]])
            now = got[len(taken.answers) :]
        joined = [_joined(face, [one[k] for one in made]) for k, face in enumerate(taken.answers)]
        return [*joined, *(state.numpy() for state in now)]

    def compare(
        self, what: str, got: list[NDArray[Any]], exact: list[NDArray[Any]], own: list[NDArray[Any]]
    ) -> None:
        """Raise ExportError where a tensor of the file is too far from PyTorch's."""
        for face, mine, right, rough in zip(
            (*self.taken.answers, *self.taken.states), got, exact, own, strict=True
        ):
            place = f"{what}: {face.name}"
            if mine.shape != right.shape or mine.dtype != np.dtype(face.dtype_name):
                raise ExportError(
                    f"{place} is {list(mine.shape)} {mine.dtype}, in PyTorch {list(right.shape)}"
                )
            if face.dtype_name not in TOLERANCES:
                if not np.array_equal(mine, right):
                    raise ExportError(f"{place} differs from PyTorch")
                continue
            allowed = max(TOLERANCES[face.dtype_name], OWN_DRIFTS * _distance(face, rough, right))
            distance = _distance(face, mine, right)
            if not distance <= allowed:
                raise ExportError(f"{place} differs from PyTorch by {distance:.2g}, allowed is {allowed:.2g}")
            self.greatest = max(self.greatest, distance)

    def _widened(self, tensors: list[Tensor]) -> list[Tensor]:
        if self._double is self.taken:
            return tensors
        return [tensor.double() if tensor.dtype.is_floating_point else tensor for tensor in tensors]


def _in_double(taken: Taken) -> Taken:
    """Return the module in double precision, or itself where that changes what it does, or cannot be."""
    try:
        double = dataclasses.replace(taken, module=copy.deepcopy(taken.module).double())
        generator = torch.Generator().manual_seed(4)
        inputs, states = drawn(taken, generator, 2, 3)
        wide = [t.double() if t.dtype.is_floating_point else t for t in (*inputs, *states)]
        made = double.call(wide)
    except (ExportError, RuntimeError, TypeError):
        return taken
    are_double = all(t.dtype == torch.float64 for t in made if t.dtype.is_floating_point)
    return double if are_double else taken


def _distance(face: Face, got: NDArray[Any], exact: NDArray[Any]) -> float:
    """Return the greatest difference, each relative to how much its number varies over rows and steps.

    What rounding an answer once may take, twice the spacing of its dtype there, counts nothing.
    """
    if not got.size:
        return 0.0
    wide, right = got.astype(np.float64), exact.astype(np.float64)
    once = 2 * float(np.finfo(face.dtype_name).eps) * np.abs(right)
    off = np.maximum(np.abs(wide - right) - once, 0.0)
    axes = tuple(axis for axis in (face.axis(BATCH), face.axis(TIME)) if axis is not None)
    if right.ndim > len(face.sizes):
        axes = (*(axis + 1 for axis in axes), 0)
    greatest = float(np.abs(right).max()) or 1.0
    if math.prod(right.shape[axis] for axis in axes) < FEWEST_DRAWS:
        return float(np.max(off)) / greatest
    spread = np.ptp(right, axis=axes, keepdims=True)
    return float(np.max(off / np.maximum(spread, LEAST_SPREAD * greatest)))


def _rows_are_exact(taken: Taken, file: File, inputs: list[Tensor], states: list[Tensor]) -> bool:
    faces = (*taken.inputs, *taken.states)
    whole = file.run([*inputs, *states])
    for row in range(inputs[0].shape[taken.inputs[0].sizes.index(BATCH)]):
        parts = [
            t.narrow(f.sizes.index(BATCH), row, 1) for f, t in zip(faces, (*inputs, *states), strict=True)
        ]
        alone = file.run(parts)
        for face, one, rows in zip((*taken.answers, *taken.states), alone, whole, strict=True):
            if not np.array_equal(one, np.take(rows, [row], face.sizes.index(BATCH))):
                return False
    return True


def _step(face: Face, tensor: Tensor, t: int) -> Tensor:
    axis = face.axis(TIME)
    return tensor if axis is None else tensor.narrow(axis, t, 1)


def _joined(face: Face, steps: list[NDArray[Any]]) -> NDArray[Any]:
    """Return steps as one tensor: along its time axis, or along a new first one where it has none."""
    axis = face.axis(TIME)
    return np.stack(steps) if axis is None else np.concatenate(steps, axis=axis)


def _first_line(error: Exception) -> str:
    words = " ".join(str(error).split())
    return words if len(words) <= 300 else words[:300] + " ..."
