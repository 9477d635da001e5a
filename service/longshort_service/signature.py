"""What a model file promises: its inputs, outputs, states, and what its numbers mean.

Owns the signature and what it refuses as a contradiction. Knows no file and runs nothing: `signature_json` is the form
that a file carries.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from longshort_service.ports import DTYPES, Port, RowLayout


class SignatureError(ValueError):
    """A signature that is missing, damaged or contradicts itself; the message says where."""


class MissingValue(enum.Enum):
    """What a NaN among the values means."""

    REJECT = "REJECT"
    REPEAT_LAST = "REPEAT_LAST"
    PASS = "PASS"  # noqa: S105  (no password)


class Memory(enum.Enum):
    """Which of the unit's two memories a state is."""

    LONG_TERM = "long_term"  # the cell state, L
    SHORT_TERM = "short_term"  # the hidden state, S


@dataclass(frozen=True, slots=True)
class Channel:
    """One column of the values or of the answers. `quantile` marks the bounds of a band, None the point."""

    name: str
    unit: str = ""
    quantile: float | None = None


@dataclass(frozen=True, slots=True)
class State:
    """A pair of graph tensors that carries memory from one step to the next.

    `shape` is the input's shape with the batch axis as -1. Where the graph has no batch axis (`is_unbatched`) the axis
    is longshort's alone. `initial` is the value every element starts with, `initial_file` names a .npy beside the model
    with a session's part of it instead. Two kinds have no output: a constant of one session, given at its opening, and
    a window, which holds the last values that the input `window_of` was given and goes before the next ones, along
    `window_axis` of that input's step; its `input` is a label of its own.
    """

    input: str
    output: str
    shape: tuple[int, ...]
    batch_axis: int
    initial: float = 0.0
    memory: Memory | None = None
    dtype: str = "float32"
    is_unbatched: bool = False
    initial_file: str = ""
    window_of: str = ""
    window_axis: int = 0

    @property
    def is_constant(self) -> bool:
        """Whether it is a constant of one session: a value that opening gives and no step changes."""
        return not self.output and not self.window_of

    @property
    def is_plain(self) -> bool:
        """Whether the graph takes it and gives it as float32 with a batch axis."""
        return self.dtype == "float32" and bool(self.output) and not self.is_unbatched

    def row_shape(self) -> tuple[int, ...]:
        """Return the shape of one session's part: `shape` without its batch axis."""
        return self.shape[: self.batch_axis] + self.shape[self.batch_axis + 1 :]

    def with_batch(self, num_rows: int) -> tuple[int, ...]:
        """Return the shape for `num_rows` sessions."""
        return with_batch(self.shape, self.batch_axis, num_rows)


@dataclass(frozen=True, slots=True)
class Constant:
    """A graph input that is the same for all sessions and steps: `value` everywhere, or the array in `file`, a .npy."""

    input: str
    shape: tuple[int, ...]
    dtype: str
    value: float = 0.0
    file: str = ""


@dataclass(frozen=True, slots=True)
class Feedback:
    """In a forecast, the output channel named `output` is the next value of the feature named `feature`."""

    output: str
    feature: str


@dataclass(frozen=True, slots=True)
class Signature:
    """Everything that the service needs to know of a model, and all that it tells callers.

    `features` and `outputs` name the numbers of a row of values and of answers. `inputs` and `answers` name the graph
    tensors that carry them, in the same order; left out they are one each: `input`, `[batch, time, features] f32`, and
    `output`, `[batch, time, outputs] f32`. `rows_alone`: a run holds one session, as batch-mates would change its
    answers, or the graph has no room for them; `single_steps`: a run holds one step, as steps of one run are other than
    steps of their own. `sequence_lens` the optional graph input `[batch] i32` that says how
    many steps of each row are real. `state_family` says whose states are alike: a session may move between files that
    name the same family; "" is no family, and each file's states are its own.
    """

    name: str
    features: tuple[Channel, ...]
    outputs: tuple[Channel, ...]
    states: tuple[State, ...]
    description: str = ""
    input: str = "x"
    output: str = "y"
    sequence_lens: str | None = None
    missing: MissingValue = MissingValue.REJECT
    forecast: tuple[Feedback, ...] = ()
    step_s: float | None = None  # seconds between two values, where they come regularly
    trained_on: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    fingerprint: str = ""  # hexadecimal SHA-256 over the graph without its metadata
    state_family: str = ""
    inputs: tuple[Port, ...] = ()
    answers: tuple[Port, ...] = ()
    constants: tuple[Constant, ...] = ()
    rows_alone: bool = False
    single_steps: bool = False
    value_row: RowLayout = field(init=False, repr=False, compare=False)
    answer_row: RowLayout = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Fill in what was left out, and refuse a signature that contradicts itself."""
        if not self.name or not self.features or not self.outputs:
            raise SignatureError("a signature needs a name, at least one feature and at least one output")
        if not self.inputs:
            object.__setattr__(self, "inputs", (Port(self.input, (len(self.features),)),))
        if not self.answers:
            object.__setattr__(self, "answers", (Port(self.output, (len(self.outputs),)),))
        # Of one name for the one input of a plain graph: what feeds it goes by `input`, all else by `inputs`.
        object.__setattr__(self, "input", self.inputs[0].name)
        object.__setattr__(self, "output", self.answers[0].name)
        _check_names(self)
        _check_tensors(self)
        object.__setattr__(self, "value_row", RowLayout(self.inputs))
        object.__setattr__(self, "answer_row", RowLayout(self.answers))
        for state in self.states:
            _check_state(state)
        _check_windows(self)
        _check_missing(self)
        _check_forecast(self)

    def graph_inputs(self) -> list[str]:
        """Return the names of all inputs that the graph has."""
        return [
            *(port.name for port in self.inputs),
            *(state.input for state in self.states if not state.window_of),
            *(constant.input for constant in self.constants),
            *([] if self.sequence_lens is None else [self.sequence_lens]),
        ]

    @property
    def is_plain(self) -> bool:
        """Whether the graph takes rows as they are: one input, one output `[batch, time, n] f32`, plain states."""
        return (
            len(self.inputs) == len(self.answers) == 1
            and all(port.is_plain for port in (*self.inputs, *self.answers))
            and all(state.is_plain for state in self.states)
            and not self.constants
            and not self.rows_alone
            and not self.single_steps
        )

    @property
    def steps_alone(self) -> bool:
        """Whether a run holds one step: it must, or a tensor of the graph has no time axis."""
        return self.single_steps or any(port.time_axis is None for port in (*self.inputs, *self.answers))

    @property
    def can_forecast(self) -> bool:
        """Whether an output is fed back to a feature, so that the model can run ahead, given the other features."""
        return bool(self.forecast)

    def known_features(self) -> list[int]:
        """Return the columns of the features that no output predicts: a forecast is given them, in this order."""
        fed = {pair.feature for pair in self.forecast}
        return [column for column, channel in enumerate(self.features) if channel.name not in fed]

    def feedback_words(self) -> tuple[list[int], list[int]]:
        """Return which words of a row of answers are fed back, and to which words of a row of values."""
        outputs, features = [c.name for c in self.outputs], [c.name for c in self.features]
        return (
            [self.answer_row.word_of(outputs.index(pair.output)) for pair in self.forecast],
            [self.value_row.word_of(features.index(pair.feature)) for pair in self.forecast],
        )

    def family_of_states(self) -> str:
        """Return the family with all that a session of it must have alike; "" without a family.

        Two files may go on with each other's sessions where this is equal and not empty: as wide values and answers,
        since the last of both are kept, and the same states in the same order. Of two states of one shape that have
        changed places, each would be taken for the other.
        """
        if not self.state_family:
            return ""
        states = ", ".join(
            f"{state.input} {list(state.shape)}{'' if state.dtype == 'float32' else ' ' + state.dtype}"
            for state in self.states
        )
        return f"{self.state_family}: {_kept(self.value_row)} in, {_kept(self.answer_row)} out, {states}"


def _kept(layout: RowLayout) -> str:
    """Return what a session keeps of its last values, or answers: as many numbers, or as many of each dtype."""
    if layout.is_float32:
        return str(layout.num_elements)
    return " + ".join(f"{port.num_elements} {port.dtype}" for port in layout.ports)


def _check_names(signature: Signature) -> None:
    for what, names in (
        ("feature", [c.name for c in signature.features]),
        ("output", [c.name for c in signature.outputs]),
        ("graph input", signature.graph_inputs()),
        ("state", [s.input for s in signature.states]),
        ("state output", [s.output for s in signature.states if s.output]),
        ("answer", [port.name for port in signature.answers]),
    ):
        if len(set(names)) != len(names):
            raise SignatureError(f"a {what} is named twice: {', '.join(names)}")


def _check_tensors(signature: Signature) -> None:
    for port in (*signature.inputs, *signature.answers):
        axes = [axis for axis in (port.batch_axis, port.time_axis) if axis is not None]
        if len(set(axes)) < len(axes) or not all(0 <= axis < len(axes) + len(port.shape) for axis in axes):
            raise SignatureError(
                f"{port.name}: batch axis {port.batch_axis} and time axis {port.time_axis} do not fit {port.shape}"
            )
        if any(size < 1 for size in port.shape):
            raise SignatureError(f"{port.name}: shape {port.shape} is not fixed")
    for name, dtype in (
        *((port.name, port.dtype) for port in (*signature.inputs, *signature.answers)),
        *((state.input, state.dtype) for state in signature.states),
        *((constant.input, constant.dtype) for constant in signature.constants),
    ):
        if dtype not in DTYPES:
            raise SignatureError(f"{name} is {dtype}: it must be one of {', '.join(DTYPES)}")
    for what, ports, channels in (
        ("inputs", signature.inputs, signature.features),
        ("answers", signature.answers, signature.outputs),
    ):
        num_elements = sum(port.num_elements for port in ports)
        if num_elements != len(channels):
            raise SignatureError(f"{what} hold {num_elements} numbers, {len(channels)} are named")


def _check_state(state: State) -> None:
    if not 0 <= state.batch_axis < len(state.shape) or state.shape[state.batch_axis] != -1:
        raise SignatureError(f"state {state.input}: shape {state.shape} has no -1 at its batch axis")
    if any(size <= 0 for size in state.row_shape()):
        raise SignatureError(f"state {state.input}: shape {state.shape} is not fixed beside the batch")


def _check_windows(signature: Signature) -> None:
    without_time = {port.name for port in signature.inputs if port.time_axis is None}
    for state in signature.states:
        if state.window_of and state.window_of not in without_time:
            raise SignatureError(
                f"a window goes before an input without a time axis, {state.window_of!r} is none"
            )


def _check_missing(signature: Signature) -> None:
    if signature.missing is MissingValue.REPEAT_LAST and not signature.value_row.is_float32:
        raise SignatureError(
            "a missing value can be repeated where all inputs are float32: use REJECT or PASS"
        )


def _check_forecast(signature: Signature) -> None:
    outputs, features = [c.name for c in signature.outputs], [c.name for c in signature.features]
    for pair in signature.forecast:
        for what, name, names in (("output", pair.output, outputs), ("feature", pair.feature, features)):
            if name not in names:
                raise SignatureError(
                    f"forecast feeds {pair.output!r} to {pair.feature!r}: no such channel. There is no {what} "
                    f"{name!r}; the first are {', '.join(names[:8])}"
                )
    if len({pair.feature for pair in signature.forecast}) != len(signature.forecast):
        raise SignatureError("forecast feeds a feature twice")
    try:
        signature.feedback_words()
    except LookupError as error:
        raise SignatureError(f"forecast feeds what is no float32: {error}") from error


def with_batch(shape: tuple[int, ...], batch_axis: int, num_rows: int) -> tuple[int, ...]:
    """Return a state's shape with `num_rows` at its batch axis."""
    return (*shape[:batch_axis], num_rows, *shape[batch_axis + 1 :])
