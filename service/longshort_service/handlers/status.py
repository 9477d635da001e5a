"""What an error is on the wire: one table from error to gRPC code and retry delay, and the two forms it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from longshort.v1 import types_pb2

from longshort_service import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from longshort_service.transport.call import Call

DOMAIN: Final = "longshort"
DETAILS_KEY: Final = "grpc-status-details-bin"

_Code = grpc.StatusCode

# The code of each error, and after how many seconds the same request may succeed (None: waiting does not help).
TABLE: Final[dict[type[errors.ServiceError], tuple[grpc.StatusCode, float | None]]] = {
    errors.InternalError: (_Code.INTERNAL, None),
    errors.InvalidMessage: (_Code.INVALID_ARGUMENT, None),
    errors.MalformedMessage: (_Code.INVALID_ARGUMENT, None),
    errors.MessageTooLarge: (_Code.INVALID_ARGUMENT, None),
    errors.NotOpen: (_Code.FAILED_PRECONDITION, None),
    errors.InvalidSessionId: (_Code.INVALID_ARGUMENT, None),
    errors.ConstantMissing: (_Code.INVALID_ARGUMENT, None),
    errors.WrongShape: (_Code.INVALID_ARGUMENT, None),
    errors.EmptyValues: (_Code.INVALID_ARGUMENT, None),
    errors.TooManySteps: (_Code.INVALID_ARGUMENT, None),
    errors.ValueMissing: (_Code.INVALID_ARGUMENT, None),
    errors.ValueNotFinite: (_Code.INVALID_ARGUMENT, None),
    errors.NonFiniteResult: (_Code.OUT_OF_RANGE, None),
    errors.ValuesRefused: (_Code.OUT_OF_RANGE, None),
    errors.HorizonOutOfRange: (_Code.INVALID_ARGUMENT, None),
    errors.StepConflict: (_Code.FAILED_PRECONDITION, None),
    errors.StepGap: (_Code.FAILED_PRECONDITION, None),
    errors.ValuesDiffer: (_Code.FAILED_PRECONDITION, None),
    errors.StepRequired: (_Code.FAILED_PRECONDITION, None),
    errors.ModelNotFound: (_Code.NOT_FOUND, None),
    errors.ModelMismatch: (_Code.FAILED_PRECONDITION, None),
    errors.ModelChanged: (_Code.FAILED_PRECONDITION, None),
    errors.SessionNotFound: (_Code.NOT_FOUND, None),
    errors.SessionExpired: (_Code.NOT_FOUND, None),
    errors.SessionExists: (_Code.ALREADY_EXISTS, None),
    errors.SessionEmpty: (_Code.FAILED_PRECONDITION, None),
    errors.ForecastUnavailable: (_Code.FAILED_PRECONDITION, None),
    errors.ExplainUnavailable: (_Code.FAILED_PRECONDITION, None),
    errors.NotOffered: (_Code.UNIMPLEMENTED, None),
    errors.Stale: (_Code.FAILED_PRECONDITION, None),
    errors.InvalidRecord: (_Code.INVALID_ARGUMENT, None),
    errors.RecordDamaged: (_Code.DATA_LOSS, None),
    errors.UnknownHandle: (_Code.NOT_FOUND, None),
    errors.HandleTwice: (_Code.INVALID_ARGUMENT, None),
    errors.HandleOutOfRange: (_Code.INVALID_ARGUMENT, None),
    errors.SessionMoved: (_Code.ABORTED, None),
    errors.SessionsExhausted: (_Code.RESOURCE_EXHAUSTED, 1.0),
    errors.StreamsExhausted: (_Code.RESOURCE_EXHAUSTED, 1.0),
    errors.QueueFull: (_Code.RESOURCE_EXHAUSTED, 0.1),
    errors.Draining: (_Code.UNAVAILABLE, 0.2),
    errors.StreamAged: (_Code.UNAVAILABLE, None),
    errors.StoreUnavailable: (_Code.UNAVAILABLE, 1.0),
    # Not UNAVAILABLE or ABORTED: a proxy or a library would send the values again by itself, and they count twice.
    errors.TakenUnstored: (_Code.DATA_LOSS, None),
    errors.EngineDead: (_Code.UNAVAILABLE, 1.0),
}


def in_band(error: errors.ServiceError) -> types_pb2.Error:
    """Return the form of an error whose stream goes on."""
    code, retry_delay_s = TABLE[type(error)]
    message = types_pb2.Error(
        code=code.value[0], reason=error.reason, message=error.message, metadata=error.metadata
    )
    if retry_delay_s is not None:
        message.retry_delay.CopyFrom(_duration(retry_delay_s))
    return message


def finish(call: Call, error: errors.ServiceError) -> None:
    """End a call with the error as its status."""
    code, message, metadata = _status(error)
    call.finish(code, message, metadata)


async def abort(context: grpc.aio.ServicerContext[bytes, bytes], error: errors.ServiceError) -> None:
    """End the call with the error as its status. Raises what grpc raises to unwind the handler."""
    code, message, metadata = _status(error)
    await context.abort(code, message, trailing_metadata=metadata)


def _status(error: errors.ServiceError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes]]]:
    """Return code, words and trailing metadata."""
    code, _ = TABLE[type(error)]
    status = status_pb2.Status(code=code.value[0], message=error.message, details=_details(error))
    return code, error.message, ((DETAILS_KEY, status.SerializeToString()),)


def _details(error: errors.ServiceError) -> Iterator[any_pb2.Any]:
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata))
    yield info
    retry_delay_s = TABLE[type(error)][1]
    if retry_delay_s is not None:
        retry = any_pb2.Any()
        retry.Pack(error_details_pb2.RetryInfo(retry_delay=_duration(retry_delay_s)))
        yield retry


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromMilliseconds(round(seconds * 1000))
    return duration
