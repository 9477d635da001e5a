"""Two servers on one file of SQLite, and a store whose replies are lost, late or refused for want of a place."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

import pytest
from house import House
from inside import Gate
from longshort_service import errors
from longshort_service.durability import Durability
from longshort_service.stores.sqlite import SqliteBackend
from longshort_service.stores.threaded import ThreadedStore
from tables import RecordingOwner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from longshort_service.record import SessionRecord
    from longshort_service.session import Session
    from longshort_service.stores.base import Refusal

    Run = Callable[..., Any]

INTERVALS_S = 0.3  # some checkpoints of a House


@pytest.fixture
def two(adders: Path, tmp_path: Path) -> tuple[House, House]:
    """Two servers, not yet begun, on one store."""
    stores = [ThreadedStore(SqliteBackend(tmp_path / "s.db", 100)) for _ in range(2)]
    return House(adders, stores[0]), House(adders, stores[1])


@pytest.fixture
def loop_is_not_held() -> Iterator[None]:
    """Fail a test that holds its event loop for 10 s: no timeout of asyncio's would end it."""

    def held(*_: object) -> None:
        raise AssertionError("the loop was held")

    before = signal.signal(signal.SIGALRM, held)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


async def at_step(house: House, step: int, durability: Durability) -> Session[Any]:
    """Return an open session of which `step` steps are stored."""
    session = await house.open("s", RecordingOwner(), durability=durability)
    await house.step(session, *[1.0] * step, step=0)
    await house.checkpointer.until_stored(session, step)
    return session


def test_reset_whose_reply_was_lost_is_written_over(run: Run, two: tuple[House, House]):
    """The birth was stored and the caller told that nothing has changed: so it has to be again in the store."""
    a, b = two

    async def scenario() -> None:
        async with a, b:
            session = await at_step(a, 2, Durability.SYNC)
            write = a.store.write

            async def loses_reply(
                records: Sequence[SessionRecord], *, settled: bool = True
            ) -> list[Refusal | None]:
                await write(records, settled=settled)
                raise errors.StoreUnavailable("no reply")

            a.store.write = loses_reply  # type: ignore[method-assign]
            with pytest.raises(errors.StoreUnavailable):
                await a.management.reset("s")
            assert session.durable_step == 0  # nobody knows
            a.store.write = write  # type: ignore[method-assign]
            await asyncio.sleep(INTERVALS_S)
            stored = await b.store.read("s")
            assert stored is not None
            assert (stored.step, stored.incarnation) == (2, session.incarnation)
            assert session.durable_step == 2

    run(scenario())


def test_reset_is_not_written_over_by_what_was_in_flight(run: Run, two: tuple[House, House]):
    a, b = two

    async def scenario() -> None:
        async with a, b:
            session = await at_step(a, 1, Durability.BEHIND)
            gate = Gate.before(session.model.lane)
            flight = asyncio.ensure_future(a.step(session, 1.0, step=1))
            await gate.arrival()
            reset = asyncio.ensure_future(a.management.reset("s"))
            await asyncio.sleep(INTERVALS_S)
            gate.open()
            await asyncio.gather(flight, reset)
            await asyncio.sleep(INTERVALS_S)
            stored = await b.store.read("s")
            assert stored is not None
            assert (stored.step, stored.incarnation) == (0, session.incarnation)

    run(scenario())


def test_what_a_drain_has_written_stays_clean_when_its_streams_leave(run: Run, two: tuple[House, House]):
    a, b = two

    async def scenario() -> None:
        async with a, b:
            a.checkpointer._writer._is_unary_sync = False  # nothing else would be written clean
            session = await at_step(a, 1, Durability.BEHIND)
            await a.checkpointer.store_all()
            a.leave(session)
            await asyncio.sleep(INTERVALS_S)
            stored = await b.store.read("s")
            assert stored is not None
            assert stored.is_gapless

    run(scenario())


@pytest.mark.usefixtures("loop_is_not_held")
def test_last_words_wait_for_a_place_in_the_store_s_queue(run: Run, two: tuple[House, House]):
    a, b = two

    async def scenario() -> None:
        async with a, b:
            session = await a.open("s", RecordingOwner())
            await a.step(session, 1.0)
            assert isinstance(a.store, ThreadedStore)
            most, a.store._max_calls = a.store._max_calls, 0  # as many calls wait as may
            asyncio.get_running_loop().call_later(0.2, setattr, a.store, "_max_calls", most)
            async with asyncio.timeout(5):
                await a.checkpointer.store_all()

    run(scenario())


def test_duty_that_fails_is_logged_and_goes_on(
    run: Run, two: tuple[House, House], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    a, b = two

    async def scenario() -> None:
        async with a, b:
            writer = a.checkpointer._writer
            copies, failures = writer.copies, iter([MemoryError()])

            def fails_once(sessions: Any) -> Any:
                for failure in failures:
                    raise failure
                return copies(sessions)

            monkeypatch.setattr(writer, "copies", fails_once)
            session = await a.open("s", RecordingOwner())
            await a.step(session, 1.0)
            await a.checkpointer.until_stored(session, 1)
            assert not any(task.done() for task in a.checkpointer._tasks)

    run(scenario())
    assert "a duty of the checkpointer has failed" in caplog.text
