"""The step table over the wire: every row of it has a test named after it, as in test_protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from wire import ALL, LAST, Caller, assert_goes_on, values_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Scenario = Callable[[Callable[[Caller], Awaitable[None]]], None]


def test_message_at_the_sessions_step_is_applied_over_the_wire(against: Scenario):
    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open("", "adder")
        assert (await stream.step([1, 1], 0)).step == 2
        answer = await stream.step([1], 2)
        assert (answer.step, answer.replayed) == (3, False)

    against(scenario)


@pytest.mark.parametrize("count", [2, 20])
def test_last_applied_message_again_gets_its_stored_answer_over_the_wire(against: Scenario, count: int):
    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open("", "adder")
        first = await stream.step([1] * count, 0, LAST)
        again = await stream.step(
            [1] * count, 0, ALL
        )  # the answer is the stored one, whatever is asked for now
        assert not first.replayed
        assert again.replayed
        assert (list(again.values), again.step) == (list(first.values), first.step) == ([count], count)
        await assert_goes_on(stream, count, count)

    against(scenario)


def test_same_place_with_other_values_is_values_differ_over_the_wire(against: Scenario):
    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open("", "adder")
        await stream.step([1, 1], 0)
        refusal = await stream.error(values=values_of([1, 2], 0))
        assert refusal == ("FAILED_PRECONDITION", "VALUES_DIFFER")
        assert refusal.metadata == {"expected_step": "2"}
        await assert_goes_on(stream, 2, 2)

    against(scenario)


@pytest.mark.parametrize(
    ("values", "step"),
    [([1], 0), ([9], 0), ([1, 1], 0), ([1], 1), ([1, 1, 1], 1), ([1], 2), ([1, 1, 1], 2)],
)
def test_anything_else_below_the_sessions_step_is_step_conflict_over_the_wire(
    against: Scenario, values: list[float], step: int
):
    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open("", "adder")
        await stream.step([1], 0)
        await stream.step([1, 1], 1)
        refusal = await stream.error(values=values_of(values, step))
        assert refusal == ("FAILED_PRECONDITION", "STEP_CONFLICT")
        assert refusal.metadata == {"expected_step": "3"}
        await assert_goes_on(stream, 3, 3)

    against(scenario)


@pytest.mark.parametrize("step", [2, 2**64 - 1])
def test_message_above_the_sessions_step_is_step_gap_over_the_wire(against: Scenario, step: int):
    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open("", "adder")
        await stream.step([1], 0)
        refusal = await stream.error(values=values_of([1], step))
        assert refusal == ("FAILED_PRECONDITION", "STEP_GAP")
        assert refusal.metadata == {"expected_step": "1"}
        await assert_goes_on(stream, 1, 1)

    against(scenario)


def test_message_without_a_step_is_applied_as_it_comes_over_the_wire(against: Scenario):
    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open("", "adder")
        assert [(await stream.step([1])).step for _ in range(3)] == [1, 2, 3]  # the same values, three times
        assert (await stream.step([1], 2)).replayed  # and the last may be repeated by its number

    against(scenario)
