"""What durable stores say alike: a record read from what was stored, and refusals that tell a caller what to do."""

from __future__ import annotations

import dataclasses

from longshort_service import errors
from longshort_service.record import SessionRecord, decode


def read_record(session_id: str, data: bytes, *, is_gapless: bool) -> SessionRecord:
    """Return what is stored of a session, with the mark that is kept beside it: an opening clears that one.

    RecordDamaged where the bytes are torn, foreign, or another session's.
    """
    try:
        record = decode(data)
    except errors.InvalidRecord as error:
        raise errors.RecordDamaged(
            f"what is stored of session {session_id} cannot be read: {error}; delete it to begin again",
            session_id=session_id,
        ) from error
    if record.session_id != session_id:
        raise errors.RecordDamaged(
            f"what is stored of session {session_id} is of session {record.session_id}; delete it to begin again",
            session_id=session_id,
        )
    return record if record.is_gapless == is_gapless else dataclasses.replace(record, is_gapless=is_gapless)


def expired(session_id: str) -> errors.SessionExpired:
    """Return what a caller gets who asks for what has expired."""
    return errors.SessionExpired(f"session {session_id} was ended because nobody used it")


def exhausted(num_entries: int, max_entries: int) -> errors.SessionsExhausted:
    """Return what a caller gets whose session would be one too many."""
    return errors.SessionsExhausted(
        f"{num_entries} sessions are kept, the most that this server keeps: "
        "delete some, or raise max_stored_sessions",
        max_stored_sessions=max_entries,
    )
