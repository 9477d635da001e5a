"""The gateway over several servers that share a store: lanes, what is shared out over them, and how they move."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import grpc
import longshort
import numpy as np
import pytest
from frame_peer import FramePeer, frame_peer
from frame_server import BEHIND, SYNC, FrameServer, Refusal, alone
from longshort import errors
from longshort.errors import Code
from longshort.gateway.group import Group
from longshort.gateway.shares import lane_of, merged

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

IDS = [f"session-{number}" for number in range(40)]


@pytest.fixture
def peers() -> Iterator[list[FramePeer]]:
    """Two servers."""
    server = FrameServer(BEHIND, max_steps=4096)
    other = FrameServer(BEHIND, max_steps=4096, store=server.store, num_incarnations=1000)
    with frame_peer(server) as one, frame_peer(other) as two:
        yield [one, two]


def play(
    peers: list[FramePeer], scenario: Callable[[longshort.aio.Gateway], Awaitable[None]], **options: Any
) -> None:
    async def with_gateway() -> None:
        addresses = [peer.address for peer in peers]
        async with longshort.aio.Gateway(addresses, "m", **{"timeout_s": 20} | options) as gateway:
            await scenario(gateway)

    asyncio.run(with_gateway())


def test_lane_of_a_session_is_the_same_in_every_process():
    assert [lane_of(key, 8) for key in ("a", "b", "c", "sensor-7")] == [7, 5, 3, 1]
    counts = np.bincount([lane_of(f"meter-{number}", 16) for number in range(16_000)])
    assert counts.min() > 850
    assert counts.max() < 1150


def test_group_is_shared_out_over_lanes_once():
    group = Group(IDS)
    shares = group.shares(8)
    assert shares is group.shares(8)
    assert sorted(row for share in shares for row in share.rows.tolist()) == list(range(40))
    for share in shares:
        assert [IDS[share.row(index)] for index in range(len(share.group))] == list(share.group.ids)
        assert {lane_of(key, 8) for key in share.group.ids} == {share.lane}
    (only,) = group.shares(1)
    assert (only.lane, only.group, only.row(3)) == (0, group, 3)
    assert [len(share.group) for share in Group([]).shares(8)] == [0]


def test_failures_of_shares_keep_the_rows_of_the_caller():
    shares = Group(IDS).shares(2)
    answers = [np.full((len(share.group), 2), share.lane, np.float32) for share in shares]
    np.testing.assert_array_equal(merged(IDS, shares, answers)[:, 0], [lane_of(key, 2) for key in IDS])
    lost = errors.SessionLost("gone")
    failed = errors.RowsFailed("some", answers=None, errors={1: lost})
    with pytest.raises(errors.RowsFailed) as caught:
        merged(IDS, shares, [answers[0], failed])
    assert caught.value.errors == {shares[1].row(1): lost}
    np.testing.assert_array_equal(caught.value.answers[shares[0].rows], answers[0])
    assert np.isnan(caught.value.answers[shares[1].rows]).all()


def test_sessions_of_all_lanes_answer_in_the_order_of_the_caller(peers: list[FramePeer]):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        group = gateway.group(IDS)
        values = np.arange(40 * 3, dtype=np.float32).reshape(3, 40)
        answers = [await gateway.steps(group, row) for row in values]
        for place in range(40):
            np.testing.assert_array_equal([each[place] for each in answers], alone(values[:, place]))
        assert all(peer.server.sessions for peer in peers), "both servers have some"
        ahead = await gateway.forecasts(group, 2)
        assert ahead.shape == (40, 2, 2)
        assert (await gateway.open([*IDS, "new"])).tolist() == [True] * 41
        assert gateway.created("new")
        assert gateway.position(IDS[7]) == 3
        assert (await gateway.steps([], [])).shape == (0, 2)
        await gateway.flush()
        assert {len(record.history) for record in peers[0].server.store.records.values()} == {0, 3}
        await gateway.close_session(group)
        with pytest.raises(errors.FailedPrecondition):
            gateway.position(IDS[7])
        single = await asyncio.gather(*(gateway.step(key, 5.0) for key in IDS))
        np.testing.assert_array_equal(single[0], alone([*values[:, 0], 5.0])[-1])

    play(peers, scenario)


def test_rows_that_fail_are_the_rows_of_the_caller(peers: list[FramePeer]):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        values = np.ones(40)
        values[[3, 21]] = np.nan
        with pytest.raises(errors.RowsFailed) as caught:
            await gateway.steps(IDS, values)
        assert {row: error.reason for row, error in caught.value.errors.items()} == dict.fromkeys(
            [3, 21], "VALUE_MISSING"
        )
        assert np.isnan(caught.value.answers).all(axis=1).nonzero()[0].tolist() == [3, 21]
        with pytest.raises(
            errors.InvalidRequest, match=r"ids\[40\] is text, not 5|ids\[40\]: session_id is text"
        ):
            await gateway.steps([*IDS, 5], np.ones(41))  # type: ignore[list-item]
        assert await gateway.step(IDS[0], 1.0) is not None, "nothing of the refused call is left"
        assert gateway.position(IDS[1]) == 1
        with pytest.raises(errors.FailedPrecondition):
            await gateway.retry("unknown")

    play(peers, scenario)


def test_server_that_dies_and_returns_is_a_pause(peers: list[FramePeer]):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        group = gateway.group(IDS)
        history: list[np.ndarray] = []

        async def take(count: int) -> None:
            for _ in range(count):
                history.append(np.random.default_rng(len(history)).integers(0, 99, 40).astype(np.float32))
                answers = await gateway.steps(group, history[-1])
                wanted = [alone([row[place] for row in history])[-1] for place in range(40)]
                np.testing.assert_array_equal(answers, wanted)

        await take(4)
        await gateway.flush(IDS[::2])
        for dying, other in (peers, peers[::-1], peers):
            await take(2)
            await asyncio.to_thread(dying.die)
            begin_s = time.perf_counter()
            await take(1)
            assert time.perf_counter() - begin_s < 5, "the other one takes over at once"
            assert len(other.server.sessions) == 40
            await asyncio.to_thread(dying.start)
            await take(2)
        assert gateway.doubts() == []

    play(peers, scenario)


def test_server_that_drains_is_left_for_the_other(peers: list[FramePeer]):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        await gateway.steps(IDS, np.ones(40))
        await gateway.flush()

        def refuse(_: str) -> None:
            raise Refusal(Code.UNAVAILABLE, "DRAINING", delay_s=30.0)

        peers[0].server.refuse_row = peers[0].server.refuse_open = refuse
        answers = await gateway.steps(IDS, np.ones(40), timeout_s=10)
        np.testing.assert_array_equal(answers, np.tile(alone([1, 1])[1], (40, 1)))

    play(peers, scenario)


def test_server_that_is_cut_off_from_its_store_is_left_after_a_while(
    peers: list[FramePeer], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("longshort.aio.lanes.STORE_PATIENCE_S", 0.2)
    for peer in peers:
        peer.server.durability = SYNC

    def refuse(_: str) -> None:
        raise Refusal(Code.UNAVAILABLE, "STORE_UNAVAILABLE", delay_s=0.1)

    async def scenario(gateway: longshort.aio.Gateway) -> None:
        await gateway.steps(IDS, np.ones(40))
        peers[0].server.refuse_row = peers[0].server.refuse_open = refuse
        answers = await gateway.steps(IDS, np.ones(40))
        np.testing.assert_array_equal(answers, np.tile(alone([1, 1])[1], (40, 1)))

    play(peers, scenario)


def test_call_whose_time_is_up_in_one_lane_leaves_all_that_was_sent_in_doubt(peers: list[FramePeer]):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        await gateway.steps(IDS, np.ones(40))
        peers[0].holds = set(range(1000))
        peers[0].let_go.clear()
        with pytest.raises(errors.DeadlineExceeded):
            await gateway.steps(IDS, np.ones(40), timeout_s=0.3)
        assert len(gateway.doubts()) == 40
        call = asyncio.ensure_future(gateway.retry(IDS[0]))
        peers[0].holds = set()
        peers[0].let_go.set()
        answers = [await call, *[await gateway.retry(key) for key in IDS[1:]]]
        np.testing.assert_array_equal(answers, np.tile(alone([1, 1])[1], (40, 1)))

    play(peers, scenario)


def test_call_that_is_cancelled_leaves_all_that_was_sent_in_doubt(peers: list[FramePeer]):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        await gateway.steps(IDS, np.ones(40))
        peers[0].holds = set(range(1000))
        peers[0].let_go.clear()
        call = asyncio.ensure_future(gateway.steps(IDS, np.ones(40)))
        await asyncio.sleep(0.2)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert len(gateway.doubts()) == 40
        peers[0].let_go.set()
        for key in IDS:
            np.testing.assert_array_equal(await gateway.retry(key), alone([1, 1])[1])

    play(peers, scenario)


def test_lanes_are_spread_over_all_servers_and_by_each_gateway_in_its_own_way(peers: list[FramePeer]):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        await gateway.steps(IDS, np.ones(40))
        held = [{key for key in IDS if key in peer.server.sessions} for peer in peers]
        for own in held:
            assert len({lane_of(key, 8) for key in own}) == 4
        seen.append(frozenset(held[0]))
        await gateway.close_session(IDS)

    seen: list[frozenset[str]] = []
    for number in range(6):
        for peer in peers:
            peer.server.crash()
        play(peers, scenario, client_id=f"gateway-{number}")
    assert len(set(seen)) > 1


def test_lane_that_ends_by_a_bug_leaves_the_others_their_room(
    peers: list[FramePeer], monkeypatch: pytest.MonkeyPatch
):
    broken, whole = (
        [key for key in IDS if (lane_of(key, 8) == 0) is is_broken] for is_broken in (True, False)
    )

    async def scenario(gateway: longshort.aio.Gateway) -> None:
        await gateway.steps(IDS, np.ones(40))
        lane = gateway._lanes.of(broken[0])

        def fail(_now_s: float) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(lane.core, "next_action", fail)
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # it is told as a traceback
        outcomes = await asyncio.gather(*(gateway.step(key, 1.0) for key in broken), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} <= {errors.ServerFault, errors.StepInDoubt}
        calls = [gateway.step(key, 1.0) for key in whole]
        late = [gateway.step(key, 1.0, timeout_s=10) for key in broken]
        assert sum(isinstance(call, asyncio.Future) for call in calls) == 4, (
            "there is no more room than before"
        )
        np.testing.assert_array_equal(
            await asyncio.gather(*calls), np.tile(alone([1, 1])[1], (len(whole), 1))
        )
        outcomes = await asyncio.gather(*late, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} <= {errors.ServerFault, errors.StepInDoubt}

    play(peers, scenario, max_waiting_steps=4)


def test_calls_that_ask_nothing_keep_no_other_waiting(peers: list[FramePeer]):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        await gateway.steps(IDS, np.ones(40))
        calls = [gateway.step(IDS[0], 1.0), gateway.step(IDS[1], 1.0)]
        calls += [
            gateway.step(key, [1.0, 2.0], timeout_s=5) for key in IDS[2:12]
        ]  # refused when it is their turn
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes[2:]} == {errors.InvalidRequest}

    play(peers, scenario, max_waiting_steps=2)


def test_room_is_shared_by_all_lanes(peers: list[FramePeer]):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        calls = [gateway.step(key, 1.0) for key in IDS]
        assert sum(isinstance(call, asyncio.Future) for call in calls) == 8
        np.testing.assert_array_equal(await asyncio.gather(*calls), np.tile(alone([1])[0], (40, 1)))

    play(peers, scenario, max_waiting_steps=8)


def test_without_any_server_a_call_is_given_up_in_time(peers: list[FramePeer]):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        await gateway.steps(IDS, np.ones(40))
        for peer in peers:
            await asyncio.to_thread(peer.die)
        with pytest.raises(errors.RowsFailed) as caught:
            await gateway.steps(IDS, np.ones(40))
        assert len(caught.value.errors) == 40
        for error in caught.value.errors.values():
            assert isinstance(error, errors.Unavailable)
            assert gateway.address in str(error)
            assert "within 0.5 s" in str(error)

    play(peers, scenario, give_up_s=0.5)


def test_name_stands_for_all_its_addresses():
    with (
        frame_peer() as peer,
        longshort.Gateway(f"dns:///localhost:{peer.address.split(':')[1]}", "m") as gateway,
    ):
        answers = gateway.steps(IDS, np.ones(40))
        np.testing.assert_array_equal(answers, np.tile(alone([1])[0], (40, 1)))


def test_threads_have_several_servers_too(peers: list[FramePeer]):
    peers[0].loses = {3: grpc.StatusCode.UNAVAILABLE}
    with longshort.Gateway(",".join(peer.address for peer in peers), "m", timeout_s=20) as gateway:
        for count in range(1, 5):
            answers = gateway.steps(IDS, np.ones(40))
            np.testing.assert_array_equal(answers, np.tile(alone([1] * count)[-1], (40, 1)))
        gateway.flush()
        gateway.close_session(IDS)
