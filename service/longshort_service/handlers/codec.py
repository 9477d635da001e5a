"""Protobuf to core and back: keys, modes, values, tensors, views. Pure functions."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError, Message
from longshort.v1 import model_pb2, sequence_pb2, session_pb2, types_pb2

from longshort_service import errors
from longshort_service.durability import Durability
from longshort_service.handlers import tensors
from longshort_service.model_change import ModelChange
from longshort_service.opener import OpenRequest
from longshort_service.record import SESSION_ID
from longshort_service.session import Answers
from longshort_service.signature import MissingValue
from longshort_service.signature_json import to_json
from longshort_service.stores.base import OpenMode
from longshort_service.values import shape_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longshort_service.management import SessionView
    from longshort_service.record import Origin
    from longshort_service.repository import Model, Repository
    from longshort_service.session import Session
    from longshort_service.signature import Signature

MessageT = TypeVar("MessageT", bound=Message)

MAX_CLIENT_ID: Final = 64

_MODES: Final = {
    types_pb2.OPEN_MODE_UNSPECIFIED: OpenMode.OPEN_OR_CREATE,
    types_pb2.OPEN_MODE_OPEN_OR_CREATE: OpenMode.OPEN_OR_CREATE,
    types_pb2.OPEN_MODE_OPEN: OpenMode.OPEN,
    types_pb2.OPEN_MODE_CREATE: OpenMode.CREATE,
}
_ANSWERS: Final = {
    types_pb2.ANSWERS_UNSPECIFIED: Answers.ALL,
    types_pb2.ANSWERS_ALL: Answers.ALL,
    types_pb2.ANSWERS_LAST: Answers.LAST,
    types_pb2.ANSWERS_NONE: Answers.NONE,
}
_DURABILITIES: Final[dict[types_pb2.Durability, Durability | None]] = {
    types_pb2.DURABILITY_UNSPECIFIED: None,
    types_pb2.DURABILITY_NONE: Durability.NONE,
    types_pb2.DURABILITY_BEHIND: Durability.BEHIND,
    types_pb2.DURABILITY_SYNC: Durability.SYNC,
}
_DURABILITY_MESSAGES: Final = {
    durability: number for number, durability in _DURABILITIES.items() if durability is not None
}
_MODEL_CHANGES: Final = {
    types_pb2.MODEL_CHANGE_UNSPECIFIED: ModelChange.REFUSE,
    types_pb2.MODEL_CHANGE_REFUSE: ModelChange.REFUSE,
    types_pb2.MODEL_CHANGE_MOVE: ModelChange.MOVE,
    types_pb2.MODEL_CHANGE_RESET: ModelChange.RESET,
}
_MISSING: Final = {
    MissingValue.REJECT: model_pb2.MISSING_VALUE_REJECT,
    MissingValue.REPEAT_LAST: model_pb2.MISSING_VALUE_REPEAT_LAST,
    MissingValue.PASS: model_pb2.MISSING_VALUE_PASS,
}


def parse(message_type: type[MessageT], raw: bytes, max_message_bytes: int) -> MessageT:
    """Return the message. Raises MessageTooLarge or MalformedMessage."""
    if len(raw) > max_message_bytes:
        raise errors.MessageTooLarge(
            f"the message has {len(raw)} bytes: send at most {max_message_bytes}",
            max_message_bytes=max_message_bytes,
        )
    try:
        return message_type.FromString(raw)
    except DecodeError as error:
        raise errors.MalformedMessage(f"the bytes are no {message_type.DESCRIPTOR.full_name}") from error


def session_id(key: types_pb2.SessionKey, *, may_be_empty: bool = False) -> str:
    """Return the id of a key, a random UUID for an empty one where that is allowed. Raises InvalidSessionId."""
    if key.tenant:
        raise errors.InvalidSessionId("there are no tenants yet: leave tenant empty")
    if not key.id and may_be_empty:
        return str(uuid.uuid4())
    if not SESSION_ID.fullmatch(key.id):
        raise errors.InvalidSessionId("a session id is 1 to 256 characters of printable ASCII without space")
    return key.id


def open_request(request: sequence_pb2.Open) -> OpenRequest:
    """Return what an opening asks for. Raises InvalidMessage, InvalidSessionId or WrongShape."""
    if len(request.client_id) > MAX_CLIENT_ID:
        raise errors.InvalidMessage(f"client_id is longer than {MAX_CLIENT_ID} characters")
    return OpenRequest(
        session_id(request.session, may_be_empty=True),
        open_mode(request.mode),
        request.model,
        request.version,
        request.client_id,
        durability(request.durability),
        request.epoch,
        model_change(request.model_change),
        tensors.by_name(request.initial),
    )


def opened_message(session: Session[Model], *, created: bool, max_steps: int) -> sequence_pb2.Opened:
    """Return what was opened."""
    model = session.model
    return sequence_pb2.Opened(
        session=types_pb2.SessionKey(id=session.id),
        model=model.name,
        version=model.version,
        created=created,
        step=session.step,
        durable_step=session.durable_step,
        durability=_DURABILITY_MESSAGES[session.durability],
        incarnation=session.incarnation,
        epoch=session.epoch,
        num_features=len(model.signature.features),
        num_outputs=len(model.signature.outputs),
        max_steps=max_steps,
        fingerprint=model.signature.fingerprint,
    )


def open_mode(mode: types_pb2.OpenMode) -> OpenMode:
    """Return the core's mode. Raises InvalidMessage for a number that means nothing."""
    if mode not in _MODES:
        raise errors.InvalidMessage(f"open mode {mode} means nothing")
    return _MODES[mode]


def durability(wanted: types_pb2.Durability) -> Durability | None:
    """Return what an opening asks for, None for the server's own. Raises InvalidMessage for an unknown number."""
    if wanted not in _DURABILITIES:
        raise errors.InvalidMessage(f"durability {wanted} means nothing")
    return _DURABILITIES[wanted]


def model_change(wanted: types_pb2.ModelChange) -> ModelChange:
    """Return what is to be done with another model's state. Raises InvalidMessage for an unknown number."""
    if wanted not in _MODEL_CHANGES:
        raise errors.InvalidMessage(f"model_change {wanted} means nothing")
    return _MODEL_CHANGES[wanted]


def answers(wanted: types_pb2.Answers) -> Answers:
    """Return which answers go back. Raises InvalidMessage for a number that means nothing."""
    if wanted not in _ANSWERS:
        raise errors.InvalidMessage(f"answers {wanted} means nothing")
    return _ANSWERS[wanted]


def rows(message: sequence_pb2.Values, signature: Signature, max_steps: int) -> NDArray[np.float32]:
    """Return a message's values as rows `[time, width]`. Raises WrongShape, EmptyValues or TooManySteps."""
    if not message.tensors:
        return shape_rows(np.array(message.values, np.float32), signature, max_steps)
    if message.values:
        raise errors.WrongShape("the message has values and tensors: send one of them")
    return tensors.rows(message.tensors, signature.value_row, max_steps)


def fill_answer(
    answer: sequence_pb2.Answer,
    outputs: NDArray[np.float32],
    signature: Signature,
    *,
    step: int,
    durable_step: int,
    as_tensors: bool,
) -> None:
    """Put outputs `[rows, width]` into an answer, in the form in which the values came, and where they lead."""
    answer.step = step
    answer.durable_step = durable_step
    if as_tensors:
        answer.tensors.extend(tensors.messages(outputs, signature.answer_row))
    else:
        answer.values.extend(signature.answer_row.to_numbers(outputs).ravel().tolist())


def session_message(view: SessionView) -> session_pb2.Session:
    """Return what there is to say of a session."""
    record = view.record
    idle = duration_pb2.Duration()
    idle.FromMilliseconds(int(view.idle_s * 1000))
    return session_pb2.Session(
        key=types_pb2.SessionKey(id=record.session_id),
        model=record.model,
        version=record.version,
        step=record.step,
        durable_step=view.durable_step,
        incarnation=record.incarnation,
        epoch=record.epoch,
        location=(session_pb2.SESSION_LOCATION_LIVE if view.is_live else session_pb2.SESSION_LOCATION_STORED),
        idle=idle,
        streaming=view.is_streaming,
        fingerprint=record.fingerprint,
        computed_with=_computed_with(record.origin),
    )


def _computed_with(origin: Origin) -> str:
    return ", ".join(filter(None, (origin.provider, origin.processor, origin.build)))


def model_message(model: Model, repository: Repository, max_steps: int) -> model_pb2.Model:
    """Return what there is to say of a model version."""
    signature = model.signature
    return model_pb2.Model(
        name=model.name,
        version=model.version,
        description=signature.description,
        features=[model_pb2.Channel(name=channel.name, unit=channel.unit) for channel in signature.features],
        outputs=[model_pb2.Channel(name=channel.name, unit=channel.unit) for channel in signature.outputs],
        missing=_MISSING[signature.missing],
        max_steps=max_steps,
        forecasts=signature.can_forecast,
        known_features=[signature.features[k].name for k in signature.known_features()]
        if signature.can_forecast
        else [],
        explains=model.can_explain,
        state_bytes=model.arena.row_bytes,
        fingerprint=signature.fingerprint,
        scores=signature.scores,
        trained_on=signature.trained_on,
        provider=model.lane.provider,
        signature=to_json(signature),
        serving=repository.is_serving(model),
    )
