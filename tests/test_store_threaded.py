"""The facade over a blocking backend: what fails how, what waits for what, and what is logged."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from longshort_service import errors
from longshort_service.stores import threaded
from longshort_service.stores.backend import Accepted, BackendError
from longshort_service.stores.settler import Settler
from longshort_service.stores.threaded import ThreadedStore
from store_records import record_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from longshort_service.record import SessionRecord

    Run = Callable[..., object]


@dataclass
class Backend:
    """A backend that does what it is told: fail, wait, or answer from another place."""

    num_threads: int = 1
    error: Exception | None = None
    settle_error: Exception | None = None
    place: str = "here"
    settled_place: str = "here"
    may_go: threading.Event = field(default_factory=threading.Event)
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.may_go.set()

    def _do(self, name: str) -> None:
        self.calls.append(name)
        self.may_go.wait(20)
        if self.error is not None:
            raise self.error

    def write(self, records: Sequence[SessionRecord]) -> Accepted:
        self._do("write")
        return Accepted([None for _ in records], self.place)

    def settle(self) -> str:
        self._do("settle")
        if self.settle_error is not None:
            raise self.settle_error
        return self.settled_place

    def read(self, session_id: str) -> None:
        self._do(f"read {session_id}")

    def num_records(self) -> int:
        return 7

    def ping(self) -> None:
        self._do("ping")

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def store(backend: Backend, run: Run) -> Iterator[ThreadedStore]:
    made = ThreadedStore(backend, max_calls=3)
    yield made
    backend.may_go.set()
    run(made.close())


def test_failure_makes_all_calls_fail_at_once_until_a_ping_goes_well(
    store: ThreadedStore, backend: Backend, run: Run, caplog: pytest.LogCaptureFixture
):
    backend.error = BackendError("the disk is full: make room", place="/srv/x.db", detail="its own words")
    begin_s = time.monotonic()
    with pytest.raises(errors.StoreUnavailable, match="the disk is full: make room"):
        run(store.read("s"))
    since_s = store.away_since_s
    assert since_s is not None
    assert begin_s <= since_s <= time.monotonic()
    for _ in range(2):
        with pytest.raises(errors.StoreUnavailable, match="the session store is away"):
            run(store.read("s"))
        with pytest.raises(errors.StoreUnavailable):
            run(store.ping())
    assert store.away_since_s == since_s  # of the first failure of the run
    assert backend.calls == ["read s", "ping", "ping"]
    backend.error = None
    run(store.ping())
    assert store.away_since_s is None
    run(store.read("s"))
    logged = [each.getMessage() for each in caplog.records]
    assert logged[0] == ("the session store is away: /srv/x.db: the disk is full: make room (its own words)")
    assert logged[1].startswith("the session store is back after")
    assert len(logged) == 2


def test_caller_is_not_told_where_the_store_is(store: ThreadedStore, backend: Backend, run: Run):
    backend.error = BackendError("locked", place="/srv/x.db", detail="127.0.0.1 says no")
    with pytest.raises(errors.StoreUnavailable, match=r"locked$"):
        run(store.read("s"))


def test_cause_that_changes_is_logged_anew_and_not_too_often(
    store: ThreadedStore,
    backend: Backend,
    run: Run,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    clock = [0.0]
    monkeypatch.setattr(threaded.time, "monotonic", lambda: clock[0])
    causes = {100.0: "locked", 105.0: "full", 111.0: "full", 130.0: "full", 131.0: "torn"}
    for now_s, cause in causes.items():
        clock[0] = now_s
        backend.error = BackendError(cause)
        with pytest.raises(errors.StoreUnavailable):
            run(store.ping())
    assert [each.getMessage() for each in caplog.records] == [
        "the session store is away: locked",
        "the session store is still away: full",
        "the session store is still away: torn",
    ]
    assert store.away_since_s == 100.0


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), errors.RecordDamaged("torn"), errors.SessionExpired("x")]
)
def test_bug_or_refusal_is_no_outage(store: ThreadedStore, backend: Backend, run: Run, error: Exception):
    backend.error = error
    with pytest.raises(type(error)):
        run(store.read("s"))
    assert store.away_since_s is None


def test_what_waits_when_the_store_goes_is_not_tried(store: ThreadedStore, backend: Backend, run: Run):
    """Each call would wait as long as the first one has."""

    async def scenario() -> None:
        backend.may_go.clear()
        calls = [asyncio.ensure_future(store.read(name)) for name in "abc"]
        await asyncio.sleep(0.05)
        backend.error = BackendError("locked")
        backend.may_go.set()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [errors.StoreUnavailable] * 3
        assert backend.calls == ["read a"]

    run(scenario())


def test_no_more_calls_wait_than_may(store: ThreadedStore, backend: Backend, run: Run):
    async def scenario() -> None:
        backend.may_go.clear()
        calls = [asyncio.ensure_future(store.read(name)) for name in "abc"]
        await asyncio.sleep(0)
        with pytest.raises(errors.StoreUnavailable, match="3 calls wait for the session store"):
            await store.read("d")
        assert store.away_since_s is None
        backend.may_go.set()
        assert await asyncio.gather(*calls) == [None] * 3
        await store.read("e")

    run(scenario())


def test_call_of_a_caller_that_is_gone_ends_by_itself(store: ThreadedStore, backend: Backend, run: Run):
    async def scenario() -> None:
        backend.may_go.clear()
        calls = [asyncio.ensure_future(store.read(name)) for name in "ab"]
        await asyncio.sleep(0.05)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        backend.may_go.set()
        await store.read("c")
        assert backend.calls == ["read a", "read b", "read c"]

    run(scenario())


def test_loop_goes_on_while_the_store_is_slow(store: ThreadedStore, backend: Backend, run: Run):
    async def scenario() -> None:
        backend.may_go.clear()
        call = asyncio.ensure_future(store.read("s"))
        begin_s = time.monotonic()
        for _ in range(10):
            await asyncio.sleep(0.001)
        assert time.monotonic() - begin_s < 2
        assert not call.done()
        backend.may_go.set()
        await call

    run(scenario())


def test_close_waits_for_what_is_under_way(backend: Backend, run: Run):
    async def scenario() -> None:
        store = ThreadedStore(backend)
        backend.may_go.clear()
        call = asyncio.ensure_future(store.read("s"))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(store.close())
        await asyncio.sleep(0.05)
        assert "close" not in backend.calls
        backend.may_go.set()
        await call
        await closing
        assert backend.calls == ["read s", "close"]

    run(scenario())


def test_records_are_counted_without_waiting(store: ThreadedStore, backend: Backend):
    backend.may_go.clear()
    assert store.num_records() == 7


# -- what is durable when -----


@pytest.mark.parametrize(
    ("settled", "place", "calls"),
    [
        (True, "here", ["write", "settle"]),
        (False, "here", ["write"]),
        (True, "", ["write"]),  # durable when it was accepted
    ],
)
def test_settled_write_waits_where_there_is_something_to_wait_for(
    store: ThreadedStore, backend: Backend, run: Run, *, settled: bool, place: str, calls: list[str]
):
    backend.place = place
    assert run(store.write([record_of("s", 1)], settled=settled)) == [None]
    assert backend.calls == calls


def test_what_one_server_accepted_another_does_not_make_durable(
    store: ThreadedStore, backend: Backend, run: Run
):
    backend.settled_place = "there"
    with pytest.raises(errors.StoreUnavailable, match="restarted or replaced"):
        run(store.write([record_of("s", 1)]))


def test_wait_that_fails_is_an_outage(store: ThreadedStore, backend: Backend, run: Run):
    backend.settle_error = BackendError("its disk does not keep up")
    with pytest.raises(errors.StoreUnavailable, match="does not keep up"):
        run(store.write([record_of("s", 1)]))
    assert store.away_since_s is not None


def test_newcomers_share_the_wait_after_the_one_that_is_under_way(run: Run):
    async def scenario() -> None:
        ends: list[asyncio.Future[str]] = []

        async def ask() -> str:
            ends.append(asyncio.get_running_loop().create_future())
            return await ends[-1]

        settler = Settler(ask)
        first = asyncio.ensure_future(settler.settle())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        late = [asyncio.ensure_future(settler.settle()) for _ in range(3)]
        await asyncio.sleep(0)
        assert len(ends) == 1  # it may have begun before their writes were accepted
        ends[0].set_exception(errors.StoreUnavailable("lost"))
        with pytest.raises(errors.StoreUnavailable):
            await first
        await asyncio.sleep(0.01)
        assert len(ends) == 2  # a failure of the first is not theirs
        ends[1].set_result("here")
        assert await asyncio.gather(*late) == ["here"] * 3

    run(scenario())
