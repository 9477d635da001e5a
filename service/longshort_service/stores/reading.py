"""What durable stores say alike: a record read from what was stored, and refusals that tell a caller what to do."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from longshort_service import errors
from longshort_service.record import SessionRecord, birth, decode
from longshort_service.stores.base import Found, StoreOpening

if TYPE_CHECKING:
    from longshort_service.stores.base import Birth


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


def born_of(session_id: str, born: Birth, now_s: float) -> SessionRecord:
    """Return the record that a creation stores, without its epoch."""
    if born.record is not None:
        return dataclasses.replace(born.record, session_id=session_id, epoch=0)
    return birth(session_id, born.origin, born.incarnation, 0, now_s)


def exists(session_id: str, data: bytes, client_id: str) -> StoreOpening:
    """Return what a CREATE finds: of a session that has not begun also who created it."""
    try:
        has_begun = read_record(session_id, data, is_gapless=False).step > 0
    except errors.RecordDamaged:
        has_begun = True
    return StoreOpening(Found.EXISTS, client_id="" if has_begun else client_id)


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
