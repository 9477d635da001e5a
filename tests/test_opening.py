"""Opening a session on a stream: what is refused, and who has the session then."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from longshort.v1 import sequence_pb2, types_pb2
from wire import CREATE, OPEN, Caller, assert_goes_on, refusal_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Scenario = Callable[[Callable[[Caller], Awaitable[None]]], None]


# -- opening -----

BAD_OPENINGS: dict[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "unknown model": ({"model": "nobody"}, ("NOT_FOUND", "MODEL_NOT_FOUND")),
    "model of a long name": ({"model": "x" * 4000}, ("NOT_FOUND", "MODEL_NOT_FOUND")),
    "no model": ({"model": ""}, ("NOT_FOUND", "MODEL_NOT_FOUND")),
    "unknown version": ({"version": 2}, ("NOT_FOUND", "MODEL_NOT_FOUND")),
    "space in the id": ({"session_id": "a b"}, ("INVALID_ARGUMENT", "INVALID_SESSION_ID")),
    "foreign letters": ({"session_id": "zähler"}, ("INVALID_ARGUMENT", "INVALID_SESSION_ID")),
    "line end": ({"session_id": "a\n"}, ("INVALID_ARGUMENT", "INVALID_SESSION_ID")),
    "long id": ({"session_id": "x" * 257}, ("INVALID_ARGUMENT", "INVALID_SESSION_ID")),
    "unknown session": ({"session_id": "nobody", "mode": OPEN}, ("NOT_FOUND", "SESSION_NOT_FOUND")),
    "mode that means nothing": ({"mode": 99}, ("INVALID_ARGUMENT", "INVALID_MESSAGE")),
    "long client id": ({"client_id": "x" * 65}, ("INVALID_ARGUMENT", "INVALID_MESSAGE")),
}


@pytest.mark.parametrize("what", BAD_OPENINGS)
def test_bad_opening_ends_the_stream_and_makes_no_session(against: Scenario, what: str):
    fields, expected = BAD_OPENINGS[what]

    async def scenario(caller: Caller) -> None:
        session_id = str(uuid.uuid4())
        refusal = await caller.refused_open(**({"session_id": session_id, "model": "adder"} | fields))
        assert refusal == expected
        assert refusal.retry_delay_s is None
        stream, opened = await caller.open(session_id, "adder", mode=CREATE)
        assert opened.created
        await assert_goes_on(stream, 0, 0)

    against(scenario)


def test_tenant_is_refused(against: Scenario):
    async def scenario(caller: Caller) -> None:
        named = sequence_pb2.Open(session=types_pb2.SessionKey(tenant="t", id="a"), model="adder")
        assert await caller.stream().end(open=named) == ("INVALID_ARGUMENT", "INVALID_SESSION_ID")
        unnamed = sequence_pb2.Open(session=types_pb2.SessionKey(tenant="t"), model="adder")
        assert await caller.stream().end(open=unnamed) == ("INVALID_ARGUMENT", "INVALID_SESSION_ID")

    against(scenario)


def test_longest_ids_are_taken(against: Scenario):
    async def scenario(caller: Caller) -> None:
        name = "~!" + "x" * 254
        _, opened = await caller.open(name, "adder", client_id="c" * 64)
        assert opened.session.id == name

    against(scenario)


@pytest.mark.parametrize(
    "fields", [{"model": "strict"}, {"model": "adder", "version": 2}, {"model": "nobody"}]
)
@pytest.mark.parametrize("is_streaming", [True, False])
def test_session_is_not_opened_with_another_model(
    against: Scenario, fields: dict[str, Any], *, is_streaming: bool
):
    async def scenario(caller: Caller) -> None:
        stream, opened = await caller.open("", "adder")
        await stream.step([5], 0)
        if not is_streaming:
            await stream.half_close()
        refusal = await caller.refused_open(opened.session.id, **fields)
        assert refusal == ("FAILED_PRECONDITION", "MODEL_MISMATCH")
        assert refusal.metadata == {"model": "adder", "version": "1"}
        if not is_streaming:
            stream, _ = await caller.open(opened.session.id, "")
        await assert_goes_on(stream, 1, 5)  # where a stream had it, that stream still has it

    against(scenario)


def test_create_refuses_what_is_there_and_does_not_disturb_it(against: Scenario):
    async def scenario(caller: Caller) -> None:
        stream, opened = await caller.open("", "adder", mode=CREATE)
        await stream.step([5], 0)
        refusal = await caller.refused_open(opened.session.id, "adder", mode=CREATE)
        assert refusal == ("ALREADY_EXISTS", "SESSION_EXISTS")
        await assert_goes_on(stream, 1, 5)

    against(scenario)


def test_create_whose_answer_was_lost_learns_that_the_session_is_its_own(against: Scenario):
    async def scenario(caller: Caller) -> None:
        stream, opened = await caller.open("", "adder", mode=CREATE, client_id="mine")
        await stream.half_close()
        again = await caller.refused_open(opened.session.id, "adder", mode=CREATE, client_id="mine")
        assert again.metadata == {"session_id": opened.session.id, "client_id": "mine"}

    against(scenario)


# -- who has the session -----


@pytest.mark.parametrize("newcomer", ["me", "somebody", ""])
def test_newer_stream_takes_the_session_and_the_older_learns_whose_it_is(against: Scenario, newcomer: str):
    async def scenario(caller: Caller) -> None:
        older, opened = await caller.open("", "adder", client_id="me")
        await older.step([5], 0)
        newer, reopened = await caller.open(opened.session.id, "", client_id=newcomer)
        assert (reopened.created, reopened.step) == (False, 1)
        end = await older.end()
        assert end == ("ABORTED", "SESSION_MOVED")
        assert end.metadata == {"cause": "opened", "client_id": newcomer}
        assert end.retry_delay_s is None
        await assert_goes_on(newer, 1, 5)

    against(scenario)


def test_two_clients_that_fight_for_a_session_never_apply_a_value_twice(against: Scenario):
    async def scenario(caller: Caller) -> None:
        session_id, num_moves = str(uuid.uuid4()), 0

        async def advance(goal: int) -> None:
            stream, opened = await caller.open(session_id, "adder")
            step = opened.step
            while step < goal:
                step = (await stream.step([1], step)).step

        async def fight(goal: int) -> None:
            nonlocal num_moves
            while True:
                try:
                    return await advance(goal)
                except grpc.aio.AioRpcError as error:
                    num_moves += 1
                    # A write that meets the stream's end in grpc.aio's client loses the status that came with it.
                    is_lost = error.code() is grpc.StatusCode.INTERNAL and "execute_batch" in str(error)
                    if not is_lost and refusal_of(error) != ("ABORTED", "SESSION_MOVED"):
                        raise
                await asyncio.sleep(0.002)

        await asyncio.gather(fight(300), fight(300), fight(300))
        assert num_moves > 0
        stream, opened = await caller.open(session_id, "adder")
        assert opened.step == 300
        await assert_goes_on(stream, 300, 300)

    against(scenario)
