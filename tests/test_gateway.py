"""The gateway, async and sync, against the real service."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import longshort
import numpy as np
import pytest
from longshort import errors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Scenario = Callable[[longshort.aio.Gateway], Awaitable[None]]


@pytest.fixture
def run(server: Any) -> Callable[..., None]:
    """Run a scenario with a gateway of the service's model metro."""

    def play(scenario: Scenario, **options: Any) -> None:
        async def with_gateway() -> None:
            arguments = {"model": "metro", "timeout_s": 20} | options
            async with longshort.aio.Gateway(server.address, **arguments) as gateway:
                await scenario(gateway)

        asyncio.run(with_gateway())

    return play


@pytest.fixture
def gateway(server: Any) -> Any:
    with longshort.Gateway(server.address, "metro", timeout_s=20) as gateway:
        yield gateway


def names(count: int) -> list[str]:
    """Return ids that no other test has."""
    word = uuid.uuid4().hex[:8]
    return [f"gateway-{word}-{number}" for number in range(count)]


def alone(server: Any, values: Any, model: str = "metro") -> np.ndarray:
    """Return what a session answers that takes values by itself."""
    with longshort.Client(server.address) as client, client.session(model=model) as session:
        return session.steps(values)


def test_steps_of_many_sessions_are_those_of_each_alone(run: Any, server: Any):
    values = np.cos(np.arange(40 * 6)).astype(np.float32).reshape(6, 40) * 100

    async def scenario(gateway: longshort.aio.Gateway) -> None:
        ids = names(40)
        group = gateway.group(ids)
        answers = [await asyncio.gather(*(gateway.step(*row) for row in zip(ids, values[0], strict=True)))]
        answers += [await gateway.steps(ids, values[1]), await gateway.steps(group, values[2])]
        later = await gateway.steps(group, values[3:].T[:, :, None])
        assert (np.shape(answers), later.shape, later.dtype) == ((3, 40, 3), (40, 3, 3), np.float32)
        for number in (0, 17, 39):
            wanted = alone(server, values[:, number])
            np.testing.assert_array_equal([each[number] for each in answers], wanted[:3])
            np.testing.assert_array_equal(later[number], wanted[3:])
        assert gateway.position(ids[5]) == 6
        assert not gateway.in_doubt(ids[5])

    run(scenario)


def test_calls_of_one_session_keep_their_order(run: Any, server: Any):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        (key,) = names(1)
        answers = await asyncio.gather(*(gateway.step(key, number) for number in range(50)))
        np.testing.assert_array_equal(answers, alone(server, np.arange(50)))

    run(scenario)


def test_long_values_and_live_steps_share_the_stream(run: Any, server: Any):
    history = np.sin(np.arange(5000)).astype(np.float32)

    async def scenario(gateway: longshort.aio.Gateway) -> None:
        one, two = names(2)
        replay = asyncio.create_task(gateway.steps([one], history[None, :, None]))
        live = [await gateway.step(two, number) for number in range(10)]
        assert not replay.done(), "the live session has waited for the long one"
        np.testing.assert_array_equal((await replay)[0], alone(server, history))
        np.testing.assert_array_equal(live, alone(server, np.arange(10)))

    run(scenario)


def test_row_that_is_refused_fails_by_itself(run: Any, server: Any):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        ids = names(3)
        with pytest.raises(errors.RowsFailed) as caught:
            await gateway.steps(ids, [1, np.inf, 3])
        assert isinstance(caught.value.errors[1], errors.InvalidRequest)
        assert caught.value.errors.keys() == {1}
        assert ids[1] in str(caught.value)
        answers = caught.value.answers
        assert answers is not None
        np.testing.assert_array_equal(answers[2], alone(server, [3])[0])
        assert np.isnan(answers[1]).all()
        with pytest.raises(errors.InvalidRequest) as refused:
            await gateway.step(ids[0], np.inf)
        assert refused.value.reason == "VALUE_NOT_FINITE"
        assert [gateway.position(key) for key in ids] == [1, 0, 1]

    run(scenario)


def test_forecast_does_not_move_the_session(run: Any, server: Any):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        ids = names(2)
        await gateway.steps(ids, [[[1.0], [2.0]], [[3.0], [4.0]]])
        ahead = await gateway.forecasts(ids, 5)
        with longshort.Client(server.address) as client, client.session(model="metro") as session:
            session.steps([3, 4])
            np.testing.assert_array_equal(ahead[1], session.forecast(5))
        np.testing.assert_array_equal(await gateway.forecast(ids[1], 5), ahead[1])
        assert gateway.position(ids[1]) == 2
        with pytest.raises(errors.InvalidRequest) as caught:
            await gateway.forecast(ids[1], 0)
        assert caught.value.reason == "HORIZON_OUT_OF_RANGE"
        assert await gateway.flush() is None  # this service stores nothing

    run(scenario)


def test_model_of_several_features(run: Any, server: Any):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        ids = names(2)
        first = await gateway.step(ids[0], [1.0, 2.0, 3.0])
        rows = await gateway.steps(ids, [[4, 5, 6], [7, 8, 9]])
        wanted = alone(server, [[1, 2, 3], [4, 5, 6]], "wide")
        np.testing.assert_array_equal([first, rows[0]], wanted)
        for ask in (lambda: gateway.step(ids[0], 1.0), lambda: gateway.steps(ids, [1, 2])):
            with pytest.raises(errors.InvalidRequest) as caught:
                await ask()
            assert caught.value.reason == "WRONG_SHAPE"

    run(scenario, model="wide")


def test_number_of_the_caller_makes_its_own_retry_safe(run: Any):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        (key,) = names(1)
        first = await gateway.step(key, 5, at=0)
        np.testing.assert_array_equal(await gateway.step(key, 5, at=0), first)
        for at, value, kind in ((0, 6, errors.ValuesDiffer), (7, 5, errors.StepGap)):
            with pytest.raises(kind):
                await gateway.step(key, value, at=at)
        assert gateway.position(key) == 1

    run(scenario)


def test_session_taken_by_another_ends_alone(run: Any, server: Any):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        ids = names(3)
        await gateway.steps(ids, [1, 2, 3])
        with longshort.Client(server.address, client_id="thief") as client, client.session(ids[1]) as session:
            session.step(9)
            with pytest.raises(errors.RowsFailed) as caught:
                await gateway.steps(ids, [1, 2, 3])
            assert isinstance(caught.value.errors[1], errors.SessionTaken)
            assert "thief" in str(caught.value.errors[1])
            with pytest.raises(errors.SessionTaken):
                await gateway.step(ids[1], 2)
        assert gateway.position(ids[0]) == 2
        await gateway.close_session(ids[1])
        await gateway.step(ids[1], 2)
        assert gateway.position(ids[1]) == 3

    run(scenario)


def test_closed_session_lives_on_at_the_server(run: Any, server: Any):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        ids = names(2)
        group = gateway.group(ids)
        await gateway.steps(group, [1, 2])
        await gateway.close_session(ids[0])
        await gateway.close_session(ids[0])
        with pytest.raises(errors.FailedPrecondition) as caught:
            gateway.position(ids[0])
        assert caught.value.reason == "NOT_OPEN"
        await gateway.steps(group, [1, 2])  # looks the ids up again
        assert gateway.position(ids[0]) == 2
        with longshort.Client(server.address) as client:
            assert client.get_session(ids[0]).step == 2

    run(scenario)


def test_opening_without_values_tells_what_is_new(run: Any, server: Any):
    ids = names(4)
    with longshort.Client(server.address) as client, client.session(ids[1], model="metro") as session:
        session.step(1)

    async def scenario(gateway: longshort.aio.Gateway) -> None:
        with pytest.raises(errors.FailedPrecondition) as caught:
            gateway.created(ids[0])
        assert caught.value.reason == "NOT_OPEN"
        assert (await gateway.open(ids[:2])).tolist() == [True, False]
        assert [gateway.position(key) for key in ids[:2]] == [0, 1]
        await gateway.steps(ids, np.ones(4))
        assert [gateway.created(key) for key in ids] == [True, False, True, True]
        assert (await gateway.open(gateway.group(ids))).tolist() == [True, False, True, True]
        with pytest.raises(errors.RowsFailed) as failed:
            await gateway.open([ids[0], "no id"])
        assert failed.value.errors[1].reason == "INVALID_SESSION_ID"

    run(scenario)


def test_opening_that_is_refused_is_told_to_its_callers_alone(run: Any):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        (good,) = names(1)
        with pytest.raises(errors.RowsFailed) as caught:
            await gateway.steps([good, "not an id"], [1, 2])
        assert caught.value.errors[1].reason == "INVALID_SESSION_ID"
        assert gateway.position(good) == 1

    run(scenario)
    with pytest.raises(errors.ModelNotFound):
        run(lambda gateway: gateway.step(*names(1), 1), model="none")


def test_cancelled_call_is_withdrawn_or_in_doubt_and_never_taken_twice(run: Any, server: Any):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        ids = names(30)
        await gateway.steps(ids, np.zeros(30))
        taken = [[0.0] for _ in ids]
        for round_number in range(1, 6):
            tasks = [asyncio.ensure_future(gateway.step(key, round_number)) for key in ids]
            for _ in range(round_number):
                await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            for values, key, outcome in zip(taken, ids, outcomes, strict=True):
                if gateway.in_doubt(key):
                    assert (await gateway.retry(key)).shape == (3,)
                if not isinstance(outcome, BaseException) or gateway.position(key) > len(values):
                    values.append(float(round_number))
        last = await gateway.steps(ids, np.full(30, 7))
        for number in (0, 1, 2, 3, 28, 29):
            np.testing.assert_array_equal(last[number], alone(server, [*taken[number], 7])[-1])

    run(scenario)


def test_timeout_names_the_address_that_nobody_listens_at():
    async def scenario() -> None:
        async with longshort.aio.Gateway("127.0.0.1:1", "metro", timeout_s=0.3) as gateway:
            calls = [gateway.step("a", 1), gateway.steps(["a", "b"], [1, 2]), gateway.forecast("a", 1)]
            for outcome in await asyncio.gather(*calls, return_exceptions=True):
                failure = outcome.errors[0] if isinstance(outcome, errors.RowsFailed) else outcome
                assert isinstance(failure, errors.Unavailable)
                assert failure.reason == "NO_SERVER"
                assert "127.0.0.1:1" in str(failure)
            assert not gateway.in_doubt("a")

    asyncio.run(scenario())


def test_more_than_may_wait_waits_outside(run: Any, server: Any):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        ids = names(20)
        calls = [gateway.step(key, number) for number in range(5) for key in ids]
        assert sum(isinstance(call, asyncio.Future) for call in calls) == 10
        answers = await asyncio.gather(*calls)
        np.testing.assert_array_equal(answers[::20], alone(server, np.arange(5)))
        assert (await gateway.steps(ids, np.zeros(20))).shape == (20, 3)  # more than may wait, alone

    run(scenario, max_waiting_steps=10)


def test_call_that_waits_outside_too_long_is_told(run: Any):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        one, two = names(2)
        first = gateway.step(one, 1)
        with pytest.raises(errors.DeadlineExceeded):
            await gateway.step(two, 1, timeout_s=1e-6)
        await first
        await gateway.step(two, 1)
        assert gateway.position(two) == 1

    run(scenario, max_waiting_steps=1)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda gateway: gateway.steps(["a", "b", "a"], [1, 2, 3]), "ids[2] is a, and so is ids[0]"),
        (lambda gateway: gateway.steps(["a", ["b"]], [1, 2]), "ids[1] is text, not ['b']"),
        (lambda gateway: gateway.steps(["a", ""], [1, 2]), "ids[1]: session_id is empty"),
        (lambda gateway: gateway.steps(["a", 5], [1, 2]), "ids[1]: session_id is text, not 5"),
        (lambda gateway: gateway.steps(["a"], [1, 2]), "got [2]"),
        (lambda gateway: gateway.steps(["a", "b"], [[1, 2], [3, 4]]), "give [n, time, 1]"),
        (lambda gateway: gateway.step("no id", 1), "session 'no id': a session id is"),
        (lambda gateway: gateway.step(["b"], 1), "text, not ['b']"),
    ],
)
def test_error_says_which_argument_is_wrong(run: Any, ask: Any, words: str):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        with pytest.raises(errors.LongshortError) as caught:
            await ask(gateway)
        assert words in str(caught.value)

    run(scenario)


def test_nothing_is_asked_of_no_sessions(run: Any):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        assert (await gateway.steps([], [])).shape == (0, 0)
        assert (await gateway.open([])).shape == (0,)
        await gateway.step(*names(1), 1)
        assert (await gateway.steps([], [])).shape == (0, 3)
        assert (await gateway.forecasts([], 4)).shape == (0, 4, 3)
        assert await gateway.flush([]) is None
        assert await gateway.close_session([]) is None

    run(scenario)


def test_sessions_of_a_model_of_one_feature_take_several_steps_without_its_axis(run: Any):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        one, two = names(2)
        await gateway.open([one, two])
        assert (await gateway.steps([one, two], [[1, 2, 3], [4, 5, 6]])).shape == (2, 3, 3)
        assert (await gateway.steps([one, two], [[1], [2]])).shape == (2, 3)
        assert gateway.position(two) == 4

    run(scenario)


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (lambda gateway: gateway.step("", 1), "INVALID_OPTION"),
        (lambda gateway: gateway.step(5, 1), "INVALID_OPTION"),
        (lambda gateway: gateway.step("a", "1"), "WRONG_TYPE"),
        (lambda gateway: gateway.step("a", [[1]]), "WRONG_SHAPE"),
        (lambda gateway: gateway.step("a", 10**400), "WRONG_TYPE"),
        (lambda gateway: gateway.step("a", 1, at=-1), "INVALID_OPTION"),
        (lambda gateway: gateway.step("a", 1, timeout_s=0), "INVALID_OPTION"),
        (lambda gateway: gateway.steps("abc", [1, 2, 3]), "INVALID_OPTION"),
        (lambda gateway: gateway.steps(["a", "a"], [1, 2]), "INVALID_OPTION"),
        (lambda gateway: gateway.steps(["a", ""], [1, 2]), "INVALID_OPTION"),
        (lambda gateway: gateway.steps(["a", ["b"]], [1, 2]), "INVALID_OPTION"),
        (lambda gateway: gateway.steps([], [1]), "WRONG_SHAPE"),
        (lambda gateway: gateway.steps(["a"], [1, 2]), "WRONG_SHAPE"),
        (lambda gateway: gateway.steps(["a"], 1), "WRONG_SHAPE"),
        (lambda gateway: gateway.forecast("a", -1), "INVALID_OPTION"),
        (lambda gateway: gateway.retry("a"), "NOT_IN_DOUBT"),
    ],
)
def test_wrong_argument_is_told_and_nothing_is_sent(run: Any, ask: Any, reason: str):
    async def scenario(gateway: longshort.aio.Gateway) -> None:
        with pytest.raises(errors.LongshortError) as caught:
            await ask(gateway)
        assert caught.value.reason == reason

    run(scenario)


def test_closed_gateway_says_so(server: Any):
    async def scenario() -> None:
        gateway = longshort.aio.Gateway(server.address, "metro", max_waiting_steps=1)
        (key,) = names(1)
        waiting = [asyncio.ensure_future(gateway.step(key, 1)) for _ in range(2)]
        await asyncio.sleep(0)
        await gateway.close()
        await gateway.close()
        for call in (*waiting, gateway.step(key, 1), gateway.steps([key], [1]), gateway.flush()):
            with pytest.raises(errors.SessionClosed):
                await call
        for look in (gateway.position, gateway.created, gateway.in_doubt, lambda key: gateway.group([key])):
            with pytest.raises(errors.SessionClosed):
                look(key)
        with pytest.raises(errors.SessionClosed):
            await gateway.__aenter__()

    asyncio.run(scenario())


def test_threads_share_frames_and_get_their_own_answers(gateway: Any, server: Any):
    ids = names(8)

    def follow(key: str) -> list[np.ndarray]:
        return [gateway.step(key, number) for number in range(20)]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(follow, ids))
    wanted = alone(server, np.arange(20))
    for each in answers:
        np.testing.assert_array_equal(each, wanted)
    assert gateway.steps(gateway.group(ids), np.zeros(8)).shape == (8, 3)
    assert gateway.position(ids[0]) == 21
    assert gateway.forecasts(ids, 4).shape == (8, 4, 3)
    assert gateway.forecast(ids[0], 4).shape == (4, 3)
    assert gateway.flush(ids) is None
    gateway.close_session(ids[0])
    assert gateway.open(ids[:2]).tolist() == [False, True]
    assert not gateway.created(ids[0])
    assert gateway.step(ids[0], 0.0, at=21).shape == (3,)


def test_sync_gateway_raises_what_the_async_one_does(gateway: Any):
    (key,) = names(1)
    with pytest.raises(errors.DeadlineExceeded):
        gateway.step(key, 1, timeout_s=1e-6)
    if gateway.in_doubt(key):
        gateway.retry(key)
    with pytest.raises(errors.FailedPrecondition):
        gateway.retry(key)
    gateway.close()
    for ask in (
        gateway.position,
        gateway.in_doubt,
        lambda _: gateway.doubts(),
        lambda key: gateway.step(key, 1),
    ):
        with pytest.raises(errors.SessionClosed):
            ask(key)
    with pytest.raises(errors.SessionClosed), gateway:
        pass
    with pytest.raises(errors.InvalidRequest):
        longshort.Gateway("nowhere", "metro")
    assert "longshort-gateway" not in {thread.name for thread in threading.enumerate()}


def test_call_that_meets_a_closing_by_another_thread_is_told(server: Any, monkeypatch: pytest.MonkeyPatch):
    gateway = longshort.Gateway(server.address, "metro", timeout_s=20)
    closing = threading.Thread(target=gateway.close)
    hand_over = gateway._loop.call_soon_threadsafe

    def hand_over_late(*arguments: Any) -> Any:
        if threading.current_thread() is threading.main_thread() and closing.ident is None:
            closing.start()
            closing.join(0.3)
        return hand_over(*arguments)

    monkeypatch.setattr(gateway._loop, "call_soon_threadsafe", hand_over_late)
    with contextlib.suppress(
        errors.SessionClosed, errors.StepInDoubt
    ):  # answered or told, whichever thread is quicker
        gateway.step(*names(1), 1)
    closing.join()


def test_forgotten_gateway_warns(server: Any):
    forgotten = [longshort.Gateway(server.address, "metro")]
    forgotten[0].step(*names(1), 1)
    with pytest.warns(ResourceWarning, match="unclosed longshort.Gateway"):
        forgotten.clear()
    gc.collect()


def test_server_that_is_cut_off_is_met_again(start_server: Any):
    server = start_server()

    async def scenario() -> None:
        async with longshort.aio.Gateway(server.address, "metro", timeout_s=20) as gateway:
            ids = names(5)
            await gateway.steps(ids, np.ones(5))
            assert server.stop() == 0
            call = asyncio.ensure_future(gateway.steps(ids, np.ones(5)))
            await asyncio.sleep(0.1)
            assert not call.done()
            await asyncio.to_thread(start_server, port=server.port)
            with pytest.raises(errors.RowsFailed) as caught:
                await call
            # The memory store forgets with its server: told as such, and not begun anew in silence.
            assert {type(error) for error in caught.value.errors.values()} == {errors.SessionLost}
            await gateway.close_session(gateway.group(ids))
            await gateway.steps(ids, np.ones(5))

    asyncio.run(scenario())
