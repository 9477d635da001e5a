"""Models of every dtype, rank, axis and number of states: batched, cut and interleaved they are what they are alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from family import Member, members
from frame_wire import Frames, rows_of
from inside import Lull, service
from longshort.v1 import sequence_pb2
from longshort_service.engine import Engine
from longshort_service.handlers import tensors

if TYPE_CHECKING:
    from pathlib import Path

    from longshort_service.arena import States
    from numpy.typing import NDArray
    from wire import Caller, Stream

Run = Callable[[Coroutine[Any, Any, None]], None]
FAMILY = list(members())


def values_of(member: Member, num_rows: int, num_steps: int) -> NDArray[Any]:
    """Return whole numbers `[rows, steps, *shape]` that every dtype holds, and whose sums it holds as well."""
    random = np.random.default_rng(7)
    return random.integers(-3, 4, (num_rows, num_steps, *member.shape)).astype(member.dtype)


def step(engine: Engine, member: Member, values: NDArray[Any], states: States) -> tuple[NDArray[Any], States]:
    rows = engine.signature.value_row.pack([values])
    answers, states = engine.run(rows, None, states)
    (unpacked,) = engine.signature.answer_row.unpack(answers)
    assert unpacked.dtype == member.dtype
    return unpacked, states


@pytest.mark.parametrize("member", FAMILY, ids=lambda member: member.name)
def test_rows_in_company_and_steps_in_pieces_are_those_of_a_session_alone(member: Member, tmp_path: Path):
    engine = Engine(member.write(tmp_path / "model.onnx"), provider="cpu", intra_op_num_threads=1)
    num_rows, num_steps = 5, 6
    values = values_of(member, num_rows, num_steps)
    engine.warm_up(4, 1 if engine.signature.steps_alone else 4)
    states = engine.initial_states(num_rows)
    together = []
    for begin, end in ((0, 1), (1, 4), (4, 6)):
        answers, states = step(engine, member, values[:, begin:end], states)
        together.append(answers)
    found = np.concatenate(together, axis=1)
    for row in range(num_rows):
        np.testing.assert_array_equal(found[row], member.answer(values[row]))
    alone = engine.initial_states(1)
    for k in range(num_steps):
        answers, alone = step(engine, member, values[2:3, k : k + 1], alone)
        np.testing.assert_array_equal(answers[0, 0], found[2, k])
    for state, one, spec in zip(states, alone, engine.signature.states, strict=True):
        np.testing.assert_array_equal(state.take(2, spec.batch_axis), one.take(0, spec.batch_axis))


# -- served -----

SERVED = [member for k, member in enumerate(FAMILY) if k % 9 == 0]
NUM_SESSIONS = 3


async def feed(caller: Caller, member: Member, session_id: str, values: NDArray[Any], begin: int) -> int:
    """Send some of a session's values over a stream, in messages of one to three steps; return how many are sent."""
    stream, opened = await caller.open(session_id, member.name)
    assert opened.step == begin
    assert opened.num_features == max(int(np.prod(member.shape)), 1)
    expected = member.answer(values)
    step = begin
    for count in (1, 2, 3, 1):
        answer = await tell(stream, member, values[step : step + count], step)
        np.testing.assert_array_equal(answer, expected[step : step + count])
        again = await tell(stream, member, values[step : step + count], step)
        np.testing.assert_array_equal(again, answer)
        step += count
    await stream.half_close()
    return step


async def tell(stream: Stream, member: Member, values: NDArray[Any], step: int) -> NDArray[Any]:
    """Send values as a tensor and return the answer's."""
    message = sequence_pb2.Values(tensors=[tensors.message("x", values)], step=step)
    response = await stream.ask(values=message)
    assert response.WhichOneof("kind") == "answer", response
    (tensor,) = response.answer.tensors
    return tensors.array(tensor, member.dtype, [None, *member.shape])


def test_family_is_served_exactly_and_its_sessions_survive_the_server(run: Run, tmp_path: Path):
    for member in SERVED:
        member.write(tmp_path / "models" / member.name / "1" / "model.onnx")
    values = {
        (member, k): values_of(member, NUM_SESSIONS, 14)[k] for member in SERVED for k in range(NUM_SESSIONS)
    }

    async def scenario(begin: int) -> None:
        store = f"sqlite:///{tmp_path / 'sessions.db'}"
        async with service(tmp_path / "models", store=store, durability="sync") as (app, caller):
            lulls = [Lull.before(app.repository.get(member.name).lane) for member in SERVED]
            feeds = [
                feed(caller, member, f"{member.name}/{k}", values[member, k], begin)
                for member in SERVED
                for k in range(NUM_SESSIONS)
            ]
            assert set(await asyncio.gather(*feeds)) == {begin + 7}
            assert sum(lull.num_shared for lull in lulls)

    run(scenario(0))
    run(scenario(7))


def test_frames_carry_the_numbers_of_any_dtype(run: Run, tmp_path: Path):
    chosen = [one for one in FAMILY if one.rank == 1 and one.num_states and one.time_axis == 1]
    for member in chosen:
        member.write(tmp_path / member.name / "1" / "model.onnx")

    async def scenario() -> None:
        async with service(tmp_path) as (_, caller):
            frames = Frames(caller)
            for k, member in enumerate(chosen):
                await frames.open(f"{k}-a", f"{k}-b", model=member.name, first=2 * k)
            values = [values_of(member, 2, 6) for member in chosen]
            for begin, end in ((0, 1), (1, 3), (3, 4), (4, 6)):
                numbers = [row[begin:end].ravel().tolist() for rows in values for row in rows]
                response = await frames.ask(
                    handles=range(2 * len(chosen)),
                    values=[number for row in numbers for number in row],
                    counts=[end - begin] * 2 * len(chosen),
                )
                came = rows_of(response, num_outputs=2)
                for k, member in enumerate(chosen):
                    for place in range(2):
                        wanted = member.answer(values[k][place])[begin:end].ravel().tolist()
                        assert came[2 * k + place] == (end, wanted)
            integer = next(k for k, member in enumerate(chosen) if member.dtype == "int32")
            handles = [2 * integer, 2 * integer + 1]
            came = rows_of(await frames.ask(handles=handles, values=[1, 2, 0.5, 4]), num_outputs=2)
            assert came[2 * integer][0] == 7
            assert came[2 * integer + 1] == ("INVALID_ARGUMENT", "WRONG_SHAPE")

    run(scenario())
