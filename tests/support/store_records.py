"""Records and calls that the tests of stores share."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from longshort_service.protocol import MessageIdentity
from longshort_service.record import Origin, SessionRecord
from longshort_service.stores.base import Birth, Found, OpenMode, StoreRequest, open_one

if TYPE_CHECKING:
    from longshort_service.stores.base import Store, StoreOpening

NOW_S = 1_000.0
TOY = Origin("toy", 1, "f1", "cpu", "a processor", "1.31.1")
BIRTH = Birth(TOY, 77)


def record_of(
    session_id: str, epoch: int, last_used_s: float = NOW_S, *, step: int = 5, origin: Origin = TOY
) -> SessionRecord:
    """Return the record of a session with one state, at `step`."""
    return SessionRecord(
        session_id=session_id,
        origin=origin,
        step=step,
        incarnation=BIRTH.incarnation,
        epoch=epoch,
        is_gapless=True,
        last_used_s=last_used_s,
        states=(np.full((1, 2), step, np.float32),),
        last_message=MessageIdentity(step - 1, 1, 9),
        last_answer=np.full((1, 3), step, np.float32),
        last_values=np.full(1, step, np.float32),
        last_output=np.full(3, step, np.float32),
    )


def asks(
    session_id: str,
    mode: OpenMode = OpenMode.OPEN_OR_CREATE,
    client_id: str = "me",
    birth: Birth | None = BIRTH,
) -> StoreRequest:
    """Return the request of an opening that may create."""
    return StoreRequest(session_id, mode, client_id, birth)


async def opened(
    store: Store,
    session_id: str,
    mode: OpenMode = OpenMode.OPEN_OR_CREATE,
    *,
    client_id: str = "me",
    now_s: float = NOW_S,
) -> StoreOpening:
    """Open one session."""
    return await open_one(store, asks(session_id, mode, client_id), now_s)


async def created(store: Store, session_id: str) -> int:
    """Create a session and return its epoch."""
    opening = await opened(store, session_id, OpenMode.CREATE)
    assert opening.found is Found.CREATED
    return opening.epoch


async def stored(
    store: Store, session_id: str, last_used_s: float = NOW_S, **changes: object
) -> SessionRecord:
    """Create a session, write a record of it and return that."""
    record = record_of(session_id, await created(store, session_id), last_used_s)
    record = dataclasses.replace(record, **changes)  # type: ignore[arg-type]
    assert await store.write([record]) == [None]
    return record


async def delete_one(store: Store, session_id: str) -> bool:
    """Delete a session; return whether it was there."""
    (was_there,) = await store.delete_many([(session_id, None)])
    return was_there


async def bury_one(
    store: Store, session_id: str, epoch: int, now_s: float = NOW_S, before_s: float = 1e12
) -> bool:
    """Let a session expire; return whether it did."""
    (is_buried,) = await store.bury_many([(session_id, epoch)], before_s, now_s)
    return is_buried


def same(one: SessionRecord | None, other: SessionRecord | None) -> bool:
    """Whether two records are equal, bit for bit: as their bytes are."""
    from longshort_service.record import encode

    return (one is None) == (other is None) and (one is None or other is None or encode(one) == encode(other))
