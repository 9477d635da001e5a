"""Bringing the store up to the sessions: what waits, what is written when, and what becomes of it on the way.

In virtual time and against a store that does as it is told; a few against SQLite as it is.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from desk import ANSWER_TIMEOUT_S, INTERVAL_S, OUTAGE_S, STEPS, Desk, play
from house import reason_of
from longshort_service import checkpointer as checkpointing
from longshort_service import errors, interval_writer
from longshort_service.checkpointer import AWAY_WAIT_S, TICK_S
from longshort_service.durability import NEVER, Durability
from longshort_service.management import Management
from longshort_service.opener import OpenRequest
from longshort_service.stores.base import OpenMode
from longshort_service.stores.memory import MemoryStore
from longshort_service.stores.sqlite import SqliteBackend
from longshort_service.stores.threaded import ThreadedStore
from tables import RecordingOwner, TableModel
from virtual import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flaky_store import FlakyStore
    from longshort_service.repository import Model
    from longshort_service.session import Session

NONE, BEHIND, SYNC = Durability.NONE, Durability.BEHIND, Durability.SYNC


async def at_full_speed(desk: Desk, session: Session[Model], seconds: float, pause_s: float = 0.01) -> int:
    """Move a session so that it is in flight whenever anyone looks; return how far behind it was at most."""
    furthest, end_s = 0, desk.monotonic() + seconds
    job = desk.begin(session)
    while desk.monotonic() < end_s:
        await asyncio.sleep(pause_s)
        desk.end(session, job)
        furthest = max(furthest, session.step - session.durable_step)
        job = desk.begin(session)
    desk.end(session, job)
    return furthest


# -- SYNC -----


def test_answer_under_sync_waits_until_it_is_stored():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s", SYNC)
        store.delay_s = 0.25
        begin_s = desk.monotonic()
        assert await desk.answer(session, 3) == (1, 6.0, False)
        assert desk.monotonic() - begin_s == pytest.approx(0.25)
        assert (store.step_of("s"), session.durable_step) == (1, 1)
        assert desk.notes.of("store_wait") == [("toy", pytest.approx(0.25))]
        assert session.owner.durable_steps == {"s": 1}  # type: ignore[union-attr]

    play(scenario)


def test_all_that_wait_at_a_time_go_in_one_write():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        sessions = [await desk.open(f"s{k}", SYNC) for k in range(40)]
        store.delay_s = 0.1
        first = asyncio.ensure_future(desk.answer(sessions[0]))
        await asyncio.sleep(0.01)
        await asyncio.gather(first, *(desk.answer(session) for session in sessions[1:]))
        assert [len(write) for write in store.written] == [1, 39]

    play(scenario)


def test_more_than_a_batch_goes_in_batches(monkeypatch: pytest.MonkeyPatch):
    for module in (checkpointing, interval_writer):
        monkeypatch.setattr(module, "WRITE_BATCH", 4)

    async def scenario(desk: Desk, store: FlakyStore) -> None:
        sessions = [await desk.open(f"s{k}", SYNC if k % 2 else BEHIND) for k in range(22)]
        await asyncio.gather(*(desk.answer(session) for session in sessions))
        await asyncio.sleep(1.1 * INTERVAL_S)
        assert all(session.durable_step == 1 for session in sessions)
        assert sum(map(len, store.written)) == 22
        assert max(map(len, store.written)) == 4

    play(scenario)


def test_sessions_of_several_models_are_written_together():
    models = [TableModel(name="toy"), TableModel(name="other")]

    async def scenario(desk: Desk, store: FlakyStore) -> None:
        one, other = await desk.open("s", SYNC), await desk.open("t", SYNC, model="other")
        store.delay_s = 0.1
        begin_s = desk.monotonic()
        await asyncio.gather(desk.answer(one), desk.answer(other))
        assert desk.monotonic() - begin_s == pytest.approx(0.1)
        assert store.written == [{"s": 1}, {"t": 1}]

    play(scenario, models=models)


@pytest.mark.parametrize("durability", [NONE, BEHIND])
def test_answer_goes_at_once_where_it_need_not_be_stored(durability: Durability):
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s", durability)
        store.delay_s = 0.5
        begin_s = desk.monotonic()
        for step in range(1, 6):
            assert (await desk.answer(session))[0] == step
        assert desk.monotonic() == begin_s
        assert desk.notes.of("store_wait") == []
        await asyncio.sleep(3 * INTERVAL_S)
        assert session.durable_step == (5 if durability is BEHIND else 0)

    play(scenario)


@pytest.mark.parametrize("durability", list(Durability))
def test_strict_waiter_waits_for_the_very_step_whatever_the_durability(durability: Durability):
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s", durability)
        store.delay_s = 0.5
        await desk.answer(session, strictly=True)
        assert store.step_of("s") == 1
        begin_s = desk.monotonic()
        await desk.checkpointer.until_stored(session, 1)  # a flush of what is stored
        assert desk.monotonic() == begin_s

    play(scenario)


def test_step_of_a_session_in_flight_is_stored_when_it_settles():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s", BEHIND)
        desk.step(session)
        job = desk.begin(session)
        flush = asyncio.ensure_future(desk.checkpointer.until_stored(session, 1))
        await asyncio.sleep(0.1)
        assert store.written == []
        desk.end(session, job)
        await flush
        assert store.written == [{"s": 2}]

    play(scenario)


def test_caller_that_leaves_does_not_disturb_the_others():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s", SYNC)
        store.delay_s = 0.1
        left = asyncio.ensure_future(desk.answer(session))
        await asyncio.sleep(0.01)
        left.cancel()
        await desk.checkpointer.until_stored(session, 1)

    play(scenario)


def test_durability_that_an_opening_changes_holds_from_then_on():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s", BEHIND)
        desk.step(session)
        assert await desk.open("s", SYNC) is session
        assert session.durability is SYNC
        await desk.answer(session)
        assert store.step_of("s") == 2
        await desk.open("s", NONE)
        await desk.answer(session)
        assert store.step_of("s") == 2

    play(scenario)


# -- BEHIND -----


def test_session_is_written_within_the_interval():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s")
        await asyncio.sleep(0.3)
        desk.step(session, 1, 2, 3)
        await asyncio.sleep(INTERVAL_S)
        assert (session.durable_step, store.step_of("s")) == (3, 3)
        assert session.owner.durable_steps == {"s": 3}  # type: ignore[union-attr]
        num_written = len(store.written)
        await asyncio.sleep(5 * INTERVAL_S)
        assert len(store.written) == num_written  # what is stored is not written again

    play(scenario)


def test_session_in_flight_at_every_look_is_written_once_an_interval():
    """The history: it is copied when it settles, and the copy lies there until the next interval."""

    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s")
        # 10 steps a second: what is not paused is behind by an interval's steps and those of a write.
        furthest = await at_full_speed(desk, session, 10 * INTERVAL_S, pause_s=0.1)
        assert furthest <= 11
        assert 9 <= len(store.written) <= 11

    play(scenario)


def test_many_that_settle_together_are_copied_and_written_together():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        sessions = [await desk.open(f"s{k}") for k in range(10)]
        jobs = [desk.begin(session) for session in sessions]
        for session, job in zip(sessions, jobs, strict=True):
            desk.end(session, job)
        jobs = [desk.begin(session) for session in sessions]
        await asyncio.sleep(INTERVAL_S * 1.5)
        assert store.written == []  # all are in flight
        rows = np.array([session.row for session in sessions])
        columns = sessions[0].model.columns
        columns.step[rows] += 1  # as a job of ten does
        columns.is_busy[rows] = False
        columns._tell_waiters(rows)
        await asyncio.sleep(0.01)
        assert [len(write) for write in store.written] == [10]
        assert jobs

    play(scenario)


def test_answer_under_sync_does_not_wait_for_a_copy_that_lies_there():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s", SYNC)
        desk.step(session)  # behind, and nobody waits for it
        job = desk.begin(session)
        await asyncio.sleep(INTERVAL_S * 1.1)  # in flight when it is looked at
        desk.end(session, job)
        begin_s = desk.monotonic()
        await desk.checkpointer.until_stored(session, 2, strictly=False)
        assert desk.monotonic() - begin_s < 0.01
        assert store.step_of("s") == 2

    play(scenario)


def test_answer_waits_where_the_session_is_too_many_steps_ahead():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s")
        store.delay_s = 0.2
        begin_s = desk.monotonic()
        for _ in range(STEPS):
            await desk.answer(session)
        assert (desk.monotonic(), store.written) == (begin_s, [])
        assert (await desk.answer(session))[0] == STEPS + 1
        assert desk.monotonic() - begin_s == pytest.approx(0.2)  # at once, not when the interval ends
        assert store.step_of("s") == STEPS + 1

    play(scenario)


def test_laggard_waits_until_it_is_stored():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s")
        with store.held("write"):
            desk.step(session)
            await asyncio.sleep(INTERVAL_S)
            begin_s = desk.monotonic()
            await desk.answer(session)
            assert desk.monotonic() == begin_s  # slow, and not yet too slow
            await asyncio.sleep(3.1 * INTERVAL_S)
            assert desk.checkpointer.lag_s >= 2 * INTERVAL_S
            answer = asyncio.ensure_future(desk.answer(session))
            await asyncio.sleep(1)
            assert not answer.done()
        await answer
        assert session.durable_step >= 1  # and it is not behind for long any more

    play(scenario)


def test_lag_is_that_of_the_session_furthest_behind():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s")
        assert desk.checkpointer.lag_s == 0
        store.is_full = True
        desk.step(session)
        await asyncio.sleep(10 * INTERVAL_S)
        assert desk.checkpointer.lag_s == pytest.approx(9 * INTERVAL_S, abs=INTERVAL_S)
        begin_s = desk.monotonic()
        answer = asyncio.ensure_future(desk.answer(session))
        store.is_full = False
        await answer
        assert desk.monotonic() - begin_s <= TICK_S
        await asyncio.sleep(1.1 * INTERVAL_S)
        assert desk.checkpointer.lag_s == 0

    play(scenario)


def test_laggard_s_answer_waits_and_goes_when_the_store_keeps_up_again():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s")
        store.is_full = True
        desk.step(session)
        await asyncio.sleep(5 * INTERVAL_S)
        assert session.model.columns.waits_from_of[session.row] == 0
        answer = asyncio.ensure_future(desk.answer(session))
        await asyncio.sleep(1)
        assert not answer.done()
        store.is_full = False
        assert (await answer)[0] == 2
        begin_s = desk.monotonic()
        await desk.answer(session)
        assert desk.monotonic() == begin_s

    play(scenario)


def test_session_that_is_gone_is_not_behind():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s")
        await desk.open("other")  # the model has sessions: its rows are looked at
        desk.step(session)
        await store.open_elsewhere("s")
        await asyncio.sleep(2 * INTERVAL_S)
        assert session.is_ended
        await asyncio.sleep(20 * INTERVAL_S)
        assert desk.checkpointer.lag_s == 0

    play(scenario, models=[TableModel(num_rows=4)])


def test_model_that_nobody_uses_is_let_go():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s")
        await at_full_speed(desk, session, 3 * INTERVAL_S)
        desk.table.detach(session, session.owner, desk.clock())  # type: ignore[arg-type]
        desk.table.remove(session)
        await asyncio.sleep(2 * INTERVAL_S)
        assert not desk.checkpointer._interval_writer._awaited
        assert store.written

    play(scenario)


# -- two servers -----


@pytest.mark.parametrize("durability", [BEHIND, SYNC])
def test_session_that_another_server_has_opened_is_given_up(durability: Durability):
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        owner = RecordingOwner()
        session = await desk.open("s", durability, owner)
        await store.open_elsewhere("s", "thief")
        with pytest.raises(errors.SessionMoved) as caught:
            await desk.answer(session, strictly=True)
        assert caught.value.metadata == {"cause": "opened", "client_id": "thief"}
        assert (owner.lost, owner.ends) == (["s"], [caught.value])
        assert session.is_ended
        assert session.owner is None
        assert desk.table.get("s") is None
        assert desk.notes.of("move") == [()]
        assert store.step_of("s") == 0

    play(scenario)


def test_session_that_was_deleted_elsewhere_is_given_up():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s")
        desk.leave(session)
        desk.step(session)
        await store.delete_many([("s", None)])
        await asyncio.sleep(INTERVAL_S)
        assert session.is_ended
        assert desk.notes.of("move") == [()]

    play(scenario)


def test_session_in_flight_is_given_up_when_it_settles():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        owner = RecordingOwner()
        session = await desk.open("s", owner=owner)
        desk.step(session)
        with store.held("write"):
            await asyncio.sleep(INTERVAL_S)
            job = desk.begin(session)
            await store.open_elsewhere("s")
        await asyncio.sleep(0.1)
        assert (session.is_ended, owner.ends) == (False, [])
        desk.end(session, job)
        await asyncio.sleep(0.1)
        assert session.is_ended
        assert [type(end) for end in owner.ends] == [errors.SessionMoved]

    play(scenario)


def test_session_that_two_writes_were_refused_for_is_given_up_once():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s", SYNC)
        async with desk.turns.of("s"):  # nobody judges meanwhile
            await store.open_elsewhere("s")
            answers = [asyncio.ensure_future(desk.answer(session)) for _ in range(2)]
            await asyncio.sleep(0.1)
            answers.append(asyncio.ensure_future(desk.answer(session)))
            await asyncio.sleep(3 * INTERVAL_S)
            assert len(store.written) > 1
        seen = await asyncio.gather(*answers, return_exceptions=True)
        assert [type(each) for each in seen] == [errors.SessionMoved] * 3
        assert desk.notes.of("move") == [()]

    play(scenario)


def test_write_that_an_opening_of_this_server_overtakes_is_nobody_s_loss():
    """The history: a checkpoint under way, its epoch raised by a second opening here before it comes to the store."""

    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s", SYNC)
        with store.held("write"):
            answer = asyncio.ensure_future(desk.answer(session))
            await asyncio.sleep(0.1)
            assert await desk.open("s", SYNC) is session
        assert (await answer)[0] == 1  # written again, with the new epoch
        assert not session.is_ended
        assert store.written == [{"s": 1}, {"s": 1}]
        assert store.entries["s"].record.epoch == session.epoch

    play(scenario)


def test_write_that_is_refused_while_an_opening_of_this_server_is_under_way_is_nobody_s_loss():
    """The history: the store has raised the epoch, this server has not heard of it yet, and a checkpoint is refused."""

    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s", SYNC)
        store.delay_s = 2.0  # it takes effect after one second, and is heard of after two
        opening = asyncio.ensure_future(desk.open("s", SYNC))
        await asyncio.sleep(1.5)
        store.delay_s = 0.1
        answer = asyncio.ensure_future(desk.answer(session))
        await asyncio.sleep(0.2)
        assert (len(store.written), answer.done(), opening.done()) == (1, False, False)
        assert await opening is session
        assert (await answer)[0] == 1
        assert not session.is_ended
        assert store.step_of("s") == 1

    play(scenario)


def test_refused_write_of_a_session_that_has_ended_meanwhile_harms_nobody():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s")
        desk.leave(session)
        await asyncio.sleep(0.1)
        async with desk.turns.of("s"):
            desk.step(session)
            await store.open_elsewhere("s")
            await asyncio.sleep(INTERVAL_S)
            desk.table.remove(session)
        await asyncio.sleep(0.1)
        assert desk.notes.of("move") == []

    play(scenario)


# -- the store away -----


def test_behind_goes_on_without_the_store_and_sync_is_told_and_sent_again():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        behind, sync, none = [
            await desk.open(name, each) for name, each in zip("bsn", (BEHIND, SYNC, NONE), strict=True)
        ]
        store.is_down = True
        begin_s = desk.monotonic()
        with pytest.raises(errors.StoreUnavailable):
            await desk.answer(sync, 5, step=0)
        assert desk.monotonic() - begin_s == pytest.approx(ANSWER_TIMEOUT_S, abs=TICK_S)
        assert desk.num_store_changes == 1
        begin_s = desk.monotonic()
        for _ in range(3 * STEPS):
            await desk.answer(behind)
            await desk.answer(none)
        assert desk.monotonic() == begin_s
        with pytest.raises(errors.StoreUnavailable):
            await desk.answer(sync, 5, step=0)
        # Of a store that is known to be away nobody waits for long.
        assert desk.monotonic() - begin_s == pytest.approx(AWAY_WAIT_S, abs=TICK_S)
        again = asyncio.ensure_future(desk.answer(sync, 5, step=0))
        store.is_down = False
        assert await again == (1, 10.0, True)  # it has moved once
        assert desk.num_store_changes == 2
        assert store.step_of("s") == 1
        await asyncio.sleep(2 * INTERVAL_S)
        assert (behind.durable_step, none.durable_step) == (3 * STEPS, 0)
        assert store.calls["ping"] >= 2

    play(scenario)


def test_everything_waits_once_the_store_is_away_for_too_long(caplog: pytest.LogCaptureFixture):
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        behind, none = await desk.open("b"), await desk.open("n", NONE)
        desk.step(behind)
        store.is_down = True
        await asyncio.sleep(OUTAGE_S)
        await desk.answer(behind)
        await asyncio.sleep(2.5)
        assert desk.checkpointer.outage.is_over_limit
        assert desk.num_store_changes == 2
        begin_s = desk.monotonic()
        await desk.answer(none)
        assert desk.monotonic() == begin_s
        with pytest.raises(errors.StoreUnavailable):
            await desk.answer(behind)
        waiting = asyncio.ensure_future(desk.answer(behind))
        await asyncio.sleep(0.1)
        store.is_down = False
        assert (await waiting)[0] == 4
        assert desk.num_store_changes == 3
        await asyncio.sleep(INTERVAL_S)
        assert (behind.durable_step, store.step_of("b")) == (4, 4)
        begin_s = desk.monotonic()
        await desk.answer(behind)
        assert desk.monotonic() == begin_s

    with caplog.at_level(logging.ERROR):
        play(scenario)
    assert len(caplog.records) == 1


def test_what_was_behind_is_written_when_the_store_is_back_without_another_step():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s")
        store.is_down = True
        await at_full_speed(desk, session, 3 * INTERVAL_S)
        await asyncio.sleep(5)
        assert store.written == []
        store.is_down = False
        await asyncio.sleep(TICK_S + INTERVAL_S)
        assert session.durable_step == session.step == store.step_of("s")

    play(scenario)


def test_write_whose_reply_is_lost_is_made_again():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s", SYNC)
        store.loses_replies = True
        answer = asyncio.ensure_future(desk.answer(session))
        await asyncio.sleep(0.1)
        assert (store.step_of("s"), session.durable_step) == (1, 0)
        store.loses_replies = False
        assert (await answer)[0] == 1
        assert not session.is_ended

    play(scenario)


def test_answer_that_waits_for_a_store_that_hangs_is_told_in_time():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s", SYNC)
        with store.held("write"):
            begin_s = desk.monotonic()
            with pytest.raises(errors.StoreUnavailable):
                await desk.answer(session, 5, step=0)
            assert desk.monotonic() - begin_s == pytest.approx(ANSWER_TIMEOUT_S, abs=TICK_S)
        assert await desk.answer(session, 5, step=0) == (1, 10.0, True)

    play(scenario)


def test_answer_is_told_in_time_also_where_asking_for_the_store_hangs():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s", SYNC)
        store.is_down = True
        with store.held("ping"):
            begin_s = desk.monotonic()
            with pytest.raises(errors.StoreUnavailable):
                await desk.answer(session)
            assert desk.monotonic() - begin_s == pytest.approx(ANSWER_TIMEOUT_S, abs=TICK_S)

    play(scenario)


def test_store_without_a_place_in_its_queue_is_not_asked_in_a_circle():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        sessions = [await desk.open(f"s{k}", SYNC) for k in range(20)]
        store.is_full = True
        answers = [asyncio.ensure_future(desk.answer(session)) for session in sessions]
        await asyncio.sleep(4)
        # A try a tick, and what the intervals add to it.
        assert store.calls["write"] <= 4 / TICK_S + 2 * 4 / INTERVAL_S + 2
        assert desk.num_store_changes == 0  # it is not away
        store.is_full = False
        await asyncio.gather(*answers)

    play(scenario)


def test_bug_of_a_store_is_logged_and_its_write_tried_again(caplog: pytest.LogCaptureFixture):
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s", SYNC)
        store.fault = ValueError("a bug")
        answer = asyncio.ensure_future(desk.answer(session))
        await asyncio.sleep(1)
        assert 1 <= store.calls["write"] <= 6
        store.fault = None
        await answer

    with caplog.at_level(logging.ERROR):
        play(scenario)
    assert "a bug" in caplog.text


# -- opening without the store -----


@pytest.mark.parametrize("durability", [BEHIND, SYNC])
def test_session_in_memory_is_opened_again_for_the_client_that_had_it(durability: Durability):
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s", durability)
        desk.step(session)
        epoch = session.epoch
        store.is_down = True
        assert await desk.open("s", durability, epoch=epoch) is session
        assert (session.epoch, session.durability) == (epoch, durability)
        for wrong in (0, epoch - 1, epoch + 1):
            assert await reason_of(desk.open("s", durability, epoch=wrong)) is errors.StoreUnavailable
        for request in ({"mode": OpenMode.CREATE, "epoch": epoch}, {"session_id": "t"}):
            call = desk.keeper.open(
                OpenRequest(**({"session_id": "s", "model": "toy"} | request)), RecordingOwner()
            )  # type: ignore[arg-type]
            assert await reason_of(call) is errors.StoreUnavailable
        await asyncio.sleep(OUTAGE_S + 1)
        assert await reason_of(desk.open("s", durability, epoch=epoch)) is errors.StoreUnavailable

    play(scenario)


def test_session_that_was_opened_without_the_store_takes_no_step_without_a_number():
    """Its record may say that nothing is missing: after a crash here, nobody would miss the step."""

    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s")
        desk.step(session)
        desk.leave(session)
        await asyncio.sleep(0.01)
        assert store.is_clean("s")
        store.is_down = True
        await desk.open("s", epoch=session.epoch)
        with pytest.raises(errors.StepRequired):
            desk.begin(session)
        await desk.answer(session, step=1)

    play(scenario)


# -- leaving, and the mark -----


def test_last_step_is_written_at_once_when_the_stream_leaves():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s")
        desk.step(session, 1, 2)
        desk.leave(session)
        await asyncio.sleep(0.01)
        assert (store.step_of("s"), store.is_clean("s")) == (2, True)

    play(scenario)


@pytest.mark.parametrize("durability", list(Durability))
@pytest.mark.parametrize("has_left", [True, False])
@pytest.mark.parametrize("is_unary_sync", [True, False])
def test_mark_says_that_no_step_can_follow_unseen(
    durability: Durability, *, has_left: bool, is_unary_sync: bool
):
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s", durability)
        desk.step(session)
        if has_left:
            desk.leave(session)
        await desk.checkpointer.store(session)
        assert store.step_of("s") == 1
        assert store.is_clean("s") == (durability is SYNC or (has_left and is_unary_sync))

    play(scenario, is_unary_sync=is_unary_sync)


def test_stream_that_comes_before_its_forerunner_s_last_step_is_written_finds_no_mark():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s")
        desk.step(session)
        job = desk.begin(session)
        desk.leave(session)  # its message is in flight
        await asyncio.sleep(0.01)
        opening = asyncio.ensure_future(desk.open("s"))
        await asyncio.sleep(0.01)
        desk.end(session, job)
        await opening
        await asyncio.sleep(0.01)
        assert (store.step_of("s"), store.is_clean("s")) == (2, False)

    play(scenario)


def test_leaving_asks_for_nothing_where_there_is_nothing_to_be_stored():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        none, gone = await desk.open("n", NONE), await desk.open("g")
        desk.step(none)
        desk.table.detach(gone, gone.owner, desk.clock())  # type: ignore[arg-type]
        desk.table.remove(gone)
        desk.checkpointer.leave([none, gone])
        await asyncio.sleep(2 * INTERVAL_S)
        assert store.written == []

    play(scenario)


def test_session_that_ends_after_it_was_asked_for_is_not_written():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        one, other = await desk.open("s"), await desk.open("t")
        desk.step(one, 1, 2)
        desk.leave(one)
        desk.table.remove(one)
        desk.step(other)
        with store.held("write"):
            desk.leave(other)
            await asyncio.sleep(0.01)
            desk.checkpointer.leave([other])  # again, with a record on its way
            await asyncio.sleep(0.01)
            desk.table.remove(other)
        await asyncio.sleep(INTERVAL_S)
        assert store.written == [{"t": 1}]

    play(scenario)


def test_session_that_is_lost_while_its_answer_waits_is_told_so():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s", SYNC)
        with store.held("write"):
            answer = asyncio.ensure_future(desk.answer(session))
            await asyncio.sleep(0.01)
            desk.table.detach(session, session.owner, desk.clock())  # type: ignore[arg-type]
            desk.table.remove(session)
            assert await reason_of(answer) is errors.SessionMoved
        assert await reason_of(desk.checkpointer.until_stored(session, 1)) is errors.SessionMoved

    play(scenario)


# -- ends and resets with a record on its way -----


def test_row_that_is_used_again_while_the_last_one_s_record_is_written_is_written_too():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s")
        desk.step(session, 1, 2, 3)
        desk.leave(session)
        with store.held("write"):
            await asyncio.sleep(0.1)
            assert session.model.columns.is_writing[session.row]
            desk.table.remove(session)
            heir = await desk.open("t")
            assert heir.row == session.row
            desk.step(heir)
        await asyncio.sleep(INTERVAL_S)
        assert (heir.durable_step, store.step_of("t"), store.step_of("s")) == (1, 1, 3)

    play(scenario, models=[TableModel(num_rows=1)])


def test_row_whose_heir_is_written_is_not_freed_by_the_last_one_s_write():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s")
        desk.step(session)
        desk.leave(session)
        with store.held("write"):
            await asyncio.sleep(0.1)
            desk.table.remove(session)
            heir = await desk.open("t")
            desk.step(heir)
            await asyncio.sleep(2 * INTERVAL_S)  # both are under way
        await asyncio.sleep(INTERVAL_S)
        assert heir.durable_step == 1

    play(scenario, models=[TableModel(num_rows=1)])


def test_deleted_session_is_not_written_afterwards():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s", SYNC)
        with store.held("write"):
            answer = asyncio.ensure_future(desk.answer(session))
            await asyncio.sleep(0.1)
            deletion = asyncio.ensure_future(Management(desk.keeper).delete("s"))
            await asyncio.sleep(0.1)
            assert not deletion.done()
        await deletion
        assert await answer == (1, 2.0, False)
        await asyncio.sleep(2 * INTERVAL_S)
        assert (session.is_ended, store.step_of("s")) == (True, None)
        assert desk.notes.of("move") == []

    play(scenario)


def test_reset_session_s_earlier_steps_are_not_stored_after_it():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s")
        desk.step(session, 1, 2, 3)
        first = session.incarnation

        async def reset() -> None:
            await desk.keeper.restart(session, session.model.arena.read(session.slot), lambda: None)

        with store.held("write"):
            await asyncio.sleep(INTERVAL_S)
            restart = asyncio.ensure_future(desk.turns.through("s", reset))
            await asyncio.sleep(0.1)
            assert session.step == 3
        await restart
        assert (session.step, session.durable_step, store.step_of("s")) == (0, 0, 0)
        assert store.entries["s"].record.incarnation == session.incarnation > first
        assert session.durability is BEHIND
        desk.step(session)
        await asyncio.sleep(INTERVAL_S)
        assert (session.durable_step, store.step_of("s")) == (1, 1)

    play(scenario)


def test_answer_that_waits_while_its_session_is_reset_is_not_called_stored():
    """The history: step 1 waits, the session begins anew, and step 1 of the new one is stored."""

    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s", SYNC)
        store.is_full = True
        answer = asyncio.ensure_future(desk.answer(session, 5))
        await asyncio.sleep(0.1)

        async def reset() -> None:
            await desk.keeper.restart(session, session.model.arena.read(session.slot), lambda: None)

        store.is_full = False
        await store.open_elsewhere("s")  # so that the write is refused, and judged after the reset
        async with desk.turns.of("s"):
            session.epoch = store.entries["s"].epoch
            await reset()
        await desk.answer(session, 7)
        assert await reason_of(answer) is errors.SessionMoved
        assert all(record.last_message is None or record.step == 1 for record in store.stored)

    play(scenario)


def test_room_is_waited_for_where_all_idle_sessions_are_on_their_way_to_the_store():
    """Streams that leave a full server: their last steps are written before the next ones come."""

    async def scenario(desk: Desk, store: FlakyStore) -> None:
        for name in "st":
            desk.leave(await desk.open(name))
        with store.held("write"):
            await asyncio.sleep(0.1)
            opening = asyncio.ensure_future(desk.open("u"))
            await asyncio.sleep(0.1)
            assert not opening.done()
        assert (await opening).step == 0
        assert len(desk.table) == 2

    play(scenario, max_sessions=2)


@pytest.mark.parametrize("is_used", [True, False])
def test_session_is_spilled_by_its_evictor_alone(*, is_used: bool):
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s")
        desk.leave(session)
        await asyncio.sleep(70)
        num_written = len(store.written)
        with store.held("write"):
            sweep = asyncio.ensure_future(desk.evictor.sweep())
            await asyncio.sleep(0.1)
            if is_used:
                desk.step(session)
            desk.checkpointer.leave([session])
            await asyncio.sleep(2 * INTERVAL_S)
            assert len(store.written) == num_written
        await sweep
        await asyncio.sleep(INTERVAL_S)
        assert session.is_ended != is_used
        assert store.step_of("s") == is_used

    play(scenario)


def test_session_whose_record_is_on_its_way_is_not_spilled():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s")
        desk.leave(session)
        await asyncio.sleep(70)
        with store.held("write"):
            desk.checkpointer.leave([session])
            await asyncio.sleep(0.1)
            await desk.evictor.sweep()
            assert not session.is_ended
        await asyncio.sleep(0.1)
        await desk.evictor.sweep()
        assert session.is_ended

    play(scenario)


# -- writing by request -----


def test_store_says_why_a_session_was_not_written():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        one, other, gone = [await desk.open(name) for name in "sto"]
        desk.table.detach(gone, gone.owner, desk.clock())  # type: ignore[arg-type]
        desk.table.remove(gone)
        await store.open_elsewhere("t")
        failures = await desk.checkpointer.store_many([one, other, gone])
        assert failures[0] is None
        assert [type(failure) for failure in failures[1:]] == [errors.SessionMoved] * 2
        store.is_down = True
        assert await reason_of(desk.checkpointer.store(one)) is errors.StoreUnavailable

    play(scenario)


def test_store_waits_for_those_in_flight_and_writes_each_as_it_is_then():
    async def scenario(desk: Desk, _store: FlakyStore) -> None:
        sessions = [await desk.open(name) for name in "stu"]
        jobs = [desk.begin(session) for session in sessions[:2]]
        storing = asyncio.ensure_future(desk.checkpointer.store_many(sessions))
        await asyncio.sleep(0.1)
        for session, job in zip(sessions, jobs, strict=False):
            desk.end(session, job)
            await asyncio.sleep(0.1)
        assert await storing == [None] * 3
        assert [session.durable_step for session in sessions] == [1, 1, 0]

    play(scenario)


def test_mark_is_not_written_where_a_stream_is_about_to_come():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s")
        desk.leave(session)
        await asyncio.sleep(0.1)
        assert store.is_clean("s")
        await desk.checkpointer.store_many([session], before_stream=True)
        assert not store.is_clean("s")

    play(scenario)


def test_every_session_is_written_as_its_owner_s_last_word(monkeypatch: pytest.MonkeyPatch):
    for module in (checkpointing, interval_writer):
        monkeypatch.setattr(module, "WRITE_BATCH", 3)
    models = [TableModel(num_rows=20, name="toy"), TableModel(num_rows=20, name="other")]

    async def scenario(desk: Desk, store: FlakyStore) -> None:
        sessions = [
            await desk.open(f"s{k}", Durability(k % 3), model=("toy", "other")[k % 2]) for k in range(12)
        ]
        for session in sessions:
            desk.step(session, 1, 2)
        desk.leave(sessions[3])
        store.delay_s = 0.1
        job = desk.begin(sessions[5])
        storing = asyncio.ensure_future(desk.checkpointer.store_all())
        await asyncio.sleep(1)
        desk.end(sessions[5], job)
        await storing
        assert [store.step_of(session.id) for session in sessions] == [2] * 5 + [3] + [2] * 6
        assert all(store.is_clean(session.id) for session in sessions)

    play(scenario, models=models)


def test_nothing_is_written_twice_at_a_time_while_all_is_stored():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        sessions = [await desk.open(f"s{k}") for k in range(10)]
        for session in sessions:
            desk.step(session)
        store.delay_s = 0.7  # the intervals' writes come between
        job = desk.begin(sessions[-1])
        storing = asyncio.ensure_future(desk.checkpointer.store_all())
        for _ in range(30):
            await asyncio.sleep(0.1)
            for session in sessions[:-1]:
                desk.step(session)
        desk.end(sessions[-1], job)
        await storing
        assert len(store.written) > 5

    play(scenario)


def test_all_is_stored_also_while_idle_sessions_are_spilled():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session, streaming = await desk.open("s"), await desk.open("t")
        desk.leave(session)
        await asyncio.sleep(70)
        desk.step(streaming)
        await asyncio.sleep(2 * INTERVAL_S)
        with store.held("write"):
            sweep = asyncio.ensure_future(desk.evictor.sweep())
            await asyncio.sleep(0.1)
            storing = asyncio.ensure_future(desk.checkpointer.store_all())
            await asyncio.sleep(0.1)
        begin_s = desk.monotonic()
        await asyncio.gather(sweep, storing)
        assert desk.monotonic() == begin_s
        assert session.is_ended
        assert (store.is_clean("s"), store.is_clean("t")) == (True, True)

    play(scenario)


def test_last_words_wait_for_a_store_that_is_away():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        for name, durability in (("s", NONE), ("t", BEHIND), ("u", SYNC)):
            desk.step(await desk.open(name, durability))
        store.is_down = True
        storing = asyncio.ensure_future(desk.checkpointer.store_all())
        await asyncio.sleep(3)
        assert not storing.done()
        store.is_down = False
        await storing
        assert [store.step_of(name) for name in "stu"] == [1, 1, 1]
        assert all(map(store.is_clean, "stu"))

    play(scenario)


def test_what_is_not_stored_at_the_end_is_logged(caplog: pytest.LogCaptureFixture):
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        for number in range(12):
            desk.step(await desk.open(f"s{number:02}"))
        await desk.open("new")
        store.is_down = True
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await desk.checkpointer.store_all()
        desk.checkpointer.log_what_is_lost()

    with caplog.at_level(logging.ERROR):
        play(scenario)
    fields = caplog.records[-1].fields  # type: ignore[attr-defined]
    assert fields == {"sessions": 12, "first": ", ".join(f"s{number:02}" for number in range(10))}


def test_open_sessions_that_are_silent_do_not_look_unused():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        silent, idle = await desk.open("s"), await desk.open("i")
        desk.leave(idle)
        await asyncio.sleep(100)
        young = await desk.open("y")
        desk.checkpointer.refresh(desk.clock() - 50)
        await asyncio.sleep(0.1)
        assert store.entries["s"].record.last_used_s == pytest.approx(desk.clock(), abs=1)
        assert store.entries["i"].record.last_used_s < desk.clock() - 50
        assert not store.is_clean("s")
        assert [set(write) for write in store.written] == [{"i"}, {"s"}]
        assert (silent.durable_step, young.durable_step) == (0, 0)

    play(scenario)


# -- the end -----


def test_stop_tells_those_who_wait_and_writes_nothing_more():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session, other = await desk.open("s", SYNC), await desk.open("t")
        store.is_full = True
        desk.step(other)
        answer = asyncio.ensure_future(desk.answer(session))
        await asyncio.sleep(0.1)
        await desk.checkpointer.stop()
        assert await reason_of(answer) is errors.StoreUnavailable
        store.is_full = False
        num_calls = store.calls["write"]
        await asyncio.sleep(5 * INTERVAL_S)
        assert store.calls["write"] == num_calls

    play(scenario)


def test_who_comes_after_the_stop_does_not_wait_for_ever():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s", SYNC)
        await desk.checkpointer.stop()
        assert await reason_of(desk.answer(session)) is errors.StoreUnavailable
        assert store.written == []

    play(scenario)


def test_stop_waits_for_the_write_in_hand():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s", SYNC)
        store.delay_s = 1.0
        answer = asyncio.ensure_future(desk.answer(session))
        await asyncio.sleep(0.1)
        await desk.checkpointer.stop()
        assert (await answer)[0] == 1
        assert store.step_of("s") == 1

    play(scenario)


def test_stop_waits_until_a_refused_write_is_judged():
    async def scenario(desk: Desk, store: FlakyStore) -> None:
        session = await desk.open("s", SYNC)
        await store.open_elsewhere("s")
        async with desk.turns.of("s"):
            answer = asyncio.ensure_future(desk.answer(session))
            await asyncio.sleep(0.1)
            stop = asyncio.ensure_future(desk.checkpointer.stop())
            await asyncio.sleep(0.1)
        await stop
        assert await reason_of(answer) is errors.SessionMoved
        assert session.is_ended

    play(scenario)


# -- a store that is not durable -----


def test_nothing_is_written_and_nobody_waits_where_nothing_is_durable():
    loop = VirtualLoop()

    async def scenario() -> None:
        store = MemoryStore()
        desk = Desk(store, loop.time)
        desk.checkpointer.start()
        session = await desk.open("s", SYNC)
        assert session.durability is NONE
        assert session.model.columns.waits_from_of[session.row] == NEVER
        await desk.answer(session, strictly=True)
        desk.checkpointer.refresh(desk.clock())
        await desk.checkpointer.store(session)
        await desk.checkpointer.store_all()
        desk.leave(session)
        await asyncio.sleep(3 * INTERVAL_S)
        assert store.num_records() == 0
        assert desk.checkpointer.lag_s == 0
        await desk.stop()

    loop.play(scenario())


# -- SQLite -----


@pytest.fixture
def on_sqlite(run: Callable[..., Any], tmp_path: Path) -> Callable[..., None]:
    """Run scenarios at desks, one after the other, over one file, in real time."""

    def play_on(*scenarios: Callable[[Desk], Any]) -> None:
        async def played() -> None:
            for scenario in scenarios:
                store = ThreadedStore(SqliteBackend(tmp_path / "sessions.db", 1000))
                desk = Desk(store, asyncio.get_running_loop().time)
                desk.checkpointer.start()
                try:
                    async with asyncio.timeout(20):
                        await scenario(desk)
                finally:
                    await desk.stop()
                    await store.close()

        run(played())

    return play_on


def test_what_was_answered_under_sync_is_in_the_file(on_sqlite: Callable[..., None]):
    async def before(desk: Desk) -> None:
        sessions = [await desk.open(f"s{k}", SYNC) for k in range(50)]
        for _ in range(3):
            await asyncio.gather(*(desk.answer(session) for session in sessions))

    async def after(desk: Desk) -> None:
        for k in range(50):
            session = await desk.open(f"s{k}", mode=OpenMode.OPEN)
            assert (session.step, session.durable_step, session.is_gapless) == (3, 3, True)

    on_sqlite(before, after)


def test_drain_stores_all_and_a_stop_alone_only_what_was_written(on_sqlite: Callable[..., None]):
    async def drained(desk: Desk) -> None:
        desk.step(await desk.open("drained"), 1, 2)
        await desk.checkpointer.store_all()

    async def stopped(desk: Desk) -> None:
        desk.step(await desk.open("stopped"), 1, 2)

    async def after(desk: Desk) -> None:
        steps = [(await desk.open(name, mode=OpenMode.OPEN)).step for name in ("drained", "stopped")]
        assert steps == [2, 0]

    on_sqlite(drained, stopped, after)


def test_server_that_has_lost_a_session_is_told_by_the_file(on_sqlite: Callable[..., None], tmp_path: Path):
    async def scenario(desk: Desk) -> None:
        session = await desk.open("s", SYNC)
        await desk.answer(session)
        store = ThreadedStore(SqliteBackend(tmp_path / "sessions.db", 1000))
        other = Desk(store, desk.monotonic)
        other.checkpointer.start()
        moved = await other.open("s", SYNC, client_id="them")
        assert moved.step == 1
        with pytest.raises(errors.SessionMoved) as caught:
            await desk.answer(session)
        assert caught.value.metadata["client_id"] == "them"
        assert (await other.answer(moved))[0] == 2
        await other.stop()
        await store.close()

    on_sqlite(scenario)
