"""Which axis of values and of states is the batch and which the time: said, or told by the graph's symbols. Pure.

A state's batch is its one open axis. Values share its symbol; their other open
axis is time where the answers have it too. An axis that is neither has a size that only people know.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from longshort_service.graph_check import ModelError
from longshort_service.signature_file import AS_IS, BATCH, TIME, SaidState
from longshort_service.signature_roles import Question, described, key, text

if TYPE_CHECKING:
    from longshort_service.graph_facts import TensorFact
    from longshort_service.signature_file import Axes, Said, Window
    from longshort_service.signature_roles import Roles

BATCH_NAMES: Final = frozenset({"batch", "batch_size", "batchsize", "batch_dim", "n", "b", "bs"})
TIME_NAMES: Final = frozenset(
    {"time", "t", "steps", "num_steps", "timesteps", "time_steps", "seq", "seq_len", "seq_length"}
    | {"sequence", "sequence_len", "sequence_length", "frames", "num_frames"}
)


@dataclass(slots=True)
class Found:
    """The axes of each tensor as they are known so far, and what has to be asked."""

    inputs: dict[str, Axes] = field(default_factory=dict)
    states: dict[str, Axes] = field(default_factory=dict)  # constants of one session among them
    outputs: dict[str, Axes] = field(default_factory=dict)
    questions: list[Question] = field(default_factory=list)


def find_axes(roles: Roles, said: Said) -> Found:
    """Return the axes of values and states. Raises ModelError where what is said of one does not fit it."""
    found = Found()
    for state in roles.states:
        own = said.states.get(state.input.name)
        _state(state.input, own, state.output.name, found)
    for fact in roles.session_constants:
        _state(fact, said.session_constants[fact.name], "", found)
    symbols = _batch_symbols(roles, found)
    has_batch = any(BATCH in found.states.get(state.input.name, ()) for state in roles.states)
    for fact in roles.values:
        tensor = said.inputs.get(fact.name)
        if tensor is not None and tensor.axes is not None:
            found.inputs[fact.name] = taken(fact, tensor.axes, "inputs", tensor.window)
        elif fact.axes != () and fact.name not in roles.doubtful:
            _value(fact, roles, symbols, found, has_batch=has_batch, window=tensor.window if tensor else None)
    _check_company(roles, said, found)
    return found


def taken(fact: TensorFact, axes: Axes, table: str, window: Window | None = None) -> Axes:
    """Return axes as they are said, with the file's sizes where it says "*". A window's axis is without the window."""
    where = f"[{table}.{key(fact.name)}] axes = {list(axes)}"
    if fact.axes is not None and len(fact.axes) != len(axes):
        raise ModelError(f"{where}: {fact.name} has {len(fact.axes)} axes, it is {described(fact)}")
    declared = fact.axes or (None,) * len(axes)
    sizes: list[str | int] = []
    for place, (axis, size) in enumerate(zip(axes, declared, strict=True)):
        kept = window.size if window and place == window.axis % len(axes) else 0
        if axis == AS_IS:
            if not isinstance(size, int):
                raise ModelError(
                    f'{where}: the file leaves the size of axis {place} open: a number must stand for "*"'
                )
            axis = size - kept  # noqa: PLW2901  the size is what "*" stands for
            if axis < 1:
                raise ModelError(f"{where}: a window of {kept} leaves nothing of {size} values")
        elif isinstance(axis, int) and isinstance(size, int) and axis + kept != size:
            window_text = f" with a window of {kept}" if kept else ""
            raise ModelError(f"{where}: axis {place} is {size} in the file, not {axis}{window_text}")
        elif isinstance(axis, str) and isinstance(size, int) and size != 1:
            raise ModelError(f"{where}: axis {place} is fixed at {size} in the file and cannot be the {axis}")
        # A batch or a time that is fixed at 1 is an axis of one element: a run holds one row, or one step.
        sizes.append(1 if isinstance(size, int) and isinstance(axis, str) else axis)
    return tuple(sizes)


def _state(fact: TensorFact, own: SaidState | None, output: str, found: Found) -> None:
    """Note the axes of a state: its one open axis is the batch, without one the graph has none.

    `own` is what is said of it, `output` its next value, "" for a constant of one session.
    """
    table = "states" if output else "session_constants"
    if own is not None and own.axes is not None:
        found.states[fact.name] = taken(fact, own.axes, table)
        return
    places = fact.open_axes
    if fact.axes is None or len(places) > 1:
        guess = ", ".join(_quoted(axis) for axis in _guess_state(fact))
        found.questions.append(
            Question(
                f"Which axis of {fact.name}, {described(fact)}, is the batch, and how long are the others that the "
                "file leaves open?",
                (f"[{table}.{key(fact.name)}]", *state_lines(own, output, guess)),
            )
        )
        return
    found.states[fact.name] = tuple(axis if isinstance(axis, int) else BATCH for axis in fact.axes)


def state_lines(own: SaidState | None, output: str, axes: str) -> tuple[str, ...]:
    """Return the lines of a state's table in signature.toml, with `axes` as they stand there; `own` is said of it."""
    own = own or SaidState()
    return (
        *([f"output = {text(output)}"] if output else []),
        f"axes = [{axes}]",
        f"initial = {number_or_file(own.start)}",
        *([f'memory = "{own.memory.value}"'] if own.memory is not None else []),
    )


def number_or_file(value: float | str) -> str:
    """Return a number, to its last digit, or a file's name, as it stands in signature.toml."""
    if isinstance(value, str):
        return text(value)
    return repr(value).removesuffix(".0") if value else repr(value)  # -0 would be 0


def _guess_state(fact: TensorFact) -> list[str | int]:
    axes = list(fact.axes or (None, None))
    batch = next(
        (k for k, axis in enumerate(axes) if _is_batch_name(axis)), fact.open_axes[0] if fact.axes else 0
    )
    return [BATCH if k == batch else axis if isinstance(axis, int) else 64 for k, axis in enumerate(axes)]


def _batch_symbols(roles: Roles, found: Found) -> set[str | None]:
    """Return the symbols of the states' batches."""
    return {
        None if isinstance(symbol, int) else symbol
        for state in roles.states
        for symbol, axis in zip(state.input.axes or (), found.states.get(state.input.name, ()), strict=False)
        if axis == BATCH
    }


def _is_batch_name(axis: object) -> bool:
    return isinstance(axis, str) and axis.lower() in BATCH_NAMES


def _is_time_name(axis: object) -> bool:
    return isinstance(axis, str) and axis.lower() in TIME_NAMES


def _may_be_batch(axis: object, place: int) -> bool:
    """Return whether an axis of values says that it is the batch. Behind the first, n may be the samples of a chunk."""
    return _is_batch_name(axis) and (place == 0 or len(str(axis)) > 1)


def _value(
    fact: TensorFact,
    roles: Roles,
    symbols: set[str | None],
    found: Found,
    *,
    has_batch: bool,
    window: Window | None,
) -> None:
    """Note the axes of values where they can be told, and ask where not."""
    if fact.axes is None:
        found.questions.append(ask_axes(fact, roles, f"Which axes has {fact.name}?"))
        return
    batch = _batch_of(fact, symbols, has_batch=has_batch)
    rest = [place for place in fact.open_axes if place != batch]
    if 0 in rest:
        found.questions.append(
            ask_axes(
                fact, roles, f"Is the first axis of {fact.name}, {described(fact)}, its time or the batch?"
            )
        )
    elif rest and (len(rest) > 1 or window or not _may_be_time(fact.axes[rest[0]], roles)):
        axis = f"axis {rest[-1]} of {fact.name}, {described(fact)}"
        if len(rest) == 1 and not window and _is_time_name(fact.axes[rest[0]]):
            sentence = f"Is {axis}, its time? It is none of the answers"
        else:
            sentence = f"How long is {axis}? It is no time of the answers"
        found.questions.append(ask_axes(fact, roles, sentence))
    elif has_batch and batch is None:
        found.questions.append(_ask_role(fact))
    else:
        axes = tuple(
            BATCH if place == batch else TIME if place in rest else AS_IS for place in range(len(fact.axes))
        )
        found.inputs[fact.name] = taken(fact, axes, "inputs", window)


def _batch_of(fact: TensorFact, symbols: set[str | None], *, has_batch: bool) -> int | None:
    """Return the place of the batch: the states' symbol, a symbol that says so, or the only open axis that has none."""
    axes = fact.axes or ()
    named = [place for place in fact.open_axes if axes[place] is not None and axes[place] in symbols]
    named = named or [place for place in fact.open_axes if _may_be_batch(axes[place], place)]
    if len(named) == 1:
        return named[0]
    nameless = len(fact.open_axes) == 1 and None in {*symbols, axes[fact.open_axes[0]]}
    return fact.open_axes[0] if has_batch and nameless and fact.open_axes[0] == 0 else None


def _may_be_time(symbol: object, roles: Roles) -> bool:
    """Return whether an answer could have this axis: by the same symbol, or because the file does not say."""
    axes = [fact.axes for fact in roles.answers]
    if any(own is not None and symbol is not None and symbol in own for own in axes):
        return True
    ours = {axis for fact in roles.values for axis in fact.axes or () if isinstance(axis, str)}
    return any(own is None or _has_unexplained(own, ours) for own in axes)


def _has_unexplained(axes: tuple[int | str | None, ...], ours: set[str]) -> bool:
    """Return whether an answer has an open axis that is neither one of the values' by name nor their batch."""
    strange = any(isinstance(axis, str) and axis not in ours for axis in axes)
    has_batch_by_name = any(isinstance(axis, str) and axis in ours for axis in axes)
    return strange or sum(axis is None for axis in axes) > (0 if has_batch_by_name else 1)


def _check_company(roles: Roles, said: Said, found: Found) -> None:
    """Ask what an input is that has no time where others have it: it may be the same for a whole session."""
    timed = [name for name, axes in found.inputs.items() if TIME in axes]
    for fact in roles.values:
        own = found.inputs.get(fact.name)
        declared = said.inputs.get(fact.name)
        if own is not None and timed and TIME not in own and not (declared and declared.axes):
            del found.inputs[fact.name]
            found.questions.append(_ask_role(fact))


def _ask_role(fact: TensorFact) -> Question:
    axes = ", ".join(_quoted(BATCH if _is_batch_name(axis) else AS_IS) for axis in fact.axes or ())
    return Question(
        f"{fact.name}, {described(fact)}, has not the axes of the other values. Is it given once at a session's "
        "opening ([session_constants]), the same for all ([constants]), or given at every step ([inputs])?",
        (
            f"[session_constants.{key(fact.name)}]",
            "initial = 0  # only a file is given where an opening gives none",
            "# or",
            "# [constants]",
            f'# {key(fact.name)} = 0  # or "file.npy"',
            "# or",
            f"# [inputs.{key(fact.name)}]",
            f"# axes = [{axes}]",
        ),
    )


def ask_axes(fact: TensorFact, roles: Roles, sentence: str) -> Question:
    """Return the question for an input's axes, with those that are likely."""
    axes = list(fact.axes or (None, None, None))
    guess: list[str | int] = []
    for place, axis in enumerate(axes):
        if isinstance(axis, int):
            guess.append(AS_IS)
        elif _may_be_batch(axis, place) or (place == 0 and len(axes) == 2 and axis is None):
            guess.append(BATCH)
        elif TIME not in guess and (place == 0 or _is_time_name(axis) or _may_be_time(axis, roles)):
            guess.append(TIME)
        else:
            guess.append(512)
    lines = [f"[inputs.{key(fact.name)}]", f"axes = [{', '.join(map(_quoted, guess))}]"]
    if any(isinstance(axis, int) for axis in guess):
        lines[-1] += "  # 512: the size that it has"
    return Question(sentence, tuple(lines))


def _quoted(axis: str | int) -> str:
    return str(axis) if isinstance(axis, int) else f'"{axis}"'
