"""What the store does not grant changes nothing: no stream loses its session to a call that is refused."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from flaky_store import FlakyStore
from house import House, reason_of
from longshort_service import errors
from longshort_service.opener import OpenRequest
from tables import RecordingOwner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Any]


async def followed(house: House) -> tuple[Any, RecordingOwner]:
    """Return a session at step 2 and the stream that has it."""
    owner = RecordingOwner()
    session = await house.open("s", owner)
    await house.step(session, 1, 2)
    return session, owner


async def goes_on(house: House, store: FlakyStore, session: Any, owner: RecordingOwner) -> None:
    """Its stream still has the session, which is stored as soon as the store is back."""
    assert owner.lost == []
    assert (session.owner, session.step) == (owner, 2)
    assert await house.step(session, 3) == [6]
    store.is_down = False
    async with asyncio.timeout(5):
        while store.step_of("s") != 3:  # noqa: ASYNC110  nobody tells of a write behind
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "change",
    [
        lambda house: house.management.delete("s"),
        lambda house: house.management.reset("s"),
        lambda house: house.keeper.open(OpenRequest("s", client_id="other"), RecordingOwner()),
    ],
    ids=["delete", "reset", "open"],
)
def test_change_that_the_store_refuses_takes_the_session_from_nobody(run: Run, adders: Path, change: Any):
    async def scenario() -> None:
        store = FlakyStore()
        async with House(adders, store=store) as house:
            session, owner = await followed(house)
            store.is_down = True
            assert await reason_of(change(house)) is errors.StoreUnavailable
            await goes_on(house, store, session, owner)

    run(scenario())


def test_reset_that_could_not_be_written_has_reset_nothing(run: Run, adders: Path):
    async def scenario() -> None:
        store = FlakyStore()
        async with House(adders, store=store) as house:
            session, owner = await followed(house)
            incarnation = session.incarnation
            with store.held("write"):
                reset = asyncio.ensure_future(house.management.reset("s"))
                await asyncio.sleep(0.2)
                store.is_down = True
            assert await reason_of(reset) is errors.StoreUnavailable
            assert session.incarnation == incarnation
            await goes_on(house, store, session, owner)

    run(scenario())
