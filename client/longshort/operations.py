"""The unary calls: which method, which request, what the answer becomes, and whether to try again.

They are values, so that the sync and the async client differ only in how they run one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import grpc

from longshort import arrays, errors, named, results, status
from longshort.results import ModelInfo, SessionInfo
from longshort.v1 import (
    model_pb2,
    model_pb2_grpc,
    sequence_pb2,
    sequence_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    types_pb2,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message
    from numpy.typing import NDArray

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Operation(Generic[T]):
    """One unary call. Reads are tried again after a transport failure; what changes something is not."""

    service: Literal["sequences", "sessions", "models"]
    method: str
    request: Message
    decode: Callable[[Any], T]
    session_id: str = ""
    is_read: bool = True


class Stubs:
    """The generated stubs of one channel, sync or async: the only untyped corner of gRPC's own code."""

    def __init__(self, channel: Any) -> None:
        self.sequences: Any = sequence_pb2_grpc.SequenceServiceStub(channel)  # type: ignore[no-untyped-call]
        self.sessions: Any = session_pb2_grpc.SessionServiceStub(channel)  # type: ignore[no-untyped-call]
        self.models: Any = model_pb2_grpc.ModelServiceStub(channel)  # type: ignore[no-untyped-call]

    def method(self, operation: Operation[Any]) -> Any:
        """Return the callable of an operation."""
        return getattr(getattr(self, operation.service), operation.method)


def error_of(call: Any) -> errors.LongshortError:
    """Return the error that a finished call (or the exception of one) ended with."""
    code = call.code()
    number, name = (errors.Code.UNKNOWN, "unknown") if code is None else (code.value[0], code.name.lower())
    return status.from_status(number, call.details() or name, call.trailing_metadata() or ())


def ended_early() -> errors.LongshortError:
    """Return what a stream's end without a status error means to a client that awaits an answer."""
    return errors.Unavailable(
        "the server ended the stream", code=errors.Code(grpc.StatusCode.UNAVAILABLE.value[0])
    )


def key(session_id: str) -> types_pb2.SessionKey:
    """Return a session's key."""
    return types_pb2.SessionKey(id=arrays.text(session_id, "session_id"))


def get_session(session_id: str, *, include_memory: bool, min_step: int = 0) -> Operation[SessionInfo]:
    """Describe a session."""
    request = session_pb2.GetSessionRequest(
        session=key(session_id), include_memory=bool(include_memory), min_step=min_step
    )
    return Operation("sessions", "GetSession", request, results.described, session_id)


def list_sessions(
    page_token: str, model: str, id_prefix: str, page_size: int
) -> Operation[tuple[list[SessionInfo], str]]:
    """List a page of sessions; the result's second part is the next page's token, empty on the last."""
    request = session_pb2.ListSessionsRequest(
        page_token=page_token,
        model=arrays.text(model, "model"),
        id_prefix=arrays.text(id_prefix, "id_prefix"),
        page_size=arrays.whole_number(page_size, "page_size", 2**32),
    )
    return Operation(
        "sessions",
        "ListSessions",
        request,
        lambda response: (
            [SessionInfo.of(session) for session in response.sessions],
            response.next_page_token,
        ),
    )


def reset(session_id: str) -> Operation[SessionInfo]:
    """Put a session back to step 0."""
    request = session_pb2.ResetRequest(session=key(session_id))
    return Operation("sessions", "Reset", request, _session, session_id, is_read=False)


def fork(session_id: str, fork_id: str, min_step: int) -> Operation[SessionInfo]:
    """Copy a session under a new id."""
    step = arrays.whole_number(min_step, "min_step", 2**63)
    request = session_pb2.ForkRequest(session=key(session_id), fork=key(fork_id), min_step=step)
    return Operation("sessions", "Fork", request, _session, session_id, is_read=False)


def export(session_id: str, min_step: int) -> Operation[bytes]:
    """Return a session as bytes."""
    step = arrays.whole_number(min_step, "min_step", 2**63)
    request = session_pb2.ExportRequest(session=key(session_id), min_step=step)
    return Operation("sessions", "Export", request, lambda response: bytes(response.record), session_id)


def import_(record: bytes, session_id: str) -> Operation[SessionInfo]:
    """Make a session of exported bytes."""
    if not isinstance(record, bytes | bytearray | memoryview):
        raise errors.InvalidRequest(
            f"record is bytes, as export returns them, not {type(record).__name__}", reason="INVALID_OPTION"
        )
    request = session_pb2.ImportRequest(session=key(session_id), record=bytes(record))
    return Operation("sessions", "Import", request, _session, session_id, is_read=False)


def delete(session_id: str) -> Operation[None]:
    """End a session."""
    request = session_pb2.DeleteRequest(session=key(session_id))
    return Operation("sessions", "Delete", request, lambda _: None, session_id, is_read=False)


def explain(session_id: str, rows: NDArray[Any], min_step: int) -> Operation[dict[str, NDArray[Any]]]:
    """Run the rows of a message on a copy of a session's state and return its gates and memories."""
    request = sequence_pb2.ExplainRequest(session=key(session_id), min_step=min_step)
    if rows.dtype.names is None:
        request.values.extend(rows.ravel().tolist())
    else:
        request.tensors.extend(named.step_messages(rows))
    return Operation(
        "sequences", "Explain", request, lambda response: named.from_messages(response.tensors), session_id
    )


def list_models() -> Operation[list[ModelInfo]]:
    """List every loaded version of every model."""
    return Operation(
        "models",
        "ListModels",
        model_pb2.ListModelsRequest(),
        lambda response: [ModelInfo.of(model) for model in response.models],
    )


def get_model(name: str, version: int) -> Operation[ModelInfo]:
    """Describe one model version; 0 is the highest."""
    request = model_pb2.GetModelRequest(
        name=arrays.text(name, "name"), version=arrays.whole_number(version, "version", 2**63)
    )
    return Operation("models", "GetModel", request, lambda response: ModelInfo.of(response.model))


def _session(response: Any) -> SessionInfo:
    return SessionInfo.of(response.session)
