"""Requests of the Open Inference Protocol on sequences, and what Triton's rules and the strict ones make of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from inside import Gate, service, until
from longshort.v1 import session_pb2
from longshort_service.inference import inference_pb2 as pb
from open_inference import Triton, numbers_of, request_of
from wire import key, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from wire import Caller

    Run = Callable[[Coroutine[Any, Any, None]], None]

MODES = pytest.mark.parametrize("mode", ["triton", "strict"])
NAN = float("nan")


async def step_of(caller: Caller, session_id: str) -> int:
    response = await caller.sessions.GetSession(session_pb2.GetSessionRequest(session=key(session_id)))
    return int(response.session.step)


@MODES
def test_sequence_remembers_and_ends(run: Run, adders: Path, mode: str):
    async def scenario() -> None:
        async with service(adders, sequence_mode=mode) as (_, caller):
            triton = Triton(caller)
            first = await triton.infer(request_of("adder", [1.0, 2.0], "a", sequence=7, start=True))
            assert (numbers_of(first), first.id, first.model_name, first.model_version) == (
                [1, 3],
                "a",
                "adder",
                "1",
            )
            assert first.parameters["sequence_step"].int64_param == 2
            assert await triton.numbers("adder", [4.0], "b", sequence=7) == [7]
            assert await step_of(caller, "oip/adder/u/7") == 3
            assert await triton.numbers("adder", [1.0], "c", sequence=7, end=True) == [8]
            gone = request_of("adder", [1.0], "d", sequence=7)
            assert await triton.refused(gone) == ("NOT_FOUND", "SESSION_NOT_FOUND")
            assert await refused(
                caller.sessions.GetSession(session_pb2.GetSessionRequest(session=key("oip/adder/u/7")))
            ) == ("NOT_FOUND", "SESSION_NOT_FOUND")
            assert await triton.numbers("adder", [1.0], "e", sequence=7, start=True, end=True) == [1]

    run(scenario())


def test_sequences_are_apart_by_model_and_by_kind_of_id(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders) as (_, caller):
            triton = Triton(caller)
            places = [("adder", 7), ("strict", 7), ("adder", "7"), ("adder", "7 a"), ("strict", "é")]
            for k, (model, sequence) in enumerate(places):
                assert await triton.numbers(model, [10.0**k], sequence=sequence, start=True) == [10.0**k]
            for k, (model, sequence) in enumerate(places):
                assert await triton.numbers(model, [1.0], sequence=sequence) == [10.0**k + 1]

    run(scenario())


def test_session_of_longshort_and_sequence_of_triton_are_the_same(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders) as (_, caller):
            triton = Triton(caller)
            await triton.infer(request_of("adder", [1.0], sequence="a", start=True))
            response = await caller.step("oip/adder/s/a", [2], 1, "adder")
            assert list(response.answer.values) == [3]
            assert await triton.numbers("adder", [3.0], sequence="a") == [6]
            stream, opened = await caller.open("oip/adder/s/a", "adder")
            assert opened.step == 3
            assert await triton.numbers("adder", [4.0], sequence="a") == [10]
            assert list((await stream.step([1], 4)).values) == [11]
            await triton.infer(request_of("adder", [1.0], sequence="a", end=True))
            assert await stream.end() == ("ABORTED", "SESSION_MOVED")

    run(scenario())


def test_first_request_must_say_that_it_starts(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders) as (_, caller):
            refusal = await Triton(caller).refused(request_of("adder", [1.0], sequence=1))
            assert refusal == ("NOT_FOUND", "SESSION_NOT_FOUND")
            assert "sequence_start" in refusal.message

    run(scenario())


def test_by_triton_s_rules_a_start_starts_over_and_a_request_sent_twice_counts_twice(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders) as (_, caller):
            triton = Triton(caller)
            for _ in range(2):
                assert await triton.numbers("adder", [5.0], "a", sequence=1, start=True) == [5]
            assert await triton.numbers("adder", [1.0], "b", sequence=1) == [6]
            assert await triton.numbers("adder", [1.0], "b", sequence=1) == [7]
            assert await triton.numbers("adder", [1.0], "c", sequence=1, start=True) == [1]
            assert await step_of(caller, "oip/adder/u/1") == 1

    run(scenario())


def test_start_that_cannot_be_applied_leaves_the_sequence_that_is_under_way(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders) as (_, caller):
            triton = Triton(caller)
            await triton.infer(request_of("strict", [5.0], sequence=1, start=True))
            bad = request_of("strict", [NAN], sequence=1, start=True)
            assert await triton.refused(bad) == ("INVALID_ARGUMENT", "VALUE_MISSING")
            wide = {"x": np.ones((1, 1, 2), np.float32)}
            refusal = await triton.refused(request_of("strict", wide, sequence=1, start=True))
            assert refusal == ("INVALID_ARGUMENT", "WRONG_SHAPE")
            assert await triton.numbers("strict", [1.0], sequence=1) == [6]
            refusal = await triton.refused(request_of("strict", [NAN], sequence=2, start=True))
            assert refusal == ("INVALID_ARGUMENT", "VALUE_MISSING")
            assert await triton.refused(request_of("strict", [1.0], sequence=2)) == (
                "NOT_FOUND",
                "SESSION_NOT_FOUND",
            )

    run(scenario())


def test_strict_refuses_a_start_under_way_but_answers_one_that_comes_again(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders, sequence_mode="strict") as (_, caller):
            triton = Triton(caller)
            start = request_of("adder", [5.0], "a", sequence=1, start=True)
            assert numbers_of(await triton.infer(start)) == [5]
            again = await triton.infer(start)
            assert (numbers_of(again), again.parameters["sequence_replayed"].bool_param) == ([5], True)
            for value, request_id in ((5.0, "b"), (5.0, ""), (6.0, "b")):
                other = request_of("adder", [value], request_id, sequence=1, start=True)
                refusal = await triton.refused(other)
                assert (refusal, refusal.metadata["session_id"]) == (
                    ("ALREADY_EXISTS", "SESSION_EXISTS"),
                    "oip/adder/u/1",
                )
            changed = request_of("adder", [6.0], "a", sequence=1, start=True)
            assert await triton.refused(changed) == ("ALREADY_EXISTS", "SESSION_EXISTS")
            alike = request_of("adder", [5.0], "c", sequence=1, start=True, end=True)
            assert await triton.refused(alike) == ("ALREADY_EXISTS", "SESSION_EXISTS")
            assert await triton.numbers("adder", [1.0], sequence=1) == [6]
            assert await triton.refused(start) == ("ALREADY_EXISTS", "SESSION_EXISTS")
            assert await triton.numbers("adder", [1.0], sequence=1) == [7]

    run(scenario())


def test_strict_applies_a_request_id_that_comes_again_once(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders, sequence_mode="strict") as (_, caller):
            triton = Triton(caller)
            await triton.infer(request_of("adder", [5.0], "a", sequence=1, start=True))
            for _ in range(3):
                assert await triton.numbers("adder", [1.0, 1.0], "b", sequence=1) == [6, 7]
            changed = request_of("adder", [2.0, 1.0], "b", sequence=1)
            assert await triton.refused(changed) == ("FAILED_PRECONDITION", "VALUES_DIFFER")
            assert await triton.numbers("adder", [1.0], "c", sequence=1) == [8]
            assert await triton.numbers("adder", [1.0], "b", sequence=1) == [9]  # not the last one's id
            assert await triton.numbers("adder", [1.0], sequence=1) == [10]  # no id: nothing to know it by
            assert await triton.numbers("adder", [1.0], sequence=1) == [11]

    run(scenario())


def test_strict_forgets_an_id_behind_a_request_without_one(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders, sequence_mode="strict") as (_, caller):
            triton = Triton(caller)
            await triton.infer(request_of("adder", [5.0], "a", sequence=1, start=True))
            assert await triton.numbers("adder", [1.0], "b", sequence=1) == [6]
            assert await triton.numbers("adder", [1.0], sequence=1) == [7]
            assert await triton.numbers("adder", [1.0], "b", sequence=1) == [8]

    run(scenario())


def test_strict_knows_the_last_request_again_behind_a_start_that_was_refused(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders, sequence_mode="strict") as (_, caller):
            triton = Triton(caller)
            await triton.infer(request_of("adder", [5.0], "a", sequence=1, start=True))
            assert await triton.numbers("adder", [1.0], "b", sequence=1) == [6]
            other = request_of("adder", [9.0], "z", sequence=1, start=True)
            assert await triton.refused(other) == ("ALREADY_EXISTS", "SESSION_EXISTS")
            early = request_of("adder", [9.0], "y", sequence=1, step=7)
            assert await triton.refused(early) == ("FAILED_PRECONDITION", "STEP_GAP")
            assert await triton.numbers("adder", [1.0], "b", sequence=1) == [6]

    run(scenario())


def test_strict_applies_a_request_that_was_refused_when_it_comes_again(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders, sequence_mode="strict") as (_, caller):
            triton = Triton(caller)
            await triton.infer(request_of("strict", [5.0], "a", sequence=1, start=True))
            bad = request_of("strict", [NAN], "b", sequence=1)
            assert await triton.refused(bad) == ("INVALID_ARGUMENT", "VALUE_MISSING")
            assert await triton.numbers("strict", [2.0], "b", sequence=1) == [7]

    run(scenario())


def test_strict_answers_a_request_that_comes_again_while_it_runs(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders, sequence_mode="strict") as (app, caller):
            triton = Triton(caller)
            await triton.infer(request_of("adder", [5.0], "a", sequence=1, start=True))
            gate = Gate.before(app.repository.get("adder").lane)
            calls = [
                asyncio.ensure_future(triton.infer(request_of("adder", [1.0, 1.0], "b", sequence=1)))
                for _ in range(3)
            ]
            await gate.arrival()
            gate.open()
            responses = await asyncio.gather(*calls)
            assert [numbers_of(response) for response in responses] == [[6, 7]] * 3
            replayed = [response.parameters["sequence_replayed"].bool_param for response in responses]
            assert sorted(replayed) == [False, True, True]
            assert await step_of(caller, "oip/adder/u/1") == 3

    run(scenario())


@MODES
def test_step_numbers_make_a_sequence_exactly_once(run: Run, adders: Path, mode: str):
    async def scenario() -> None:
        async with service(adders, sequence_mode=mode) as (_, caller):
            triton = Triton(caller)
            for _ in range(2):
                assert await triton.numbers("adder", [1.0, 1.0], sequence=1, start=True, step=0) == [1, 2]
            for _ in range(2):
                assert await triton.numbers("adder", [1.0], sequence=1, step=2) == [3]
            for step, values, reason in (
                (5, [1.0], "STEP_GAP"),
                (0, [1.0, 1.0], "STEP_CONFLICT"),
                (2, [2.0], "VALUES_DIFFER"),
            ):
                refusal = await triton.refused(request_of("adder", values, sequence=1, step=step))
                assert (refusal, refusal.metadata) == (
                    ("FAILED_PRECONDITION", reason),
                    {"expected_step": "3"},
                )
            assert await triton.numbers("adder", [1.0], sequence=1, step=3, end=True) == [4]
            ended = request_of("adder", [1.0], sequence=1, step=3, end=True)
            assert await triton.refused(ended) == ("NOT_FOUND", "SESSION_NOT_FOUND")

    run(scenario())


def test_numbered_start_of_other_values_starts_over_by_triton_s_rules(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders) as (_, caller):
            triton = Triton(caller)
            await triton.infer(request_of("adder", [1.0], sequence=1, start=True, step=0))
            assert await triton.numbers("adder", [2.0], sequence=1, start=True, step=0) == [2]
            await triton.infer(request_of("adder", [1.0], sequence=1, step=1))
            assert await triton.numbers("adder", [2.0], sequence=1, start=True, step=0) == [2]
            assert await step_of(caller, "oip/adder/u/1") == 1

    run(scenario())


def test_unnumbered_requests_are_stored_before_they_are_answered(run: Run, adders: Path, tmp_path: Path):
    async def scenario(first: list[float], then: list[float], **flags: bool) -> None:
        settings = {"store": f"sqlite:///{tmp_path / 'sessions.db'}", "checkpoint_interval_s": 60.0}
        async with service(adders, **settings) as (app, caller):
            triton = Triton(caller)
            numbers = await triton.numbers("adder", first, sequence=1, **flags)
            assert numbers == then
            session = app._table.get("oip/adder/u/1")
            assert session is not None
            assert session.durable_step == session.step

    run(scenario([1.0, 1.0], [1, 2], start=True))
    run(scenario([1.0], [3]))


def test_without_a_sequence_rows_begin_in_the_initial_state_and_nothing_is_kept(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders, max_batch_rows=4, piece_steps=2) as (app, caller):
            triton = Triton(caller)
            values = np.arange(15, dtype=np.float32).reshape(3, 5, 1)
            for _ in range(2):
                answers = await triton.numbers("adder", {"x": values})
                assert answers == values.cumsum(axis=1).ravel().tolist()
            many = request_of("adder", {"x": np.ones((5, 1, 1), np.float32)})
            assert await triton.refused(many) == ("INVALID_ARGUMENT", "WRONG_SHAPE")
            none = request_of("adder", {"x": np.ones((0, 1, 1), np.float32)})
            assert await triton.refused(none) == ("INVALID_ARGUMENT", "WRONG_SHAPE")
            empty = request_of("adder", {"x": np.ones((1, 0, 1), np.float32)})
            assert await triton.refused(empty) == ("INVALID_ARGUMENT", "EMPTY_VALUES")
            bad = request_of("strict", {"x": np.array([[[1]], [[NAN]]], np.float32)})
            assert await triton.refused(bad) == ("INVALID_ARGUMENT", "VALUE_MISSING")
            assert (await caller.sessions.ListSessions(session_pb2.ListSessionsRequest())).sessions == []
            for model in app.repository.models():
                assert model.arena.num_held == 0
                model.arena.check_integrity()

    run(scenario())


def test_rows_without_a_sequence_share_runs_with_sessions_and_leave_them_alone(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders) as (app, caller):
            triton = Triton(caller)
            await triton.infer(request_of("adder", [100.0], sequence=1, start=True))
            gate = Gate.before(app.repository.get("adder").lane)
            first = asyncio.ensure_future(triton.numbers("adder", [1.0]))
            await gate.arrival()
            rest = [
                asyncio.ensure_future(triton.numbers("adder", [1.0], sequence=1)),
                asyncio.ensure_future(triton.numbers("adder", {"x": np.full((3, 1, 1), 7, np.float32)})),
            ]
            lane = app.repository.get("adder").lane
            await until(lambda: lane.num_queued_steps == 5)
            gate.open()
            assert await first == [1]
            assert await asyncio.gather(*rest) == [[101], [7, 7, 7]]
            assert gate.batches == [1, 4]

    run(scenario())


def test_infinite_result_of_a_row_refuses_its_request_alone(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders) as (app, caller):
            triton = Triton(caller)
            most = float(np.finfo(np.float32).max)
            refusal = await triton.refused(
                request_of("adder", {"x": np.array([[[1], [1]], [[most], [most]]], np.float32)})
            )
            assert refusal == ("OUT_OF_RANGE", "NON_FINITE_RESULT")
            assert app.repository.get("adder").arena.num_held == 0

    run(scenario())


def test_cancelled_request_without_a_sequence_gives_its_rows_back(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders) as (app, caller):
            triton = Triton(caller)
            model = app.repository.get("adder")
            gate = Gate.before(model.lane)
            first = asyncio.ensure_future(triton.numbers("adder", [1.0]))
            await gate.arrival()
            second = asyncio.ensure_future(triton.numbers("adder", [1.0, 2.0]))
            await until(lambda: model.lane.num_queued_steps == 3)
            second.cancel()
            gate.open()
            assert await first == [1]
            await until(lambda: not model.arena.num_held)
            assert await triton.numbers("adder", [3.0]) == [3]

    run(scenario())


def test_full_queue_refuses_rows_without_a_sequence_and_keeps_none_of_them(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders, max_steps=4, max_queued_steps=4) as (app, caller):
            triton = Triton(caller)
            model = app.repository.get("adder")
            gate = Gate.before(model.lane)
            first = asyncio.ensure_future(triton.numbers("adder", [1.0]))
            await gate.arrival()
            refusal = await triton.refused(request_of("adder", [1.0] * 4))
            assert refusal == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
            gate.open()
            assert await first == [1]
            assert model.arena.num_held == 0

    run(scenario())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda request: setattr(request, "model_name", "nobody"), ("NOT_FOUND", "MODEL_NOT_FOUND")),
        (lambda request: setattr(request, "model_version", "9"), ("NOT_FOUND", "MODEL_NOT_FOUND")),
        (lambda request: setattr(request, "model_version", "x"), ("INVALID_ARGUMENT", "INVALID_MESSAGE")),
        (lambda request: request.inputs.pop(), ("INVALID_ARGUMENT", "WRONG_SHAPE")),
        (lambda request: request.outputs.add(name="z"), ("INVALID_ARGUMENT", "WRONG_SHAPE")),
        (
            lambda request: request.outputs.add(name="y").parameters["classification"].SetInParent(),
            ("UNIMPLEMENTED", "NOT_OFFERED"),
        ),
        (
            lambda request: request.inputs[0].parameters["shared_memory_region"].SetInParent(),
            ("UNIMPLEMENTED", "NOT_OFFERED"),
        ),
    ],
)
@pytest.mark.parametrize("parameters", [{}, {"sequence": 1, "start": True}, {"sequence": 2}])
def test_bad_request_is_refused_and_nothing_moves(
    run: Run, adders: Path, parameters: dict[str, Any], change: Any, expected: Any
):
    async def scenario() -> None:
        async with service(adders) as (_, caller):
            triton = Triton(caller)
            await triton.infer(request_of("adder", [5.0], sequence=2, start=True))
            request = request_of("adder", [1.0], **parameters)
            change(request)
            refusal = await triton.refused(request)
            if parameters == {"sequence": 2} and expected[1] == "MODEL_NOT_FOUND":
                # What a sequence that is under way is asked for is compared with what it has.
                assert refusal.reason == ("MODEL_MISMATCH" if request.model_version else "SESSION_NOT_FOUND")
            else:
                assert refusal == expected
            assert await triton.numbers("adder", [1.0], sequence=2) == [6]
            assert await step_of(caller, "oip/adder/u/2") == 2

    run(scenario())


def test_sequence_takes_one_row(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders) as (_, caller):
            triton = Triton(caller)
            two = {"x": np.ones((2, 1, 1), np.float32)}
            refusal = await triton.refused(request_of("adder", two, sequence=1, start=True))
            assert (refusal, "one row" in refusal.message) == (("INVALID_ARGUMENT", "WRONG_SHAPE"), True)

    run(scenario())


def test_requested_outputs_come_back_and_no_others(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders) as (_, caller):
            request = request_of("adder", [1.0])
            request.outputs.add(name="y")
            response = await Triton(caller).infer(request)
            assert [output.name for output in response.outputs] == ["y"]
            assert len(response.raw_output_contents) == 1

    run(scenario())


def test_requests_are_counted_and_measured_as_steps_are(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders) as (app, caller):
            triton = Triton(caller)
            await triton.infer(request_of("adder", [1.0, 1.0], sequence=1, start=True))
            await triton.refused(request_of("adder", [1.0], sequence=2))
            metrics = {
                sample.name + str(sample.labels.get("reason", "")): sample.value
                for family in app.metrics.collect()
                for sample in family.samples
                if sample.labels.get("model", "adder") == "adder"
            }
            assert metrics["longshort_steps_total"] == 2
            assert metrics["longshort_errors_totalSESSION_NOT_FOUND"] == 1
            statistics = await triton.call(
                "ModelStatistics", pb.ModelStatisticsRequest(name="adder"), pb.ModelStatisticsResponse
            )
            (found,) = statistics.model_stats
            assert (found.name, found.version) == ("adder", "1")
            assert (found.inference_stats.success.count, found.inference_stats.fail.count) == (1, 1)
            assert found.inference_stats.success.ns > 0
            assert (found.inference_count, found.execution_count) == (1, 1)
            assert found.last_inference > 0

    run(scenario())


def test_priorities_timeouts_and_foreign_parameters_change_nothing(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders) as (_, caller):
            triton = Triton(caller)
            await triton.infer(request_of("adder", [1.0], sequence=1, start=True, priority=1, timeout=1))
            foreign = {"triton_enable_empty_final_response": True, "what": "ever", "ratio": 0.5}
            assert await triton.numbers("adder", [1.0], sequence=1, **foreign) == [2]

    run(scenario())
