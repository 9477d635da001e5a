"""SessionService over the wire: looking, listing, reset, fork, export, import, delete, spilling and expiry."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from longshort.v1 import session_pb2, types_pb2
from wire import CREATE, OPEN, Caller, key, refusal_of, refused, values_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Scenario = Callable[[Callable[[Caller], Awaitable[None]]], None]

LIVE, STORED = session_pb2.SESSION_LOCATION_LIVE, session_pb2.SESSION_LOCATION_STORED


@pytest.fixture
def name() -> str:
    return str(uuid.uuid4())


async def get(caller: Caller, name: str, **fields: Any) -> session_pb2.GetSessionResponse:
    request = session_pb2.GetSessionRequest(session=key(name), **fields)
    response = await caller.sessions.GetSession(request)
    assert isinstance(response, session_pb2.GetSessionResponse)
    return response


# -- looking -----


def test_session_is_described(against: Scenario, name: str):
    async def scenario(caller: Caller) -> None:
        stream, opened = await caller.open(name, "adder")
        await stream.step([5, 6], 0)
        found = (await get(caller, name)).session
        assert (found.key.id, found.model, found.version, found.step) == (name, "adder", 1, 2)
        assert (found.incarnation, found.epoch) == (opened.incarnation, opened.epoch)
        assert (found.durable_step, found.location, found.streaming) == (0, LIVE, True)
        assert found.idle.ToTimedelta().total_seconds() == 0
        assert found.fingerprint == opened.fingerprint
        await stream.half_close()
        found = (await get(caller, name)).session
        assert (found.streaming, found.location) == (False, LIVE)
        assert 0 <= found.idle.ToTimedelta().total_seconds() < 20

    against(scenario)


def test_memory_comes_when_asked_for_without_its_batch_axis(run: Callable[..., Any], server: Any, name: str):
    async def scenario() -> None:
        async with Caller(server.address) as caller:
            stream, _ = await caller.open(name, "deep")
            await stream.step([5, 6], 0)
            assert not (await get(caller, name)).memory
            long_term, short_term = (await get(caller, name, include_memory=True)).memory
            assert (long_term.name, short_term.name) == ("c0", "h0")
            for tensor in (long_term, short_term):
                assert list(tensor.shape) == [2, 16]
                assert np.isfinite(np.frombuffer(tensor.data, "<f4")).all()
            # The short-term memory is an output gate times a tanh.
            assert np.abs(np.frombuffer(short_term.data, "<f4")).max() < 1

    run(scenario())


def test_min_step_that_is_not_reached_is_stale(against: Scenario, name: str):
    async def scenario(caller: Caller) -> None:
        await caller.step(name, [5], 0, "adder")
        assert (await get(caller, name, min_step=1)).session.step == 1
        request = session_pb2.GetSessionRequest(session=key(name), min_step=2)
        refusal = await refused(caller.sessions.GetSession(request))
        assert refusal == ("FAILED_PRECONDITION", "STALE")
        assert refusal.metadata == {"step": "1"}

    against(scenario)


def every_call(caller: Caller, session: types_pb2.SessionKey) -> list[Awaitable[Any]]:
    return [
        caller.sessions.GetSession(session_pb2.GetSessionRequest(session=session)),
        caller.sessions.Reset(session_pb2.ResetRequest(session=session)),
        caller.sessions.Fork(session_pb2.ForkRequest(session=session)),
        caller.sessions.Export(session_pb2.ExportRequest(session=session)),
        caller.sessions.Delete(session_pb2.DeleteRequest(session=session)),
    ]


def test_every_call_refuses_a_session_that_is_not_there(against: Scenario, name: str):
    async def scenario(caller: Caller) -> None:
        for call in every_call(caller, key(name)):
            refusal = await refused(call)
            assert refusal == ("NOT_FOUND", "SESSION_NOT_FOUND")
            assert refusal.metadata == {"session_id": name}

    against(scenario)


@pytest.mark.parametrize("session", [key(""), key("a b"), types_pb2.SessionKey(tenant="t", id="s")], ids=str)
def test_every_call_refuses_a_bad_key(against: Scenario, session: types_pb2.SessionKey):
    async def scenario(caller: Caller) -> None:
        for call in every_call(caller, session):
            assert await refused(call) == ("INVALID_ARGUMENT", "INVALID_SESSION_ID")

    against(scenario)


def test_bytes_that_are_no_protobuf_are_malformed(against: Scenario):
    async def scenario(caller: Caller) -> None:
        for method in ("GetSession", "ListSessions", "Reset", "Fork", "Export", "Import", "Delete"):
            call = caller.channel.unary_unary(f"/longshort.v1.SessionService/{method}")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"\xff" * 9)
            assert refusal_of(caught.value) == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE")

    against(scenario)


# -- lists -----


async def pages(caller: Caller, **wanted: Any) -> list[list[str]]:
    found, token = [], ""
    while True:
        request = session_pb2.ListSessionsRequest(page_token=token, **wanted)
        response = await caller.sessions.ListSessions(request)
        found.append([session.key.id for session in response.sessions])
        token = response.next_page_token
        if not token:
            return found


def test_sessions_are_listed_in_pages_by_prefix_and_model(against: Scenario, name: str):
    async def scenario(caller: Caller) -> None:
        ids = [f"{name}-{k}" for k in range(7)]
        for k, session_id in enumerate(ids):
            await caller.step(session_id, [k], 0, "strict" if k % 3 == 0 else "adder")
        found = await pages(caller, id_prefix=name, page_size=3)
        assert [session_id for page in found for session_id in page] == ids
        assert [len(page) for page in found] == [3, 3, 1]
        assert await pages(caller, id_prefix=name) == [ids]
        assert await pages(caller, id_prefix=name, page_size=100_000, model="strict") == [ids[::3]]
        assert await pages(caller, id_prefix=name, model="nobody") == [[]]

    against(scenario)


@pytest.mark.parametrize("token", ["junk!", "not base64 at all", "ä", "/w=="])
def test_foreign_page_token_is_refused(against: Scenario, token: str):
    async def scenario(caller: Caller) -> None:
        request = session_pb2.ListSessionsRequest(page_token=token)
        assert await refused(caller.sessions.ListSessions(request)) == ("INVALID_ARGUMENT", "INVALID_MESSAGE")

    against(scenario)


# -- managing -----


def test_reset_ends_the_stream_and_starts_anew(against: Scenario, name: str):
    async def scenario(caller: Caller) -> None:
        stream, opened = await caller.open(name, "adder", client_id="me")
        await stream.step([5], 0)
        response = await caller.sessions.Reset(session_pb2.ResetRequest(session=key(name)))
        assert (response.session.step, response.session.streaming) == (0, False)
        assert response.session.incarnation not in (0, opened.incarnation)
        end = await stream.end()
        assert end == ("ABORTED", "SESSION_MOVED")
        assert end.metadata == {"cause": "reset", "client_id": ""}
        again, reopened = await caller.open(name, "", mode=OPEN)
        assert (reopened.created, reopened.step) == (False, 0)
        assert reopened.incarnation == response.session.incarnation
        assert list((await again.step([1], 0)).values) == [1]

    against(scenario)


@pytest.mark.parametrize("call", ["reset", "delete"])
def test_call_in_the_middle_of_messages_ends_the_stream_after_an_answer(
    against: Scenario, name: str, call: str
):
    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open(name, "adder")
        for step in range(200):
            await stream.send(values=values_of([1], step))
        assert (await stream.receive()).answer.step == 1
        if call == "reset":
            await caller.sessions.Reset(session_pb2.ResetRequest(session=key(name)))
        else:
            await caller.sessions.Delete(session_pb2.DeleteRequest(session=key(name)))
        answers: list[Any] = []

        async def read_to_the_end() -> None:
            while True:
                answers.append((await stream.receive()).answer)

        assert await refused(read_to_the_end()) == ("ABORTED", "SESSION_MOVED")
        for step, answer in enumerate(answers, start=2):
            assert (answer.step, list(answer.values)) == (step, [step])
        again, opened = await caller.open(name, "adder")
        assert (opened.created, opened.step) == (call == "delete", 0)
        assert list((await again.step([1], 0)).values) == [1]

    against(scenario)


def test_fork_goes_its_own_way(against: Scenario, name: str):
    async def scenario(caller: Caller) -> None:
        stream, opened = await caller.open(name, "adder")
        await stream.step([5], 0)
        request = session_pb2.ForkRequest(session=key(name), fork=key(f"{name}-fork"), min_step=1)
        fork = (await caller.sessions.Fork(request)).session
        assert (fork.key.id, fork.step, fork.streaming) == (f"{name}-fork", 1, False)
        assert fork.incarnation != opened.incarnation
        assert list((await caller.step(f"{name}-fork", [100], 1, "")).answer.values) == [105]
        assert list((await stream.step([1], 1)).values) == [6]
        assert await refused(caller.sessions.Fork(request)) == ("ALREADY_EXISTS", "SESSION_EXISTS")
        unnamed = (await caller.sessions.Fork(session_pb2.ForkRequest(session=key(name)))).session
        assert str(uuid.UUID(unnamed.key.id)) == unnamed.key.id
        assert unnamed.step == 2
        stale = session_pb2.ForkRequest(session=key(name), min_step=9)
        assert await refused(caller.sessions.Fork(stale)) == ("FAILED_PRECONDITION", "STALE")
        bad = session_pb2.ForkRequest(session=key(name), fork=key("a b"))
        assert await refused(caller.sessions.Fork(bad)) == ("INVALID_ARGUMENT", "INVALID_SESSION_ID")

    against(scenario)


def test_exported_session_goes_on_where_it_was_imported(
    run: Callable[..., Any], start_server: Any, adders: Any, name: str
):
    one, other = start_server(models=adders), start_server(models=adders)

    async def scenario() -> None:
        async with Caller(one.address) as here, Caller(other.address) as there:
            stream, opened = await here.open(name, "adder")
            await stream.step([5, 6], 0)
            exported = await here.sessions.Export(session_pb2.ExportRequest(session=key(name), min_step=2))
            assert exported.step == 2
            assert list((await stream.step([1], 2)).values) == [12]
            imported = (
                await there.sessions.Import(session_pb2.ImportRequest(record=exported.record))
            ).session
            assert (imported.key.id, imported.step) == (name, 2)
            assert imported.incarnation != opened.incarnation
            again, _ = await there.open(name, "", mode=OPEN)
            replayed = await again.step([5, 6], 0)
            assert (list(replayed.values), replayed.replayed) == ([5, 11], True)
            assert list((await again.step([1], 2)).values) == [12]

    run(scenario())


def test_what_cannot_be_imported_is_refused(against: Scenario, name: str):
    async def scenario(caller: Caller) -> None:
        await caller.step(name, [5], 0, "adder")
        record = (await caller.sessions.Export(session_pb2.ExportRequest(session=key(name)))).record
        for request, expected in (
            (session_pb2.ImportRequest(record=record), ("ALREADY_EXISTS", "SESSION_EXISTS")),
            (session_pb2.ImportRequest(), ("INVALID_ARGUMENT", "INVALID_RECORD")),
            (session_pb2.ImportRequest(record=record[:-1]), ("INVALID_ARGUMENT", "INVALID_RECORD")),
            (session_pb2.ImportRequest(record=b"x" * 99), ("INVALID_ARGUMENT", "INVALID_RECORD")),
            (
                session_pb2.ImportRequest(session=key("a b"), record=record),
                ("INVALID_ARGUMENT", "INVALID_SESSION_ID"),
            ),
            (
                session_pb2.ImportRequest(session=types_pb2.SessionKey(tenant="t"), record=record),
                ("INVALID_ARGUMENT", "INVALID_SESSION_ID"),
            ),
        ):
            assert await refused(caller.sessions.Import(request)) == expected
        assert list((await caller.step(name, [1], 1, "")).answer.values) == [6]

    against(scenario)


def test_deleted_session_is_gone_and_its_id_free(against: Scenario, name: str):
    async def scenario(caller: Caller) -> None:
        stream, opened = await caller.open(name, "adder")
        await stream.step([5], 0)
        await caller.sessions.Delete(session_pb2.DeleteRequest(session=key(name)))
        end = await stream.end()
        assert end == ("ABORTED", "SESSION_MOVED")
        assert end.metadata == {"cause": "deleted", "client_id": ""}
        assert await caller.refused_open(name, "", mode=OPEN) == ("NOT_FOUND", "SESSION_NOT_FOUND")
        again, reopened = await caller.open(name, "adder", mode=CREATE)
        assert reopened.created
        assert reopened.epoch > opened.epoch
        assert list((await again.step([1], 0)).values) == [1]

    against(scenario)


# -- spilling and expiry -----


async def until_stored(caller: Caller, name: str) -> None:
    deadline_s = time.monotonic() + 10
    while (await get(caller, name)).session.location != STORED:
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.02)


def test_spilled_session_is_the_same_to_every_caller(run: Callable[..., Any], tight_server: Any, name: str):
    """Bit for bit, with its stored answer and its last value; a look does not bring it back."""

    async def scenario() -> None:
        async with asyncio.timeout(20), Caller(tight_server.address) as caller:
            stream, opened = await caller.open(name, "metro")
            twin, _ = await caller.open(f"{name}-twin", "metro")  # keeps its stream, and so its row
            first = await stream.step([5, 6], 0)
            assert (await twin.step([5, 6], 0)).values == first.values
            memory = (await get(caller, name, include_memory=True)).memory
            await stream.half_close()
            await until_stored(caller, name)
            looked = await get(caller, name, include_memory=True)
            assert [tensor.data for tensor in looked.memory] == [tensor.data for tensor in memory]
            assert not looked.session.streaming
            assert 0 < looked.session.idle.ToTimedelta().total_seconds() < 20
            assert (await get(caller, name)).session.location == STORED
            again, reopened = await caller.open(name, "", mode=OPEN)
            assert (reopened.step, reopened.incarnation) == (2, opened.incarnation)
            assert reopened.epoch > opened.epoch
            replayed = await again.step([5, 6], 0)
            assert replayed.replayed
            assert replayed.values == first.values
            for step in range(2, 5):
                missing = float("nan")
                assert (await again.step([missing], step)).values == (await twin.step([missing], step)).values

    run(scenario())


def test_unary_calls_bring_a_spilled_session_back(run: Callable[..., Any], tight_server: Any, name: str):
    async def scenario() -> None:
        async with asyncio.timeout(20), Caller(tight_server.address) as caller:
            await caller.step(name, [5, 6], 0)
            await until_stored(caller, name)
            assert (await caller.step(name, [7], 2)).answer.step == 3
            await until_stored(caller, name)
            fork = (await caller.sessions.Fork(session_pb2.ForkRequest(session=key(name)))).session
            assert (fork.step, fork.location) == (3, LIVE)
            reset = (await caller.sessions.Reset(session_pb2.ResetRequest(session=key(name)))).session
            assert reset.step == 0

    run(scenario())


def test_expired_session_says_so_until_it_is_forgotten(
    run: Callable[..., Any], start_server: Any, adders: Any
):
    limits = "--session-ttl 200ms --tombstone-ttl 2500ms --idle-timeout 200ms"
    server = start_server(*limits.split(), models=adders)

    async def scenario() -> None:
        async with asyncio.timeout(30), Caller(server.address) as caller:
            streaming, _ = await caller.open("streaming", "adder")
            for name in ("a", "b", "c"):
                await caller.step(name, [5], 0, "adder")
            await until_state(caller, "c", "SESSION_EXPIRED")
            expired = ("NOT_FOUND", "SESSION_EXPIRED")
            assert await caller.refused_open("a", "adder") == expired  # never a silent start from zero
            assert await caller.refused_open("a", "", mode=OPEN) == expired
            assert await refused(caller.step("a", [1], 1, "adder")) == expired
            for call in every_call(caller, key("b")):
                assert await refused(call) == expired
            assert (await caller.open("a", "adder", mode=CREATE))[1].created
            assert (await streaming.step([1], 0)).step == 1  # an open stream is use
            assert await pages(caller) == [["a", "streaming"]]
            await until_state(caller, "b", "SESSION_NOT_FOUND")
            assert (await caller.open("b", "adder"))[1].created

    run(scenario())


async def state_of(caller: Caller, name: str) -> str:
    """Return that a session is there, or the reason why it is not."""
    try:
        await get(caller, name)
    except grpc.aio.AioRpcError as error:
        return refusal_of(error).reason
    return "THERE"


async def until_state(caller: Caller, name: str, state: str) -> None:
    """Wait until a session is in a state."""
    for _ in range(500):
        if await state_of(caller, name) == state:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{name} is {await state_of(caller, name)}")
