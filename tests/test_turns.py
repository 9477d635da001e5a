"""Turns at sessions: one at a time, in the order of coming, and none is lost with whoever leaves."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from longshort_service.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., Any]


def test_turns_come_in_the_order_of_asking(run: Run):
    async def scenario() -> None:
        turns, done = Turns(), list[int]()

        async def work(number: int) -> None:
            async with turns.of("s"):
                await asyncio.sleep(0)
                done.append(number)

        await asyncio.gather(*map(work, range(5)))
        assert done == [0, 1, 2, 3, 4]
        assert len(turns) == 0

    run(scenario())


def test_many_free_sessions_are_taken_at_once_and_given_back(run: Run):
    async def scenario() -> None:
        turns, later = Turns(), list[str]()

        async def wait(name: str) -> None:
            async with turns.of(name):
                later.append(name)

        with turns.of_free(["a", "b", "c"]):
            assert not turns.is_free("b")
            assert turns.is_free("d")
            assert len(turns) == 3
            waiting = asyncio.gather(wait("b"), wait("b"), wait("d"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert later == ["d"]
        assert turns.is_free("a")
        assert not turns.is_free("b")  # it was handed on
        await waiting
        assert later == ["d", "b", "b"]
        assert len(turns) == 0

    run(scenario())


def test_turn_handed_to_one_who_is_cancelled_at_that_moment_goes_to_the_next(run: Run):
    async def scenario() -> None:
        turns, had = Turns(), list[str]()

        async def wait(name: str) -> None:
            async with turns.of("s"):
                had.append(name)

        with turns.of_free(["s"]):
            first, second = (asyncio.ensure_future(wait(name)) for name in ("first", "second"))
            await asyncio.sleep(0)
        first.cancel()  # the turn is its already
        await asyncio.wait([first, second])
        assert (first.cancelled(), had) == (True, ["second"])
        assert len(turns) == 0

    run(scenario())


def test_work_goes_to_its_end_though_its_caller_leaves(run: Run):
    async def scenario() -> None:
        turns, done = Turns(), asyncio.Event()

        async def work() -> None:
            await asyncio.sleep(0)
            done.set()

        caller = asyncio.ensure_future(turns.through("s", work))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait_for(done.wait(), 5)
        assert caller.cancelled()
        await asyncio.sleep(0)
        assert turns.is_free("s")

    run(scenario())


def test_failure_of_work_reaches_its_caller_and_frees_the_turn(run: Run):
    async def scenario() -> None:
        turns = Turns()

        async def fail() -> None:
            raise LookupError("s")

        with pytest.raises(LookupError):
            await turns.through("s", fail)
        assert turns.is_free("s")

    run(scenario())


@given(
    users=st.lists(
        st.tuples(
            st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 3), st.none() | st.integers(0, 8)
        ),
        max_size=12,
    )
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nobody_is_ever_two_at_a_session_and_all_are_free_in_the_end(
    run: Run, users: list[tuple[str, int, int, int | None]]
):
    async def scenario() -> None:
        turns, inside = Turns(), Counter[str]()

        async def use(name: str, before: int, within: int) -> None:
            for _ in range(before):
                await asyncio.sleep(0)
            async with turns.of(name):
                inside[name] += 1
                assert inside[name] == 1
                try:
                    for _ in range(within):
                        await asyncio.sleep(0)
                finally:
                    inside[name] -= 1

        tasks = [asyncio.ensure_future(use(name, before, within)) for name, before, within, _ in users]
        for turn in range(9):
            for task, (*_, cancelled_at) in zip(tasks, users, strict=True):
                if cancelled_at == turn:
                    task.cancel()
            await asyncio.sleep(0)
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
        assert len(turns) == 0

    run(scenario())
