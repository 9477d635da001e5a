"""Values by name, initial states and known inputs through the Python clients, against real servers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import longshort
import numpy as np
import pytest
from family import Member
from longshort import aio, errors
from longshort.arrays import one_row
from longshort.journal import Journal, Message
from longshort.named import many_steps
from longshort.v1 import types_pb2
from peers import Wire
from servers import running_server
from told import calendar_answers, calendar_forecast, write_calendar, write_speaker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

DOUBLE = Member("float64", 2, 2, batch_axis=1, time_axis=0, state_axis=1)
WHOLE = Member("int64", 1, 1)
HISTORY = [[10, 5, 0.5], [8, 6, 0], [6, 7, 2]]
KNOWN = [[8, 1], [9, 0], [10, 3], [11, 0.25]]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("named")
    for member in (DOUBLE, WHOLE):
        member.write(folder / "models" / member.name / "1" / "model.onnx")
    write_speaker(folder / "models" / "speaker" / "1" / "model.onnx")
    write_calendar(folder / "models" / "calendar" / "1" / "model.onnx")
    with running_server(folder / "models", folder / "log") as server:
        yield server.address


@pytest.fixture
def client(address: str) -> Iterator[longshort.Client]:
    with longshort.Client(address) as client:
        yield client


def calendar(rows: list[list[float]]) -> dict[str, NDArray[Any]]:
    columns = np.array(rows, np.float32)
    return {"demand": columns[:, :1], "hour": columns[:, 1].astype(np.int64), "rain": columns[:, 2:]}


def whole_numbers(member: Member, num_steps: int) -> NDArray[Any]:
    return np.random.default_rng(3).integers(-3, 4, (num_steps, *member.shape)).astype(member.dtype)


def test_values_by_name_are_answered_by_name_in_their_dtype(client: longshort.Client):
    values = whole_numbers(DOUBLE, 9) + 2.0**-40  # of which a float32 would keep nothing
    expected = DOUBLE.answer(values)
    with client.session("exact", DOUBLE.name) as session:
        first = session.step({"x": values[0]})
        assert list(first) == ["y"]
        assert (first["y"].dtype, first["y"].shape) == (np.float64, DOUBLE.shape)
        np.testing.assert_array_equal(first["y"], expected[0])
        many = session.steps({"x": values[1:5]})
        np.testing.assert_array_equal(many["y"], expected[1:5])
        session.warm_up({"x": values[5:6]})
        last = session.steps({"x": values[6:8]}, answers="last")
        np.testing.assert_array_equal(last["y"], expected[7:8])
        again = session.steps({"x": values[6:8]}, at=6, answers="last")
        np.testing.assert_array_equal(again["y"], last["y"])
        assert session.position == 8
        plain = session.step(np.zeros(session.num_features))
        assert plain.dtype == np.float32


def test_values_by_name_and_numbers_are_the_same_values(client: longshort.Client):
    with client.session("numbers", "calendar") as session:
        rows = session.steps(HISTORY)
        assert rows.ravel().tolist() == calendar_answers(HISTORY)
    with client.session("names", "calendar") as session:
        found = session.steps(calendar(HISTORY))
        assert found["y"].ravel().tolist() == calendar_answers(HISTORY)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "EMPTY_VALUES"),
        ({1: [1.0]}, "INVALID_OPTION"),
        ({"demand": ["a"]}, "WRONG_TYPE"),
        ({"demand": np.zeros(1, np.int8)}, "WRONG_TYPE"),
        ({"demand": [[1], [2, 3]]}, "WRONG_SHAPE"),
        ({"demand": np.zeros(1, np.float32)}, "WRONG_SHAPE"),  # the others are missing: the server says so
        (calendar(HISTORY), "WRONG_SHAPE"),  # several steps
        ({**calendar(HISTORY[:1]), "hour": np.array([1.5])}, "WRONG_SHAPE"),
    ],
)
def test_values_that_are_no_step_are_refused_and_nothing_moves(
    client: longshort.Client, values: Any, reason: str
):
    with client.session(None, "calendar") as session:
        with pytest.raises(errors.LongshortError) as caught:
            session.step(values)
        assert caught.value.reason == reason
        assert (session.position, session.in_doubt) == (0, False)
        assert session.step([1, 2, 3]).tolist() == calendar_answers([[1, 2, 3]])


def test_arrays_of_unequal_length_are_refused(client: longshort.Client):
    with client.session(None, "calendar") as session:
        values = calendar(HISTORY) | {"hour": np.array([1, 2])}
        with pytest.raises(errors.InvalidRequest, match="demand 3, hour 2, rain 3"):
            session.steps(values)
        with pytest.raises(errors.InvalidRequest, match="use step"):
            session.steps({"hour": np.int64(3)})


def test_forecast_is_told_what_will_be_known(client: longshort.Client):
    expected = calendar_forecast(HISTORY, KNOWN, 5)
    with client.session("ahead", "calendar") as session:
        session.steps(HISTORY)
        assert session.forecast(5, known=KNOWN).ravel().tolist() == expected
        assert session.forecast(1).ravel().tolist() == expected[:1]
        with pytest.raises(errors.InvalidRequest) as caught:
            session.forecast(5)
        assert caught.value.reason == "WRONG_SHAPE"
        with pytest.raises(errors.InvalidRequest, match="one array"):
            session.forecast(5, known={"hour": [1] * 4})  # type: ignore[arg-type]
        assert session.position == 3
    assert client.model("calendar").known_features == ("hour", "rain")


@pytest.mark.parametrize(
    ("known", "horizon"),
    [(np.transpose(KNOWN[:3]), 4), (KNOWN, 3), (KNOWN[:1], 3), ([KNOWN[:2]], 3)],
    ids=["features by rows", "too many", "too few", "one axis too many"],
)
def test_what_is_known_in_another_shape_is_refused_by_session_and_gateway(
    client: longshort.Client, address: str, known: Any, horizon: int
):
    with client.session(None, "calendar") as session:
        session.steps(HISTORY)
        with pytest.raises(errors.InvalidRequest) as caught:
            session.forecast(horizon, known=known)
        assert caught.value.reason == "WRONG_SHAPE"
        assert session.forecast(3, known=np.ravel(KNOWN[:2])).shape == (3, 1)
    with longshort.Gateway(address, "calendar") as gateway:
        gateway.steps(["a", "b"], [HISTORY] * 2)
        for given in (known, [known] * 2):
            with pytest.raises(errors.InvalidRequest) as caught:
                gateway.forecasts(["a", "b"], horizon, known=given)
            assert caught.value.reason == "WRONG_SHAPE"
        assert gateway.forecasts([], horizon, known=np.zeros((0, 2, 2))).size == 0


def test_session_begins_in_what_it_is_given(client: longshort.Client):
    who, start = np.array([100.0, 0.5]), np.array([5], np.float32)
    with client.session("voice", "speaker", initial={"who": who, "s0": start}) as session:
        assert session.created
        assert session.step(1).tolist() == [106]
    with client.session("voice", "speaker", initial={"who": who + 1}) as session:
        assert not session.created
        assert session.step(1).tolist() == [107]
    with pytest.raises(errors.InvalidRequest) as caught:
        client.session("mute", "speaker")
    assert caught.value.reason == "CONSTANT_MISSING"
    with pytest.raises(errors.InvalidRequest, match="float32"):
        client.session("mute", "speaker", initial={"who": who.astype(np.float32)})


def test_async_client_does_the_same(address: str):
    async def scenario() -> None:
        async with aio.Client(address) as client:
            async with client.session("aio", "calendar") as session:
                found = await session.steps(calendar(HISTORY))
                assert found["y"].ravel().tolist() == calendar_answers(HISTORY)
                one = await session.step({name: array[0] for name, array in calendar([[1, 2, 3]]).items()})
                assert one["y"].tolist() == calendar_answers([*HISTORY, [1, 2, 3]])[-1:]
                ahead = await session.forecast(3, known=KNOWN[:2])
                expected = calendar_forecast([*HISTORY, [1, 2, 3]], KNOWN, 3)
                assert ahead.ravel().tolist() == expected
            initial = {"who": np.array([7.0, 0])}
            async with client.session("aio-voice", "speaker", initial=initial) as session:
                assert (await session.step(1)).tolist() == [8]

    asyncio.run(scenario())


def test_gateway_forecasts_with_what_each_session_is_told(address: str):
    async def scenario() -> None:
        async with aio.Gateway(address, "calendar") as gateway:
            ids = ["g0", "g1", "g2"]
            await gateway.steps(ids, [HISTORY] * 3)
            same = await gateway.forecasts(ids, 4, known=KNOWN[:3])
            expected = calendar_forecast(HISTORY, KNOWN, 4)
            assert [row.ravel().tolist() for row in same] == [expected] * 3
            own = [KNOWN[:3], KNOWN[1:], [[0, 0]] * 3]
            each = await gateway.forecasts(ids, 4, known=own)
            assert [row.ravel().tolist() for row in each] == [
                calendar_forecast(HISTORY, known, 4) for known in own
            ]
            one = await gateway.forecast("g1", 4, known=KNOWN[1:])
            assert one.tolist() == each[1].tolist()
            with pytest.raises(errors.InvalidRequest):
                await gateway.forecasts(ids, 4, known=[KNOWN[:3]] * 2)

    asyncio.run(scenario())


def test_gateway_opens_each_session_in_what_it_is_given(address: str):
    with longshort.Gateway(address, "speaker") as gateway:
        ids = [f"v{k}" for k in range(5)]
        who = np.array([[k, 0.5] for k in range(5)], np.float64)
        assert gateway.open(
            ids, initial={"who": who, "s0": 10 * np.arange(5, dtype=np.float32)[:, None]}
        ).all()
        assert gateway.steps(ids, np.ones(5)).ravel().tolist() == [11 * k + 1 for k in range(5)]
        assert gateway.open(ids, initial={"who": who + 1}).all()  # as of its first opening; nothing has moved
        assert gateway.step("v3", 0).tolist() == [34]
        with pytest.raises(errors.RowsFailed) as caught:
            gateway.open(["mute"])
        assert caught.value.errors[0].reason == "CONSTANT_MISSING"
        assert gateway.open(["mute"], initial={"who": who[:1]}).all()
        with pytest.raises(errors.InvalidRequest):
            gateway.open(["a", "b"], initial={"who": who})


def test_gateway_takes_what_a_session_begins_in_from_its_last_opening(address: str):
    wrong, right = {"s0": np.zeros((1, 3), np.float32)}, {"s0": np.array([[5]], np.float32)}
    with longshort.Gateway(address, "calendar") as gateway:
        for key, initial, answer in (("plain", None, 10.5), ("given", right, 15.5)):
            with pytest.raises(errors.RowsFailed) as caught:
                gateway.open([key], initial=wrong)
            assert caught.value.errors[0].reason == "WRONG_SHAPE"
            with pytest.raises(errors.InvalidRequest):  # and not from zero, which nobody has asked for
                gateway.step(key, HISTORY[0])
            assert gateway.open([key], initial=initial).all()
            assert gateway.step(key, HISTORY[0]).tolist() == [answer]


def test_values_by_name_are_taken_exactly_once_over_a_cut_connection(address: str):
    wire = Wire(address, seed=5)
    values = whole_numbers(WHOLE, 120)
    with longshort.Client(wire.address) as client, client.session("cut", WHOLE.name) as session:
        answers = [session.step({"x": value})["y"] for value in values]
    np.testing.assert_array_equal(answers, WHOLE.answer(values))
    assert wire.num_cuts > 2


def test_journal_joins_what_is_alike_and_keeps_the_order():
    journal = Journal(100)
    journal.begin(0)
    messages = [
        Message(0, one_row(1, 1), types_pb2.ANSWERS_ALL),
        Message(1, many_steps({"x": np.arange(3.0)}), types_pb2.ANSWERS_ALL),
        Message(4, many_steps({"x": np.arange(2.0)}), types_pb2.ANSWERS_ALL),
        Message(6, one_row(2, 1), types_pb2.ANSWERS_ALL),
        Message(7, many_steps({"x": np.arange(1)}), types_pb2.ANSWERS_ALL),
    ]
    for message in messages:
        journal.append(message)
    missing = journal.since(2, 3)
    assert missing is not None
    assert [(message.first_step, len(message.rows)) for message in missing] == [
        (2, 3),
        (5, 1),
        (6, 1),
        (7, 1),
    ]
    assert missing[0].rows["x"].tolist() == [1, 2, 0]
    assert not messages[1].same_values(Message(1, one_row(1, 1), types_pb2.ANSWERS_ALL))
