"""What an Open Inference stream has in hand: order, shared runs, gaps, a bound, and lost clients, seen from inside."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from inside import Gate, service, until
from longshort_service.handlers.inference_stream import MAX_IN_HAND
from longshort_service.inference import inference_pb2 as pb
from open_inference import Triton, numbers_of, request_of
from wire import refusal_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    Run = Callable[[Coroutine[Any, Any, None]], None]

NAN = float("nan")
AS_STATUS = ("triton_grpc_error", "true")


async def end_of(stream: Any) -> grpc.StatusCode:
    """Half-close a stream whose answers were read, and return how it ends."""
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    code = await stream.code()
    assert isinstance(code, grpc.StatusCode)
    return code


async def answer_of(stream: Any) -> list[float]:
    response = await stream.read()
    assert response is not grpc.aio.EOF, await stream.code()
    assert not response.error_message, response
    assert response.infer_response.parameters["triton_final_response"].bool_param
    return numbers_of(response.infer_response)


def test_requests_of_many_sequences_are_answered_in_their_order(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders) as (_, caller):
            stream = Triton(caller).stream()
            num_steps, sequences = 20, [1, "1", 2, 0]
            for step in range(num_steps):
                for sequence in sequences:
                    request_id = f"{sequence!r}/{step}"
                    await stream.write(
                        request_of(
                            "adder", [1.0], request_id, sequence=sequence, start=step == 0 and sequence != 0
                        )
                    )
            for step in range(num_steps):
                for sequence in sequences:
                    response = (await stream.read()).infer_response
                    assert response.id == f"{sequence!r}/{step}"
                    assert numbers_of(response) == [1 if sequence == 0 else step + 1]
            assert await end_of(stream) is grpc.StatusCode.OK

    run(scenario())


def test_sequences_of_one_stream_share_runs_and_one_sequence_does_not_run_twice_at_once(
    run: Run, adders: Path
):
    async def scenario() -> None:
        async with service(adders) as (app, caller):
            lane = app.repository.get("adder").lane
            gate = Gate.before(lane)
            stream = Triton(caller).stream()
            await stream.write(request_of("adder", [9.0]))
            await gate.arrival()
            for sequence in (1, 2, 3):
                await stream.write(request_of("adder", [1.0], sequence=sequence, start=True))
                await stream.write(request_of("adder", [1.0], sequence=sequence))
            await until(lambda: lane.num_queued_steps == 4)
            gate.open()
            assert [await answer_of(stream) for _ in range(7)] == [[9], [1], [2], [1], [2], [1], [2]]
            assert gate.batches[:2] == [1, 3]
            assert await end_of(stream) is grpc.StatusCode.OK

    run(scenario())


def test_error_comes_in_band_with_the_request_s_id_and_the_stream_goes_on(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders) as (app, caller):
            stream = Triton(caller).stream()
            await stream.write(request_of("strict", [1.0], "a", sequence=1, start=True))
            await stream.write(request_of("strict", [NAN], "b", sequence=1))
            await stream.write(request_of("strict", [1.0], "c", sequence=1))
            await stream.write(request_of("nobody", [1.0], "d"))
            await stream.write(request_of("strict", [1.0], "e", sequence=1.5))
            assert await answer_of(stream) == [1]
            refused = await stream.read()
            assert refused.error_message.startswith("VALUE_MISSING: ")
            assert refused.infer_response.id == "b"
            assert not refused.infer_response.outputs
            assert await answer_of(stream) == [2]
            for request_id, reason in (("d", "MODEL_NOT_FOUND"), ("e", "INVALID_MESSAGE")):
                refused = await stream.read()
                assert refused.error_message.startswith(f"{reason}: ")
                assert refused.infer_response.id == request_id
            assert await end_of(stream) is grpc.StatusCode.OK
            statistics = await Triton(caller).call(
                "ModelStatistics", pb.ModelStatisticsRequest(name="strict"), pb.ModelStatisticsResponse
            )
            (of_strict,) = statistics.model_stats
            assert of_strict.inference_stats.success.count == of_strict.inference_stats.fail.count == 2
            counted = dict(app.metrics._counters["longshort_errors_total"].totals())
            assert (
                counted["VALUE_MISSING",] == counted["MODEL_NOT_FOUND",] == counted["INVALID_MESSAGE",] == 1
            )

    run(scenario())


def test_with_the_header_an_error_ends_the_stream_with_its_status(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders) as (app, caller):
            stream = Triton(caller).stream(AS_STATUS)
            await stream.write(request_of("strict", [1.0], sequence=1, start=True))
            await stream.write(request_of("strict", [NAN], sequence=1))
            assert await answer_of(stream) == [1]
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stream.read()
            assert refusal_of(raised.value) == ("INVALID_ARGUMENT", "VALUE_MISSING")
            await until(lambda: app._streams.num_streams() == 0)

    run(scenario())


def test_strict_refuses_what_was_sent_behind_a_refused_request(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders, sequence_mode="strict") as (app, caller):
            gate = Gate.before(app.repository.get("strict").lane)
            stream = Triton(caller).stream()
            await stream.write(request_of("strict", [1.0], "a", sequence=1, start=True))
            await gate.arrival()  # so that all that follows is sent before the refusal is heard
            for request_id, value in (("b", NAN), ("c", 1.0), ("d", 1.0)):
                await stream.write(request_of("strict", [value], request_id, sequence=1))
            await stream.write(request_of("strict", [3.0], "e", sequence=1, step=1))
            await until(lambda: len(next(iter(app._streams._streams))._in_hand) == 5)  # type: ignore[attr-defined]
            gate.open()
            assert await answer_of(stream) == [1]
            reasons = [(await stream.read()).error_message.partition(":")[0] for _ in range(3)]
            assert reasons == ["VALUE_MISSING", "STEP_REQUIRED", "STEP_REQUIRED"]
            assert await answer_of(stream) == [4]  # numbered: nothing can be missing before it
            await stream.write(request_of("strict", [1.0], "f", sequence=1))
            assert await answer_of(stream) == [5]
            assert await end_of(stream) is grpc.StatusCode.OK

    run(scenario())


def test_bytes_that_are_no_request_are_refused_in_band(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders, max_message_bytes=2048) as (_, caller):
            call = caller.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")()
            from longshort_service.inference.inference_pb2 import ModelStreamInferResponse

            for raw, reason in ((b"\xff", "MALFORMED_MESSAGE"), (b"\0" * 3000, "MESSAGE_TOO_LARGE")):
                await call.write(raw)
                response = ModelStreamInferResponse.FromString(await call.read())
                assert response.error_message.startswith(f"{reason}: ")
            assert await end_of(call) is grpc.StatusCode.OK

    run(scenario())


def test_stream_holds_a_bounded_number_of_requests(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders) as (app, caller):
            lane = app.repository.get("adder").lane
            gate = Gate.before(lane)
            stream = Triton(caller).stream()
            many = 3 * MAX_IN_HAND

            async def write() -> None:
                for k in range(many):
                    await stream.write(request_of("adder", [float(k)]))

            writing = asyncio.ensure_future(write())
            await gate.arrival()
            await until(lambda: lane.num_queued_steps == MAX_IN_HAND)
            await asyncio.sleep(0.05)
            assert lane.num_queued_steps == MAX_IN_HAND
            gate.open()
            assert [await answer_of(stream) for _ in range(many)] == [[k] for k in range(many)]
            await writing
            assert await end_of(stream) is grpc.StatusCode.OK

    run(scenario())


def test_half_close_waits_for_what_is_in_hand(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders) as (app, caller):
            gate = Gate.before(app.repository.get("adder").lane)
            stream = Triton(caller).stream()
            await stream.write(request_of("adder", [1.0], sequence=1, start=True))
            await stream.done_writing()
            await gate.arrival()
            gate.open()
            assert await answer_of(stream) == [1]
            assert await stream.read() is grpc.aio.EOF
            assert await stream.code() is grpc.StatusCode.OK

    run(scenario())


def test_silent_stream_stays(run: Run, adders: Path, monkeypatch: pytest.MonkeyPatch):
    async def scenario() -> None:
        monkeypatch.setattr("longshort_service.handlers.conversation.OPEN_TIMEOUT_S", 0.05)
        async with service(adders, max_stream_age_s=0.1) as (app, caller):
            stream = Triton(caller).stream()
            await stream.wait_for_connection()
            await until(lambda: app._streams.num_streams() == 1)
            await asyncio.sleep(0.3)
            await stream.write(request_of("adder", [1.0]))
            assert await answer_of(stream) == [1]
            assert await end_of(stream) is grpc.StatusCode.OK

    run(scenario())


def test_client_that_leaves_takes_back_what_has_not_run(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders) as (app, caller):
            triton, lane = Triton(caller), app.repository.get("adder").lane
            await triton.infer(request_of("adder", [1.0], sequence=1, start=True))
            gate = Gate.before(lane)
            first = asyncio.ensure_future(triton.numbers("adder", [1.0]))
            await gate.arrival()
            stream = triton.stream()
            for _ in range(3):
                await stream.write(request_of("adder", [1.0], sequence=1))
            await until(lambda: lane.num_queued_steps == 2)
            stream.cancel()
            await until(lambda: not lane.queue or lane.queue[0].withdrawn)
            gate.open()
            assert await first == [1]
            await until(lambda: app._streams.num_streams() == 0)
            assert await triton.numbers("adder", [1.0], sequence=1) == [2]

    run(scenario())


def test_drain_answers_what_is_in_hand_and_says_that_it_is_one(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders) as (app, caller):
            gate = Gate.before(app.repository.get("adder").lane)
            busy, idle = Triton(caller).stream(), Triton(caller).stream()
            await idle.wait_for_connection()
            await busy.write(request_of("adder", [1.0], sequence=1, start=True))
            await gate.arrival()
            await until(lambda: app._streams.num_streams() == 2)
            stopping = asyncio.ensure_future(app.stop())
            await until(lambda: app._edge.is_draining)
            await busy.write(request_of("adder", [1.0], sequence=1))
            gate.open()
            assert await answer_of(busy) == [1]
            for stream in (busy, idle):
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await stream.read()
                assert refusal_of(raised.value) == ("UNAVAILABLE", "DRAINING")
            await stopping

    run(scenario())


def test_half_close_during_a_drain_ends_a_stream_well(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders) as (app, caller):
            gate = Gate.before(app.repository.get("adder").lane)
            busy, done = Triton(caller).stream(), Triton(caller).stream()
            await done.write(request_of("strict", [1.0]))
            assert await answer_of(done) == [1]
            await busy.write(request_of("adder", [1.0]))
            await gate.arrival()
            stopping = asyncio.ensure_future(app.stop())
            await until(lambda: app._edge.is_draining)
            assert await end_of(done) is grpc.StatusCode.OK
            await busy.done_writing()
            await until(lambda: app._streams.num_streams() == 1)
            gate.open()
            assert await answer_of(busy) == [1]
            assert await busy.read() is grpc.aio.EOF
            assert await busy.code() is grpc.StatusCode.OK
            await stopping

    run(scenario())


def test_streams_are_limited_with_all_others(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders, max_streams=1) as (app, caller):
            stream, _ = await caller.open("s", "adder")
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await Triton(caller).stream().read()
            assert refusal_of(raised.value) == ("RESOURCE_EXHAUSTED", "STREAMS_EXHAUSTED")
            await stream.half_close()
            await until(lambda: app._streams.num_streams() == 0)
            again = Triton(caller).stream()
            await again.write(request_of("adder", [1.0]))
            assert await answer_of(again) == [1]
            assert await end_of(again) is grpc.StatusCode.OK

    run(scenario())
