"""Forecasts of models that are told some of their inputs: over every call, for many sessions, beside live steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import pytest
from frame_wire import FORECAST_PART, Frames, refusals_of
from inside import Gate, service
from longshort.v1 import model_pb2, sequence_pb2
from told import calendar_answers, calendar_forecast, write_calendar
from wire import Caller, in_band, key, refused

if TYPE_CHECKING:
    from pathlib import Path

Run = Callable[[Coroutine[Any, Any, None]], None]

HISTORY = [[10, 5, 0.5], [8, 6, 0], [6, 7, 2]]
KNOWN = [[8, 1], [9, 0], [10, 3], [11, 0.25]]
FLAT = [number for row in KNOWN for number in row]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_calendar(tmp_path / "calendar" / "1" / "model.onnx")
    return tmp_path


async def begin(caller: Caller, session_id: str) -> Any:
    stream, _ = await caller.open(session_id, "calendar")
    answer = await stream.step([number for row in HISTORY for number in row], 0)
    assert list(answer.values) == calendar_answers(HISTORY)
    return stream


@pytest.mark.parametrize("num_rows", [4, 5], ids=["as many rows as are needed", "a row more"])
def test_forecast_feeds_back_what_it_predicts_and_takes_what_is_known(run: Run, models: Path, num_rows: int):
    async def scenario() -> None:
        async with service(models) as (_, caller):
            stream = await begin(caller, "s")
            known = [*FLAT, 12, 99][: 2 * num_rows]
            expected = calendar_forecast(HISTORY, KNOWN, 5)
            response = await stream.ask(forecast=sequence_pb2.StreamForecast(horizon=5, known=known))
            assert list(response.answer.values) == expected
            assert (response.answer.forecast, response.answer.step) == (True, 3)
            request = sequence_pb2.ForecastRequest(session=key("s"), horizon=5, known=known)
            assert list((await caller.sequence.Forecast(request)).values) == expected
            frames = Frames(caller)
            await frames.open("f", "g", model="calendar")
            values = [number for row in HISTORY for number in row]
            response = await frames.ask(
                handles=[0, 1],
                counts=[3, 3],
                values=values * 2,
                forecasts=[
                    sequence_pb2.FrameForecast(handle=0, horizon=5, known=known),
                    sequence_pb2.FrameForecast(handle=1, horizon=1),
                    sequence_pb2.FrameForecast(handle=1, horizon=3, known=[8, 1]),
                ],
            )
            found = {each.handle: list(each.values) for each in response.forecasts}
            assert found == {0: expected, 1: expected[:1]}
            refusal = refusals_of(response, FORECAST_PART)
            assert refusal == {1: ("INVALID_ARGUMENT", "WRONG_SHAPE")}
            # Nothing has moved.
            assert (await stream.step([1, 1, 1], 3)).values[0] == calendar_answers([*HISTORY, [1, 1, 1]])[-1]

    run(scenario())


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        ([], "WRONG_SHAPE"),
        (FLAT[:-1], "WRONG_SHAPE"),
        (FLAT * 2, "WRONG_SHAPE"),
        ([8.5, *FLAT[1:]], "WRONG_SHAPE"),  # an hour is a whole number
        ([8, float("nan"), *FLAT[2:]], "VALUE_MISSING"),
        ([8, float("inf"), *FLAT[2:]], "VALUE_NOT_FINITE"),
    ],
)
def test_what_is_known_must_be_there_and_be_numbers(run: Run, models: Path, known: list[float], reason: str):
    async def scenario() -> None:
        async with service(models) as (_, caller):
            stream = await begin(caller, "s")
            response = await stream.ask(forecast=sequence_pb2.StreamForecast(horizon=5, known=known))
            refusal = in_band(response.error)
            assert refusal == ("INVALID_ARGUMENT", reason)
            if reason == "WRONG_SHAPE" and 8.5 not in known:
                assert refusal.metadata["num_features"] == "2"
                assert "hour, rain" in response.error.message
            request = sequence_pb2.ForecastRequest(session=key("s"), horizon=5, known=known)
            assert await refused(caller.sequence.Forecast(request)) == ("INVALID_ARGUMENT", reason)
            assert len((await stream.step([1, 2, 3], 3)).values) == 1

    run(scenario())


def test_model_says_what_a_forecast_is_to_be_told(run: Run, models: Path):
    async def scenario() -> None:
        async with service(models) as (_, caller):
            response = await caller.models.GetModel(model_pb2.GetModelRequest(name="calendar"))
            assert response.model.forecasts
            assert list(response.model.known_features) == ["hour", "rain"]

    run(scenario())


def test_live_steps_go_between_the_pieces_of_many_long_forecasts(run: Run, models: Path):
    """No run of a forecast holds more than one step: what is live waits for one run, not for a forecast."""
    num_sessions, horizon = 50, 40

    async def scenario() -> None:
        async with service(models) as (app, caller):
            frames = Frames(caller)
            names = [f"f{k}" for k in range(num_sessions)]
            await frames.open(*names, model="calendar")
            history = [number for row in HISTORY for number in row]
            handles = list(range(num_sessions))
            await frames.ask(handles=handles, counts=[3] * num_sessions, values=history * num_sessions)
            live = await begin(caller, "live")
            gate = Gate.before(app.repository.get("calendar").lane)
            known = FLAT * 10
            wanted = [
                sequence_pb2.FrameForecast(handle=handle, horizon=horizon, known=known[: 2 * (horizon - 1)])
                for handle in handles
            ]
            forecast = asyncio.ensure_future(frames.ask(forecasts=wanted))
            num_live = 0
            while not forecast.done() and num_live < 20:
                await gate.arrival()  # a piece of the forecasts is in the engine
                step = asyncio.ensure_future(live.step([1, 1, 1]))
                await asyncio.sleep(0.01)
                gate.let_through(2)  # that piece, and the next run, which takes the live step along
                await step
                num_live += 1
            assert num_live == 20
            gate.open()
            response = await forecast
            rows = (KNOWN * 10)[: horizon - 1]
            expected = pytest.approx(calendar_forecast(HISTORY, rows, horizon), rel=1e-5)
            assert len(response.forecasts) == num_sessions
            assert all(list(each.values) == expected for each in response.forecasts)
            assert max(gate.batches) >= num_sessions  # sessions share runs

    run(scenario())
