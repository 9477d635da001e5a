"""Everything that can go wrong, as one tree. Knows neither gRPC nor HTTP.

    ServiceError
      CallerFault     the request cannot be served as it is; sending it again will not help
        StepRefused   the four refusals of a step number
      PeerFault       the request is fine, the moment is not: load, a drain, another writer
      OurFault        a bug of ours; the only kind that is logged with a traceback

Each class is one reason. `reason` is what callers match on, `metadata` the variables of the message.
"""

from __future__ import annotations

from typing import ClassVar, Final

# Errors quote what a caller sent, and gRPC drops a status whose trailers exceed 8 KiB: the reason with it.
_MAX_MESSAGE_BYTES: Final = 1000
_MAX_METADATA_BYTES: Final = 256


class ServiceError(Exception):
    """Any error with a reason. `message` tells a person what to do; `metadata` holds its variables."""

    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, **metadata: object) -> None:
        self.message = _cut(message, _MAX_MESSAGE_BYTES)
        super().__init__(self.message)
        self.metadata = {name: _cut(str(value), _MAX_METADATA_BYTES) for name, value in metadata.items()}


def _cut(text: str, max_bytes: int) -> str:
    return text if len(text) <= max_bytes // 4 else text.encode()[:max_bytes].decode(errors="ignore")


class CallerFault(ServiceError):
    """The request cannot be served as it is."""


class PeerFault(ServiceError):
    """The request is fine; the moment or the place is not."""


class OurFault(ServiceError):
    """A bug of ours."""


class InternalError(OurFault):
    """Raised when an unexpected exception reached the edge of the service."""

    reason = "INTERNAL"


class InvalidMessage(CallerFault):
    """Raised when a message is out of place or says nothing."""

    reason = "INVALID_MESSAGE"


class MalformedMessage(CallerFault):
    """Raised when the bytes are not the expected protobuf message."""

    reason = "MALFORMED_MESSAGE"


class MessageTooLarge(CallerFault):
    """Raised when a message has more bytes than the server takes."""

    reason = "MESSAGE_TOO_LARGE"


class NotOpen(CallerFault):
    """Raised when a stream's first message is not `open`."""

    reason = "NOT_OPEN"


class InvalidSessionId(CallerFault):
    """Raised when a session's key is not of the allowed form."""

    reason = "INVALID_SESSION_ID"


class WrongShape(CallerFault):
    """Raised when values do not have the width, rank, type or name that the signature says."""

    reason = "WRONG_SHAPE"


class EmptyValues(CallerFault):
    """Raised when a message of values holds none."""

    reason = "EMPTY_VALUES"


class TooManySteps(CallerFault):
    """Raised when a message holds more steps than the server takes in one."""

    reason = "TOO_MANY_STEPS"


class ConstantMissing(CallerFault):
    """A session is to be created without a constant that its model needs of it."""

    reason = "CONSTANT_MISSING"


class ValueMissing(CallerFault):
    """Raised when a value is NaN and the model has no use for that."""

    reason = "VALUE_MISSING"


class ValueNotFinite(CallerFault):
    """Raised when a value is infinite."""

    reason = "VALUE_NOT_FINITE"


class NonFiniteResult(CallerFault):
    """Raised when the model's answer to the values is not finite. The session has not moved."""

    reason = "NON_FINITE_RESULT"


class ValuesRefused(CallerFault):
    """The model's graph fails on these values: an index beyond a table, for one."""

    reason = "VALUES_REFUSED"


class HorizonOutOfRange(CallerFault):
    """Raised when a forecast's horizon is 0 or beyond the limit."""

    reason = "HORIZON_OUT_OF_RANGE"


class StepRefused(CallerFault):
    """A message whose step number does not fit the session. Nothing has moved."""


class StepConflict(StepRefused):
    """Raised when the numbered steps were applied already and are not the last message again."""

    reason = "STEP_CONFLICT"


class StepGap(StepRefused):
    """Raised when steps are missing between the session and the message."""

    reason = "STEP_GAP"


class ValuesDiffer(StepRefused):
    """Raised when the last message comes again with other values: there are two writers."""

    reason = "VALUES_DIFFER"


class StepRequired(StepRefused):
    """Raised when unnumbered values reach a session of which it is not sure that nothing is missing."""

    reason = "STEP_REQUIRED"


class ModelNotFound(CallerFault):
    """Raised when no model of that name or version is loaded."""

    reason = "MODEL_NOT_FOUND"


class ModelMismatch(CallerFault):
    """Raised when a session is opened with another model or version than it has."""

    reason = "MODEL_MISMATCH"


class ModelChanged(CallerFault):
    """Raised when stored state belongs to another model file."""

    reason = "MODEL_CHANGED"


class SessionNotFound(CallerFault):
    """Raised when there is no such session."""

    reason = "SESSION_NOT_FOUND"


class SessionExpired(CallerFault):
    """Raised when the session was ended because nobody used it for the session's time to live."""

    reason = "SESSION_EXPIRED"


class SessionExists(CallerFault):
    """Raised when a session to be created exists already."""

    reason = "SESSION_EXISTS"


class SessionEmpty(CallerFault):
    """Raised when a forecast is asked of a session that has not seen a value."""

    reason = "SESSION_EMPTY"


class ForecastUnavailable(CallerFault):
    """Raised when the model's outputs cannot be fed back."""

    reason = "FORECAST_UNAVAILABLE"


class ExplainUnavailable(CallerFault):
    """Raised when no explain.onnx lies beside the model and none can be derived, or it cannot be loaded."""

    reason = "EXPLAIN_UNAVAILABLE"


class NotOffered(CallerFault):
    """Raised for what the Open Inference Protocol has and longshort has not; the message says what to do instead."""

    reason = "NOT_OFFERED"


class Stale(CallerFault):
    """Raised when the state at hand is older than the caller asked for."""

    reason = "STALE"


class InvalidRecord(CallerFault):
    """Raised when bytes to import are damaged or foreign."""

    reason = "INVALID_RECORD"


class RecordDamaged(CallerFault):
    """Raised when what is stored of a session cannot be read: torn, foreign, or of a newer server."""

    reason = "RECORD_DAMAGED"


class UnknownHandle(CallerFault):
    """Raised when a frame names a handle that is not open on its stream."""

    reason = "UNKNOWN_HANDLE"


class HandleTwice(CallerFault):
    """Raised when a frame has more than one row for a session."""

    reason = "HANDLE_TWICE"


class HandleOutOfRange(CallerFault):
    """Raised when a session is opened with a handle beyond the greatest that a stream can have."""

    reason = "HANDLE_OUT_OF_RANGE"


class SessionMoved(PeerFault):
    """Raised to a stream that has lost its session; `client_id` says to whom, `cause` by what."""

    reason = "SESSION_MOVED"


class SessionsExhausted(PeerFault):
    """Raised when every row of state is taken by a session in use."""

    reason = "SESSIONS_EXHAUSTED"


class StreamsExhausted(PeerFault):
    """Raised when the server has as many streams as it takes."""

    reason = "STREAMS_EXHAUSTED"


class QueueFull(PeerFault):
    """Raised when as many steps wait for the engine as the server lets wait."""

    reason = "QUEUE_FULL"


class Draining(PeerFault):
    """Raised when the server is shutting down."""

    reason = "DRAINING"


class StreamAged(PeerFault):
    """Raised when a stream has been open for as long as the server lets it; its sessions are stored."""

    reason = "STREAM_AGED"


class StoreUnavailable(PeerFault):
    """Raised when the session store is away, slow, full or read-only; what was applied is in memory still."""

    reason = "STORE_UNAVAILABLE"


class TakenUnstored(PeerFault):
    """Raised for values without a number that were applied and may not be stored: sent again, they count twice."""

    reason = "TAKEN_NOT_STORED"


class EngineDead(PeerFault):
    """Raised to all that wait when the engine has failed; the server's health says so too."""

    reason = "ENGINE_DEAD"
