"""What the end of a stream means for its session: try again, give the call up, or the session is over.

Also the errors in which that is told. It keeps no state.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

from longshort import errors
from longshort.errors import Code, LongshortError

# Transport failures after which the server may have done what was asked, or not. A stream cut by a dead
# server shows as UNAVAILABLE directly, CANCELLED behind HAProxy, INTERNAL behind nginx and Envoy.
_TRANSIENT: Final = frozenset(
    {Code.CANCELLED, Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.ABORTED, Code.INTERNAL, Code.UNAVAILABLE}
)
# A stream that ends with one of these has refused its message before anything moved. RESOURCE_EXHAUSTED is
# not among them: gRPC itself says so of an answer too large to receive, whose values were taken.
_REFUSALS: Final = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.ALREADY_EXISTS,
        Code.PERMISSION_DENIED,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
        Code.UNIMPLEMENTED,
        Code.UNAUTHENTICATED,
    }
)
# Why SESSION_MOVED came, where it was not another client's opening.
_BY_CAUSE: Final[dict[str, type[LongshortError]]] = {
    "reset": errors.SessionReplaced,
    "deleted": errors.SessionLost,
}


class Verdict(Enum):
    """What to do after a stream has ended."""

    RETRY = "reconnect, after a pause"
    RAISE = "give up the call"
    LOST = "give up the session"


def is_transient(failure: LongshortError) -> bool:
    """Return whether the same call may succeed a moment later, on this server or another.

    A reason of ours is a deliberate refusal, unless it is UNAVAILABLE (DRAINING, say).
    """
    return failure.code is Code.UNAVAILABLE or (failure.code in _TRANSIENT and not failure.reason)


def blames_server(failure: LongshortError) -> bool:
    """Return whether a failure says of its server that others should be asked before it.

    A time that was too short for this call (DEADLINE_EXCEEDED) says nothing of the kind, nor does the end of a stream
    that was old: its session goes where its place is now, which may be there.
    """
    return (
        is_transient(failure)
        and failure.code is not Code.DEADLINE_EXCEEDED
        and failure.reason != "STREAM_AGED"
    )


def was_not_taken(failure: LongshortError) -> bool:
    """Return whether a unary call has surely done nothing, so that another server may be asked to change something.

    gRPC tells only in its text that it had no connection to send the call on; an unknown text is taken for a doubt.
    """
    return failure.reason == "DRAINING" or (
        failure.code is Code.UNAVAILABLE and failure.message.startswith("failed to connect to all addresses")
    )


def refuses(failure: LongshortError) -> bool:
    """Return whether a stream that ends so has surely not applied the message that it was given last."""
    return failure.code in _REFUSALS


def judge(failure: LongshortError, *, client_id: str, was_open: bool) -> Verdict:
    """Return what the end of a stream means; `was_open` says whether this session was ever open here."""
    if isinstance(failure, errors.SessionTaken):
        # A proxy may deliver one opening twice: moved by ourselves is no loss.
        return Verdict.RETRY if failure.metadata.get("client_id") == client_id else Verdict.LOST
    if was_open and isinstance(failure, errors.SessionNotFound | errors.SessionExpired):
        return Verdict.LOST
    if is_transient(failure):
        return Verdict.RETRY
    # Who comes new to a full server is told at once; who has to move over from another one waits for a place.
    if was_open and failure.code is Code.RESOURCE_EXHAUSTED and failure.retry_delay_s is not None:
        return Verdict.RETRY
    return Verdict.RAISE


def ending(failure: LongshortError, session_id: str, step: int) -> LongshortError:
    """Return the error that tells the caller how the session, which was at `step` here, was lost."""
    if isinstance(failure, errors.SessionNotFound):
        return errors.SessionLost.like(
            failure,
            f"the server no longer has session {session_id}, which was at step {step} here (restarted, or "
            "deleted): create it anew (mode='create') and warm it up",
        )
    if isinstance(failure, errors.SessionTaken) and failure.metadata.get("client_id"):
        taker = failure.metadata["client_id"]
        return errors.SessionTaken.like(
            failure, f"client {taker} has opened session {session_id}, which was at step {step} here"
        )
    cause = failure.metadata.get("cause", "")
    return _BY_CAUSE[cause].like(failure) if cause in _BY_CAUSE else failure


def again(end: LongshortError) -> LongshortError:
    """Return an error like the one that ended a session: each call raises an object of its own."""
    return type(end).like(end)


def replaced() -> LongshortError:
    """Return the error of a session of the same name with another incarnation."""
    return errors.SessionReplaced(
        "the session was reset, imported or created anew meanwhile", reason="SESSION_REPLACED"
    )


def does_not_fit(server_step: int, client_step: int, oldest_step: int | None = None) -> LongshortError:
    """Return the error of a server that is not where the answers here, and what is kept, can take it up.

    `oldest_step` is the least step from which values are kept here, since the server promised to have stored those
    before it; None where it promised nothing (durability NONE).
    """
    message = f"the server's session is at step {server_step}, the answers here end at {client_step}"
    metadata = {"server_step": str(server_step), "client_step": str(client_step)}
    reason = "STEPS_LOST" if server_step < client_step else "OTHER_WRITER"
    if oldest_step is not None and server_step < oldest_step:
        reason = "STORE_WENT_BACK"
        message += f", and its store had told that the first {oldest_step} were stored"
        metadata["oldest_step"] = str(oldest_step)
    return errors.SessionLost(message, reason=reason, metadata=metadata)


def count_from(refusal: LongshortError, num_before: int) -> None:
    """Count the row that a refusal names from the call's first row: the server counts in its message."""
    row = refusal.metadata.get("row", "")
    if num_before and row.isdecimal():
        refusal.metadata["row"] = str(int(row) + num_before)
        refusal.message = re.sub(rf"\brow {row}\b", f"row {refusal.metadata['row']}", refusal.message)
        refusal.args = (refusal.message,)


def doubt() -> LongshortError:
    """Return the error of a call on a session that is in doubt."""
    return errors.StepInDoubt(
        "an earlier call ended after its values were sent; retry() returns its answer",
        reason="STEP_IN_DOUBT",
    )


def untold(failure: LongshortError, address: str, within_s: float | None) -> LongshortError:
    """Return a failure of the transport, which has no reason of ours, with one and with the address.

    `within_s` is the time during which it was tried; None where there was one try. Others stay as they are.
    """
    limit = "" if within_s is None else f" within {within_s:g} s"
    if failure.reason:
        return failure
    if isinstance(failure, errors.Unavailable):
        cause, *hint = failure.message.partition("; its values")
        reason, message = "NO_SERVER", f"no service answers at {address}{limit} ({cause}){''.join(hint)}"
    elif isinstance(failure, errors.DeadlineExceeded):
        reason, message = "TIMEOUT", f"no answer from {address}{limit}"
    else:
        return failure
    told = type(failure).like(failure, message)
    told.reason = reason
    return told


def time_is_up(cause: LongshortError | None, *, in_doubt: bool, gave_up: bool = False) -> LongshortError:
    """Return the error of a call whose time is up; `cause` is why there was no connection to answer it.

    `gave_up`: for want of a server, before the call's own time was up. That is always Unavailable.
    """
    hint = "; its values may have been taken, retry() returns their answer" if in_doubt else ""
    if gave_up and not isinstance(cause, errors.Unavailable):
        return errors.Unavailable(f"{cause.message if cause else 'no answer'}{hint}")
    if cause is None:
        return errors.DeadlineExceeded(f"no answer within the call's timeout{hint}", reason="TIMEOUT")
    return type(cause).like(cause, f"{cause.message}{hint}")
