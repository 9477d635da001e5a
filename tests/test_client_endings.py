"""How either client tells that there is no server, that a session was taken, or that it is gone."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import longshort
import pytest
from longshort import errors
from longshort.backoff import LAST_TRY_S, pause_s


@pytest.fixture
def nowhere():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return f"127.0.0.1:{port}"


def open_sync(address: str, timeout_s: float) -> None:
    with longshort.Client(address, timeout_s=timeout_s) as client:
        client.session(model="metro")


def list_sync(address: str, timeout_s: float) -> None:
    with longshort.Client(address, timeout_s=timeout_s) as client:
        client.models()


def open_async(address: str, timeout_s: float) -> None:
    async def scenario() -> None:
        async with longshort.aio.Client(address, timeout_s=timeout_s) as client:
            await client.session(model="metro")

    asyncio.run(scenario())


def list_async(address: str, timeout_s: float) -> None:
    async def scenario() -> None:
        async with longshort.aio.Client(address, timeout_s=timeout_s) as client:
            await client.models()

    asyncio.run(scenario())


@pytest.mark.parametrize("ask", [open_sync, list_sync, open_async, list_async])
@pytest.mark.parametrize("timeout_s", [0.5, 1.5])
def test_no_server_is_tried_until_the_timeout_and_told_with_its_address(
    nowhere: str, ask: Any, timeout_s: float
):
    started_s = time.monotonic()
    with pytest.raises(errors.Unavailable) as caught:
        ask(nowhere, timeout_s)
    assert 0.9 * timeout_s < time.monotonic() - started_s < timeout_s + 1
    assert caught.value.reason == "NO_SERVER"
    assert f"no service answers at {nowhere} within {timeout_s} s (" in str(caught.value)


def test_pauses_halve_towards_the_end_and_keep_what_the_server_asked():
    assert pause_s(0.3, None, 10) == 0.3
    assert pause_s(1.0, None, 1.0) == 0.5
    assert pause_s(1.0, None, LAST_TRY_S) is None
    assert pause_s(1.1, 1.0, 1.5) == 1.0
    assert pause_s(5.1, 5.0, 1.0) == pytest.approx(1.0 - LAST_TRY_S)  # a last try, however early for it


def test_whoever_takes_a_session_is_named_to_the_one_who_loses_it(server: Any):
    with (
        longshort.Client(server.address, client_id="billing-7") as taker,
        longshort.Client(server.address, client_id="billing-7") as loser,
        loser.session(model="metro") as session,
    ):
        assert taker.client_id == "billing-7"
        session.step(1)
        with taker.session(session.id):  # of the same name, and still another client
            with pytest.raises(errors.SessionTaken, match=r"client billing-7:\w+ has opened") as caught:
                session.step(2)
            assert f"session {session.id}, which was at step 1 here" in str(caught.value)
            assert caught.value.metadata["client_id"].startswith("billing-7:")
            assert session.ended
            assert not session.closed


def test_session_that_its_server_forgot_is_told_with_its_step_and_what_to_do(start_server: Any):
    first = start_server()
    with longshort.Client(first.address) as client, client.session("s", model="metro") as session:
        session.steps([1, 2])
        assert not session.ended
        assert first.stop() == 0
        start_server(port=first.port)
        with pytest.raises(
            errors.SessionLost, match="no longer has session s, which was at step 2 here"
        ) as gone:
            session.step(3)
        assert "mode='create'" in str(gone.value)
        assert session.ended
