"""What a caller hands to either client is checked at the door, and told in the caller's own words."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import longshort
import numpy as np
import pytest
from longshort import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

NOWHERE = "127.0.0.1:1"

WRONG = [
    ("session_id", lambda client: client.session(5)),
    ("session_id", lambda client: client.session("\ud800")),
    ("model", lambda client: client.session(model=5)),
    ("version", lambda client: client.session(model="metro", version="1")),
    ("mode", lambda client: client.session(mode=["open"])),
    ("model_change", lambda client: client.session(model="metro", model_change="keep")),
    ("timeout_s", lambda client: client.session(model="metro", timeout_s="x")),
    ("timeout_s", lambda client: client.session(model="metro", timeout_s=float("nan"))),
    ("timeout_s", lambda client: client.models(timeout_s=0)),
    ("timeout_s", lambda client: client.models(timeout_s=-1)),
    ("session_id", lambda client: client.get_session(None)),
    ("page_size", lambda client: client.sessions(page_size=-1)),
    ("id_prefix", lambda client: client.sessions(id_prefix=b"s")),
    ("min_step", lambda client: client.fork("s", min_step="1")),
    ("min_step", lambda client: client.export("s", min_step=-1)),
    ("record", lambda client: client.import_("junk")),
    ("name", lambda client: client.model(5)),
    ("version", lambda client: client.model("metro", -1)),
]


@pytest.fixture
def session(server: Any) -> Iterator[longshort.Session]:
    with longshort.Client(server.address) as client, client.session(model="metro") as session:
        yield session


@pytest.mark.parametrize(("name", "ask"), WRONG)
def test_argument_of_a_wrong_type_or_range_is_named(name: str, ask: Any):
    with longshort.Client(NOWHERE) as client, pytest.raises(errors.InvalidRequest) as caught:
        list(ask(client) or ())
    assert caught.value.reason == "INVALID_OPTION"
    assert caught.value.message.startswith(f"{name} is ")


@pytest.mark.parametrize(("name", "ask"), WRONG)
def test_argument_of_a_wrong_type_or_range_is_named_to_a_task_too(name: str, ask: Any):
    async def scenario() -> None:
        async with longshort.aio.Client(NOWHERE) as client:
            asked = ask(client)
            if hasattr(asked, "__aiter__"):
                asked = anext(asked)
            await asked

    with pytest.raises(errors.InvalidRequest, match=f"^INVALID_OPTION: {name} is "):
        asyncio.run(scenario())


@pytest.mark.parametrize("name", ["timeout_s", "give_up_s"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), "x", None])
def test_times_of_a_client_are_above_0(name: str, value: Any):
    with pytest.raises(errors.InvalidRequest, match=name):
        longshort.Client(NOWHERE, **{name: value})


def test_timeout_of_a_call_is_above_0_and_a_wrong_one_leaves_the_session_as_it_was(
    session: longshort.Session,
):
    for timeout_s in (0, float("nan"), "x"):
        with pytest.raises(errors.InvalidRequest, match="timeout_s"):
            session.step(1, timeout_s=timeout_s)  # type: ignore[arg-type]
    assert session.step(1, timeout_s=np.float32(20)).shape == (3,)
    assert session.position == 1


def test_timeout_may_be_infinite(server: Any):
    with longshort.Client(server.address, timeout_s=float("inf")) as client:
        assert client.models()
        with client.session(model="metro") as session:
            assert session.step(1).shape == (3,)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "http://127.0.0.1:50051", "localhost:", ":50051", "host:0", "host:70000", "::1:5", 5],
)
def test_address_without_host_and_port_is_refused(address: Any):
    with pytest.raises(errors.InvalidRequest, match="HOST:PORT"):
        longshort.Client(address)


@pytest.mark.parametrize(
    "address", ["localhost:1", "[::1]:1", "a.b-c:65535", "dns:///localhost:1", "unix:/tmp/s"]
)
def test_address_with_host_and_port_or_a_scheme_of_grpc_is_taken(address: str):
    with longshort.Client(address) as client:
        assert client.address == address


@pytest.mark.parametrize("client_id", ["", "a b", "x" * 41, "ü", 5])
def test_client_id_that_no_message_can_carry_is_refused(client_id: Any):
    with pytest.raises(errors.InvalidRequest, match="client_id"):
        longshort.Client(NOWHERE, client_id=client_id)


def test_empty_id_is_none_and_the_client_draws_one(server: Any):
    with longshort.Client(server.address) as client, client.session("", model="metro") as session:
        assert re.fullmatch(r"[0-9a-f-]{36}", session.id)
        assert client.get_session(session.id).step == 0


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda session: session.step("12"), "not text"),
        (lambda session: session.steps(["a", "bc"]), "not text"),
        (lambda session: session.steps([1, None]), "use NaN for a missing value"),
        (lambda session: session.steps(5.0), r"use step\(\)"),
        (lambda session: session.steps([{}]), "not object"),
    ],
)
def test_wrong_values_are_told_in_words_of_people(session: longshort.Session, ask: Any, says: str):
    with pytest.raises(errors.InvalidRequest, match=says):
        ask(session)


def test_session_of_a_task_that_nobody_awaited_says_how(server: Any):
    async def scenario() -> None:
        async with longshort.aio.Client(server.address) as client:
            with pytest.raises(errors.FailedPrecondition, match="await it, or use async with"):
                await client.session(model="metro").step(1)

    asyncio.run(scenario())


def test_row_of_a_refusal_counts_from_the_first_value_of_the_call(session: longshort.Session):
    with pytest.raises(errors.InvalidRequest) as caught:
        session.steps([300.0] * 5000 + [np.inf])
    assert caught.value.metadata["row"] == "5000"
    assert "row 5000" in str(caught.value)
    assert session.position == 4096
    with pytest.raises(errors.InvalidRequest, match="row 1,"):
        session.steps([300, np.inf])
