"""Either client over several replicas that stop, drain, refuse and end streams: the caller sees a pause."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import longshort
import pytest
from longshort import errors, operations
from longshort.addresses import parsed
from longshort.attempts import Attempts
from longshort.patience import Patience
from longshort.placement import Placement
from longshort.route import Route
from longshort.servers import FAILURE_INTERVAL_S, Servers
from longshort.v1 import session_pb2, session_pb2_grpc
from replicas import BEHIND, SYNC, UNSTORED, Replica, Store, answers_to

if TYPE_CHECKING:
    from collections.abc import Iterator

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
VALUES = [float(value) for value in range(1, 13)]


class Awaited:
    """The async client with the methods of the sync one, on a loop of its own: one test for both."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._made(*arguments, **options))

    async def _made(self, *arguments: Any, **options: Any) -> longshort.aio.Client:
        return longshort.aio.Client(*arguments, **options)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    def session(self, *arguments: Any, **options: Any) -> Any:
        async def opened() -> Any:
            return await self._client.session(*arguments, **options)

        return AwaitedSession(self._runner, self._runner.run(opened()))

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: self._runner.run(
            getattr(self._client, name)(*arguments, **options)
        )


class AwaitedSession:
    def __init__(self, runner: asyncio.Runner, session: longshort.aio.Session) -> None:
        self._runner, self._session = runner, session

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._session.close())

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._session, name)
        if not callable(attribute):
            return attribute
        return lambda *arguments, **options: self._runner.run(attribute(*arguments, **options))


@pytest.fixture(params=[longshort.Client, Awaited], ids=["sync", "async"])
def make_client(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def replicas() -> Iterator[list[Replica]]:
    store = Store()
    made = [Replica(store) for _ in range(3)]
    yield made
    for replica in made:
        replica.stop()


def addresses(replicas: list[Replica]) -> str:
    return ",".join(replica.address for replica in replicas)


def home(replicas: list[Replica], session_id: str) -> Replica:
    """The first replica that was asked to open a session."""
    return next(
        replica for replica in replicas if any(request.session.id == session_id for request in replica.opens)
    )


def stepped(session: Any, values: list[float]) -> list[float]:
    return [float(session.step(value)[0]) for value in values]


def test_sessions_are_spread_and_both_clients_find_each_at_the_same_server(replicas: list[Replica]):
    ids = [f"sensor-{number}" for number in range(24)]
    for make in (longshort.Client, Awaited):
        with make(addresses(replicas)) as client:
            for session_id in ids:
                with client.session(session_id, model="metro") as session:
                    session.step(1)
    for session_id in ids:
        assert [
            sum(request.session.id == session_id for request in replica.opens) for replica in replicas
        ].count(2)
    assert all(replica.opens for replica in replicas)  # where is a matter of their ports


def test_stopped_server_loses_its_sessions_to_the_others_and_no_value(
    replicas: list[Replica], make_client: Any
):
    with make_client(addresses(replicas)) as client:
        sessions = [client.session(f"s-{number}", model="metro") for number in range(24)]
        given = [stepped(session, VALUES[:6]) for session in sessions]
        stays = [session.id for session in sessions if home(replicas, session.id) is not replicas[0]]
        replicas[0].stop()
        num_opens = sum(len(replica.opens) for replica in replicas[1:])
        for session, answers in zip(sessions, given, strict=True):
            assert answers + stepped(session, VALUES[6:]) == answers_to(VALUES)
        assert 0 < len(stays) < 24
        assert sum(len(replica.opens) for replica in replicas[1:]) == num_opens + 24 - len(stays)
        for session in sessions:
            session.close()
        replicas[0].start()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (UNAVAILABLE, ""),
        (grpc.StatusCode.CANCELLED, ""),
        (grpc.StatusCode.INTERNAL, ""),  # RST_STREAM, as nginx and Envoy pass it on
        (grpc.StatusCode.UNKNOWN, ""),
        (UNAVAILABLE, "DRAINING"),
        (UNAVAILABLE, "STORE_UNAVAILABLE"),
        (UNAVAILABLE, "ENGINE_DEAD"),
        (grpc.StatusCode.ABORTED, "SESSION_MOVED"),  # by ourselves: a proxy delivered our opening twice
    ],
)
def test_every_end_that_may_pass_is_a_pause(
    replicas: list[Replica], make_client: Any, code: grpc.StatusCode, reason: str
):
    with (
        make_client(addresses(replicas), timeout_s=10) as client,
        client.session("s", model="metro") as session,
    ):
        first = stepped(session, VALUES[:2])
        home(replicas, "s").ends = [(code, reason)]
        assert first + stepped(session, VALUES[2:]) == answers_to(VALUES)
        requests = [request for replica in replicas for request in replica.opens]
        assert len(requests) == 2


def test_epoch_is_told_on_reopening_and_the_model_is_changed_on_the_first_opening_only(
    replicas: list[Replica], make_client: Any
):
    with (
        make_client(replicas[0].address) as client,
        client.session("s", model="metro", model_change="reset") as session,
    ):
        replicas[0].ends = [(UNAVAILABLE, ""), (UNAVAILABLE, "")]
        stepped(session, [1, 2])
    assert [request.epoch for request in replicas[0].opens] == [0, 1, 2]
    assert [request.model_change for request in replicas[0].opens] == [3, 0, 0]


@pytest.mark.parametrize("reason", ["DRAINING", "STORE_UNAVAILABLE"])
def test_server_that_takes_nobody_is_no_error_to_new_sessions_nor_to_unary_calls(
    replicas: list[Replica], make_client: Any, reason: str
):
    for replica in replicas[:2]:
        replica.refuses = (UNAVAILABLE, reason)
    with make_client(addresses(replicas), timeout_s=10) as client:
        ids = [f"s-{number}" for number in range(8)]
        for session_id in ids:
            with client.session(session_id, model="metro") as session:
                assert stepped(session, VALUES) == answers_to(VALUES)
            assert client.get_session(session_id).step == len(VALUES)
        if reason == "DRAINING":
            for session_id in ids:
                client.delete(session_id)
    assert (
        sum(replica.num_calls for replica in replicas[:2]) < 8
    )  # they are tried now and then, not by every call


def test_change_goes_on_to_another_server_only_where_the_first_was_not_reached(
    replicas: list[Replica], make_client: Any
):
    with make_client(addresses(replicas), timeout_s=10) as client:
        for number in range(8):
            client.session(f"s-{number}", model="metro").close()
        replicas[0].stop()
        for number in range(8):
            client.delete(f"s-{number}")
        replicas[0].start()
    with make_client(addresses(replicas), timeout_s=10) as client:
        client.session("s", model="metro").close()
        for replica in replicas:
            replica.refuses = (UNAVAILABLE, "")  # cut: it may have been done
        with pytest.raises(errors.Unavailable):
            client.delete("s")
        assert sum(replica.num_calls for replica in replicas) == 8 + 8 + 2


def test_read_of_a_session_goes_where_its_stream_is_and_on_where_that_fails(
    replicas: list[Replica], make_client: Any
):
    with (
        make_client(addresses(replicas), timeout_s=10) as client,
        client.session("s", model="metro") as session,
    ):
        first = home(replicas, "s")
        first.stop()
        session.step(1)
        first.start()
        time.sleep(1.2)  # its pause is over: unary calls about the session's id would go there again
        calls = [replica.num_calls for replica in replicas]
        session.memory()
        assert first.num_calls == calls[replicas.index(first)]
        first.stop()
        assert client.get_session("s").step == 1
        first.start()


@pytest.mark.parametrize("ask", ["open", "step", "read"])
def test_call_with_more_time_gives_up_without_any_server(replicas: list[Replica], make_client: Any, ask: str):
    with make_client(addresses(replicas), timeout_s=30, give_up_s=0.6) as client:
        session = client.session("s", model="metro") if ask == "step" else None
        for replica in replicas:
            replica.stop()
        started_s = time.monotonic()
        with pytest.raises(errors.Unavailable, match=r"within 0\.6 s") as caught:
            {
                "open": lambda: client.session("s", model="metro"),
                "step": lambda: session.step(1),
                "read": lambda: client.get_session("s"),
            }[ask]()
        assert 0.4 < time.monotonic() - started_s < 10
        assert caught.value.reason == "NO_SERVER"
        for replica in replicas:
            replica.start()
        if session is not None:
            assert not session.ended
            assert (float(session.retry()[0]) if session.in_doubt else float(session.step(1)[0])) == 1
            session.close()


def test_servers_that_are_all_down_for_a_while_are_found_again(replicas: list[Replica], make_client: Any):
    with (
        make_client(addresses(replicas), timeout_s=20) as client,
        client.session("s", model="metro") as session,
    ):
        first = stepped(session, VALUES[:3])
        for replica in replicas:
            replica.stop()
        returns = threading.Timer(1.0, replicas[1].start)
        returns.start()
        assert first + stepped(session, VALUES[3:]) == answers_to(VALUES)
        returns.join()
        for replica in (replicas[0], replicas[2]):
            replica.start()


@pytest.mark.parametrize("lag", [1, 5])
def test_values_that_a_dead_server_had_not_stored_are_sent_again(make_client: Any, lag: int):
    store = Store()
    with (
        Replica(store, lag, BEHIND) as one,
        Replica(store, lag, BEHIND) as two,
        make_client([one.address, two.address]) as client,
        client.session("s", model="metro") as session,
    ):
        given = stepped(session, VALUES[:9])
        dead = one if one.opens else two
        dead.stop()
        assert given + stepped(session, VALUES[9:]) == answers_to(VALUES)
        dead.start()
        assert session.flush() == len(VALUES)


def test_store_that_went_back_is_a_lost_session_and_no_gap(make_client: Any):
    store = Store()
    with (
        Replica(store, 3, BEHIND) as replica,
        make_client(replica.address) as client,
        client.session("s", model="metro") as session,
    ):
        stepped(session, VALUES[:8])
        assert session.durable_step == 6
        replica.stop()
        store.records["s"].history = VALUES[:5]  # a backup was restored
        replica.start()
        with pytest.raises(errors.SessionLost, match="its store had told that the first 6") as caught:
            session.step(9)
        assert caught.value.reason == "STORE_WENT_BACK"
        assert caught.value.metadata == {"server_step": "5", "client_step": "8", "oldest_step": "6"}


def test_lost_steps_without_durability_keep_their_reason(make_client: Any):
    store = Store()
    with (
        Replica(store, 3, UNSTORED) as replica,
        make_client(replica.address) as client,
        client.session("s", model="metro") as session,
    ):
        stepped(session, VALUES[:8])
        replica.stop()
        replica.start()
        with pytest.raises(errors.SessionLost) as caught:
            session.step(9)
        assert caught.value.reason == "STEPS_LOST"


@pytest.mark.parametrize(("durability", "num_opens"), [(BEHIND, 3), (SYNC, 3), (UNSTORED, 1)])
def test_flush_that_the_store_refuses_is_asked_again_where_the_values_are(
    make_client: Any, durability: Any, num_opens: int
):
    with (
        Replica(Store(), 99, durability) as replica,
        make_client(replica.address) as client,
        client.session("s", model="metro") as session,
    ):
        stepped(session, VALUES)
        replica.flush_errors = ["STORE_UNAVAILABLE"] * 2
        assert session.flush() == len(VALUES)
        assert (
            len(replica.opens) == num_opens
        )  # without durability only this server has the values: stay with it
        replica.flush_errors = ["STORE_UNAVAILABLE"] * 99
        with pytest.raises((errors.Unavailable, errors.DeadlineExceeded)):
            session.flush(timeout_s=0.3)
        replica.flush_errors = []
        assert session.flush() == len(VALUES)


@pytest.mark.parametrize("durability", [SYNC, BEHIND, UNSTORED])
def test_answer_that_the_store_holds_back_is_asked_for_again_and_its_values_are_taken_once(
    make_client: Any, durability: Any
):
    with (
        Replica(Store(), durability=durability) as replica,
        make_client(replica.address) as client,
        client.session("s", model="metro") as session,
    ):
        given = stepped(session, VALUES[:3])
        replica.value_errors = ["STORE_UNAVAILABLE"] * 2
        given += stepped(session, VALUES[3:5])
        replica.value_errors = ["STORE_UNAVAILABLE"] * 99
        with pytest.raises((errors.Unavailable, errors.DeadlineExceeded)):
            session.step(VALUES[5], timeout_s=0.2)
        assert session.in_doubt
        replica.value_errors = []
        given += [float(session.retry()[0]), *stepped(session, VALUES[6:])]
        assert given == answers_to(VALUES)


def test_durable_steps_that_come_alone_are_taken_with_the_next_answer_and_at_the_close(make_client: Any):
    with Replica(Store(), durability=BEHIND) as replica, make_client(replica.address) as client:
        replica.tells_later = True
        session = client.session("s", model="metro")
        stepped(session, VALUES)
        assert 0 < session.durable_step < len(VALUES)
        assert session.flush() == len(VALUES)
        session.step(1)
        session.close()
        replica.tells_later = False
        with client.session("s") as again:
            assert again.position == len(VALUES) + 1


def test_flush_goes_elsewhere_where_one_server_alone_is_cut_off_from_the_store(
    replicas: list[Replica], make_client: Any
):
    with make_client(addresses(replicas)) as client, client.session("s", model="metro") as session:
        given = stepped(session, VALUES[:6])
        cut_off = home(replicas, "s")
        cut_off.flush_errors = ["STORE_UNAVAILABLE"] * 99
        assert session.flush() == 6
        assert len(cut_off.opens) == 1
        assert given + stepped(session, VALUES[6:]) == answers_to(VALUES)


@pytest.mark.parametrize("seed", [1, 2])
def test_servers_that_come_and_go_at_random_lose_no_answer_and_double_none(make_client: Any, seed: int):
    draw, store = random.Random(seed), Store()
    made = [Replica(store, lag, BEHIND) for lag in (1, 3, 7)]
    values = [float(draw.randrange(9)) for _ in range(150)]
    with make_client(addresses(made), timeout_s=20) as client:
        sessions = [client.session(f"s-{number}", model="metro") for number in range(3)]
        given: list[list[float]] = [[] for _ in sessions]
        stopped: Replica | None = None
        for count, value in enumerate(values):
            if count % 10 == 5:
                if stopped is not None:
                    stopped.start()
                stopped = draw.choice(made)
                stopped.stop()
            for session, answers in zip(sessions, given, strict=True):
                answers.extend(stepped(session, [value]))
        assert given == [answers_to(values)] * 3
        for session in sessions:
            session.close()
    for replica in made:
        if replica is not stopped:
            replica.stop()


@pytest.fixture
def name_server(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Answers for replicas.test: the addresses in `hosts`, an error where there are none."""
    told: dict[str, Any] = {"hosts": [], "asked": 0, "delay_s": 0.0}
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if host != "replicas.test":
            return real(host, port, *arguments, **options)
        told["asked"] += 1
        time.sleep(told["delay_s"])
        if not told["hosts"]:
            raise socket.gaierror("no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in told["hosts"]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return told


def test_name_stands_for_all_of_its_addresses_and_is_asked_again_after_a_failure(
    make_client: Any, name_server: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("longshort.servers.FAILURE_INTERVAL_S", 0.0)
    store = Store()
    one = Replica(store)
    port = one.address.rpartition(":")[2]
    two, three = (Replica(store, address=f"127.0.0.{number}:{port}") for number in (2, 3))
    name_server["hosts"] = ["127.0.0.1", "127.0.0.2"]
    with make_client(f"dns:///replicas.test:{port}", timeout_s=10) as client:
        sessions = [client.session(f"s-{number}", model="metro") for number in range(12)]
        given = [stepped(session, VALUES[:3]) for session in sessions]
        assert one.opens
        assert two.opens
        assert name_server["asked"] == 1
        name_server["hosts"] = ["127.0.0.1", "127.0.0.3"]  # the second one was replaced
        two.stop()
        for session, answers in zip(sessions, given, strict=True):
            assert answers + stepped(session, VALUES[3:]) == answers_to(VALUES)
            session.close()
        assert name_server["asked"] >= 2
        with client.session("new", model="metro") as session:
            session.step(1)
    for replica in (one, three):
        replica.stop()


def test_all_who_come_during_the_first_lookup_wait_for_it(name_server: dict[str, Any]):
    async def open_all(target: str) -> list[Any]:
        async with longshort.aio.Client(target, timeout_s=10) as client, asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(opened(client, number))
            await asyncio.sleep(1.0)
            return list(client.servers._channels)

    async def opened(client: longshort.aio.Client, number: int) -> None:
        async with client.session(f"a-{number}", model="metro"):
            pass

    with Replica(Store()) as replica:
        target = f"dns:///replicas.test:{replica.address.rpartition(':')[2]}"
        name_server.update(hosts=["127.0.0.1"], delay_s=0.3)
        with longshort.Client(target, timeout_s=10) as client:
            threads = [
                threading.Thread(target=lambda: client.session(model="metro").close()) for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(client.servers._channels) == 1  # and none by the name
        assert len(asyncio.run(open_all(target))) == 1
        assert len(replica.opens) == 8
        assert name_server["asked"] == 2


def test_name_server_that_hangs_holds_nobody_for_long(
    make_client: Any, name_server: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("longshort.servers.LOOKUP_TIMEOUT_S", 0.1)
    name_server.update(hosts=["127.0.0.1"], delay_s=1.5)
    started_s = time.monotonic()
    with make_client("dns:///replicas.test:1", timeout_s=0.4) as client, pytest.raises(errors.Unavailable):
        client.session(model="metro")
    assert time.monotonic() - started_s < 10


def test_name_that_nobody_knows_is_told_as_no_server(make_client: Any, name_server: dict[str, Any]):
    with (
        make_client("dns:///replicas.test:1", timeout_s=0.5) as client,
        pytest.raises(errors.Unavailable, match=r"no service answers at dns:///replicas\.test:1 within"),
    ):
        client.session(model="metro")
    assert name_server["asked"] == 1  # a name is looked up every few seconds at most


def test_name_is_due_at_first_then_after_failures_and_now_and_then(monkeypatch: pytest.MonkeyPatch):
    now = {"s": 100.0}
    monkeypatch.setattr("longshort.servers.time.monotonic", lambda: now["s"])
    servers: Servers[object] = Servers(
        parsed("dns:///replicas.test:1"), lambda _address: grpc.insecure_channel("x")
    )
    assert servers.begin_lookup() == 2.0
    assert servers.begin_lookup() is None
    servers.end_lookup(["10.0.0.1:1", "10.0.0.2:1"])
    now["s"] += FAILURE_INTERVAL_S
    assert servers.begin_lookup() is None
    servers.failed("10.0.0.1:1")
    assert servers.begin_lookup() == 2.0
    servers.end_lookup([])
    now["s"] += FAILURE_INTERVAL_S
    assert servers.begin_lookup() is None
    now["s"] += 30
    assert servers.begin_lookup() == 0.0  # nobody waits: what is known will do
    fixed: Servers[object] = Servers(parsed("a:1,b:2"), lambda _address: object())
    assert fixed.begin_lookup() is None


class Unused:
    """A channel on which nothing is called."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_arguments, **_options: None


def named_servers() -> Servers[Any]:
    return Servers(parsed("dns:///replicas.test:1"), lambda _address: Unused())


def test_no_lookup_is_due_while_one_is_under_way(monkeypatch: pytest.MonkeyPatch):
    now = {"s": 100.0}
    monkeypatch.setattr("longshort.servers.time.monotonic", lambda: now["s"])
    servers = named_servers()
    assert servers.begin_lookup() == 2.0
    for _ in range(3):
        servers.failed(servers.place("key"))
        now["s"] += FAILURE_INTERVAL_S
        assert servers.begin_lookup() is None
    servers.end_lookup(["10.0.0.1:1"])
    assert servers.begin_lookup() == 2.0


@pytest.mark.parametrize("fails_first", [True, False])
def test_channel_of_an_address_that_left_its_name_is_let_go(*, fails_first: bool):
    servers = named_servers()
    for number in range(1, 50):
        address = f"10.0.0.{number}:1"
        servers.begin_lookup()
        servers.end_lookup([address])
        servers.channel(address)
        if fails_first:
            servers.failed(address)
    assert list(servers._channels) == ["10.0.0.49:1"]


def test_channel_of_an_address_that_left_its_name_is_kept_for_who_is_still_there():
    servers = named_servers()
    servers.end_lookup(["10.0.0.1:1"])
    route = Route(servers, "key")
    channel = servers.channel(route.take())
    servers.end_lookup(["10.0.0.2:1"])
    servers.failed("10.0.0.1:1")  # another one's stream
    assert servers.channel("10.0.0.1:1") is channel
    route.moves_on()
    assert servers.channel(route.take()) is not channel
    servers.end_lookup([])
    assert list(servers._channels) == ["10.0.0.2:1"]


def test_closed_client_makes_no_channel():
    servers = named_servers()
    channel = servers.channel("10.0.0.1:1")
    assert servers.close() == [channel]
    for address in ("10.0.0.1:1", "10.0.0.2:1"):
        with pytest.raises(errors.SessionClosed, match="the client is closed"):
            servers.stubs(address)


def test_change_tries_the_server_whose_time_is_over_and_not_again_the_one_that_failed():
    servers: Servers[Any] = Servers(parsed("a:1,b:1"), lambda _address: Unused())
    servers.failed("a:1")
    servers._placement._down["a:1"].until_s = 0.0
    for number in range(50):
        attempts = Attempts(
            operations.delete(f"s{number}"), servers, f"s{number}", "b:1", Patience(time.monotonic(), 10, 10)
        )
        assert attempts.route.take() == "b:1"
        attempts.pause_after(errors.Unavailable("failed to connect to all addresses; refused"))
        assert attempts.route.take() == "a:1"
        servers._placement._down["a:1"].until_s = 0.0


class Slow(session_pb2_grpc.SessionServiceServicer):
    """A server that takes its time for every call."""

    def __init__(self, takes_s: float) -> None:
        self.takes_s = takes_s

    def Delete(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802 - as gRPC calls it
        time.sleep(self.takes_s)
        return session_pb2.DeleteResponse()

    def GetSession(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        time.sleep(self.takes_s)
        return session_pb2.GetSessionResponse()


@pytest.fixture
def slow_server() -> Iterator[str]:
    """A server whose answers take longer than a call goes on without any server."""
    server = grpc.server(ThreadPoolExecutor(4))
    session_pb2_grpc.add_SessionServiceServicer_to_server(Slow(0.8), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_slow_server_has_the_time_of_the_call(slow_server: str, make_client: Any):
    with make_client(slow_server, timeout_s=20, give_up_s=0.2) as client:
        assert client.get_session("s").step == 0
        client.delete("s")
        with pytest.raises(errors.DeadlineExceeded, match=r"within 0\.4 s"):
            client.get_session("s", timeout_s=0.4)


def test_slow_server_that_comes_after_a_failure_has_the_time_of_the_call(
    slow_server: str, make_client: Any, unused_address: str
):
    with make_client([slow_server, unused_address], timeout_s=20, give_up_s=0.2) as client:
        for number in range(4):  # some have their place where nobody is
            assert client.get_session(f"s{number}").step == 0
    with (
        make_client([slow_server, unused_address], give_up_s=0.2) as client,
        pytest.raises(errors.DeadlineExceeded, match=r"within 0\.6 s"),
    ):
        client.get_session(next(at_place_of(slow_server, unused_address)), timeout_s=0.6)


@pytest.fixture
def unused_address() -> Iterator[str]:
    with socket.socket() as held:  # bound, so that nobody else gets it, and not listening
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


def at_place_of(other: str, address: str) -> Iterator[str]:
    """Return session ids whose place is the second address."""
    placement = Placement([other, address])
    return (f"k{number}" for number in range(99) if placement.place(f"k{number}", 0) == address)


def test_call_waits_for_a_name_server_no_longer_than_its_own_time(
    make_client: Any, name_server: dict[str, Any]
):
    name_server.update(hosts=["127.0.0.1"], delay_s=1.5)
    with make_client("dns:///replicas.test:1", timeout_s=0.2) as client:
        started_s = time.monotonic()
        with pytest.raises((errors.Unavailable, errors.DeadlineExceeded)):
            client.get_session("s")
        assert time.monotonic() - started_s < 1


def test_lookup_that_takes_longer_than_it_is_due_again_is_not_cancelled(
    make_client: Any, name_server: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("longshort.servers.FAILURE_INTERVAL_S", 0.1)
    monkeypatch.setattr("longshort.servers.LOOKUP_TIMEOUT_S", 0.05)
    with Replica(Store()) as replica:
        port = replica.address.rpartition(":")[2]
        name_server.update(hosts=["127.0.0.1"], delay_s=0.8)
        with (
            make_client(f"dns:///replicas.test:{port}", timeout_s=10) as client,
            client.session("s", model="metro") as session,
        ):
            assert stepped(session, VALUES) == answers_to(VALUES)
        assert name_server["asked"] <= 2  # and not every tenth of a second
