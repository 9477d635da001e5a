"""Step, Forecast and Explain as single calls, beside streams of the same sessions."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from histories_backend import BackendLine
from inside import service
from longshort.v1 import sequence_pb2, types_pb2
from wire import CREATE, LAST, NONE, OPEN, Caller, key, refusal_of, refused, values_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Scenario = Callable[[Callable[[Caller], Awaitable[None]]], None]

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def name() -> str:
    return str(uuid.uuid4())


def request_of(
    session_id: str, *values: float, step: int | None = None, **fields: Any
) -> sequence_pb2.StepRequest:
    message = values_of(values, step, fields.pop("answers", 0))
    return sequence_pb2.StepRequest(
        **({"session": key(session_id), "model": "adder", "values": message} | fields)
    )


# -- Step -----


def test_step_creates_the_session_and_goes_on_with_it(against: Scenario, name: str):
    async def scenario(caller: Caller) -> None:
        first = await caller.step(name, [1, 2], 0, "adder")
        assert (list(first.answer.values), first.answer.step, first.created) == ([1, 3], 2, True)
        second = await caller.step(name, [1], 2, "")
        assert (list(second.answer.values), second.answer.step, second.created) == ([4], 3, False)
        assert first.incarnation == second.incarnation != 0
        last = await caller.step(name, [1, 1], None, "", answers=LAST)
        assert list(last.answer.values) == [6]
        assert not (await caller.step(name, [1], 5, "", answers=NONE)).answer.values

    against(scenario)


def test_step_takes_part_in_the_step_table(against: Scenario, name: str):
    async def scenario(caller: Caller) -> None:
        await caller.step(name, [1], 0, "adder")
        await caller.step(name, [1, 1], 1, "adder")
        again = await caller.step(name, [1, 1], 1, "adder")
        assert (again.answer.replayed, list(again.answer.values), again.answer.step) == (True, [2, 3], 3)
        for values, step, reason in (
            ([1, 2], 1, "VALUES_DIFFER"),
            ([1], 1, "STEP_CONFLICT"),
            ([1, 1, 1], 2, "STEP_CONFLICT"),
            ([1], 4, "STEP_GAP"),
        ):
            refusal = await refused(caller.step(name, values, step, "adder"))
            assert refusal == ("FAILED_PRECONDITION", reason)
            assert refusal.metadata == {"expected_step": "3"}
        assert list((await caller.step(name, [1], 3, "adder")).answer.values) == [4]

    against(scenario)


BAD_STEPS: dict[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "empty": ({"values": values_of([])}, ("INVALID_ARGUMENT", "EMPTY_VALUES")),
    "too long": ({"values": values_of([1] * 51)}, ("INVALID_ARGUMENT", "TOO_MANY_STEPS")),
    "too large": ({"values": values_of([1] * 1100)}, ("INVALID_ARGUMENT", "MESSAGE_TOO_LARGE")),
    "missing": ({"values": values_of([NAN])}, ("INVALID_ARGUMENT", "VALUE_MISSING")),
    "infinite": ({"values": values_of([INF])}, ("INVALID_ARGUMENT", "VALUE_NOT_FINITE")),
    "overflow": ({"values": values_of([3e38, 3e38])}, ("OUT_OF_RANGE", "NON_FINITE_RESULT")),
    "tensor": (
        {"values": sequence_pb2.Values(tensors=[types_pb2.Tensor(name="x")])},
        ("INVALID_ARGUMENT", "WRONG_SHAPE"),
    ),
    "answers": (
        {"values": sequence_pb2.Values(values=[1], answers=9)},
        ("INVALID_ARGUMENT", "INVALID_MESSAGE"),
    ),  # type: ignore[arg-type]
    "step": ({"values": values_of([1], 7)}, ("FAILED_PRECONDITION", "STEP_GAP")),
    "model": ({"model": "nobody"}, ("NOT_FOUND", "MODEL_NOT_FOUND")),
    "version": ({"version": 5}, ("NOT_FOUND", "MODEL_NOT_FOUND")),
    "mode": ({"mode": 9}, ("INVALID_ARGUMENT", "INVALID_MESSAGE")),
    "no session": ({"mode": OPEN}, ("NOT_FOUND", "SESSION_NOT_FOUND")),
    "empty id": ({"session": key("")}, ("INVALID_ARGUMENT", "INVALID_SESSION_ID")),
    "bad id": ({"session": key("a b")}, ("INVALID_ARGUMENT", "INVALID_SESSION_ID")),
    "tenant": (
        {"session": types_pb2.SessionKey(tenant="t", id="s")},
        ("INVALID_ARGUMENT", "INVALID_SESSION_ID"),
    ),
}


@pytest.mark.parametrize("what", BAD_STEPS)
def test_bad_step_is_refused_makes_no_session_and_the_next_good_one_works(
    against: Scenario, name: str, what: str
):
    fields, expected = BAD_STEPS[what]

    async def scenario(caller: Caller) -> None:
        refusal = await refused(caller.sequence.Step(request_of(name, 1, **({"mode": CREATE} | fields))))
        assert refusal == expected
        assert refusal.retry_delay_s is None
        good = await caller.sequence.Step(request_of(name, 1, step=0, mode=CREATE))
        assert (good.created, list(good.answer.values)) == (True, [1])

    against(scenario)


@pytest.mark.parametrize("what", ["empty", "too long", "infinite", "overflow", "tensor", "answers", "step"])
def test_bad_step_leaves_an_existing_session_where_it_was(against: Scenario, name: str, what: str):
    fields, expected = BAD_STEPS[what]

    async def scenario(caller: Caller) -> None:
        await caller.step(name, [5], 0, "adder")
        assert await refused(caller.sequence.Step(request_of(name, **fields))) == expected
        assert list((await caller.step(name, [1], 1, "adder")).answer.values) == [6]

    against(scenario)


def test_step_with_mode_create_on_a_session_that_exists_is_refused(against: Scenario, name: str):
    async def scenario(caller: Caller) -> None:
        await caller.step(name, [5], 0, "adder")
        refusal = await refused(caller.sequence.Step(request_of(name, 1, mode=CREATE)))
        assert refusal == ("ALREADY_EXISTS", "SESSION_EXISTS")

    against(scenario)


def test_tensor_step_is_answered_with_a_tensor(against: Scenario, name: str):
    async def scenario(caller: Caller) -> None:
        data = np.array([1, 2], "<f4").tobytes()
        tensor = types_pb2.Tensor(name="x", dtype=types_pb2.DATA_TYPE_FLOAT32, shape=[2, 1], data=data)
        request = request_of(name, values=sequence_pb2.Values(tensors=[tensor], step=0))
        answer = (await caller.sequence.Step(request)).answer
        (found,) = answer.tensors
        assert np.frombuffer(found.data, "<f4").tolist() == [1, 3]

    against(scenario)


def test_steps_of_one_session_at_once_are_applied_one_after_the_other(against: Scenario, name: str):
    async def scenario(caller: Caller) -> None:
        answers = [
            reply.answer
            for reply in await asyncio.gather(*(caller.step(name, [1], None, "adder") for _ in range(50)))
        ]
        assert sorted(answer.step for answer in answers) == list(range(1, 51))
        assert all(list(answer.values) == [answer.step] for answer in answers)

    against(scenario)


def test_step_beside_a_stream_leaves_the_stream_open(against: Scenario, name: str):
    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open(name, "adder")
        await stream.step([1], 0)
        assert (await caller.step(name, [1], 1, "")).answer.step == 2
        refusal = await stream.error(values=values_of([9], 1))  # the stream did not know of it
        assert refusal == ("FAILED_PRECONDITION", "VALUES_DIFFER")
        assert list((await stream.step([1], 2)).values) == [3]

    against(scenario)


def test_streams_and_steps_of_one_session_at_once_lose_nothing(against: Scenario, name: str):
    async def scenario(caller: Caller) -> None:
        stream, _ = await caller.open(name, "adder")

        async def converse() -> list[sequence_pb2.Answer]:
            return [await stream.step([1] * (1 + k % 12)) for k in range(30)]

        async def call() -> list[sequence_pb2.Answer]:
            return [(await caller.step(name, [1] * (1 + k % 12), None, "")).answer for k in range(30)]

        lists = await asyncio.gather(converse(), call(), call())
        answers = sorted((answer for answers in lists for answer in answers), key=lambda answer: answer.step)
        position = 0
        for answer in answers:
            assert list(answer.values) == list(range(position + 1, answer.step + 1))
            position = answer.step
        assert position == 3 * sum(1 + k % 12 for k in range(30))

    against(scenario)


def test_step_that_is_taken_and_not_stored_may_come_again_only_with_a_number(
    run: Callable[..., Any], adders: Any, tmp_path: Any
):
    async def scenario() -> None:
        settings: dict[str, Any] = {"store": f"sqlite:///{tmp_path}/sessions.db", "store_timeout_s": 0.3}
        async with asyncio.timeout(20), service(adders, **settings) as (app, caller):
            for name in ("numbered", "unnumbered"):
                await caller.step(name, [1], 0, "adder")
            async with BackendLine.of(app).holding("write"):
                refusal, end = await asyncio.gather(
                    refused(caller.step("numbered", [1], 1, "adder")),
                    refused(caller.step("unnumbered", [1], None, "adder")),
                )
            assert (refusal, refusal.retry_delay_s) == (("UNAVAILABLE", "STORE_UNAVAILABLE"), 1.0)
            assert (end, end.retry_delay_s) == (("DATA_LOSS", "TAKEN_NOT_STORED"), None)
            assert (await caller.step("numbered", [1], 1, "adder")).answer.step == 2

    run(scenario())


def test_bytes_that_are_no_protobuf_are_malformed(against: Scenario):
    async def scenario(caller: Caller) -> None:
        for method in ("Step", "Forecast", "Explain"):
            call = caller.channel.unary_unary(f"/longshort.v1.SequenceService/{method}")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"\xff" * 9)
            assert refusal_of(caught.value) == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE")

    against(scenario)


# -- Forecast and Explain -----


def forecast_of(session_id: str, horizon: int, min_step: int = 0) -> sequence_pb2.ForecastRequest:
    return sequence_pb2.ForecastRequest(session=key(session_id), horizon=horizon, min_step=min_step)


def test_forecast_rolls_ahead_and_moves_nothing(against: Scenario, name: str):
    async def scenario(caller: Caller) -> None:
        await caller.step(name, [3], 0, "adder")
        response = await caller.sequence.Forecast(forecast_of(name, 4, 1))
        assert (list(response.values), response.step) == ([3, 6, 12, 24], 1)
        assert list((await caller.step(name, [1], 1, "")).answer.values) == [4]

    against(scenario)


def test_bad_forecasts_are_refused(against: Scenario, name: str):
    async def scenario(caller: Caller) -> None:
        assert await refused(caller.sequence.Forecast(forecast_of(name, 1))) == (
            "NOT_FOUND",
            "SESSION_NOT_FOUND",
        )
        stream, _ = await caller.open(name, "adder")
        assert await refused(caller.sequence.Forecast(forecast_of(name, 1))) == (
            "FAILED_PRECONDITION",
            "SESSION_EMPTY",
        )
        await stream.step([3], 0)
        for request, expected in (
            (forecast_of(name, 0), ("INVALID_ARGUMENT", "HORIZON_OUT_OF_RANGE")),
            (forecast_of(name, 51), ("INVALID_ARGUMENT", "HORIZON_OUT_OF_RANGE")),
            (forecast_of(name, 1, 2), ("FAILED_PRECONDITION", "STALE")),
            (forecast_of("", 1), ("INVALID_ARGUMENT", "INVALID_SESSION_ID")),
        ):
            assert await refused(caller.sequence.Forecast(request)) == expected
        assert list((await stream.step([1], 1)).values) == [4]

    against(scenario)


def explain_of(session_id: str, *values: float, min_step: int = 0) -> sequence_pb2.ExplainRequest:
    return sequence_pb2.ExplainRequest(session=key(session_id), values=values, min_step=min_step)


def test_bad_explanations_are_refused(against: Scenario, name: str):
    async def scenario(caller: Caller) -> None:
        assert await refused(caller.sequence.Explain(explain_of(name, 1))) == (
            "NOT_FOUND",
            "SESSION_NOT_FOUND",
        )
        await caller.step(name, [3], 0, "adder")
        for request, expected in (
            (explain_of(name), ("INVALID_ARGUMENT", "EMPTY_VALUES")),
            (explain_of(name, *[1] * 51), ("INVALID_ARGUMENT", "TOO_MANY_STEPS")),
            (explain_of(name, INF), ("INVALID_ARGUMENT", "VALUE_NOT_FINITE")),
            (explain_of(name, 1, min_step=2), ("FAILED_PRECONDITION", "STALE")),
            (explain_of(name, 1), ("FAILED_PRECONDITION", "EXPLAIN_UNAVAILABLE")),
        ):
            assert await refused(caller.sequence.Explain(request)) == expected
        assert list((await caller.step(name, [1], 1, "")).answer.values) == [4]

    against(scenario)


def test_gates_explain_the_memories_by_the_unit_s_equations(run: Callable[..., Any], server: Any, name: str):
    """f, i, g, o of every layer and step make L' = f L + i g and S' = o tanh(L'), from the session's own memories."""

    async def scenario() -> None:
        async with Caller(server.address) as caller:
            stream, _ = await caller.open(name, "deep")
            await stream.step([1, -2, 3], 0)
            before = await memories(caller, name)
            response = await caller.sequence.Explain(explain_of(name, 4, 5, min_step=3))
            assert response.step == 3
            found = {
                tensor.name: np.frombuffer(tensor.data, "<f4").reshape(tensor.shape)
                for tensor in response.tensors
            }
            assert (await memories(caller, name))["c0"].tobytes() == before["c0"].tobytes()
            await stream.step([4, 5], 3)
            after = await memories(caller, name)
            for layer in range(2):
                gate = {kind: found[f"layer{layer}.{kind}"] for kind in (
                    "forget_gate", "input_gate", "candidate", "output_gate", "cell_state", "hidden_state")}  # fmt: skip
                long_term = before["c0"][layer]
                for step in range(2):
                    long_term = (
                        gate["forget_gate"][step] * long_term
                        + gate["input_gate"][step] * gate["candidate"][step]
                    )
                    short_term = gate["output_gate"][step] * np.tanh(long_term)
                    np.testing.assert_allclose(gate["cell_state"][step], long_term, rtol=1e-5, atol=1e-6)
                    np.testing.assert_allclose(gate["hidden_state"][step], short_term, rtol=1e-5, atol=1e-6)
                np.testing.assert_allclose(long_term, after["c0"][layer], rtol=1e-5, atol=1e-6)
                np.testing.assert_allclose(short_term, after["h0"][layer], rtol=1e-5, atol=1e-6)

    run(scenario())


async def memories(caller: Caller, session_id: str) -> dict[str, Any]:
    from longshort.v1 import session_pb2

    request = session_pb2.GetSessionRequest(session=key(session_id), include_memory=True)
    response = await caller.sessions.GetSession(request)
    return {
        tensor.name: np.frombuffer(tensor.data, "<f4").reshape(tensor.shape) for tensor in response.memory
    }


# -- the limits of the queue -----


def test_full_queue_refuses_at_once_with_a_retry_delay(run: Callable[..., Any], start_server: Any, name: str):
    server = start_server("--max-steps", "4096", "--max-queued-steps", "4096")

    async def scenario() -> None:
        async with asyncio.timeout(30), Caller(server.address) as caller:
            stream, _ = await caller.open(name, "metro")
            unnumbered, _ = await caller.open(name + "u", "metro")
            await stream.step([1], 0)
            long = [asyncio.ensure_future(caller.step(f"{name}{k}", [1] * 4096, 0)) for k in range(6)]
            results = await asyncio.gather(*long, return_exceptions=True)
            refusals = [refusal_of(error) for error in results if isinstance(error, grpc.aio.AioRpcError)]
            assert 0 < len(refusals) < len(long)
            assert all(refusal == ("RESOURCE_EXHAUSTED", "QUEUE_FULL") for refusal in refusals)
            assert {refusal.retry_delay_s for refusal in refusals} == {0.1}
            assert len((await stream.step([1] * 4096, 1)).values) == 3 * 4096
            del unnumbered

    run(scenario())
