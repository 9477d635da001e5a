"""What `longshort export` and `longshort train` write, behind the service: what callers get is what PyTorch gives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
import user_modules
from inside import service
from longshort.v1 import sequence_pb2
from longshort_model.dataset import load
from longshort_model.module_export import Words, export_module
from longshort_model.module_face import parse
from longshort_model.module_taken import take
from longshort_model.replay import Replay
from wire import key

if TYPE_CHECKING:
    from longshort_model.module_calls import Taken
    from torch import Tensor
    from wire import Caller

pytestmark = pytest.mark.torch

Run = Callable[[Coroutine[Any, Any, None]], None]
SHIPPED = Path(__file__).parents[1] / "service" / "longshort_service" / "models"
MESSAGES = (1, 1, 4, 2, 3)  # steps of each message
STEPS = sum(MESSAGES)
NUM_SESSIONS = 3


def taken_modules() -> dict[str, Taken]:
    torch.manual_seed(6)
    token, states = parse("token:time,batch:int64:0..10"), (parse("h:1,?,5"), parse("count:batch:int64"))
    found = {
        kind.__name__.lower(): take(kind().eval(), (), ())
        for kind in (
            user_modules.Lstm,
            user_modules.CellLoop,
            user_modules.CausalConv,
            user_modules.StateSpace,
        )
    }
    load = (parse("load:batch,time,3"),)
    found["named"] = take(user_modules.Gru().eval(), load, (parse("memory:1,batch,8"),), ("next_load",))
    found["words"] = take(user_modules.Words().eval(), (token,), states)
    found["notime"] = take(user_modules.NoTime().eval(), (parse("x:batch,3"),), ())
    return found


def stepped(taken: Taken, values: Tensor) -> list[list[float]]:
    """Return a session's answers by the module itself, for values [time, ...], called step by step."""
    (face,) = taken.inputs
    states, rows = [f.start(1) for f in taken.states], []
    for value in values:
        made = taken.call([value.reshape(face.shape(1, 1)), *states])
        states = made[len(taken.answers) :]
        rows.append([float(number) for answer in made[: len(taken.answers)] for number in answer.flatten()])
    return rows


async def follow(caller: Caller, model: str, name: str, values: Tensor) -> list[list[float]]:
    """Return the answers to a session's values, sent in messages of several sizes."""
    stream, opened = await caller.open(name, model)
    rows, begin = [], 0
    for count in MESSAGES:
        part = values[begin : begin + count].flatten().tolist()
        answer = await stream.step([float(number) for number in part], begin)
        rows += np.array(answer.values).reshape(count, opened.num_outputs).tolist()
        begin += count
    return rows


def test_sessions_of_exported_modules_get_what_pytorch_gives_step_by_step(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    modules = taken_modules()
    for name, taken in modules.items():
        export_module(taken, Words(name), tmp_path)

    async def scenario() -> None:
        async with service(tmp_path) as (_, caller):
            generator = torch.Generator().manual_seed(8)
            cases = []
            for name, taken in modules.items():
                (face,) = taken.inputs
                for k in range(NUM_SESSIONS):
                    values = torch.stack([face.draw(generator, 1, 1).flatten() for _ in range(STEPS)])
                    cases.append((name, f"{name}-{k}", values))
            found = await asyncio.gather(*(follow(caller, *case) for case in cases))
            for (name, _, values), got in zip(cases, found, strict=True):
                np.testing.assert_allclose(got, stepped(modules[name], values), atol=2e-5, err_msg=name)

    run(scenario())
    alone = {line.split("/")[0] for line in caplog.messages if "runs one" in line}
    assert not alone & {"lstm", "named"}


def test_a_forecast_of_metro_calendar_as_served_is_the_one_that_the_report_scores(run: Run) -> None:
    data, replay = load("metro-calendar"), Replay(SHIPPED / "metro-calendar" / "1" / "model.onnx")
    inputs = data.inputs()[0, :200]
    horizon, origin = 24, 170
    got = replay.run(inputs[None, :origin])
    expected = [got["y"][0, -1]]
    for row in range(origin, origin + horizon - 1):
        told = np.array([expected[-1][0], *inputs[row, 1:]], np.float32)
        got = replay.run(told[None, None], (got["hn"], got["cn"]))
        expected.append(got["y"][0, 0])

    async def scenario() -> None:
        async with service(SHIPPED) as (_, caller):
            stream, opened = await caller.open("road", "metro-calendar")
            assert (opened.num_features, opened.num_outputs) == (3, 3)
            await stream.step(inputs[:origin].flatten().tolist(), 0)
            request = sequence_pb2.ForecastRequest(
                session=key("road"),
                horizon=horizon,
                known=inputs[origin : origin + horizon - 1, 1:].flatten().tolist(),
            )
            made = await caller.sequence.Forecast(request)
            np.testing.assert_array_equal(np.array(made.values, np.float32).reshape(horizon, 3), expected)

    run(scenario())
