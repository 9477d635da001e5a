"""Histories that the rules of durable sessions are there for. Each is told in its docstring, line by line.

Two services, A and B, over one store; c and d are clients. `docs/guarantees.md` has a picture of each.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
import valkey
from faulty_server import FaultyServers, faulty_servers
from histories import CLIENT_ID, NONE, Follower, SessionLostError, SessionReplacedError, StoreCaller
from histories_backend import BackendLine
from inside import service, until
from longshort.v1 import sequence_pb2, session_pb2
from program import ROOT
from wire import CREATE, OPEN, assert_goes_on, key, refusal_of, refused, values_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from longshort_service.app import App
    from longshort_service.repository import Model
    from longshort_service.session import Session
    from valkey import Valkey
    from wire import Caller, Refusal

    Run = Callable[..., Any]

MOVED = ("ABORTED", "SESSION_MOVED")
VALUES = np.arange(1, 13, dtype=np.float32)
TOTALS = [total.tobytes() for total in np.cumsum(VALUES)]
PATIENCE_S = 20.0
# Nothing is stored but what is asked for, unless a history says otherwise.
SELDOM = {"checkpoint_interval_s": 60.0, "checkpoint_steps": 1000}
SOON = {"checkpoint_interval_s": 0.01}


@pytest.fixture(scope="module")
def servers(adders: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyServers]:
    with faulty_servers(adders, tmp_path_factory.mktemp("log") / "faulty.log") as running:
        yield running


@pytest.fixture(scope="module")
def shared_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    running = valkey.start(tmp_path_factory.mktemp("valkey"), appendonly=True, appendfsync="always")
    yield running
    running.stop()


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store of the test's own."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/sessions.db"
    running = request.getfixturevalue("shared_valkey")
    running.call("FLUSHALL")
    return str(running.url)


@asynccontextmanager
async def two(
    models: Path, url: str, **settings: Any
) -> AsyncIterator[tuple[tuple[App, StoreCaller], tuple[App, StoreCaller]]]:
    """Two services over one store, each with a caller."""
    async with (
        asyncio.timeout(PATIENCE_S),
        service(models, store=url, **(SELDOM | settings)) as (app_a, _),
        service(models, store=url, **(SELDOM | settings)) as (app_b, _),
        StoreCaller(f"127.0.0.1:{app_a.grpc_port}") as a,
        StoreCaller(f"127.0.0.1:{app_b.grpc_port}") as b,
    ):
        yield (app_a, a), (app_b, b)


def live_at(app: App) -> Session[Model]:
    """Return the session, which is live at a service."""
    live = app._keeper.table.get("s")
    assert live is not None
    return live


def follower(
    session_id: str = "s", sizes: tuple[int, ...] = (1, 2, 1, 3, 1, 1, 2, 1), **fields: Any
) -> Follower:
    return Follower(session_id, "adder", VALUES, sizes, **fields)


# -- one client, one server at a time --------------------------------------------------------------------------------


def test_a_lost_answer_is_given_again(run: Run, adders: Path, url: str):
    """The answer is lost on its way, and the server is as it was.

    c -> A: values at 3, 3 of them; A applies them and stands at 6
    A -> c: the answer, which is lost with the stream
    c -> A: opens; E = 6 > A = 3: the end of its unanswered message
    c -> A: the same message again; A -> c: the stored answer, replayed
    """

    async def scenario() -> None:
        async with two(adders, url) as ((app, a), _):
            c = follower(sizes=(1, 2, 3, 6))
            stream, step = await c.open(a)
            await c.go_on(stream, step, 3)
            c.unanswered = (3, 6)
            await stream.send(values=values_of(VALUES[3:6].tolist(), 3))
            live = live_at(app)
            await until(lambda: live.step == 6)
            stream.call.cancel()
            stream, step = await c.open(a)
            assert step == 3
            await c.go_on(stream, step)
            assert (c.num_replays, c.answers) == (1, TOTALS)

    run(scenario())


def test_values_are_sent_again_from_the_stored_step(run: Run, servers: FaultyServers, url: str):
    """The server dies behind its answers, and the client cuts what it sends again in another way.

    c -> A: values up to 4, stored; values up to 9, answered and not stored; A dies
    c -> B: opens; E = 4 < A = 9, and values are kept from 4 on
    c -> B: the values from 4 on, in messages of other lengths; the answers up to 9 are those that it has
    """
    settings = SELDOM | {"store": url}

    async def scenario() -> None:
        c = follower()
        first = servers.start(**settings)
        async with asyncio.timeout(PATIENCE_S), StoreCaller(first.address) as a:
            stream, step = await c.open(a)
            step = await c.go_on(stream, step, 4)
            await c.flush(stream)
            await c.go_on(stream, step, 9)
            servers.kill(first)
        second = servers.start(**settings)
        async with asyncio.timeout(PATIENCE_S), StoreCaller(second.address) as b:
            stream, step = await c.open(b)
            assert step == 4
            await c.send(stream, 4, 6)
            await c.send(stream, 6, 12)
            assert c.answers == TOTALS
        servers.kill(second)

    run(scenario())


def test_a_replay_with_other_boundaries_is_refused(run: Run, adders: Path, url: str):
    """A client forgets how it had cut its values.

    c -> A: 1 2 at 0, 3 at 2
    c -> A: 2 3 at 1 (straddles), 1 at 0 (a part), 1 2 3 at 0 (both): STEP_CONFLICT, nothing moves
    """

    async def scenario() -> None:
        async with two(adders, url) as ((_, a), _):
            stream, _ = await a.open("s")
            await stream.step([1, 2], 0)
            await stream.step([3], 2)
            for step, values in [(1, [2, 3]), (0, [1]), (0, [1, 2, 3])]:
                refusal = await stream.error(values=values_of(values, step))
                assert refusal == ("FAILED_PRECONDITION", "STEP_CONFLICT")
                assert refusal.metadata["expected_step"] == "3"
            await assert_goes_on(stream, 3, 6)

    run(scenario())


def test_unnumbered_values_after_a_crash_are_refused(run: Run, servers: FaultyServers, url: str):
    """Whether a value without a number is the next one, only a server that has seen the last one knows.

    c -> A: values, the last of them not stored; A dies
    d -> B: opens; a value without a number: STEP_REQUIRED; the same with its number is applied
    """
    settings = SELDOM | {"store": url}

    async def scenario() -> None:
        first = servers.start(**settings)
        async with asyncio.timeout(PATIENCE_S), StoreCaller(first.address) as a:
            stream, _ = await a.open("s")
            await stream.step([1, 2], 0)
            await stream.flush()
            await stream.step([3])
            servers.kill(first)
        second = servers.start(**settings)
        async with asyncio.timeout(PATIENCE_S), StoreCaller(second.address) as b:
            stream, opened = await b.open("s", mode=OPEN)
            assert (opened.step, opened.durable_step) == (2, 2)
            assert await stream.error(values=values_of([3])) == ("FAILED_PRECONDITION", "STEP_REQUIRED")
            await assert_goes_on(stream, 2, 3)
        servers.kill(second)

    run(scenario())


def test_unnumbered_values_after_a_half_close_are_applied(run: Run, adders: Path, url: str):
    """A stream that was left well has its last step stored, as such.

    c -> A: values without numbers; half-closes; A stores the last step and that it is the last
    c -> B: opens, and goes on without a number
    """

    async def scenario() -> None:
        async with two(adders, url) as ((app, a), (_, b)):
            stream, _ = await a.open("s")
            await stream.step([1, 2])
            await stream.leave()
            live = live_at(app)
            await until(lambda: live.durable_step == 2)
            stream, opened = await b.open("s", mode=OPEN)
            assert opened.step == 2
            assert list((await stream.step([3])).values) == [6]

    run(scenario())


# -- two writers, two servers ----------------------------------------------------------------------------------------


def test_two_writers_are_told(run: Run, adders: Path, url: str):
    """Two programs believe that a session is theirs.

    c -> A: 1 at 0
    d -> A: 5 at 0, by a unary call: VALUES_DIFFER; nothing moves
    """

    async def scenario() -> None:
        async with two(adders, url) as ((_, a), _):
            stream, _ = await a.open("s")
            await stream.step([1], 0)
            refusal = await refused(a.step("s", [5], 0, "adder"))
            assert refusal == ("FAILED_PRECONDITION", "VALUES_DIFFER")
            await assert_goes_on(stream, 1, 1)

    run(scenario())


def test_an_opening_after_a_checkpoint_is_given_it(run: Run, adders: Path, url: str):
    """The checkpoint is first.

    A -> store: step 2, accepted, and A has not heard so yet
    d -> B: opens; is given step 2 and goes on to 3
    A hears that step 2 is stored; its next write is refused; c's stream ends with SESSION_MOVED and d's client_id
    """

    async def scenario() -> None:
        async with two(adders, url, **SOON) as ((app, a), (_, b)):
            stream, _ = await a.open("s", client_id="c")
            async with BackendLine.of(app).holding("write", after=True) as hold:
                await stream.step([1, 2], 0)
                await hold.arrival()
                moved, opened = await b.open("s", mode=OPEN, client_id="d")
                assert (opened.step, opened.created) == (2, False)
                await assert_goes_on(moved, 2, 3)
            end = await stream.refusal(values=values_of([9], 2))
            assert (end, end.metadata["client_id"]) == (MOVED, "d")
            await moved.flush()
            assert (await b.described()).step == 3

    run(scenario())


def test_a_checkpoint_after_an_opening_is_refused(run: Run, adders: Path, url: str):
    """The opening is first.

    A copies step 2 for the store
    d -> B: opens; is given step 0, the session's birth, and sends its own values
    A -> store: step 2 under an old epoch, refused; c's stream ends with SESSION_MOVED; the store has what B wrote
    """

    async def scenario() -> None:
        async with two(adders, url, **SOON) as ((app, a), (_, b)):
            stream, _ = await a.open("s", client_id="c")
            async with BackendLine.of(app).holding("write") as hold:
                await stream.step([1, 2], 0)
                await hold.arrival()
                moved, opened = await b.open("s", mode=OPEN, client_id="d")
                assert opened.step == 0
                await moved.step([7], 0)
                await moved.flush()
            end = await stream.refusal()
            assert (end, end.metadata["client_id"]) == (MOVED, "d")
            assert app._keeper.table.get("s") is None
            await assert_goes_on(moved, 1, 7)

    run(scenario())


def test_a_checkpoint_that_its_own_server_superseded_is_no_loss(run: Run, adders: Path, url: str):
    """The server that writes is the one that opens.

    c -> A: opens again; A raises the epoch in the store and has not heard so yet
    A copies step 2 under the epoch of before; hears of the raise; the write is refused
    A keeps the session: its epoch is another by now; it writes again
    """

    async def scenario() -> None:
        async with two(adders, url) as ((app, a), _):
            stream, opened = await a.open("s")
            await stream.step([1, 2], 0)
            live = live_at(app)
            async with BackendLine.of(app).holding("open_many", after=True) as opening:
                again = asyncio.create_task(a.open("s", mode=OPEN))
                await opening.arrival()
                app._checkpointer.leave([live])
                await until(
                    lambda: live.model.columns.is_writing[live.row] or app._checkpointer._writer._judging
                )
            stream, reopened = await again
            assert (reopened.epoch > opened.epoch, reopened.step) == (True, 2)
            assert await stream.flush() == 2
            await assert_goes_on(stream, 2, 3)

    run(scenario())


@pytest.mark.parametrize("servers_apart", [False, True], ids=["one-server", "two-servers"])
def test_an_opening_that_is_delivered_twice_is_known_as_the_client_s_own(
    run: Run, adders: Path, url: str, *, servers_apart: bool
):
    """A proxy believes that an opening came to nothing and delivers it again.

    c -> A: opens; the proxy -> A or B: the same opening
    the first stream ends with SESSION_MOVED and c's own client_id: c reopens, instead of giving up
    """

    async def scenario() -> None:
        async with two(adders, url, **SOON) as ((_, a), (_, b)):
            first, opened = await a.open("s", client_id=CLIENT_ID)
            second, again = await (b if servers_apart else a).open("s", client_id=CLIENT_ID)
            assert again.epoch > opened.epoch
            assert (opened.created, again.created) == (True, False)
            end = await first.refusal(values=values_of([1], 0))
            assert (end, end.metadata["client_id"]) == (MOVED, CLIENT_ID)
            await assert_goes_on(second, again.step, 0)

    run(scenario())


def test_a_frozen_owner_that_returns_is_fenced(run: Run, servers: FaultyServers, url: str):
    """The server is frozen for longer than the session lives; there is another of its name when it returns.

    c -> A: values, stored; A is frozen (SIGSTOP); a value and a flush are on their way
    d -> B: opens, goes on, half-closes; nobody uses the session, and it expires
    d -> B: creates it anew
    A goes on (SIGCONT): what it writes is refused; c's stream ends with SESSION_MOVED; the new session is untouched
    """
    soon_gone = {"idle_timeout_s": 0.1, "session_ttl_s": 0.5}

    async def scenario() -> None:
        # It writes when it is told to: frozen within a transaction it would keep SQLite's lock.
        frozen = servers.start(store=url, **SELDOM)
        second = servers.start(store=url, **SOON, **soon_gone)
        async with (
            asyncio.timeout(PATIENCE_S),
            StoreCaller(frozen.address) as a,
            StoreCaller(second.address) as b,
        ):
            stream, old = await a.open("s")
            await stream.step([1, 2], 0)
            await stream.flush()
            frozen.send(signal.SIGSTOP)
            await stream.send(values=values_of([100], 2))
            await stream.send(flush=sequence_pb2.Flush())
            moved, opened = await b.open("s", mode=OPEN)
            assert opened.step == 2
            await moved.step([3], 2)
            await moved.leave()
            while (refusal := await refusal_to_read(b)) is None:  # noqa: ASYNC110  it is in another process
                await asyncio.sleep(0.05)
            assert refusal.reason == "SESSION_EXPIRED"
            moved, new = await b.open("s", mode=CREATE)
            assert new.epoch > opened.epoch > old.epoch
            assert new.incarnation != old.incarnation
            await moved.step([7], 0)
            frozen.send(signal.SIGCONT)
            assert await stream.refusal() == MOVED
            await moved.flush()
            found = await b.described()
            assert (found.step, found.incarnation, found.epoch) == (1, new.incarnation, new.epoch)
            await assert_goes_on(moved, 1, 7)
        servers.kill(frozen)
        servers.kill(second)

    run(scenario())


async def refusal_to_read(caller: Caller) -> Refusal | None:
    """Return why a session cannot be read, None where it can."""
    request = session_pb2.GetSessionRequest(session=key("s"))
    try:
        await caller.sessions.GetSession(request)
    except grpc.aio.AioRpcError as error:
        return refusal_of(error)
    return None


# -- the store -------------------------------------------------------------------------------------------------------


def test_memory_is_believed_without_the_store_by_the_client_of_its_epoch_only(
    run: Run, adders: Path, url: str
):
    """A is cut off from the store, which others reach.

    c -> A: values up to 2, stored under epoch e; A loses the store; values up to 4, in memory
    c -> A: opens, with e: A holds e, nobody can have got further; E = 4
    c -> B: opens, with e': raised to e''; E = 2; c goes on to 6, stored
    the proxy sends c back -> A: opens, with e'': A's memory is old: STORE_UNAVAILABLE, no step below what c keeps
    A has the store again: E = 6
    """

    async def scenario() -> None:
        async with two(adders, url, **SOON) as ((app, a), (_, b)):
            c = follower(sizes=(1,) * 12)
            line = BackendLine.of(app)
            stream, step = await c.open(a)
            step = await c.go_on(stream, step, 2)
            await c.flush(stream)
            line.is_cut = True
            await c.go_on(stream, step, 4)
            await until(lambda: app._checkpointer.outage.is_away)
            stream.call.cancel()
            stream, step = await c.open(a)
            assert step == 4
            stream.call.cancel()
            stream, step = await c.open(b)
            assert step == 2
            step = await c.go_on(stream, step, 6)
            await c.flush(stream)
            assert await a.refused_open("s", "adder", mode=OPEN, epoch=c.epoch) == (
                "UNAVAILABLE",
                "STORE_UNAVAILABLE",
            )
            line.is_cut = False
            await until(lambda: not app._checkpointer.outage.is_away)
            stream, step = await c.open(a)
            assert step == 6
            await c.go_on(stream, step)
            assert c.answers == TOTALS

    run(scenario())


def test_epochs_are_not_used_again_by_a_store_that_went_back(run: Run, adders: Path, tmp_path: Path):
    """Valkey crashes and loses its last second, in which a session was opened.

    c -> A: opens (e1), values up to 2, durable; opens again (e2), values up to 4, not durable
    Valkey is killed, and starts as it was before e2
    d -> B: opens; its epoch is above e2, which the store does not know
    A's write under e2 is refused; c's stream ends; c opens at B: nothing that was called durable is missing
    """
    store = valkey.start(tmp_path / "valkey", appendonly=True)
    kept = tmp_path / "kept"

    async def scenario() -> None:
        async with two(adders, store.url, checkpoint_interval_s=1.5) as ((app, a), (_, b)):
            c = follower(sizes=(1,) * 12)
            stream, step = await c.open(a)
            step = await c.go_on(stream, step, 2)
            await c.flush(stream)
            await stream.leave()
            await asyncio.to_thread(shutil.copytree, store.folder / "appendonlydir", kept)
            stream, step = await c.open(a)
            store.kill()
            await c.go_on(stream, step, 4)
            shutil.rmtree(store.folder / "appendonlydir")
            shutil.copytree(kept, store.folder / "appendonlydir")
            await asyncio.to_thread(store.restart)
            await until(lambda: not app._checkpointer.outage.is_away)
            seen = c.epoch
            d, opened = await b.open("s", mode=OPEN, client_id="d")
            assert opened.epoch > seen
            assert opened.step == 2
            assert await stream.refusal() == MOVED
            await d.leave()
            stream, step = await c.open(b)
            assert step == 2
            await c.go_on(stream, step)
            assert c.answers == TOTALS

    try:
        run(scenario())
    finally:
        store.kill()


def test_a_drained_session_goes_on_elsewhere_whatever_its_durability(
    run: Run, servers: FaultyServers, url: str
):
    """A server is stopped in good order; its sessions keep nothing on the way.

    c -> A: values up to 7 of a session with NONE; A is told to end (SIGTERM)
    A stores the session, then ends its stream with DRAINING
    c -> B: opens at once; E = 7: nothing is missing
    """

    async def scenario() -> None:
        first, second = (servers.start(store=url, **SELDOM) for _ in range(2))
        c = follower(durability=NONE)
        async with (
            asyncio.timeout(PATIENCE_S),
            StoreCaller(first.address) as a,
            StoreCaller(second.address) as b,
        ):
            stream, step = await c.open(a)
            assert c.durability == NONE
            step = await c.go_on(stream, step, 7)
            first.send(signal.SIGTERM)
            assert await stream.refusal() == ("UNAVAILABLE", "DRAINING")
            stream, step = await c.open(b)
            assert step == 7
            await c.go_on(stream, step)
            assert c.answers == TOTALS
        assert servers.wait(first) == 0
        servers.kill(second)

    run(scenario())


def test_a_crash_under_none_is_told(run: Run, servers: FaultyServers, url: str):
    """What NONE loses, it does not hide.

    c -> A: values up to 7 of a session with NONE; A dies
    c -> B: opens; E = 0, the session's birth, below all that c keeps: the session is lost, and c knows it
    """

    async def scenario() -> None:
        first, second = (servers.start(store=url, **SELDOM) for _ in range(2))
        c = follower(durability=NONE)
        async with (
            asyncio.timeout(PATIENCE_S),
            StoreCaller(first.address) as a,
            StoreCaller(second.address) as b,
        ):
            stream, step = await c.open(a)
            await c.go_on(stream, step, 7)
            servers.kill(first)
            with pytest.raises(SessionLostError):
                await c.open(b)
        servers.kill(second)

    run(scenario())


# -- managing sessions that are live elsewhere -----------------------------------------------------------------------


def test_a_session_that_is_deleted_elsewhere_ends(run: Run, adders: Path, url: str):
    """c -> A: values; d -> B: deletes the session; A's next write is refused: c's stream ends, cause deleted."""

    async def scenario() -> None:
        async with two(adders, url, **SOON) as ((_, a), (_, b)):
            c = follower()
            stream, step = await c.open(a)
            step = await c.go_on(stream, step, 4)
            await b.sessions.Delete(session_pb2.DeleteRequest(session=key("s")))
            end = await stream.refusal(values=values_of(VALUES[4:7].tolist(), 4))
            assert (end, end.metadata["cause"]) == (MOVED, "deleted")
            with pytest.raises(SessionLostError):
                await c.open(a)

    run(scenario())


def test_a_session_that_is_made_anew_where_it_was_live_ends_the_old_stream(run: Run, adders: Path, url: str):
    """The owner learns from the new session that the old one has ended.

    c -> A: values; d -> B: deletes the session
    d -> A: creates it anew, A has not noticed yet; c's stream ends with SESSION_MOVED; the new session is untouched
    """

    async def scenario() -> None:
        async with two(adders, url) as ((_, a), (_, b)):
            stream, old = await a.open("s")
            await stream.step([1], 0)
            await b.sessions.Delete(session_pb2.DeleteRequest(session=key("s")))
            anew, new = await a.open("s", mode=CREATE)
            assert (new.step, new.incarnation != old.incarnation) == (0, True)
            end = await stream.refusal(values=values_of([100]))
            assert (end, end.metadata["cause"]) == (MOVED, "deleted")
            await assert_goes_on(anew, 0, 0)

    run(scenario())


def test_a_fork_takes_the_place_of_a_session_that_was_deleted_elsewhere(run: Run, adders: Path, url: str):
    """c -> A: s and t; d -> B: deletes t; d -> A: forks s as t; c's stream of t ends, the fork is untouched."""

    async def scenario() -> None:
        async with two(adders, url) as ((_, a), (_, b)):
            source, _ = await a.open("s")
            await source.step([1, 2], 0)
            stream, _ = await a.open("t")
            await stream.step([100], 0)
            await b.sessions.Delete(session_pb2.DeleteRequest(session=key("t")))
            await a.sessions.Fork(session_pb2.ForkRequest(session=key("s"), fork=key("t")))
            end = await stream.refusal(values=values_of([100]))
            assert (end, end.metadata["cause"]) == (MOVED, "deleted")
            forked, opened = await a.open("t", mode=OPEN)
            assert opened.step == 2
            await assert_goes_on(forked, 2, 3)

    run(scenario())


def test_a_session_that_is_reset_elsewhere_is_another(run: Run, adders: Path, url: str):
    """c -> A: values; d -> B: resets the session; c's stream ends; c opens: another incarnation, SessionReplaced."""

    async def scenario() -> None:
        async with two(adders, url, **SOON) as ((_, a), (_, b)):
            c = follower()
            stream, step = await c.open(a)
            step = await c.go_on(stream, step, 4)
            await b.sessions.Reset(session_pb2.ResetRequest(session=key("s")))
            assert await stream.refusal(values=values_of(VALUES[4:7].tolist(), 4)) == MOVED
            with pytest.raises(SessionReplacedError):
                await c.open(a)
            assert (await b.described()).step == 0

    run(scenario())


def test_a_fork_goes_its_own_way(run: Run, adders: Path, url: str):
    """c -> A: values; d -> A: forks the live session; both go on, each on its own, also elsewhere."""

    async def scenario() -> None:
        async with two(adders, url) as ((_, a), (_, b)):
            stream, _ = await a.open("s")
            await stream.step([1, 2], 0)
            await a.sessions.Fork(session_pb2.ForkRequest(session=key("s"), fork=key("t")))
            forked, opened = await b.open("t", mode=OPEN)
            assert opened.step == 2  # stored before the call was answered
            await assert_goes_on(forked, 2, 3)
            await assert_goes_on(stream, 2, 3)

    run(scenario())


def test_an_open_stream_keeps_its_session_alive(run: Run, adders: Path, url: str):
    """An open stream is use, also for the server that does not have it.

    c -> A: opens s, and says nothing for longer than a session lives; t is left
    B sweeps: t expires, s does not
    """
    lives = {"session_ttl_s": 1.0, "idle_timeout_s": 0.2}

    async def scenario() -> None:
        async with two(adders, url, **lives) as ((_, a), (_, b)):
            stream, _ = await a.open("s")
            await stream.step([1], 0)
            left, _ = await a.open("t")
            await left.leave()
            await asyncio.sleep(1.6)
            assert (await b.refused_open("t", "adder", mode=OPEN)).reason == "SESSION_EXPIRED"
            await assert_goes_on(stream, 1, 1)

    run(scenario())


def test_every_history_has_its_picture():
    told = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "guarantees.md").read_text()))
    here = {name for name in globals() if name.startswith("test_")}
    assert told == here - {"test_every_history_has_its_picture"}
