"""How what a server says of a failure becomes one of the client's errors.

It owns the tables from reason and code to class, and the reading of google.rpc.Status.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from longshort import errors
from longshort.errors import Code, LongshortError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from google.protobuf.duration_pb2 import Duration

    from longshort.v1 import types_pb2

DOMAIN: Final = "longshort"  # ErrorInfo.domain of our own reasons
DETAILS_KEY: Final = "grpc-status-details-bin"

_BY_REASON: Final[dict[str, type[LongshortError]]] = {
    "STEP_CONFLICT": errors.StepConflict,
    "STEP_GAP": errors.StepGap,
    "VALUES_DIFFER": errors.ValuesDiffer,
    "STEP_REQUIRED": errors.StepRequired,
    "MODEL_MISMATCH": errors.ModelMismatch,
    "MODEL_CHANGED": errors.ModelMismatch,
    "STALE": errors.Stale,
    "SESSION_NOT_FOUND": errors.SessionNotFound,
    "SESSION_EXPIRED": errors.SessionExpired,
    "SESSION_EXISTS": errors.SessionExists,
    "SESSION_MOVED": errors.SessionTaken,
    "MODEL_NOT_FOUND": errors.ModelNotFound,
}
_BY_CODE: Final[dict[Code, type[LongshortError]]] = {
    Code.INVALID_ARGUMENT: errors.InvalidRequest,
    Code.OUT_OF_RANGE: errors.InvalidRequest,
    Code.FAILED_PRECONDITION: errors.FailedPrecondition,
    Code.NOT_FOUND: errors.NotFound,
    Code.ALREADY_EXISTS: errors.SessionExists,
    Code.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    Code.UNAVAILABLE: errors.Unavailable,
    Code.CANCELLED: errors.Unavailable,
    Code.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    Code.UNIMPLEMENTED: errors.Unimplemented,
    Code.PERMISSION_DENIED: errors.AccessDenied,
    Code.UNAUTHENTICATED: errors.AccessDenied,
}


def make(
    code: int, message: str, reason: str, metadata: Mapping[str, str], retry_delay_s: float | None
) -> LongshortError:
    """Return the error for a reason, or for a code where the reason is unknown or empty."""
    known = Code(code) if Code.OK <= code <= Code.UNAUTHENTICATED else Code.UNKNOWN
    cls = _BY_REASON.get(reason) or _BY_CODE.get(known, errors.ServerFault)
    return cls(message, reason=reason, code=known, metadata=metadata, retry_delay_s=retry_delay_s)


def from_message(error: types_pb2.Error) -> LongshortError:
    """Return the error that a stream's in-band `error` says."""
    delay_s = _seconds(error.retry_delay) if error.HasField("retry_delay") else None
    return make(error.code, error.message, error.reason, error.metadata, delay_s)


def from_status(code: int, message: str, trailers: Iterable[tuple[str, str | bytes]]) -> LongshortError:
    """Return the error that a call ended with: its status and the details in its trailing metadata.

    Details that are not ours or cannot be read are left out: `reason` is then empty.
    """
    reason, metadata, delay_s = "", dict[str, str](), None
    for detail in _details(trailers):
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(retry):
            delay_s = _seconds(retry.retry_delay)
    return make(code, message, reason, metadata, delay_s)


def _details(trailers: Iterable[tuple[str, str | bytes]]) -> list[Any]:
    for key, value in trailers:
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return list(status_pb2.Status.FromString(value).details)
            except DecodeError:  # a proxy's trailer of the same name; the status alone must do
                return []
    return []


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
