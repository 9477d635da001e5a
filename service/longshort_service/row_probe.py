"""Whether a row's answers depend on who runs beside it, and a step's on the steps that follow: found by running.

Serving batches sessions together and takes several steps of one in a run. A graph that quantises over its batch, looks
ahead, or multiplies in another order when it has more rows answers otherwise than a session alone, step by step: such
a one is run alone. Knows no onnxruntime: it is given what runs.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longshort_service.arena import States
    from longshort_service.ports import RowLayout
    from longshort_service.signature import Signature, State

# Rows together. A product of matrices takes rows in blocks of 2 to 16 by processor, so that both full blocks and what
# is left over must be seen: the public Silero VAD v4 is exact for 3 rows and not for 2, 8 or 17.
COMPANIES: Final = (2, 3, 8, 17, 67)
NUM_STEPS: Final = 5
MOST_WITH_STEPS: Final = 17  # rows that take several steps; more of them take one, as each is run alone too
MOST_STATE_BYTES: Final = 2**25  # of all rows that are tried together; two are in any case
TOLERANCE: Final = 1e-4  # relative, where runs need not be exact: CUDA picks kernels by shape
_SCALES: Final = (1.0, 0.1, 10.0)  # companions of unequal size: what is scaled by the largest shows


class Runner(Protocol):
    """What runs a model: an engine."""

    @property
    def signature(self) -> Signature:
        """What the model takes and gives."""

    def run(
        self, values: NDArray[np.float32], counts: NDArray[np.int32] | None, states: States
    ) -> tuple[NDArray[np.float32], States]:
        """Run rows `[batch, time, width]` on from states; return answers `[batch, time, width]` and new states."""

    def initial_states(self, num_rows: int) -> States:
        """Return the states that a session starts with, for so many rows."""


@dataclass(frozen=True, slots=True)
class Findings:
    """Why rows, and why steps, must run alone: a sentence each for the log, "" where they need not."""

    rows_alone: str = ""
    steps_alone: str = ""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What an operator should read."""
        return tuple(text for text in (self.rows_alone, self.steps_alone) if text)

    def applied_to(self, signature: Signature) -> Signature:
        """Return the signature under which the model may be served."""
        if self.steps_alone:
            signature = dataclasses.replace(signature, single_steps=True)
        return dataclasses.replace(signature, rows_alone=True) if self.rows_alone else signature


def probe_rows(runner: Runner, *, exact: bool) -> Findings:
    """Return what running alone and in company shows; `exact`: to the bit, otherwise within TOLERANCE.

    Blocks for about 300 runs of a row. The model has run for zeros before, and runs without state of its
    own: nothing is left behind.
    """
    probe = _Probe(runner, exact=exact)
    try:
        probe.run_alone()
    except Exception as error:  # noqa: BLE001  onnxruntime's exceptions share no base but Exception
        reason = f"it fails on random values, so that its rows cannot be compared ({_first_line(error)})"
        return Findings(f"runs one session at a time: {reason}", f"runs one step at a time: {reason}")
    steps = "" if runner.signature.steps_alone else probe.why_steps_alone()
    rows = "" if runner.signature.rows_alone else probe.why_rows_alone(NUM_STEPS if not steps else 1)
    return Findings(
        rows and f"runs one session at a time, so that none feels another: {rows}",
        steps and f"runs one step at a time, so that none depends on how values are sent: {steps}",
    )


class _Probe:
    """Rows of random values, each with states of its own, and what each gives alone and step by step."""

    def __init__(self, runner: Runner, *, exact: bool) -> None:
        self._runner = runner
        self._exact = exact
        self._signature = runner.signature
        row_bytes = sum(state.nbytes for state in runner.initial_states(1))
        self._companies = [n for n in COMPANIES if n == COMPANIES[0] or n * row_bytes <= MOST_STATE_BYTES]
        num_rows = 1 if self._signature.rows_alone else max(self._companies)
        self._values = random_rows(self._signature.value_row, num_rows, NUM_STEPS)
        self._starts: list[States] = []  # of each row, [..., 1, ...]
        self._answers: list[NDArray[np.float32]] = []  # of each row, [steps, width]
        self._ends: list[list[States]] = []  # of each row, after each step

    def run_alone(self) -> None:
        """Step each row alone: first to states of its own, then through its values."""
        for row in range(len(self._values)):
            num_steps = NUM_STEPS if row < MOST_WITH_STEPS else 1
            states = self._runner.initial_states(1)
            _, states, _ = self._step(row, states, max(1, num_steps - row % 2))
            self._starts.append(states)
            answers, _, ends = self._step(row, states, num_steps)
            self._answers.append(answers)
            self._ends.append(ends)

    def _step(
        self, row: int, states: States, num_steps: int
    ) -> tuple[NDArray[np.float32], States, list[States]]:
        answers, ends = [], []
        for step in range(num_steps):
            answer, states = self._runner.run(self._values[row : row + 1, step : step + 1], None, states)
            answers.append(answer[0, 0])
            states = [state.copy() for state in states]  # a runner may use its memory again
            ends.append(states)
        return np.stack(answers), states, ends

    def why_steps_alone(self) -> str:
        """Return why steps cannot share a run, "" where they can: many in one run against one by one."""
        # Of several rows: where a graph only adds in another order, some random values show it and some do not.
        for row, num_steps in itertools.product(
            range(min(len(self._values), MOST_WITH_STEPS)), (2, NUM_STEPS)
        ):
            own = self._values[row : row + 1, :num_steps]
            try:
                answers, states = self._runner.run(own, None, self._starts[row])
            except Exception as error:  # noqa: BLE001  see above
                return f"a run of {num_steps} steps fails ({_first_line(error)})"
            difference = self._difference(row, answers[0], states, num_steps)
            if difference:
                return f"{num_steps} steps in one run differ from one by one by {difference}"
        return ""

    def why_rows_alone(self, num_steps: int) -> str:
        """Return why rows cannot share a run, "" where they can."""
        for num_rows in self._companies:
            most = 1 if self._signature.steps_alone or num_rows > MOST_WITH_STEPS else num_steps
            for steps in sorted({1, most}):
                counts = None
                if self._signature.sequence_lens is not None:
                    counts = np.array([steps - row % steps for row in range(num_rows)], np.int32)
                reason = self._company(num_rows, steps, counts)
                if reason:
                    return reason
        return ""

    def _company(self, num_rows: int, num_steps: int, counts: NDArray[np.int32] | None) -> str:
        specs = self._signature.states
        states = [
            np.concatenate(parts, axis=spec.batch_axis)
            for spec, parts in zip(specs, zip(*self._starts[:num_rows], strict=True), strict=True)
        ]
        try:
            answers, ends = self._runner.run(self._values[:num_rows, :num_steps], counts, states)
        except Exception as error:  # noqa: BLE001  see above
            return f"a run of {num_rows} rows fails ({_first_line(error)})"
        for row in range(num_rows):
            count = num_steps if counts is None else int(counts[row])
            own = [end[_at(spec, row)] for spec, end in zip(specs, ends, strict=True)]
            difference = self._difference(row, answers[row, :count], own, count)
            if difference:
                return f"among {num_rows} rows one differs from itself alone by {difference}"
        return ""

    def _difference(self, row: int, answers: NDArray[np.float32], states: States, num_steps: int) -> str:
        """Return by how much a row differs from itself alone, as text; "" where it does not or within the tolerance."""
        layout = self._signature.answer_row
        pairs = [
            *zip(layout.unpack(answers), layout.unpack(self._answers[row][:num_steps]), strict=True),
            *zip(states, self._ends[row][num_steps - 1], strict=True),
        ]
        if all(np.array_equal(have, want, equal_nan=have.dtype.kind == "f") for have, want in pairs):
            return ""
        worst = max(_relative(have, want) for have, want in pairs)
        if worst <= TOLERANCE:
            return f"{worst:.2g}, by rounding" if self._exact else ""
        return f"{worst:.2g}"


def random_rows(layout: RowLayout, num_rows: int, num_steps: int) -> NDArray[np.float32]:
    """Return rows `[rows, steps, width]` of random values, the same each time; integers are 0 or 1.

    An integer is an index more often than a quantity, and each table has a first row, most a second.
    """
    rng = np.random.default_rng(0)
    tensors = []
    for port in layout.ports:
        shape = (num_rows, num_steps, *port.shape)
        if port.dtype.startswith("int"):
            tensors.append(rng.integers(0, 2, shape).astype(port.dtype))
        else:
            scales = np.resize(_SCALES, (num_rows, *(1,) * (len(shape) - 1)))
            tensors.append((rng.standard_normal(shape) * scales).astype(port.dtype))
    return layout.pack(tensors)


def _relative(have: NDArray[Any], want: NDArray[Any]) -> float:
    """Return the greatest difference, relative to the greatest number of `want` or to 1; inf where one is NaN."""
    if have.shape != want.shape:
        return math.inf
    a, b = have.astype(np.float64), want.astype(np.float64)
    differs = ~((a == b) | (np.isnan(a) & np.isnan(b)))
    if not differs.any():
        return 0.0
    worst = float(np.abs(a[differs] - b[differs]).max())
    return (
        math.inf if math.isnan(worst) else worst / max(1.0, float(np.abs(b[np.isfinite(b)]).max(initial=0)))
    )


def _at(spec: State, row: int) -> tuple[slice, ...]:
    return (*(slice(None),) * spec.batch_axis, slice(row, row + 1))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
