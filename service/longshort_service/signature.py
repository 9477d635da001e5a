"""What a model file promises: its inputs, outputs, states, and what its numbers mean.

Owns the signature, its JSON form in the file's `metadata_props`, and the check of that form. Does not open
model files and does not run anything: the model half writes signatures with it, the repository reads them.
"""

from __future__ import annotations

import enum
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final

METADATA_KEY: Final = "longshort.signature"
FORMAT: Final = 1


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

    `shape` is the input's shape with the batch axis as -1, `initial` the value every element starts with.
    """

    input: str
    output: str
    shape: tuple[int, ...]
    batch_axis: int
    initial: float = 0.0
    memory: Memory | None = None

    def row_shape(self) -> tuple[int, ...]:
        """Return the shape of one session's part: `shape` without its batch axis."""
        return self.shape[: self.batch_axis] + self.shape[self.batch_axis + 1 :]

    def with_batch(self, num_rows: int) -> tuple[int, ...]:
        """Return the shape for `num_rows` sessions."""
        return with_batch(self.shape, self.batch_axis, num_rows)


@dataclass(frozen=True, slots=True)
class Feedback:
    """In a forecast, the output channel named `output` is the next value of the feature named `feature`."""

    output: str
    feature: str


@dataclass(frozen=True, slots=True)
class Signature:
    """Everything that the service needs to know of a model, and all that it tells callers.

    `input` names the graph input of the values, `[batch, time, features] f32`; `output` the graph output of the
    answers, `[batch, time, outputs] f32`; `sequence_lens` the optional graph input `[batch] i32` that says how
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

    def __post_init__(self) -> None:
        """Refuse a signature that contradicts itself."""
        if not self.name or not self.features or not self.outputs:
            raise SignatureError("a signature needs a name, at least one feature and at least one output")
        for what, names in (
            ("feature", [c.name for c in self.features]),
            ("output", [c.name for c in self.outputs]),
            ("state input", [s.input for s in self.states]),
            ("state output", [s.output for s in self.states]),
        ):
            if len(set(names)) != len(names):
                raise SignatureError(f"a {what} is named twice: {', '.join(names)}")
        for state in self.states:
            if not 0 <= state.batch_axis < len(state.shape) or state.shape[state.batch_axis] != -1:
                raise SignatureError(f"state {state.input}: shape {state.shape} has no -1 at its batch axis")
            if any(size <= 0 for size in state.row_shape()):
                raise SignatureError(
                    f"state {state.input}: shape {state.shape} is not fixed beside the batch"
                )
        known_outputs = {c.name for c in self.outputs}
        known_features = {c.name for c in self.features}
        for pair in self.forecast:
            if pair.output not in known_outputs or pair.feature not in known_features:
                raise SignatureError(f"forecast feeds {pair.output!r} to {pair.feature!r}: no such channel")

    @property
    def can_forecast(self) -> bool:
        """Whether every feature is fed by an output, so that the model can run on its own predictions."""
        return {pair.feature for pair in self.forecast} == {c.name for c in self.features}

    def feedback_columns(self) -> list[int]:
        """Return for each feature, in order, the column of the output that is fed back to it.

        The caller makes sure that `can_forecast` is true.
        """
        by_feature = {pair.feature: pair.output for pair in self.forecast}
        order = [c.name for c in self.outputs]
        return [order.index(by_feature[c.name]) for c in self.features]

    def family_of_states(self) -> str:
        """Return the family with all that a session of it must have alike; "" without a family.

        Two files may go on with each other's sessions where this is equal and not empty: as wide values and answers,
        since the last of both are kept, and the same states in the same order. Of two states of one shape that have
        changed places, each would be taken for the other.
        """
        if not self.state_family:
            return ""
        states = ", ".join(f"{state.input} {list(state.shape)}" for state in self.states)
        return f"{self.state_family}: {len(self.features)} in, {len(self.outputs)} out, {states}"

    def to_json(self) -> str:
        """Return the form that is written into the file."""
        return json.dumps({"format": FORMAT, **asdict(self)}, default=lambda e: e.value, sort_keys=True)


def with_batch(shape: tuple[int, ...], batch_axis: int, num_rows: int) -> tuple[int, ...]:
    """Return a state's shape with `num_rows` at its batch axis."""
    return (*shape[:batch_axis], num_rows, *shape[batch_axis + 1 :])


def from_json(text: str) -> Signature:
    """Read the form that `to_json` writes; unknown keys are ignored so that older services read newer files.

    Raises SignatureError where the text is damaged, of a newer format, or contradicts itself.
    """
    try:
        raw = json.loads(text)
        if raw["format"] != FORMAT:
            raise SignatureError(f"signature format {raw['format']!r}: this version reads {FORMAT}")  # noqa: TRY301
        return Signature(
            name=str(raw["name"]),
            description=str(raw.get("description", "")),
            input=str(raw.get("input", "x")),
            output=str(raw.get("output", "y")),
            sequence_lens=raw.get("sequence_lens"),
            features=tuple(_channel(c) for c in raw["features"]),
            outputs=tuple(_channel(c) for c in raw["outputs"]),
            states=tuple(_state(s) for s in raw["states"]),
            missing=MissingValue(raw.get("missing", MissingValue.REJECT.value)),
            forecast=tuple(Feedback(str(f["output"]), str(f["feature"])) for f in raw.get("forecast", ())),
            step_s=raw.get("step_s"),
            trained_on=str(raw.get("trained_on", "")),
            scores={str(k): float(v) for k, v in raw.get("scores", {}).items()},
            fingerprint=str(raw.get("fingerprint", "")),
            state_family=str(raw.get("state_family", "")),
        )
    except SignatureError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SignatureError(f"the signature is damaged: {error!r}") from error


def _channel(raw: dict[str, Any]) -> Channel:
    return Channel(str(raw["name"]), str(raw.get("unit", "")), raw.get("quantile"))


def _state(raw: dict[str, Any]) -> State:
    memory = raw.get("memory")
    return State(
        input=str(raw["input"]),
        output=str(raw["output"]),
        shape=tuple(int(size) for size in raw["shape"]),
        batch_axis=int(raw["batch_axis"]),
        initial=float(raw.get("initial", 0.0)),
        memory=None if memory is None else Memory(memory),
    )
