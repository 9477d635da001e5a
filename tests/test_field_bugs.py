"""Bugs that other servers of recurrent models paid for, each shown here not to be ours."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from graphs import FATAL, make_mortal, write_adder
from grpc_health.v1 import health_pb2
from inside import Gate, service, until
from longshort.v1 import model_pb2, sequence_pb2, session_pb2
from longshort_model.synthetic import write_random_model
from wire import OPEN, key, refused, values_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from longshort_service.app import App
    from longshort_service.session import Session

    Run = Callable[..., Any]

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def live(app: App, session_id: str) -> Session[Any]:
    session = app._table.get(session_id)
    assert session is not None
    return session


def check_rows(app: App) -> None:
    """Every row is held by exactly one live session of its model."""
    for model in app.repository.models():
        model.arena.check_integrity()
        assert model.arena.num_held == app._table.num_sessions_of(model)


def test_cancel_in_mid_batch_leaves_no_batch_mate_hanging(run: Run, adders: Path):
    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (app, caller):
            gate = Gate.before(app.repository.get("adder").lane)
            streams = {name: (await caller.open(name, "adder"))[0] for name in ("first", "leaver", "mate")}
            await streams["first"].send(values=values_of([1], 0))
            await gate.arrival()  # the engine is busy: what comes now shares the next run
            await streams["leaver"].send(values=values_of([1], 0))
            await streams["mate"].send(values=values_of([2], 0))
            lane = app.repository.get("adder").lane
            await until(lambda: lane.num_queued_steps == 3)
            gate.let_through()
            await gate.arrival()  # leaver and mate are in the engine together
            assert gate.batches == [1, 2]
            streams["leaver"].call.cancel()
            await until(lambda: live(app, "leaver").owner is None)
            gate.open()
            assert list((await streams["mate"].receive()).answer.values) == [2]
            assert list((await streams["first"].receive()).answer.values) == [1]
            _, opened = await caller.open("leaver", "", mode=OPEN)
            assert opened.step == 1  # its run was under way: the value is in
            check_rows(app)

    run(scenario())


def test_slot_freed_while_its_batch_runs_is_not_reused_before_the_batch_ends(run: Run, adders: Path):
    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (app, caller):
            model = app.repository.get("adder")
            gate = Gate.before(model.lane)
            stream, _ = await caller.open("leaver", "adder")
            row = live(app, "leaver").slot.row
            await stream.send(values=values_of([1000], 0))
            await gate.arrival()
            stream.call.cancel()
            deletion = asyncio.ensure_future(
                caller.sessions.Delete(session_pb2.DeleteRequest(session=key("leaver")))
            )
            newcomer, _ = await caller.open("newcomer", "adder")
            await asyncio.sleep(0.05)  # time for a hasty server to free and reuse the row
            assert not deletion.done()
            assert live(app, "newcomer").slot.row != row
            gate.open()
            await deletion
            heir, _ = await caller.open("heir", "adder")
            assert live(app, "heir").slot.row == row  # now it is reused, and clean
            assert list((await heir.step([1], 0)).values) == [1]
            assert list((await newcomer.step([1], 0)).values) == [1]
            check_rows(app)

    run(scenario())


def test_dead_engine_leaves_nobody_waiting_and_health_says_not_serving(run: Run, adders: Path):
    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders, may_log_errors=True) as (app, caller):
            make_mortal(app.repository.get("adder").lane.engine)
            gate = Gate.before(app.repository.get("adder").lane)
            watch = caller.health.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == SERVING
            streams = [(await caller.open(f"s{k}", "adder"))[0] for k in range(4)]
            await streams[0].send(values=values_of([FATAL], 0))
            await gate.arrival()
            for stream in streams[1:3]:
                await stream.send(values=values_of([1], 0))
            request = sequence_pb2.StepRequest(session=key("unary"), model="adder", values=values_of([1], 0))
            step = asyncio.ensure_future(refused(caller.sequence.Step(request)))
            await until(lambda: app.repository.get("adder").lane.num_queued_steps == 4)
            gate.open()
            for stream in streams[:3]:  # in the run, and in the queue
                end = await stream.end()
                assert end == ("UNAVAILABLE", "ENGINE_DEAD")
                assert end.retry_delay_s == 1.0
            assert await step == ("UNAVAILABLE", "ENGINE_DEAD")
            assert await streams[3].end(values=values_of([1], 0)) == ("UNAVAILABLE", "ENGINE_DEAD")  # at once
            assert (await watch.read()).status == NOT_SERVING
            watch.cancel()
            for service_name in ("", "longshort.v1.SequenceService"):
                check = await caller.health.Check(health_pb2.HealthCheckRequest(service=service_name))
                assert check.status == NOT_SERVING
            # What had moved is still there to be looked at and exported.
            found = await caller.sessions.GetSession(session_pb2.GetSessionRequest(session=key("s0")))
            assert found.session.step == 0
            check_rows(app)

    run(scenario())


@pytest.mark.parametrize("is_unary", [True, False])
def test_retried_step_does_not_move_the_state_twice(run: Run, adders: Path, *, is_unary: bool):
    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (app, caller):
            gate = Gate.before(app.repository.get("adder").lane)
            stream, _ = await caller.open("s", "adder")
            if is_unary:
                call = asyncio.ensure_future(caller.step("s", [5], 0, "adder"))
                await gate.arrival()
                call.cancel()
            else:
                await stream.send(values=values_of([5], 0))
                await gate.arrival()
                stream.call.cancel()
            gate.open()
            again, opened = await caller.open("s", "adder")
            answer = await again.step([5], 0)  # the caller never saw the answer, and asks again
            assert (list(answer.values), answer.step) == ([5], 1)
            assert answer.replayed is (opened.step == 1)
            assert list((await again.step([1], 1)).values) == [6]

    run(scenario())


def test_two_steps_of_one_session_are_never_in_one_batch(run: Run, adders: Path):
    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (app, caller):
            gate = Gate.before(app.repository.get("adder").lane)
            stream, _ = await caller.open("s", "adder")
            busy = asyncio.ensure_future(caller.step("busy", [1], 0, "adder"))
            await gate.arrival()
            # Four steps of one session at once: two ahead on its stream, two unary calls beside it.
            await stream.send(values=values_of([1]))
            await stream.send(values=values_of([1]))
            calls = [asyncio.ensure_future(caller.step("s", [1], None, "adder")) for _ in range(2)]
            await asyncio.sleep(0.1)
            assert app.repository.get("adder").lane.num_queued_steps == 2  # the busy one's, and one of ours
            gate.open()
            answers = [(await stream.receive()).answer for _ in range(2)]
            answers += [(await call).answer for call in calls]
            await busy
            assert sorted(answer.step for answer in answers) == [1, 2, 3, 4]
            assert all(list(answer.values) == [answer.step] for answer in answers)
            assert max(gate.batches) == 1

    run(scenario())


def test_empty_stream_or_values_before_open_is_not_internal(run: Run, adders: Path):
    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (_, caller):
            await caller.stream().half_close()
            assert await caller.stream().end(values=values_of([1], 0)) == ("FAILED_PRECONDITION", "NOT_OPEN")
            assert await caller.stream().end(open=sequence_pb2.Open()) == ("NOT_FOUND", "MODEL_NOT_FOUND")

    run(scenario())


def test_state_of_another_model_version_is_never_loaded(run: Run, tmp_path: Path):
    """A session stays on its version; a file that was changed under the same version is another model."""
    models = tmp_path / "models"
    write_adder(models / "adder" / "1" / "model.onnx")

    async def scenario() -> None:
        async with asyncio.timeout(20), service(models) as (_, caller):
            stream, _ = await caller.open("s", "adder")
            await stream.step([5], 0)
            await stream.half_close()
            write_adder(models / "adder" / "2" / "model.onnx", bias=100)
            await caller.models.ReloadModels(model_pb2.ReloadModelsRequest())
            again, opened = await caller.open("s", "adder")
            assert opened.version == 1
            assert list((await again.step([1], 1)).values) == [6]
            refusal = await caller.refused_open("s", "adder", version=2)
            assert refusal == ("FAILED_PRECONDITION", "MODEL_MISMATCH")
            exported = await caller.sessions.Export(session_pb2.ExportRequest(session=key("s")))
        write_adder(models / "adder" / "1" / "model.onnx", bias=100)  # another file under the same version
        async with asyncio.timeout(20), service(models) as (_, caller):
            request = session_pb2.ImportRequest(record=exported.record)
            assert await refused(caller.sessions.Import(request)) == ("FAILED_PRECONDITION", "MODEL_CHANGED")
            _, opened = await caller.open("s", "adder")  # the refused import has left nothing behind
            assert opened.created

    run(scenario())


@pytest.mark.parametrize("values", [[1], [1, 2, 3]], ids=["one by one", "long"])
def test_states_and_answers_are_never_views_of_a_batch(run: Run, tmp_path: Path, values: list[float]):
    """One session's memory must not keep alive, or be changed by, the batch that it was computed in."""
    models = tmp_path / "models"
    write_random_model(models / "metro" / "1" / "model.onnx", name="metro", hidden=8)

    async def scenario() -> None:
        async with asyncio.timeout(20), service(models) as (app, caller):
            lane = app.repository.get("metro").lane
            batches: list[weakref.ref[Any]] = []
            gate = Gate.before(lane)
            bare_run = gate._engine.run

            def run_and_remember(values: Any, counts: Any, states: Any) -> Any:
                answers, new_states = bare_run(values, counts, states)
                batches.extend(weakref.ref(array) for array in (answers, *new_states, *states))
                return answers, new_states

            gate._engine.run = run_and_remember  # type: ignore[method-assign]
            gate.open()
            streams = [(await caller.open(f"s{k}", "metro"))[0] for k in range(5)]
            for stream in streams:
                await stream.send(values=values_of(values, 0))
            for stream in streams:
                await stream.receive()
            sizes = {row: len(answer) for row, answer in lane.columns._long_answers.items()}
            rows = {live(app, f"s{k}").row for k in range(5)}
            assert sizes == ({} if len(values) == 1 else dict.fromkeys(rows, 3 * 3 * 4))  # bytes of their own
            assert batches
            await asyncio.sleep(0)
            gc.collect()
            assert [ref for ref in batches if ref() is not None] == []  # nothing of any batch is alive

    run(scenario())


def test_forecast_that_waits_while_its_session_is_deleted_ends_moved_and_leaks_no_row(run: Run, adders: Path):
    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (app, caller):
            stream, _ = await caller.open("s", "adder")
            await stream.step([1], 0)
            gate = Gate.before(app.repository.get("adder").lane)
            request = sequence_pb2.StepRequest(session=key("s"), values=values_of([1], 1))
            step = asyncio.ensure_future(caller.sequence.Step(request))
            await gate.arrival()
            deletion = asyncio.ensure_future(
                caller.sessions.Delete(session_pb2.DeleteRequest(session=key("s")))
            )
            await until(lambda: live(app, "s").num_waiting == 1)
            end = asyncio.ensure_future(stream.end(forecast=sequence_pb2.StreamForecast(horizon=5)))
            await asyncio.sleep(0.05)
            gate.open()
            await step
            await deletion
            assert (await end).reason == "SESSION_MOVED"
            check_rows(app)

    run(scenario())
