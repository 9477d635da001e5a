"""The errors that a caller of the client meets.

It owns the tree. How a server's error becomes one of them is `status`; what is tried again is `recovery`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray


class Code(IntEnum):
    """The numbers of google.rpc.Code, which are those of gRPC's status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class LongshortError(Exception):
    """What every error of the client is.

    `reason` is the machine-readable cause in UPPER_SNAKE_CASE, empty where the failure is the transport's;
    `retry_delay_s` is None where waiting does not help. `partial` holds the answers ([rows, outputs] f32) of
    a long `steps` call that came before the refused message: the values before it were taken.
    """

    default_code: ClassVar[Code] = Code.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        code: Code | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_delay_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.code = self.default_code if code is None else code
        self.metadata = dict(metadata or {})
        self.retry_delay_s = retry_delay_s
        self.partial: NDArray[np.float32] | None = None  # [rows, outputs] f32

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}" if self.reason else self.message

    @classmethod
    def like(cls, other: LongshortError, message: str | None = None) -> Self:
        """Return an error of this class with the other's cause; a new object, so that it may be raised."""
        error = cls(
            other.message if message is None else message,
            reason=other.reason,
            code=other.code,
            metadata=other.metadata,
            retry_delay_s=other.retry_delay_s,
        )
        error.partial = other.partial
        return error


class InvalidRequest(LongshortError):
    """What was asked is wrong in itself: shape, range, a value that the model does not take."""

    default_code = Code.INVALID_ARGUMENT


class FailedPrecondition(LongshortError):
    """What was asked does not fit the state that the session is in."""

    default_code = Code.FAILED_PRECONDITION


class StepConflict(FailedPrecondition):
    """The given step lies below the session's and is not its last message; see metadata["expected_step"]."""


class StepGap(FailedPrecondition):
    """The given step lies above the session's; see metadata["expected_step"]."""


class ValuesDiffer(FailedPrecondition):
    """The given step was taken by other values: two writers feed one session."""


class StepRequired(FailedPrecondition):
    """The server may have lost steps of this session, so that unnumbered values are not safe."""


class StepInDoubt(FailedPrecondition):
    """An earlier call ended without its answer after its values were sent; `session.retry()` gets it."""


class ModelMismatch(FailedPrecondition):
    """The session belongs to another model or version, or its state to another model file."""


class Stale(FailedPrecondition):
    """The state within reach is older than asked for."""


class ConcurrentUse(FailedPrecondition):
    """The session is in a call of another thread or task: a session belongs to one at a time."""


class SessionClosed(FailedPrecondition):
    """The session object was closed; the session itself lives on the server."""


class NotFound(LongshortError):
    """There is no such thing."""

    default_code = Code.NOT_FOUND


class SessionNotFound(NotFound):
    """There is no such session."""


class SessionExpired(NotFound):
    """The session has ended by age. It never starts from zero silently: create it anew on purpose."""


class ModelNotFound(NotFound):
    """The server has no such model or version."""


class SessionExists(LongshortError):
    """The session was to be created, and is there already."""

    default_code = Code.ALREADY_EXISTS


class SessionEnded(LongshortError):
    """This session object can do nothing more; what to do is in its subclass."""

    default_code = Code.ABORTED


class SessionTaken(SessionEnded):
    """Another client has opened the session (metadata["client_id"]); this one does not fight back."""


class SessionReplaced(SessionEnded):
    """Another session of the same name is there now: it was reset, imported or created anew."""


class SessionLost(SessionEnded):
    """The server's session and the answers held here no longer fit together; start it anew from history."""


class RowsFailed(LongshortError):
    """Some rows of a gateway's array call have failed; the others were answered.

    `answers` is the result of the call with NaN in the rows that failed, f32, or None where none was answered;
    `errors` has the error of each of those rows by its index.
    """

    def __init__(
        self,
        message: str,
        *,
        answers: NDArray[np.float32] | None = None,
        errors: Mapping[int, LongshortError] | None = None,
    ) -> None:
        super().__init__(message, reason="ROWS_FAILED")
        self.answers = answers
        self.errors = dict(errors or {})


class ResourceExhausted(LongshortError):
    """A limit is reached; `retry_delay_s` says when to come again."""

    default_code = Code.RESOURCE_EXHAUSTED


class Unavailable(LongshortError):
    """No server answered within the call's timeout."""

    default_code = Code.UNAVAILABLE


class DeadlineExceeded(LongshortError):
    """The call's timeout has passed. `session.in_doubt` says whether its values may have been taken."""

    default_code = Code.DEADLINE_EXCEEDED


class Unimplemented(LongshortError):
    """The server, or this model, cannot do that."""

    default_code = Code.UNIMPLEMENTED


class AccessDenied(LongshortError):
    """The server does not let this caller do that."""

    default_code = Code.PERMISSION_DENIED


class ServerFault(LongshortError):
    """A bug or a failure on the other side."""

    default_code = Code.INTERNAL
