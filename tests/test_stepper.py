"""Moving a session by one message, and looking ahead or inside on a copy of its state."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from graphs import FATAL, make_mortal
from house import House, reason_of
from inside import Gate, until
from longshort_model.synthetic import write_random_model
from longshort_service import errors
from longshort_service.arena import Slots
from longshort_service.batching import Job
from longshort_service.columns import Moves
from longshort_service.forecaster import Ahead
from longshort_service.record import Origin
from longshort_service.session import Answers
from longshort_service.stepper import MAX_EXPLAINS_AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    Play = Callable[..., None]


@pytest.fixture
def play(run: Callable[..., Any], adders: Path) -> Play:
    def play_in(scenario: Callable[[House], Awaitable[None]], models: Path = adders) -> None:
        async def limited() -> None:
            async with asyncio.timeout(20), House(models) as built:
                await scenario(built)

        run(limited())

    return play_in


def rows(*values: float) -> Any:
    return np.array(values, np.float32)[:, None]


# -- values -----


def test_message_moves_the_session_and_is_counted(play: Play):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        applied = await house.stepper.step(session, rows(1, 2, 3), 0, Answers.LAST)
        assert (applied.outputs.tolist(), applied.step, applied.is_replayed) == ([[6]], 3, False)
        again = await house.stepper.step(session, rows(1, 2, 3), 0, Answers.ALL)
        assert (again.outputs.tolist(), again.step, again.is_replayed) == ([[6]], 3, True)
        assert [told[0] for told in house.notes.of("batch_done")] == [3]
        assert house.notes.of("replay") == [("adder",)]

    play(scenario)


class Waiter:
    """Takes the answer to one value."""

    def __init__(self) -> None:
        self.outcome: asyncio.Future[Any] = asyncio.Future()

    def answered(self, outputs: bytes, step: int) -> None:
        self.outcome.set_result((np.frombuffer(outputs, "<f4").tolist(), step))

    def failed(self, error: errors.ServiceError) -> None:
        self.outcome.set_result(error)


def test_one_value_moves_the_session_as_a_message_does(play: Play):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        for number, value in enumerate((2.0, 3.0), start=1):
            house.now_s += 1
            waiter = Waiter()
            house.stepper.submit_single(session.model, session.slot, [value], 1, waiter)
            assert session.is_busy
            assert session.last_used_s == house.now_s
            assert await waiter.outcome == ([[2.0], [5.0]][number - 1], number)
        again = await house.stepper.step(
            session, rows(3), 1, Answers.ALL
        )  # its checksum is that of a message
        assert (again.outputs.tolist(), again.step, again.is_replayed) == ([[5]], 2, True)
        record = session.record()
        assert record.last_values is not None
        assert record.last_values.tolist() == [3]
        assert await house.step(session, 1, step=2) == [6]

    play(scenario)


def test_one_value_whose_result_is_not_finite_moves_nothing(play: Play):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        await house.step(session, 3e38)
        waiter = Waiter()
        house.stepper.submit_single(session.model, session.slot, [3e38], 1, waiter)
        assert isinstance(await waiter.outcome, errors.NonFiniteResult)
        assert (session.step, session.is_busy) == (1, False)

    play(scenario)


def test_job_of_many_sessions_moves_them_all(play: Play):
    async def scenario(house: House) -> None:
        sessions = [await house.open(name) for name in ("a", "b")]
        model = sessions[0].model
        slots = Slots(
            np.array([session.row for session in sessions]),
            np.array([session.generation for session in sessions]),
        )
        ended: asyncio.Future[Job] = asyncio.Future()
        values = np.array([[[1]], [[2]]], np.float32)
        moves = Moves(model.columns, values[:, -1], None, np.ones(2, np.int32))
        house.stepper.submit(model, Job(values, slots, owner=moves, on_end=ended.set_result))
        assert (await ended).outputs.ravel().tolist() == [1, 2]
        house.stepper.replayed(model)
        assert house.notes.of("replay") == [("adder", 1)]
        assert [await house.step(session, 1, step=1) for session in sessions] == [[2], [3]]

    play(scenario)


@pytest.mark.parametrize("num_values", [1, 12])
def test_message_refused_by_a_full_queue_leaves_nothing_behind(play: Play, num_values: int):
    async def scenario(house: House) -> None:
        busy, session = await house.open("busy"), await house.open("s")
        gate = Gate.before(house.repository.get("adder").lane)
        filling = asyncio.ensure_future(house.step(busy, *[1] * 100))
        await gate.arrival()
        assert await reason_of(house.step(session, *[1] * num_values)) is errors.QueueFull
        assert (session.is_busy, session.step) == (False, 0)
        gate.open()
        await filling
        assert (await house.step(session, 1)) == [1]

    play(scenario)


@pytest.mark.parametrize("num_values", [1, 12])
def test_cancelled_caller_withdraws_what_has_not_run(play: Play, num_values: int):
    async def scenario(house: House) -> None:
        busy, session = await house.open("busy"), await house.open("s")
        gate = Gate.before(house.repository.get("adder").lane)
        filling = asyncio.ensure_future(house.step(busy, 1))
        await gate.arrival()
        leaving = asyncio.ensure_future(house.step(session, *[1] * num_values))
        await until(lambda: session.is_busy)
        leaving.cancel()
        gate.open()
        await filling
        await house.keeper.until_settled(session)
        assert leaving.cancelled()
        assert session.step == 0
        assert (await house.step(session, 1)) == [1]

    play(scenario)


def test_caller_cancelled_during_the_last_run_finds_the_message_applied(play: Play):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        gate = Gate.before(house.repository.get("adder").lane)
        leaving = asyncio.ensure_future(house.step(session, 5, step=0))
        await gate.arrival()
        leaving.cancel()
        gate.open()
        await house.keeper.until_settled(session)
        assert session.step == 1
        assert await house.step(session, 5, step=0) == [5]
        assert house.notes.of("replay") == [("adder",)]

    play(scenario)


def test_message_that_the_graph_fails_on_is_refused_and_moves_nothing(play: Play):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        await house.step(session, 5)
        assert await reason_of(house.step(session, FATAL)) is errors.ValuesRefused
        assert (session.is_busy, session.step) == (False, 1)
        assert await house.step(session, 1) == [6]

    play(scenario)


def test_message_that_kills_the_engine_fails_and_moves_nothing(play: Play):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        await house.step(session, 5)
        make_mortal(session.model.lane.engine)
        assert await reason_of(house.step(session, FATAL)) is errors.EngineDead
        assert (session.is_busy, session.step) == (False, 1)
        assert await house.step(session, 5, step=0) == [5]  # the stored answer is still given
        assert await reason_of(house.step(session, 1)) is errors.EngineDead

    play(scenario)


# -- forecasts -----


def test_forecast_rolls_predictions_forward_and_moves_nothing(play: Play):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        await house.step(session, 3)
        outputs, step = await house.forecast(session, 5, 50)
        assert (outputs[:, 0].tolist(), step) == ([3, 6, 12, 24, 48], 1)
        assert (await house.forecast(session, 1, 50))[0].tolist() == [[3]]
        assert await house.step(session, 1) == [4]

    play(scenario)


@pytest.mark.parametrize("horizon", [0, 51])
def test_horizon_out_of_range_is_refused(play: Play, horizon: int):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        await house.step(session, 3)
        with pytest.raises(errors.HorizonOutOfRange) as caught:
            await house.forecast(session, horizon, 50)
        assert caught.value.metadata == {"horizon": str(horizon), "max_steps": "50"}

    play(scenario)


def test_forecast_of_a_session_without_a_value_is_refused(play: Play):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        assert await reason_of(house.forecast(session, 5, 50)) is errors.SessionEmpty

    play(scenario)


def test_model_that_predicts_no_values_of_its_own_cannot_forecast(play: Play, tmp_path: Path):
    write_random_model(tmp_path / "wide" / "1" / "model.onnx", name="wide", hidden=4, features=3, outputs=2)

    async def scenario(house: House) -> None:
        session = await house.open("s", model="wide")
        assert await reason_of(house.forecast(session, 5, 50)) is errors.ForecastUnavailable

    play(scenario, tmp_path)


def test_forecast_that_kills_the_engine_moves_nothing_and_leaks_no_row(play: Play):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        await house.step(session, FATAL + 66, -66)  # the next value would be FATAL
        make_mortal(session.model.lane.engine)
        assert await reason_of(house.forecast(session, 5, 50)) is errors.EngineDead
        assert session.step == 2

    play(scenario)


def test_forecast_that_overflows_is_refused_and_moves_nothing(play: Play):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        await house.step(session, 1e38)
        assert await reason_of(house.forecast(session, 5, 50)) is errors.NonFiniteResult
        assert session.step == 1

    play(scenario)


def test_forecast_needs_a_row_to_work_on(play: Play):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        await house.step(session, 3)
        arena = session.model.arena
        taken = [arena.allocate() for _ in range(arena.num_rows - 1)]
        assert await reason_of(house.forecast(session, 5, 50)) is errors.SessionsExhausted
        assert await reason_of(house.step(session, *[1] * 9)) is errors.SessionsExhausted
        for slot in taken:
            arena.free(slot)
        assert (await house.forecast(session, 2, 50))[0][:, 0].tolist() == [3, 6]

    play(scenario)


def test_forecast_refused_by_a_full_queue_gives_its_row_back(play: Play):
    async def scenario(house: House) -> None:
        busy, session = await house.open("busy"), await house.open("s")
        await house.step(session, 3)
        gate = Gate.before(house.repository.get("adder").lane)
        filling = asyncio.ensure_future(house.step(busy, *[1] * 100))
        await gate.arrival()
        assert await reason_of(house.forecast(session, 5, 50)) is errors.QueueFull
        gate.open()
        await filling

    play(scenario)


def test_cancelled_forecast_gives_its_row_back(play: Play):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        await house.step(session, 3)
        gate = Gate.before(house.repository.get("adder").lane)
        looking = asyncio.ensure_future(house.forecast(session, 9, 50))
        await gate.arrival()
        looking.cancel()
        gate.open()
        await until(lambda: session.model.arena.num_held == 1)
        assert gate.batches == [1]  # the other seven steps are not run for nobody
        assert await house.step(session, 1) == [4]

    play(scenario)


@pytest.mark.parametrize(
    "change", [{"origin": Origin("metro", 1, "another")}, {"states": ()}], ids=["file", "states"]
)
def test_record_of_another_file_is_neither_forecast_nor_explained(
    play: Play, explained: Path, change: dict[str, Any]
):
    async def scenario(house: House) -> None:
        session = await house.open("s", model="metro")
        await house.step(session, 3)
        foreign = dataclasses.replace(session.record(), **change)
        stepper, model = house.stepper, session.model
        assert await reason_of(stepper.forecast(Ahead(foreign, model, 5), 50)) is errors.ModelChanged
        assert await reason_of(stepper.explain(foreign, model, rows(1))) is errors.ModelChanged

    play(scenario, explained)


# -- forecasts of many -----


async def look_ahead(house: House, sessions: Sequence[Any], horizons: Sequence[int]) -> list[Any]:
    """Return the predictions of each as numbers, or the kind of its error."""
    wanted = [Ahead(s.record(), s.model, h) for s, h in zip(sessions, horizons, strict=True)]
    outcomes = await house.stepper.forecast_many(wanted, 50)
    return [type(each) if isinstance(each, Exception) else each[:, 0].tolist() for each in outcomes]


async def stepped(house: House, *values: float) -> list[Any]:
    sessions = [await house.open(f"s{k}") for k in range(len(values))]
    for session, value in zip(sessions, values, strict=True):
        await house.step(session, value)
    return sessions


def test_forecasts_of_equal_horizon_share_jobs_of_a_few_rows(play: Play):
    async def scenario(house: House) -> None:
        sessions = await stepped(house, 1, 2, 3)
        gate = Gate.before(sessions[0].model.lane)
        gate.open()
        assert await look_ahead(house, sessions, [3, 3, 3]) == [[1, 2, 4], [2, 4, 8], [3, 6, 12]]
        assert gate.batches == [3, 3]
        assert await look_ahead(house, sessions, [3, 1, 2]) == [[1, 2, 4], [2], [3, 6]]
        sessions[0].model.lane.policy = dataclasses.replace(sessions[0].model.lane.policy, max_rows=2)
        assert await look_ahead(house, sessions, [2, 2, 2]) == [[1, 2], [2, 4], [3, 6]]
        assert max(gate.batches[4:]) <= 2

    play(scenario)


def test_forecast_that_fails_harms_no_other(play: Play):
    async def scenario(house: House) -> None:
        sessions = [*await stepped(house, 1, 1e38, 3), await house.open("empty")]
        found = await look_ahead(house, [*sessions, sessions[0]], [4, 4, 4, 4, 51])
        assert found == [
            *([1, 2, 4, 8], errors.NonFiniteResult, [3, 6, 12, 24], errors.SessionEmpty),
            errors.HorizonOutOfRange,
        ]

    play(scenario)


def test_forecasts_take_turns_where_rows_are_few(play: Play):
    async def scenario(house: House) -> None:
        sessions = await stepped(house, 1, 2, 3, 4)
        arena = sessions[0].model.arena
        assert arena.num_rows - arena.num_held == 4
        taken = [arena.allocate() for _ in range(3)]
        assert await look_ahead(house, sessions, [2] * 4) == [[1, 2], [2, 4], [3, 6], [4, 8]]
        taken.append(arena.allocate())
        assert await look_ahead(house, sessions, [2] * 4) == [errors.SessionsExhausted] * 4
        for slot in taken:
            arena.free(slot)

    play(scenario)


def test_forecasts_refused_by_a_full_queue_give_their_rows_back(play: Play):
    async def scenario(house: House) -> None:
        sessions = await stepped(house, 1, 2)
        busy = await house.open("busy")
        gate = Gate.before(busy.model.lane)
        filling = asyncio.ensure_future(house.step(busy, *[1] * 97))
        await gate.arrival()
        assert await look_ahead(house, sessions, [5, 5]) == [errors.QueueFull] * 2
        gate.open()
        await filling

    play(scenario)


# -- explanations -----


@pytest.fixture
def explained(tmp_path: Path) -> Path:
    write_random_model(tmp_path / "metro" / "1" / "model.onnx", name="metro", hidden=4, explain=True)
    return tmp_path


def test_explanation_is_of_a_copy(play: Play, explained: Path):
    async def scenario(house: House) -> None:
        session = await house.open("s", model="metro")
        await house.step(session, 3)
        before = session.model.arena.read(session.slot)
        outputs, step = await house.explain(session, rows(1, 2))
        assert step == 1
        assert outputs["y"].shape == (2, 3)
        assert outputs["cn"].shape == outputs["hn"].shape == (1, 4)
        after = session.model.arena.read(session.slot)
        assert all(np.array_equal(x, y) for x, y in zip(before, after, strict=True))
        assert session.step == 1
        await house.stepper.step(session, rows(1, 2), 1, Answers.ALL)
        moved = dict(zip(["c0", "h0"], session.model.arena.read(session.slot), strict=True))
        np.testing.assert_allclose(outputs["cn"], moved["c0"], rtol=1e-6)
        np.testing.assert_allclose(outputs["hn"], moved["h0"], rtol=1e-6)

    play(scenario, explained)


def test_model_without_an_explain_file_says_so(play: Play):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        assert await reason_of(house.explain(session, rows(1))) is errors.ExplainUnavailable

    play(scenario)


def test_broken_explain_file_is_explain_unavailable(play: Play, explained: Path):
    (explained / "metro" / "1" / "explain.onnx").write_bytes(b"no model")

    async def scenario(house: House) -> None:
        session = await house.open("s", model="metro")
        assert await reason_of(house.explain(session, rows(1))) is errors.ExplainUnavailable

    play(scenario, explained)


def test_explanation_repeats_the_last_value_and_refuses_what_a_step_refuses(play: Play, explained: Path):
    async def scenario(house: House) -> None:
        session = await house.open("s", model="metro")
        assert await reason_of(house.explain(session, rows(float("nan")))) is errors.ValueMissing
        assert await reason_of(house.explain(session, rows(float("inf")))) is errors.ValueNotFinite
        await house.step(session, 3)
        filled, _ = await house.explain(session, rows(float("nan")))
        given, _ = await house.explain(session, rows(3))
        assert np.array_equal(filled["y"], given["y"])

    play(scenario, explained)


def test_only_a_few_explanations_run_at_once(play: Play, explained: Path):
    async def scenario(house: House) -> None:
        session = await house.open("s", model="metro")
        await house.step(session, 3)
        calls = [house.explain(session, rows(*[1] * 50)) for _ in range(MAX_EXPLAINS_AT_ONCE + 2)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results].count(errors.QueueFull) == 2
        await house.explain(session, rows(1))  # and there is room again

    play(scenario, explained)
