"""StreamFrames against the real service: many sessions on one stream, and what happens around them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from frame_wire import FORECAST_PART, OPEN_PART, Frames, opening, refusals_of, rows_of
from graphs import FATAL, make_mortal
from histories_backend import BackendLine
from inside import Gate, service, until
from longshort.v1 import sequence_pb2, session_pb2, types_pb2
from longshort_service.handlers import conversation
from longshort_service.handlers import frames as frames_handler
from longshort_service.model_loader import SCRATCH_ROWS
from wire import CREATE, LAST, NONE, OPEN, Caller, Refusal, key, refused, values_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from longshort_service.app import App
    from longshort_service.session import Session
    from servers import Server

    Run = Callable[..., Any]
    Scenario = Callable[[Callable[[Caller], Awaitable[None]]], None]

NAN, INF = float("nan"), float("inf")
MOVED = ("ABORTED", "SESSION_MOVED")
UNKNOWN = ("NOT_FOUND", "UNKNOWN_HANDLE")


def live(app: App, session_id: str) -> Session[Any]:
    session = app._table.get(session_id)
    assert session is not None
    return session


def check_rows(app: App) -> None:
    """Every row is held by exactly one live session of its model, and none is busy."""
    for model in app.repository.models():
        model.arena.check_integrity()
        assert model.arena.num_held == app._table.num_sessions_of(model)
    assert not any(session.is_busy for session in app._table)


# -- one stream -----


def test_conversation_of_the_contract(against: Scenario):
    async def scenario(caller: Caller) -> None:
        frames = Frames(caller)
        response = await frames.ask(opens=[opening(0, "c-a", client_id="me"), opening(1, "c-b")])
        assert [(each.handle, each.opened.session.id) for each in response.opened] == [(0, "c-a"), (1, "c-b")]
        opened = response.opened[0].opened
        assert (opened.created, opened.step, opened.num_features, opened.num_outputs) == (True, 0, 1, 1)
        assert (opened.model, opened.version, opened.max_steps) == ("adder", 1, 50)
        assert len(opened.fingerprint) == 64
        response = await frames.ask(handles=[0, 1], steps=[0, 0], values=[1, 2])
        assert list(response.counts) == list(response.durable_steps) == list(response.replayed) == []
        assert rows_of(response) == {0: (1, [1]), 1: (1, [2])}
        came = await frames.step([0, 1], [3, 4, 5], [1, 9], counts=[2, 1])
        assert came.pop(1) == ("FAILED_PRECONDITION", "STEP_GAP")
        assert came == {0: (3, [4, 8])}
        assert await frames.step([1, 0], [5, 1]) == {1: (2, [7]), 0: (4, [9])}
        await frames.half_close()
        # The sessions live on, for any kind of call.
        stream, again = await caller.open("c-a", mode=OPEN, model="")
        assert (again.step, again.created, again.incarnation) == (4, False, opened.incarnation)
        assert list((await stream.step([1], 4)).values) == [10]

    against(scenario)


def test_parts_of_a_frame_are_done_in_order(against: Scenario):
    """The handle that is closed is opened anew, is stepped and looked ahead from: all in one frame."""

    async def scenario(caller: Caller) -> None:
        frames = Frames(caller)
        await frames.open("o-a", "o-b")
        await frames.step([0, 1], [1, 2])
        response = await frames.ask(
            closes=[0, 1, 77],
            opens=[opening(0, "o-b"), opening(5, "o-c")],
            handles=[0, 5, 1],
            values=[10, 20, 30],
            forecasts=[
                sequence_pb2.FrameForecast(handle=0, horizon=2),
                sequence_pb2.FrameForecast(handle=5, horizon=1),
            ],
        )
        assert [(each.handle, each.opened.step) for each in response.opened] == [(0, 1), (5, 0)]
        came = rows_of(response)
        assert came.pop(1) == UNKNOWN
        assert came == {0: (2, [12]), 5: (1, [20])}
        ahead = {each.handle: (each.step, list(each.values)) for each in response.forecasts}
        assert ahead == {0: (2, [12, 24]), 5: (1, [20])}
        assert await frames.step([0, 5], [1, 1], [2, 1]) == {0: (3, [13]), 5: (2, [21])}

    against(scenario)


def test_forecasts_fail_by_handle(against: Scenario):
    async def scenario(caller: Caller) -> None:
        frames = Frames(caller)
        await frames.open("f-a", "f-b")
        response = await frames.ask(
            handles=[0],
            values=[3],
            forecasts=[
                sequence_pb2.FrameForecast(handle=handle, horizon=horizon)
                for handle, horizon in ((0, 3), (1, 1), (2, 1), (0, 0), (4_000_000_000, 1))
            ],
        )
        assert rows_of(response) == {0: (1, [3])}
        (ahead,) = response.forecasts
        assert (ahead.handle, ahead.step, list(ahead.values)) == (0, 1, [3, 6, 12])
        came = refusals_of(response, FORECAST_PART)
        assert came[0] == ("INVALID_ARGUMENT", "HORIZON_OUT_OF_RANGE")
        assert came[1] == ("FAILED_PRECONDITION", "SESSION_EMPTY")
        assert came[2] == UNKNOWN
        assert came[4_000_000_000] == UNKNOWN

    against(scenario)


def test_openings_fail_by_handle_and_the_others_are_opened(against: Scenario):
    async def scenario(caller: Caller) -> None:
        frames = Frames(caller)
        await frames.open("e-taken")
        response = await frames.ask(
            opens=[
                opening(1_048_576, "e-far"),
                opening(1, "with space"),
                opening(2, "e-mode", mode=99),  # type: ignore[arg-type]
                opening(3, "e-model", model="nobody"),
                opening(4, "e-absent", mode=OPEN),
                opening(5, "e-taken", mode=CREATE),
                opening(6, "e-client", client_id="x" * 65),
                opening(1_048_575, "e-good"),
                opening(7, ""),
            ]
        )
        reasons = {handle: refusal.reason for handle, refusal in refusals_of(response, OPEN_PART).items()}
        assert reasons == {
            1_048_576: "HANDLE_OUT_OF_RANGE",
            1: "INVALID_SESSION_ID",
            2: "INVALID_MESSAGE",
            3: "MODEL_NOT_FOUND",
            4: "SESSION_NOT_FOUND",
            5: "SESSION_EXISTS",
            6: "INVALID_MESSAGE",
        }
        assert [each.handle for each in response.opened] == [1_048_575, 7]
        assert len(response.opened[1].opened.session.id) == 36
        came = await frames.step([1_048_575, 3, 0, 7], [1, 2, 3, 4])
        assert came.pop(3) == UNKNOWN
        assert came == {1_048_575: (1, [1]), 0: (1, [3]), 7: (1, [4])}

    against(scenario)


def test_values_beside_openings_that_are_all_refused_fail_by_row(against: Scenario):
    async def scenario(caller: Caller) -> None:
        frames = Frames(caller)
        opens = [opening(handle, "", model="nobody") for handle in range(2)]
        response = await frames.ask(opens=opens, handles=[0, 1], values=[1, 2, 3, 4, 5, 6])
        for handle in range(2):
            assert refusals_of(response, OPEN_PART)[handle] == ("NOT_FOUND", "MODEL_NOT_FOUND")
            assert rows_of(response)[handle] == UNKNOWN
        await frames.half_close()

    against(scenario)


def test_handle_is_given_to_another_session(against: Scenario):
    async def scenario(caller: Caller) -> None:
        frames = Frames(caller)
        await frames.open("h-a", "h-b")
        await frames.step([0, 1], [1, 2])
        assert (await frames.open("h-c"))[0].created
        assert await frames.step([0, 1], [10, 20]) == {0: (1, [10]), 1: (2, [22])}
        # A refused opening leaves nothing under its handle: no values may reach the former session.
        response = await frames.ask(opens=[opening(1, "h-none", mode=OPEN)], handles=[1], values=[5])
        assert refusals_of(response, OPEN_PART)[1] == ("NOT_FOUND", "SESSION_NOT_FOUND")
        assert rows_of(response)[1] == UNKNOWN
        assert (await caller.step("h-b", [1], 2, "")).answer.values == [23]

    against(scenario)


@pytest.mark.parametrize(
    "bad",
    [
        opening(0, "with space"),
        opening(0, "b-none", client_id="x" * 65),
        opening(0, "b-none", mode=99),  # type: ignore[arg-type]
    ],
    ids=["id", "client", "mode"],
)
def test_opening_that_cannot_be_read_leaves_its_handle_closed(
    against: Scenario, bad: sequence_pb2.FrameOpen, request: pytest.FixtureRequest
):
    """What is sent with the handle is meant for the session that could not be opened."""
    former, other = (f"b-{name}-{request.node.callspec.id}" for name in ("former", "other"))

    async def scenario(caller: Caller) -> None:
        frames = Frames(caller)
        await frames.open(former)
        response = await frames.ask(opens=[bad], handles=[0], values=[5])
        assert 0 in refusals_of(response, OPEN_PART)
        assert rows_of(response)[0] == UNKNOWN
        # The last opening of a handle counts, here as elsewhere.
        response = await frames.ask(opens=[opening(0, other), bad], handles=[0], values=[5])
        assert rows_of(response)[0] == UNKNOWN
        response = await frames.ask(opens=[bad, opening(0, other)], handles=[0], values=[5])
        assert rows_of(response)[0] == (1, [5])
        assert (await caller.step(former, [1], 0, "")).answer.values == [1]

    against(scenario)


def test_handle_twice_in_one_frame_s_openings_is_the_last_one_s(against: Scenario):
    async def scenario(caller: Caller) -> None:
        frames = Frames(caller)
        response = await frames.ask(opens=[opening(3, "t-a"), opening(3, "t-b")], handles=[3], values=[5])
        assert [each.opened.session.id for each in response.opened] == ["t-a", "t-b"]
        assert rows_of(response) == {3: (1, [5])}
        assert (await caller.step("t-b", [1], 1, "")).answer.values == [6]
        assert (await caller.step("t-a", [1], 0, "")).answer.values == [1]

    against(scenario)


def test_session_twice_in_one_frame_s_openings_is_moved_by_one_handle(run: Run, adders: Path):
    """Two rows of one session in one batch would move it once for both."""

    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (app, caller):
            frames = Frames(caller)
            await frames.open("first", "second")
            response = await frames.ask(
                opens=[opening(5, "twice"), opening(9, "twice", client_id="me")],
                handles=[9, 5, 0],
                values=[1, 10, 100],
            )
            assert len(response.opened) == 2
            came = rows_of(response)
            moved = came.pop(5)
            assert moved == MOVED
            assert moved.metadata == {"cause": "opened", "client_id": "me"}  # type: ignore[union-attr]
            assert came == {9: (1, [1]), 0: (1, [100])}
            # The same in a frame of its own.
            await frames.open("twice", first=1, client_id="me")
            came = await frames.step([9, 1, 0], [1, 2, 3])
            assert came.pop(9) == MOVED
            assert came == {1: (2, [3]), 0: (2, [103])}
            await frames.half_close()
            await until(lambda: app._table.num_idle == 3)
            check_rows(app)

    run(scenario())


def test_several_models_of_different_width_share_a_stream(run: Run, server: Any):
    async def scenario() -> None:
        async with asyncio.timeout(20), Caller(server.address) as caller:
            frames = Frames(caller)
            names = ["wide", "metro", "deep", "wide"]
            opens = [opening(handle, "", model=name) for handle, name in enumerate(names)]
            assert len((await frames.ask(opens=opens)).opened) == 4
            rows = [[1, 2, 3], [4], [5], [6, 7, 8, 9, 10, 11]]
            response = await frames.ask(
                handles=range(4), counts=[1, 1, 1, 2], values=[value for row in rows for value in row]
            )
            assert list(response.counts) == [1, 1, 1, 2]
            assert list(response.steps) == [1, 1, 1, 2]
            alone = []
            for name, row in zip(names, rows, strict=True):
                stream, _ = await caller.open("", name)
                alone += list((await stream.step(row, 0)).values)
            assert list(response.values) == alone
            end = await frames.end(handles=[0, 77], values=[1, 2, 3, 4])
            assert end == ("INVALID_ARGUMENT", "INVALID_MESSAGE")

    run(scenario())


def test_answers_and_missing_values_are_as_on_other_streams(against: Scenario):
    async def scenario(caller: Caller) -> None:
        frames = Frames(caller)
        await frames.open("m-repeat", first=0, model="adder")
        await frames.open("m-reject", first=1, model="strict")
        await frames.open("m-pass", first=2, model="passing")
        last = await frames.ask(handles=[0, 1], counts=[3, 2], values=[1, 2, 3, 4, 5], answers=LAST)
        assert rows_of(last) == {0: (3, [6]), 1: (2, [9])}
        none = await frames.ask(handles=[0, 2], values=[1, 1], answers=NONE)
        assert list(none.counts) == [0, 0]
        assert rows_of(none) == {0: (4, []), 2: (1, [])}
        came = await frames.step([0, 1, 2], [NAN, NAN, NAN])
        assert came[0] == (5, [8])
        assert came[1] == ("INVALID_ARGUMENT", "VALUE_MISSING")
        assert came[2] == ("OUT_OF_RANGE", "NON_FINITE_RESULT")  # the adder cannot carry on from it
        assert await frames.step([0, 1], [INF, 1]) == {
            0: ("INVALID_ARGUMENT", "VALUE_NOT_FINITE"),
            1: (3, [10]),
        }
        assert await frames.end(handles=[0], values=[1], answers=99) == (
            "INVALID_ARGUMENT",
            "INVALID_MESSAGE",
        )

    against(scenario)


def test_result_that_is_not_finite_fails_its_row_alone(against: Scenario):
    async def scenario(caller: Caller) -> None:
        frames = Frames(caller)
        await frames.open("n-a", "n-b", "n-c")
        await frames.step([0, 1, 2], [3e38, 1, 2])
        came = await frames.step([0, 1, 2], [3e38, 1, 2], [1, 1, 1])
        assert came.pop(0) == ("OUT_OF_RANGE", "NON_FINITE_RESULT")
        assert came == {1: (2, [2]), 2: (2, [4])}
        came = await frames.step([0, 1], [0, 1], [1, 2])
        assert came[1] == (3, [3])
        assert came[0][0] == 2  # type: ignore[index]

    against(scenario)


def test_frame_that_is_sent_again_is_answered_again(against: Scenario):
    async def scenario(caller: Caller) -> None:
        frames = Frames(caller)
        await frames.open("r-a", "r-b", "r-c")
        await frames.step([2], [9], [0])
        sent: dict[str, Any] = {
            "handles": [0, 1],
            "counts": [2, 1],
            "steps": [0, 0],
            "values": [1, 2, 3],
        }
        first = await frames.ask(**sent)
        await frames.half_close()
        frames = Frames(caller)
        assert [opened.step for opened in await frames.open("r-a", "r-b", "r-c", mode=OPEN)] == [2, 1, 1]
        again = await frames.ask(handles=[2, 0, 1], counts=[1, 2, 1], steps=[1, 0, 0], values=[1, 1, 2, 3])
        assert rows_of(again) == rows_of(first) | {2: (2, [10])}
        assert list(again.handles) == [2, 0, 1]
        assert list(again.replayed) == [0, 1]
        came = await frames.step([0, 1], [1, 7, 3], [0, 0], counts=[2, 1])
        assert came[0] == ("FAILED_PRECONDITION", "VALUES_DIFFER")
        assert came[1] == (1, [3])

    against(scenario)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\x12\x05\x00", "MALFORMED_MESSAGE"),
        (b"\xff" * 20, "MALFORMED_MESSAGE"),
        (b"\x0a\x02\x12\x7f", "MALFORMED_MESSAGE"),
        (b"\x12\x03\x00\x00\x00", "MALFORMED_MESSAGE"),
        (b"\x12\x04" + bytes(4), "INVALID_MESSAGE"),  # a handle without a value
        (b"\x2a" + b"\x80\x40" + bytes(8192), "MESSAGE_TOO_LARGE"),
    ],
)
def test_frame_that_cannot_be_read_ends_the_stream_and_leaves_its_sessions(
    against: Scenario, raw: bytes, reason: str
):
    async def scenario(caller: Caller) -> None:
        frames = Frames(caller)
        ((opened),) = await frames.open("")
        assert await frames.step([0], [4]) == {0: (1, [4])}
        assert await frames.end(raw) == ("INVALID_ARGUMENT", reason)
        assert (await caller.step(opened.session.id, [1], 1, "")).answer.values == [5]

    against(scenario)


def test_metrics_count_rows_and_not_frames(against: Scenario, adder_server: Server):
    wanted = {
        'steps_total{model="adder",version="1"}': 4,  # [1, 2], 3 and 4
        'replays_total{model="adder"}': 1,
        'conflicts_total{reason="STEP_GAP"}': 1,
        'errors_total{reason="HANDLE_TWICE"}': 2,
        'step_seconds_count{model="adder",stage="total"}': 3,  # messages
    }

    def counted() -> dict[str, float]:
        lines = (line.rpartition(" ") for line in adder_server.metrics().splitlines())
        values = {name.removeprefix("longshort_"): value for name, _, value in lines}
        return {name: float(values.get(name, 0)) for name in wanted}

    async def scenario(caller: Caller) -> None:
        frames = Frames(caller)
        await frames.open(*(f"count-{k}" for k in range(5)))
        before = await asyncio.to_thread(counted)
        await frames.step([0, 1, 2], [1, 2, 3, 4], [0, 0, 0], counts=[2, 1, 1])
        await frames.step([1, 2, 3, 3], [3, 9, 1, 1], [0, 5, 0, 0])
        after = await asyncio.to_thread(counted)
        assert {name: after[name] - before[name] for name in wanted} == wanted

    against(scenario)


# -- beside other callers -----


def test_session_that_another_takes_is_lost_by_its_row_alone(against: Scenario):
    async def scenario(caller: Caller) -> None:
        frames, rival = Frames(caller), Frames(caller)
        await frames.open("k-a", "k-b", "k-c", "k-d", client_id="first")
        await frames.step(range(4), [1, 2, 3, 4])
        _, opened = await caller.open("k-a", mode=OPEN, model="", client_id="single")
        assert opened.step == 1
        assert [each.step for each in await rival.open("k-c", "k-d", mode=OPEN, client_id="rival")] == [1, 1]
        for _ in range(2):  # of no use from then on
            came = await frames.step(range(4), [10, 20, 30, 40], [1, 1, 1, 1])
            assert came[1] == (2, [22])
            lost = {handle: came[handle] for handle in (0, 2, 3)}
            assert all(refusal == MOVED for refusal in lost.values())
            assert [refusal.metadata["client_id"] for refusal in lost.values()] == [
                "single",
                "rival",
                "rival",
            ]  # type: ignore[union-attr]
        assert await rival.step([1, 0], [7, 8]) == {1: (2, [11]), 0: (2, [11])}
        # Taken back, they go on where the rival left them.
        assert [each.step for each in await frames.open("k-c", first=2, mode=OPEN)] == [2]
        assert await frames.step([2, 1], [1, 1]) == {2: (3, [12]), 1: (3, [23])}
        assert (await rival.step([0], [1]))[0] == MOVED

    against(scenario)


@pytest.mark.parametrize("cause", ["deleted", "reset"])
def test_session_that_is_ended_by_management_is_lost_by_its_row(against: Scenario, cause: str):
    async def scenario(caller: Caller) -> None:
        frames = Frames(caller)
        await frames.open(f"{cause}-a", f"{cause}-b")
        await frames.step([0, 1], [1, 2])
        if cause == "deleted":
            await caller.sessions.Delete(session_pb2.DeleteRequest(session=key("deleted-a")))
        else:
            await caller.sessions.Reset(session_pb2.ResetRequest(session=key("reset-a")))
        response = await frames.ask(
            handles=[0, 1], values=[1, 1], forecasts=[sequence_pb2.FrameForecast(handle=0, horizon=1)]
        )
        came = rows_of(response)
        assert came[1] == (2, [3])
        assert came[0] == MOVED
        assert came[0].metadata == {"cause": cause, "client_id": ""}  # type: ignore[union-attr]
        assert refusals_of(response, FORECAST_PART)[0] == MOVED

    against(scenario)


def test_frame_waits_for_a_session_that_a_unary_call_is_moving(run: Run, adders: Path):
    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (app, caller):
            gate = Gate.before(app.repository.get("adder").lane)
            frames = Frames(caller)
            await frames.open("busy", "free")
            step = asyncio.ensure_future(caller.step("busy", [5], 0, "adder"))
            await gate.arrival()
            await frames.send(handles=[1, 0], values=[1, 10])
            await until(lambda: live(app, "busy").num_waiting == 1)
            assert not live(app, "free").is_busy  # the frame is applied as one, when all of it can be
            gate.open()
            assert (await step).answer.values == [5]
            assert rows_of(await frames.receive()) == {1: (1, [1]), 0: (2, [15])}
            check_rows(app)

    run(scenario())


def test_session_taken_while_a_frame_waits_is_lost_by_its_row(run: Run, adders: Path):
    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (app, caller):
            gate = Gate.before(app.repository.get("adder").lane)
            frames = Frames(caller)
            await frames.open("busy", "free")
            step = asyncio.ensure_future(caller.step("busy", [5], 0, "adder"))
            await gate.arrival()
            await frames.send(handles=[1, 0], values=[1, 10])
            await until(lambda: live(app, "busy").num_waiting == 1)
            opening_elsewhere = asyncio.ensure_future(caller.open("busy", "", mode=OPEN, client_id="other"))
            await until(lambda: live(app, "busy").num_waiting == 2)
            gate.open()
            await step
            came = rows_of(await frames.receive())
            assert came.pop(0) == MOVED
            assert came == {1: (1, [1])}
            assert (await opening_elsewhere)[1].step == 1
            check_rows(app)

    run(scenario())


@pytest.mark.parametrize("is_slow", [False, True])
def test_session_taken_in_flight_is_lost_by_its_row_and_not_answered_before_it_is_stored(
    run: Run, adders: Path, tmp_path: Path, *, is_slow: bool
):
    """What becomes of its step is the taker's affair. The other rows of its frame are answered when stored."""

    async def scenario() -> None:
        settings: dict[str, Any] = {"store": f"sqlite:///{tmp_path}/sessions.db", "checkpoint_interval_s": 60}
        async with asyncio.timeout(20), service(adders, **settings) as (app, caller):
            frames = Frames(caller)
            await frames.open("taken", "kept", durability=types_pb2.DURABILITY_SYNC)
            gate = Gate.before(app.repository.get("adder").lane)
            await frames.send(handles=[0, 1], steps=[0, 0], values=[1, 2], flushes=[1] if is_slow else [])
            await gate.arrival()
            taken = live(app, "taken")
            opening_here = asyncio.ensure_future(caller.open("taken", "", mode=OPEN, client_id="back"))
            await until(lambda: taken.owner is None)
            gate.open()
            came = rows_of(await frames.receive())
            assert came == {0: MOVED, 1: (1, [2])}
            assert live(app, "kept").durable_step == 1
            assert (await opening_here)[1].step == 1
            check_rows(app)

    run(scenario())


@pytest.mark.parametrize("is_slow", [False, True])
def test_row_of_a_lost_session_that_is_another_s_by_now_is_not_taken_for_it(
    run: Run, adders: Path, tmp_path: Path, *, is_slow: bool
):
    """Two runs of one frame: between them the first one's session ends, and its row is given away."""

    async def scenario() -> None:
        settings: dict[str, Any] = {"store": f"sqlite:///{tmp_path}/sessions.db", "checkpoint_interval_s": 60}
        async with asyncio.timeout(20), service(adders, max_batch_rows=1, **settings) as (app, caller):
            frames = Frames(caller)
            await frames.open("gone", "late", durability=types_pb2.DURABILITY_NONE)
            gate = Gate.before(app.repository.get("adder").lane)
            gone = live(app, "gone")
            rows = {"handles": [0, 1], "counts": [1, 2], "steps": [0, 0], "values": [1, 2, 3]}
            await frames.send(**rows, answers=LAST, flushes=[1] if is_slow else [])
            await gate.arrival()
            gate.let_through()
            await gate.arrival()
            await until(lambda: not gone.is_busy)
            row = gone.row
            await caller.sessions.Delete(session_pb2.DeleteRequest(session=key("gone")))
            await caller.open("heir", "adder", durability=types_pb2.DURABILITY_SYNC)
            assert live(app, "heir").row == row
            gate.open()
            assert rows_of(await frames.receive()) == {0: MOVED, 1: (2, [5])}
            check_rows(app)

    run(scenario())


@pytest.mark.parametrize("taker", ["elsewhere", "back"])
def test_session_taken_while_its_row_waits_for_the_store_is_lost_to_its_taker(
    run: Run, adders: Path, tmp_path: Path, taker: str
):
    """By another server; or by a stream of this one, after another server has had it: its memory is given up."""

    async def scenario() -> None:
        settings: dict[str, Any] = {"store": f"sqlite:///{tmp_path}/sessions.db", "checkpoint_interval_s": 60}
        async with (
            asyncio.timeout(20),
            service(adders, **settings) as (app, caller),
            service(adders, **settings) as (_, other),
        ):
            frames = Frames(caller)
            await frames.open("taken", "kept", durability=types_pb2.DURABILITY_SYNC)
            async with BackendLine.of(app).holding("write") as hold:
                await frames.send(handles=[0, 1], steps=[0, 0], values=[1, 2])
                await hold.arrival()
                await other.open("taken", "", mode=OPEN, client_id="elsewhere")
                if taker == "back":  # the store is asked behind the write
                    opening_here = asyncio.ensure_future(
                        caller.open("taken", "", mode=OPEN, client_id="back")
                    )
                    await until(lambda: not app._keeper.turns.is_free("taken"))
            came = rows_of(await frames.receive())
            if taker == "back":
                assert (await opening_here)[1].step == 0
            lost = came.pop(0)
            assert isinstance(lost, Refusal)
            assert (lost, lost.metadata["client_id"]) == (MOVED, taker)
            assert came == {1: (1, [2])}
            check_rows(app)

    run(scenario())


def test_replay_of_a_session_that_is_taken_meanwhile_harms_nobody(run: Run, adders: Path):
    """The frame's answer is made in the scheduler's turn: what is raised there would be the engine's death."""

    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (app, caller):
            frames = Frames(caller)
            await frames.open("again", "long")
            await frames.step([0], [4], [0])
            gate = Gate.before(app.repository.get("adder").lane)
            await frames.send(handles=[0, 1], steps=[0, 0], values=[4, 1])
            await gate.arrival()
            await caller.open("again", "", mode=OPEN, client_id="other")
            gate.open()
            response = await frames.receive()
            assert rows_of(response) == {0: (1, [4]), 1: (1, [1])}
            assert list(response.replayed) == [0]
            came = await frames.step([0, 1], [1, 1])
            assert came[0] == MOVED
            assert came[1] == (2, [2])

    run(scenario())


def test_session_taken_before_all_of_a_frame_s_are_open_fails_its_opening(run: Run, adders: Path):
    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (app, caller):
            gate = Gate.before(app.repository.get("adder").lane)
            frames = Frames(caller)
            await frames.open("older")  # its row is called 0 here
            step = asyncio.ensure_future(caller.step("slow", [5], 0, "adder"))
            await gate.arrival()
            waiting = asyncio.ensure_future(caller.step("slow", [6], 1, "adder"))
            await until(lambda: live(app, "slow").num_waiting == 1)
            await frames.send(opens=[opening(1, "quick"), opening(2, "slow")])
            await until(lambda: app._table.get("quick") is not None and live(app, "quick").owner is not None)
            _, opened = await caller.open("quick", "", mode=OPEN, client_id="other")
            assert not opened.created
            gate.open()
            await step
            await waiting
            response = await frames.receive()
            assert [each.handle for each in response.opened] == [2]
            taken = refusals_of(response, OPEN_PART)[1]
            assert taken == MOVED
            assert taken.metadata == {"cause": "opened", "client_id": "other"}
            came = await frames.step([0, 1, 2], [1, 1, 1])
            assert came.pop(1) == UNKNOWN
            assert came == {0: (1, [1]), 2: (3, [12])}
            check_rows(app)

    run(scenario())


# -- leaving -----


def test_client_that_vanishes_in_mid_frame_leaves_rows_free_and_values_applied_whole(run: Run, adders: Path):
    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders, piece_steps=4) as (app, caller):
            gate = Gate.before(app.repository.get("adder").lane)
            frames = Frames(caller)
            names = [f"v{number}" for number in range(20)]
            await frames.open(*names)
            await frames.send(handles=range(20), counts=[10] * 10 + [1] * 10, values=[1] * 110)
            await gate.arrival()
            frames.call.cancel()
            await until(lambda: all(live(app, name).owner is None for name in names))
            assert app._table.num_idle == 20
            gate.open()
            await until(lambda: not any(live(app, name).is_busy for name in names))
            check_rows(app)
            again = Frames(caller)
            opened = await again.open(*names, mode=OPEN)
            assert [each.step for each in opened] == [10] * 10 + [1] * 10
            response = await again.ask(
                handles=range(20), counts=[10] * 10 + [1] * 10, values=[1] * 110, steps=[0] * 20
            )
            assert list(response.replayed) == list(range(20))
            assert rows_of(response)[0] == (10, list(range(1, 11)))

    run(scenario())


@pytest.mark.parametrize("what", ["opens", "values", "forecasts"])
def test_client_that_vanishes_while_its_frame_waits_leaves_nothing_behind(run: Run, adders: Path, what: str):
    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (app, caller):
            gate = Gate.before(app.repository.get("adder").lane)
            frames = Frames(caller)
            await frames.open("mine")
            step = asyncio.ensure_future(caller.step("slow" if what == "opens" else "mine", [5], 0, "adder"))
            await gate.arrival()
            if what == "opens":
                await frames.send(opens=[opening(1, "quick"), opening(2, "slow"), opening(3, "later")])
            elif what == "values":
                await frames.send(handles=[0], values=[7])
            else:
                await frames.send(forecasts=[sequence_pb2.FrameForecast(handle=0, horizon=3)])
            await until(lambda: any(session.num_waiting for session in app._table))
            frames.call.cancel()
            await until(lambda: not app._edge.num_calls or app._table.num_idle == len(app._table))
            gate.open()
            await step
            await until(lambda: app._table.num_idle == len(app._table))
            assert live(app, "mine").step == (0 if what == "opens" else 1)
            check_rows(app)

    run(scenario())


def test_drain_answers_the_frame_in_hand_and_ends_the_stream(run: Run, adders: Path):
    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders, drain_timeout_s=10.0) as (app, caller):
            gate = Gate.before(app.repository.get("adder").lane)
            frames, idle = Frames(caller), Frames(caller)
            await frames.open("d-a", "d-b")
            await idle.open("d-c")
            await frames.send(handles=[0, 1], values=[1, 2])
            await gate.arrival()
            stopping = asyncio.ensure_future(app.stop())
            assert await idle.end() == ("UNAVAILABLE", "DRAINING")
            await frames.send(handles=[0, 1], values=[3, 4])  # sent too early: it is not taken
            gate.open()
            assert rows_of(await frames.receive()) == {0: (1, [1]), 1: (1, [2])}
            end = await frames.end()
            assert end == ("UNAVAILABLE", "DRAINING")
            assert end.retry_delay_s == 0.2
            await stopping

    run(scenario())


def test_openings_of_a_frame_in_hand_are_refused_while_draining(run: Run, adders: Path):
    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (app, caller):
            frames = Frames(caller)
            await frames.open("d-a")
            app._edge.is_draining = True
            response = await frames.ask(opens=[opening(1, "d-b")], handles=[0], values=[1])
            assert refusals_of(response, OPEN_PART)[1] == ("UNAVAILABLE", "DRAINING")
            assert rows_of(response) == {0: (1, [1])}
            app._edge.is_draining = False

    run(scenario())


def test_stream_without_a_frame_ends(run: Run, adders: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(conversation, "OPEN_TIMEOUT_S", 0.1)

    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (_, caller):
            silent, first = Frames(caller), Frames(caller)
            await first.open("begun")
            assert await silent.end() == ("FAILED_PRECONDITION", "NOT_OPEN")
            await asyncio.sleep(0.2)
            assert await first.step([0], [1]) == {0: (1, [1])}

    run(scenario())


def test_streams_of_both_kinds_count_together(run: Run, adders: Path):
    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders, max_streams=2) as (_, caller):
            frames = Frames(caller)
            await frames.open("a")
            stream, _ = await caller.open("b", "adder")
            refusal = await Frames(caller).end()
            assert refusal == ("RESOURCE_EXHAUSTED", "STREAMS_EXHAUSTED")
            await stream.half_close()
            await Frames(caller).open("b")

    run(scenario())


# -- what goes wrong inside -----


def test_engine_s_death_is_answered_by_row_and_ends_the_stream(run: Run, adders: Path):
    async def scenario() -> None:
        async with (
            asyncio.timeout(20),
            service(adders, may_log_errors=True, piece_steps=4, max_batch_rows=2) as (app, caller),
        ):
            make_mortal(app.repository.get("adder").lane.engine)
            gate = Gate.before(app.repository.get("adder").lane)
            frames, other = Frames(caller), Frames(caller)
            await frames.open("a", "b", "c", "d")
            await frames.open("s", first=4, model="strict")
            await other.open("e")
            values = [1] * 7 + [FATAL] + [1, 1, 1, 9]
            await frames.send(handles=[0, 1, 2, 3, 4], counts=[8, 1, 1, 1, 1], values=values)
            await other.send(handles=[0], values=[1])
            await gate.arrival()
            gate.open()
            response = await frames.receive()
            came = rows_of(response)
            assert came[0] == ("UNAVAILABLE", "ENGINE_DEAD")
            assert came[4] == (1, [9])  # another model's engine is well
            assert {0, 1, 2, 3, 4} == set(came)
            assert await frames.end() == ("UNAVAILABLE", "ENGINE_DEAD")
            await other.receive()
            assert await refused(caller.sequence.Step(step_of("a"))) == ("UNAVAILABLE", "ENGINE_DEAD")
            late = Frames(caller)
            await late.open("b", "c", "d")
            came = await late.step([0, 1, 2], [1, 1, 1])  # more than a batch, none of which is taken
            assert all(refusal == ("UNAVAILABLE", "ENGINE_DEAD") for refusal in came.values())
            assert await late.end() == ("UNAVAILABLE", "ENGINE_DEAD")
            await until(lambda: not any(session.is_busy for session in app._table))
            check_rows(app)

    run(scenario())


def step_of(session_id: str) -> sequence_pb2.StepRequest:
    return sequence_pb2.StepRequest(session=key(session_id), model="adder", values=values_of([1]))


def test_rows_that_the_queue_does_not_take_come_back_unharmed(run: Run, adders: Path):
    async def scenario() -> None:
        async with (
            asyncio.timeout(20),
            service(adders, max_queued_steps=3, max_steps=3, max_batch_rows=2) as (app, caller),
        ):
            gate = Gate.before(app.repository.get("adder").lane)
            frames = Frames(caller)
            await frames.open("a", "b", "c", "d", "e")
            await frames.send(handles=range(5), values=[1, 2, 3, 4, 5], steps=[0] * 5)
            await gate.arrival()
            gate.open()
            response = await frames.receive()
            came = rows_of(response)
            assert {handle: came[handle] for handle in (0, 1)} == {0: (1, [1]), 1: (1, [2])}
            full = [came[handle] for handle in (2, 3)]
            assert all(refusal == ("RESOURCE_EXHAUSTED", "QUEUE_FULL") for refusal in full)
            assert full[0].retry_delay_s == 0.1  # type: ignore[union-attr]
            assert came[4] == (1, [5])  # the last one is a step alone: it had room
            assert await frames.step([2, 3], [3, 4], [0, 0]) == {2: (1, [3]), 3: (1, [4])}
            check_rows(app)

    run(scenario())


def test_unnumbered_rows_that_the_queue_does_not_take_end_the_stream(run: Run, adders: Path):
    """They are good values that were not applied: the next ones, perhaps sent already, would hide the gap."""

    async def scenario() -> None:
        async with (
            asyncio.timeout(20),
            service(adders, max_queued_steps=3, max_steps=3, max_batch_rows=2) as (app, caller),
        ):
            frames = Frames(caller)
            await frames.open("a", "b", "c", "d", "e")
            came = await frames.step(range(5), [1, 2, 3, 4, 5])
            assert {
                handle for handle, what in came.items() if what == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
            } == {2, 3}
            assert await frames.end() == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
            check_rows(app)

    run(scenario())


def test_unnumbered_rows_that_are_taken_and_not_stored_end_the_stream_and_do_not_ask_to_come_again(
    run: Run, adders: Path, tmp_path: Path
):
    async def scenario() -> None:
        settings: dict[str, Any] = {"store": f"sqlite:///{tmp_path}/sessions.db", "store_timeout_s": 0.3}
        async with asyncio.timeout(20), service(adders, **settings) as (app, caller):
            frames = Frames(caller)
            await frames.open("s", durability=types_pb2.DURABILITY_SYNC)
            async with BackendLine.of(app).holding("write"):
                row = (await frames.step([0], [1]))[0]
                assert row == ("DATA_LOSS", "TAKEN_NOT_STORED")
                assert isinstance(row, Refusal)
                assert row.retry_delay_s is None
                assert await frames.end() == ("DATA_LOSS", "TAKEN_NOT_STORED")

    run(scenario())


@pytest.mark.parametrize("is_slow", [False, True])
def test_bug_in_a_frame_s_answer_ends_its_stream_and_no_other(
    run: Run, adders: Path, monkeypatch: pytest.MonkeyPatch, *, is_slow: bool
):
    def collect(_work: object) -> None:
        raise ZeroDivisionError

    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders, may_log_errors=True) as (app, caller):
            frames = Frames(caller)
            await frames.open("a")
            monkeypatch.setattr(frames_handler, "collect", collect)
            assert await frames.end(handles=[0], values=[1], closes=[9] * is_slow) == ("INTERNAL", "INTERNAL")
            monkeypatch.undo()
            assert not app.repository.get("adder").lane.is_dead
            assert (await caller.step("a", [1], 1, "")).answer.values == [2]
            check_rows(app)

    run(scenario())


def test_bug_in_one_forecast_ends_its_stream_and_no_other(
    run: Run, adders: Path, monkeypatch: pytest.MonkeyPatch
):
    async def forecast(*_: object) -> None:
        raise ZeroDivisionError

    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders, may_log_errors=True) as (app, caller):
            frames = Frames(caller)
            await frames.open("a")
            monkeypatch.setattr(app._edge.stepper, "forecast_many", forecast)
            end = await frames.end(forecasts=[sequence_pb2.FrameForecast(handle=0, horizon=2)])
            assert end == ("INTERNAL", "INTERNAL")
            assert (await caller.step("a", [1], 0, "")).answer.values == [1]

    run(scenario())


# -- many -----


def test_forecasts_of_more_sessions_than_there_are_rows_to_work_on(run: Run, adders: Path):
    async def scenario() -> None:
        number = SCRATCH_ROWS + 200
        async with (
            asyncio.timeout(60),
            service(adders, inline_run_limit_s=1.0, max_sessions=number) as (app, caller),
        ):
            frames = Frames(caller)
            await frames.open(*(f"x{k}" for k in range(number)))
            await frames.step(range(number), range(number))
            asked = [sequence_pb2.FrameForecast(handle=k, horizon=3) for k in range(number)]
            response = await frames.ask(forecasts=asked)
            assert not response.errors
            assert [list(each.values) for each in response.forecasts] == [
                [k, 2 * k, 4 * k] for k in range(number)
            ]
            check_rows(app)

    run(scenario())


def test_twenty_thousand_sessions_on_one_stream(run: Run, adders: Path):
    async def scenario() -> None:
        async with (
            asyncio.timeout(60),
            service(adders, inline_run_limit_s=1.0, max_sessions=20_010) as (app, caller),
        ):
            frames = Frames(caller)
            number = 20_000
            opened = await frames.open(*(f"x{k}" for k in range(number)))
            assert [each.session.id for each in opened] == [f"x{k}" for k in range(number)]
            values = [k % 1000 for k in range(number)]
            response = await frames.ask(handles=range(number), values=values)
            assert list(response.values) == values
            response = await frames.ask(handles=range(number - 1, -1, -1), values=values, steps=[1] * number)
            assert list(response.values) == [a + b for a, b in zip(values, reversed(values), strict=True)]
            assert list(response.steps) == [2] * number
            await frames.half_close()
            await until(lambda: app._table.num_idle == number)
            check_rows(app)

    run(scenario())


def test_closing_many_handles_lets_others_through(run: Run, adders: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(frames_handler, "DETACH_BATCH", 3)

    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (app, caller):
            frames = Frames(caller)
            await frames.open(*(f"c{k}" for k in range(10)))
            seen: list[Any] = []
            original = app._table.detach_many

            def detach_many(sessions: Any, *rest: Any) -> None:
                seen.append([session.id for session in sessions])
                asyncio.get_running_loop().call_soon(seen.append, "others")
                original(sessions, *rest)

            monkeypatch.setattr(app._table, "detach_many", detach_many)
            await frames.ask(closes=range(7))
            assert seen == [["c0", "c1", "c2"], "others", ["c3", "c4", "c5"], "others", ["c6"], "others"]
            assert await frames.step([7], [1]) == {7: (1, [1])}

    run(scenario())
