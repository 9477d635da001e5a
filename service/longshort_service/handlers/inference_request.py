"""What a request of the Open Inference Protocol asks for beside its tensors: a sequence, and where in it. Pure.

A sequence is a session. Its id says which model and which kind of id the client gave, so that the same session can be
found by hand: `oip/<model>/u/<number>` and `oip/<model>/s/<text>`.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from longshort_service import errors
from longshort_service.record import SESSION_ID

if TYPE_CHECKING:
    from collections.abc import Mapping

    from longshort_service.inference.inference_pb2 import InferParameter, ModelInferRequest

PREFIX: Final = "oip"
# What a session's id may hold, but for the sign that begins an escape.
_PLAIN: Final = (string.punctuation + string.digits + string.ascii_letters).replace("%", "")
_LATEST: Final = ("", "-1")
_MAX_ID: Final = 256  # characters of a session's id


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request stands: in which sequence, whether it begins or ends it, and at which step, if that is said."""

    session_id: str
    is_start: bool
    is_end: bool
    step: int | None


def place(request: ModelInferRequest) -> Place | None:
    """Return where a request stands; None for one without a sequence. Raises InvalidMessage or InvalidSessionId."""
    parameters = request.parameters
    is_start = _flag(parameters, "sequence_start")
    is_end = _flag(parameters, "sequence_end")
    sequence = _sequence(parameters["sequence_id"]) if "sequence_id" in parameters else ""
    if not sequence:
        if is_start or is_end:
            raise errors.InvalidMessage("sequence_start and sequence_end need a sequence_id, not 0 or empty")
        return None
    session_id = f"{PREFIX}/{_quoted(request.model_name, slash='')}/{sequence}"
    if not SESSION_ID.fullmatch(session_id):
        raise _too_long()
    step = _step(parameters["sequence_step"]) if "sequence_step" in parameters else None
    if is_start and step:
        raise errors.InvalidMessage(f"a sequence starts at sequence_step 0, not {step}")
    return Place(session_id, is_start, is_end, step)


def version(text: str) -> int:
    """Return the version that a request names, 0 for the one that serves. Raises InvalidMessage."""
    if text in _LATEST:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and int(text)):
        raise errors.InvalidMessage(f"{text!r} is no version: versions are whole numbers from 1 on")
    return int(text)


def _sequence(parameter: InferParameter) -> str:
    """Return the last part of a session's id; "" where there is no sequence."""
    kind = parameter.WhichOneof("parameter_choice")
    if kind == "string_param":
        text = parameter.string_param
        return f"s/{_quoted(text)}" if text else ""
    number = _number(parameter, "sequence_id")
    # Clients put numbers of 64 bits without a sign into a field with one.
    return f"u/{number % 2**64}" if number else ""


def _quoted(text: str, slash: str = "/") -> str:
    """Return text as the part of a session's id that it is. Raises InvalidSessionId."""
    if len(text) > _MAX_ID:  # at once: a message full of letters that have to be escaped takes half a second
        raise _too_long()
    return quote(text, safe=_PLAIN.replace("/", slash))


def _too_long() -> errors.InvalidSessionId:
    return errors.InvalidSessionId(f"the sequence makes a session id of more than {_MAX_ID} characters")


def _step(parameter: InferParameter) -> int:
    number = _number(parameter, "sequence_step")
    if number < 0:
        raise errors.InvalidMessage(f"sequence_step is {number}: steps are counted from 0 on")
    return number


def _number(parameter: InferParameter, name: str) -> int:
    kind = parameter.WhichOneof("parameter_choice")
    if kind == "int64_param":
        return parameter.int64_param
    if kind == "uint64_param":
        return parameter.uint64_param
    raise errors.InvalidMessage(f"{name} must be a whole number, not {kind or 'nothing'}")


def _flag(parameters: Mapping[str, InferParameter], name: str) -> bool:
    if name not in parameters:
        return False
    parameter = parameters[name]
    if parameter.WhichOneof("parameter_choice") != "bool_param":
        raise errors.InvalidMessage(f"{name} must be a bool_param")
    return parameter.bool_param
