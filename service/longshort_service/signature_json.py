"""The form in which a model file carries its signature: JSON, in the file's `metadata_props`.

Owns that form and its check. Does not open model files: the model half writes signatures with it, the repository reads
them.
"""

from __future__ import annotations

import enum
import json
from dataclasses import asdict
from typing import Any, Final

from longshort_service.ports import Port
from longshort_service.signature import (
    Channel,
    Constant,
    Feedback,
    Memory,
    MissingValue,
    Signature,
    SignatureError,
    State,
)

METADATA_KEY: Final = "longshort.signature"
FORMAT: Final = 1

_FIELDS: Final = tuple(name for name in Signature.__slots__ if not name.endswith("_row"))


def to_json(signature: Signature) -> str:
    """Return the form that is written into the file."""
    fields = {name: getattr(signature, name) for name in _FIELDS}
    return json.dumps({"format": FORMAT, **fields}, default=_plain, sort_keys=True)


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
            inputs=tuple(_port(port) for port in raw.get("inputs", ())),
            answers=tuple(_port(port) for port in raw.get("answers", ())),
            constants=tuple(_constant(constant) for constant in raw.get("constants", ())),
            rows_alone=bool(raw.get("rows_alone", False)),
            single_steps=bool(raw.get("single_steps", False)),
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
        dtype=str(raw.get("dtype", "float32")),
        is_unbatched=bool(raw.get("is_unbatched", False)),
        initial_file=str(raw.get("initial_file", "")),
        window_of=str(raw.get("window_of", "")),
        window_axis=int(raw.get("window_axis", 0)),
    )


def _port(raw: dict[str, Any]) -> Port:
    return Port(
        name=str(raw["name"]),
        shape=tuple(int(size) for size in raw["shape"]),
        dtype=str(raw.get("dtype", "float32")),
        batch_axis=_axis(raw.get("batch_axis", 0)),
        time_axis=_axis(raw.get("time_axis", 1)),
    )


def _axis(raw: Any) -> int | None:
    return None if raw is None else int(raw)


def _constant(raw: dict[str, Any]) -> Constant:
    return Constant(
        input=str(raw["input"]),
        shape=tuple(int(size) for size in raw["shape"]),
        dtype=str(raw["dtype"]),
        value=float(raw.get("value", 0.0)),
        file=str(raw.get("file", "")),
    )


def _plain(value: Any) -> Any:
    """Return what JSON has for an enumeration or a dataclass of a signature."""
    return value.value if isinstance(value, enum.Enum) else asdict(value)
