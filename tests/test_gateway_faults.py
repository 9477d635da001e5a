"""The gateway's shells against a peer that loses and holds back answers, over real gRPC."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import grpc
import longshort
import numpy as np
import pytest
from frame_peer import FramePeer, frame_peer
from frame_server import alone
from longshort import errors
from longshort.aio import writing
from longshort.gateway.stream import FrameStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator


@pytest.fixture
def peer() -> Iterator[FramePeer]:
    with frame_peer() as running:
        yield running


def play(
    peer: FramePeer, scenario: Callable[[longshort.aio.Gateway], Awaitable[None]], **options: Any
) -> None:
    async def with_gateway() -> None:
        async with longshort.aio.Gateway(peer.address, "m", **{"timeout_s": 20} | options) as gateway:
            await scenario(gateway)

    asyncio.run(with_gateway())


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED]
)
def test_lost_answers_are_a_pause(peer: FramePeer, code: grpc.StatusCode):
    peer.loses = {1: code, 4: code, 6: code}

    async def scenario(gateway: longshort.aio.Gateway) -> None:
        for value in range(4):
            answers = await gateway.steps(["a", "b"], [value, 2 * value])
            np.testing.assert_array_equal(answers[0], alone(range(value + 1))[-1])
        assert [len(session.history) for session in peer.server.sessions.values()] == [4, 4]

    play(peer, scenario)
    assert peer.num_frames > 8


def test_timeout_after_sending_leaves_the_sessions_in_doubt_and_the_others_go_on(peer: FramePeer):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        await gateway.steps(list("abc"), [1, 1, 1])
        peer.holds = {peer.num_frames}
        call = asyncio.ensure_future(gateway.steps(["a", "b"], [2, 2], timeout_s=0.2))
        await asyncio.sleep(0)  # it is asked, so that both go in one frame
        outcomes = await asyncio.gather(call, gateway.step("c", 2, timeout_s=0.2), return_exceptions=True)
        for outcome in outcomes:
            assert isinstance(outcome, errors.DeadlineExceeded)
            assert "retry" in str(outcome)
        assert all(gateway.in_doubt(key) for key in "abc")
        assert sorted(gateway.doubts()) == ["a", "b", "c"]
        with pytest.raises(errors.RowsFailed) as refused:
            await gateway.close_session(["a", "unknown"])
        assert [*refused.value.errors] == [0]
        assert isinstance(refused.value.errors[0], errors.StepInDoubt)
        with pytest.raises(errors.StepInDoubt):
            await gateway.close_session("a")
        with pytest.raises(errors.StepInDoubt):
            await gateway.step("a", 3)
        with pytest.raises(errors.DeadlineExceeded):
            await gateway.retry("a", timeout_s=0.05)
        assert gateway.in_doubt("a")
        other = asyncio.ensure_future(gateway.step("d", 1))
        await asyncio.sleep(0.05)
        peer.let_go.set()
        for key in "abc":
            np.testing.assert_array_equal(await gateway.retry(key), alone([1, 2])[1])
        np.testing.assert_array_equal(await other, alone([1])[0])
        np.testing.assert_array_equal(
            await gateway.steps(list("abcd"), [3, 3, 3, 3]), [alone([1, 2, 3])[2]] * 3 + [alone([1, 3])[1]]
        )

    play(peer, scenario)


def test_cancelled_array_call_leaves_what_was_sent_in_doubt(peer: FramePeer):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        await gateway.steps(["a", "b"], [1, 1])
        peer.holds = {peer.num_frames}
        call = asyncio.ensure_future(gateway.steps(["a", "b", "new"], [2, 2, 2]))
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert [gateway.in_doubt(key) for key in ("a", "b", "new")] == [True, True, False]
        peer.let_go.set()
        for key in "ab":
            np.testing.assert_array_equal(await gateway.retry(key), alone([1, 2])[1])
        np.testing.assert_array_equal(await gateway.step("new", 5), alone([5])[0])

    play(peer, scenario)


def test_answer_that_a_cancellation_overtakes_is_kept_for_retry(
    peer: FramePeer, monkeypatch: pytest.MonkeyPatch
):
    received = FrameStream.received
    overtaken: list[asyncio.Task[Any]] = []

    def overtake(core: FrameStream, raw: bytes, now_s: float) -> None:
        received(core, raw, now_s)
        for task in overtaken:  # it has its answer, and has not run since
            task.cancel()

    async def cancelled(ask: Awaitable[Any]) -> None:
        overtaken[:] = [asyncio.ensure_future(ask)]
        await asyncio.sleep(0)
        peer.let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await overtaken[0]
        overtaken.clear()

    async def scenario(gateway: longshort.aio.Gateway) -> None:
        await gateway.steps(["a", "b"], [1, 1])
        await cancelled(gateway.steps(["a", "b"], [2, 2]))
        assert gateway.in_doubt("a")
        for key in "ab":
            np.testing.assert_array_equal(await gateway.retry(key), alone([1, 2])[1])
        await cancelled(gateway.forecasts(["a", "b"], 2))
        assert not gateway.in_doubt("a"), "a forecast takes nothing"
        peer.let_go.clear()
        peer.holds = {peer.num_frames}
        call = gateway.step("a", 3)
        await asyncio.sleep(0.1)
        call.cancel()
        await cancelled(gateway.retry("a"))
        np.testing.assert_array_equal(await gateway.retry("a"), alone([1, 2, 3])[2])

    monkeypatch.setattr(FrameStream, "received", overtake)
    play(peer, scenario)


def test_early_timeout_is_told_while_later_ones_wait(peer: FramePeer):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        await gateway.steps(["a", "b"], [1, 1])
        peer.holds = {peer.num_frames}
        late = asyncio.ensure_future(gateway.step("a", 2, timeout_s=5))
        early = asyncio.ensure_future(gateway.step("b", 2, timeout_s=0.1))
        with pytest.raises(errors.DeadlineExceeded):
            await early
        assert not late.done()
        peer.let_go.set()
        np.testing.assert_array_equal(await late, alone([1, 2])[1])

    play(peer, scenario)


def test_bug_of_the_gateway_leaves_nobody_waiting(
    peer: FramePeer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    async def scenario() -> None:
        gateway = longshort.aio.Gateway(peer.address, "m")
        monkeypatch.setattr("longshort.gateway.wire.response", lambda _: 1 / 0)
        with pytest.raises(errors.ServerFault) as caught:
            await gateway.step("a", 1)
        assert caught.value.reason == "INTERNAL"
        await asyncio.sleep(0)
        (record,) = caplog.records  # at once, not when the task is collected
        assert record.exc_info is not None
        assert record.exc_info[0] is ZeroDivisionError
        with pytest.raises(errors.ServerFault):
            await gateway.steps(["a"], [1])
        await gateway.close()

    asyncio.run(scenario())


def test_closing_tells_what_was_sent_from_what_was_not(peer: FramePeer):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        await gateway.steps(["a", "b"], [1, 1])
        peer.holds = {peer.num_frames}
        sent = asyncio.ensure_future(gateway.step("a", 2))
        await asyncio.sleep(0.1)
        waiting = asyncio.ensure_future(gateway.steps(["a", "b"], [3, 3]))
        await asyncio.sleep(0)
        await gateway.close()
        peer.let_go.set()
        with pytest.raises(errors.StepInDoubt, match="closed"):
            await sent
        with pytest.raises(errors.RowsFailed) as caught:
            await waiting
        assert {type(error) for error in caught.value.errors.values()} == {errors.SessionClosed}

    play(peer, scenario)


@pytest.mark.parametrize("delay_s", [0, 0.05])
def test_end_of_the_task_behind_the_gateway_is_told_at_once_and_ever_after(peer: FramePeer, delay_s: float):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        peer.holds = {0}
        calls = [asyncio.ensure_future(gateway.step("a", number)) for number in range(2)]
        calls.append(asyncio.ensure_future(gateway.steps(["b"], [1])))
        await asyncio.sleep(delay_s)
        for task in asyncio.all_tasks():  # as asyncio.run does at its end
            if task.get_name() == "longshort-frames":
                task.cancel()
        async with asyncio.timeout(2):
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            later = await asyncio.gather(gateway.step("a", 1), gateway.flush(), return_exceptions=True)
        peer.let_go.set()
        assert {type(outcome) for outcome in [*outcomes, *later]} == {errors.SessionClosed}

    play(peer, scenario, max_waiting_steps=1)


def test_array_call_larger_than_the_room_leaves_room_beside_it(peer: FramePeer):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        await gateway.steps(["a", "b"], [1, 1])
        peer.holds = {peer.num_frames}
        large = asyncio.ensure_future(gateway.steps(["a"], np.ones((1, 300, 1))))
        await asyncio.sleep(0)
        small = gateway.step("b", 2)
        assert isinstance(small, asyncio.Future), "taken at once"
        peer.let_go.set()
        await asyncio.gather(large, small)
        large = asyncio.ensure_future(gateway.steps(["a"], np.ones((1, 300, 1))))
        await asyncio.sleep(0)
        large.cancel()
        await asyncio.gather(large, return_exceptions=True)
        assert gateway._lanes.of("a").core.turns.num_waiting_steps == 0

    play(peer, scenario, max_waiting_steps=8)


def test_grpcio_without_the_private_writer_will_do(peer: FramePeer, monkeypatch: pytest.MonkeyPatch):
    write = writing.write

    class Public:
        """A call without its private part."""

        def __init__(self, call: Any) -> None:
            self.wait_for_connection, self.done, self.write = call.wait_for_connection, call.done, call.write

    monkeypatch.setattr(
        "longshort.aio.frame_pump.write", lambda call, raw, serialized: write(Public(call), raw, serialized)
    )

    async def scenario(gateway: longshort.aio.Gateway) -> None:
        np.testing.assert_array_equal(await gateway.step("a", 1), alone([1])[0])

    play(peer, scenario)


def test_sync_gateway_goes_on_after_a_lost_answer(peer: FramePeer):
    peer.loses = {1: grpc.StatusCode.UNAVAILABLE}
    with longshort.Gateway(peer.address, "m", timeout_s=20) as gateway:
        np.testing.assert_array_equal(gateway.step("a", 1.0), alone([1])[0])
        assert len(peer.server.sessions["a"].history) == 1


class InterruptedLock:
    """A lock that is left by an interrupt, a moment after what was done under it."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s

    def __enter__(self) -> None:
        """Nobody else asks."""

    def __exit__(self, *_: object) -> None:
        time.sleep(self._delay_s)
        raise KeyboardInterrupt


@pytest.mark.parametrize("delay_s", [0, 0.1])
def test_interrupt_between_handing_over_and_waiting_withdraws_or_leaves_in_doubt(
    peer: FramePeer, delay_s: float, monkeypatch: pytest.MonkeyPatch
):
    with longshort.Gateway(peer.address, "m", timeout_s=20) as gateway:
        gateway.step("a", 1)
        peer.holds = {peer.num_frames}
        with monkeypatch.context() as patch:
            patch.setattr(gateway, "_handing_over", InterruptedLock(delay_s))
            with pytest.raises(KeyboardInterrupt):
                gateway.step("a", 2)
        is_in_doubt = gateway.in_doubt("a")
        peer.let_go.set()
        assert is_in_doubt or not delay_s
        if is_in_doubt:
            np.testing.assert_array_equal(gateway.retry("a"), alone([1, 2])[1])
        taken = [1, 2, 3] if is_in_doubt else [1, 3]
        np.testing.assert_array_equal(gateway.step("a", 3), alone(taken)[-1])
