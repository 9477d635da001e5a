"""signature.toml: what people say of a model whose file does not say it, or says it wrong.

Owns the form of that file and its reading. Knows no graph: whether what is said fits is seen where it is put together.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from longshort_service.graph_check import ModelError
from longshort_service.signature import Channel, Feedback, Memory, MissingValue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

MAX_BYTES: Final = 2**20
BATCH, TIME, AS_IS = "batch", "time", "*"

Axes = tuple[str | int, ...]  # each BATCH, TIME, AS_IS (the size that the file says) or a size


@dataclass(frozen=True, slots=True)
class Window:
    """The last `size` values along `axis` of an input, kept by the server and put before the new ones."""

    size: int
    axis: int = -1
    initial: float = 0.0


@dataclass(frozen=True, slots=True)
class SaidTensor:
    """What is said of a graph's input or output that carries values."""

    axes: Axes | None = None
    names: tuple[Channel, ...] = ()
    window: Window | None = None
    ignore: bool = False


@dataclass(frozen=True, slots=True)
class SaidState:
    """What is said of a state: the output that is its next value, "" for a constant of one session.

    `initial` is a number or a file's name, None where nothing is said.
    """

    output: str = ""
    axes: Axes | None = None
    initial: float | str | None = None
    memory: Memory | None = None

    @property
    def start(self) -> float | str:
        """What it starts with: 0 where nothing is said."""
        return 0.0 if self.initial is None else self.initial


@dataclass(frozen=True, slots=True)
class Said:
    """All that is said of a model; what is left out is taken from the file or inferred."""

    name: str | None = None
    description: str | None = None
    missing: MissingValue | None = None
    step_s: float | None = None
    state_family: str | None = None
    rows_alone: bool = False
    steps_alone: bool = False
    sequence_lens: str | None = None
    inputs: Mapping[str, SaidTensor] = field(default_factory=dict)
    outputs: Mapping[str, SaidTensor] = field(default_factory=dict)
    states: Mapping[str, SaidState] = field(default_factory=dict)
    session_constants: Mapping[str, SaidState] = field(default_factory=dict)
    constants: Mapping[str, float | str] = field(default_factory=dict)
    forecast: tuple[Feedback, ...] | None = None


def read(file: Path) -> Said:
    """Return what a signature.toml says. Raises ModelError, which names the key, where it is damaged or unknown."""
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ModelError(f"{file}: more than {MAX_BYTES} bytes")
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:  # no right to read it, or a folder
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{file}: is no TOML: {error}") from None
    try:
        return Said(**_taken(raw, _MODEL, ""))
    except _Wrong as error:
        raise ModelError(f"{file}: {error}") from None


class _Wrong(ValueError):
    """What is said is not what the key takes."""


def _taken(
    raw: Mapping[str, Any], known: Mapping[str, Callable[[Any, str], Any]], where: str
) -> dict[str, Any]:
    """Return each value as its key takes it. Raises _Wrong for keys that are not known."""
    for key in raw:
        if key not in known:
            place = f"[{where}]" if where else "the file"
            raise _Wrong(f"{place} has a key {key!r}; known are {', '.join(known)}")
    return {key: known[key](value, f"{where}.{key}" if where else key) for key, value in raw.items()}


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _Wrong(f"{where} must be a text, it is {value!r}")
    return value


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise _Wrong(f"{where} must be true or false, it is {value!r}")
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Wrong(f"{where} must be a number, it is {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _Wrong(f"{where} must be a finite number, it is {value!r}")
    if isinstance(value, int) and int(number) != value:
        raise _Wrong(
            f"{where}: {value} has more digits than are kept, the next number is {number!r}: use a file"
        )
    return number


def _positive(value: Any, where: str) -> float:
    number = _number(value, where)
    if number <= 0:
        raise _Wrong(f"{where} must be greater than 0, it is {value!r}")
    return number


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _Wrong(f"{where} must be a whole number, it is {value!r}")
    return value


def _number_or_file(value: Any, where: str) -> float | str:
    return value if isinstance(value, str) and value else _number(value, where)


def _missing(value: Any, where: str) -> MissingValue:
    try:
        return MissingValue(_text(value, where).upper())
    except ValueError:
        raise _Wrong(f"{where} must be reject, repeat_last or pass, it is {value!r}") from None


def _memory(value: Any, where: str) -> Memory:
    try:
        return Memory(value)
    except ValueError:
        raise _Wrong(f"{where} must be long_term or short_term, it is {value!r}") from None


def _axes(value: Any, where: str) -> Axes:
    if not isinstance(value, list):
        raise _Wrong(f'{where} must be a list such as ["batch", "time", "*"], it is {value!r}')
    for axis in value:
        is_size = isinstance(axis, int) and not isinstance(axis, bool) and axis > 0
        if axis not in (BATCH, TIME, AS_IS) and not is_size:
            raise _Wrong(
                f'{where}: each axis is "batch", "time", a size, or "*" for the size in the file, not {axis!r}'
            )
    if value.count(BATCH) > 1 or value.count(TIME) > 1:
        raise _Wrong(f"{where}: one axis at most is the batch, and one the time: {value}")
    return tuple(value)


def _names(value: Any, where: str) -> tuple[Channel, ...]:
    if not isinstance(value, list):
        raise _Wrong(f"{where} must be a list of names, one a number, it is {value!r}")
    return tuple(_channel(item, where) for item in value)


def _channel(value: Any, where: str) -> Channel:
    if isinstance(value, dict):
        said = _taken(value, {"name": _text, "unit": _text, "quantile": _number}, where)
        if "name" not in said:
            raise _Wrong(f"{where}: {value!r} has no name")
        return Channel(**said)
    return Channel(_text(value, where))


def _window(value: Any, where: str) -> Window:
    said = _taken(_table(value, where), {"size": _whole, "axis": _whole, "initial": _number}, where)
    if said.get("size", 0) < 1:
        raise _Wrong(f"{where} needs a size of 1 or more: how many values are kept")
    return Window(**said)


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Wrong(f"{where} must be a table, it is {value!r}")
    return value


def _each(item: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    return lambda value, where: {
        name: item(said, f"{where}.{name}") for name, said in _table(value, where).items()
    }


def _input(value: Any, where: str) -> SaidTensor:
    known = {"axes": _axes, "names": _names, "window": _window}
    return SaidTensor(**_taken(_table(value, where), known, where))


def _output(value: Any, where: str) -> SaidTensor:
    known = {"axes": _axes, "names": _names, "ignore": _flag}
    return SaidTensor(**_taken(_table(value, where), known, where))


def _state(value: Any, where: str) -> SaidState:
    if isinstance(value, str):
        return SaidState(value)
    known = {"output": _text, "axes": _axes, "initial": _number_or_file, "memory": _memory}
    said = SaidState(**_taken(_table(value, where), known, where))
    if TIME in (said.axes or ()):
        raise _Wrong(f"{where}: a state has no axis of time")
    return said


def _session_constant(value: Any, where: str) -> SaidState:
    if not isinstance(value, dict):
        return SaidState(initial=_number_or_file(value, where))
    known = {"axes": _axes, "initial": _number_or_file}
    said = SaidState(**_taken(value, known, where))
    if TIME in (said.axes or ()):
        raise _Wrong(f"{where}: a constant of one session has no axis of time")
    return said


def _forecast(value: Any, where: str) -> tuple[Feedback, ...]:
    table = _table(value, where)
    return tuple(Feedback(_text(output, f"{where}.{name}"), name) for name, output in table.items())


_MODEL: Final[Mapping[str, Callable[[Any, str], Any]]] = {
    "name": _text,
    "description": _text,
    "missing": _missing,
    "step_s": _positive,
    "state_family": _text,
    "rows_alone": _flag,
    "steps_alone": _flag,
    "sequence_lens": _text,
    "inputs": _each(_input),
    "outputs": _each(_output),
    "states": _each(_state),
    "session_constants": _each(_session_constant),
    "constants": _each(_number_or_file),
    "forecast": _forecast,
}
