"""The sync client against the real service."""

from __future__ import annotations

import gc
import socket
import threading
import time
import uuid
from typing import Any

import longshort
import numpy as np
import pytest
from longshort import errors


@pytest.fixture
def client(server: Any):
    with longshort.Client(server.address, timeout_s=20) as client:
        yield client


@pytest.fixture
def session(client: longshort.Client):
    with client.session(model="metro") as session:
        yield session


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_the_example_of_the_readme_works(server: Any):
    with longshort.Client(server.address) as client:
        session_id = str(uuid.uuid4())
        with client.session(session_id, model="metro") as session:
            y = session.step(1195.0)
            assert (y.shape, y.dtype) == ((3,), np.float32)
            ys = session.steps([776, 581])
            assert (ys.shape, ys.dtype) == ((2, 3), np.float32)
            ahead = session.forecast(24)
            assert (ahead.shape, ahead.dtype) == ((24, 3), np.float32)
            long_term, short_term = session.memory()
            assert long_term.shape == short_term.shape == (1, 32)
            assert long_term.dtype == short_term.dtype == np.float32
            assert session.position == 3


def test_attributes_say_what_was_opened(client: longshort.Client):
    session_id = str(uuid.uuid4())
    with client.session(session_id, model="metro") as session:
        assert (session.id, session.created, session.model, session.version) == (session_id, True, "metro", 1)
        assert (session.num_features, session.num_outputs, session.max_steps) == (1, 3, 4096)
        assert (session.position, session.durable_step, session.durability) == (0, 0, "none")
        assert (session.in_doubt, session.closed) == (False, False)
        assert session.fingerprint == client.model("metro").fingerprint
        assert session_id in repr(session)
        incarnation = session.incarnation
        session.step(1)
    assert session.closed
    with client.session(session_id) as session:
        assert (session.created, session.position, session.incarnation) == (False, 1, incarnation)


def test_a_session_goes_on_where_it_was_left(client: longshort.Client):
    session_id = str(uuid.uuid4())
    with client.session(model="metro") as session:
        alone = session.steps([1, 2, 3, 4])
    with client.session(session_id, model="metro") as session:
        first = session.steps([1, 2])
    with client.session(session_id, mode="open") as session:
        np.testing.assert_array_equal(np.concatenate([first, session.steps([3, 4])]), alone)


def test_values_come_as_numbers_lists_and_arrays(client: longshort.Client):
    with client.session(model="metro") as session:
        for value in (3, 3.0, np.float64(3), np.array([3]), [3], np.array(3, np.int8)):
            assert session.step(value).shape == (3,)
        assert session.steps(np.array([[1], [2]])).shape == (2, 3)
        assert session.step(np.nan).shape == (3,)  # this model repeats the last value
    with client.session(model="wide") as session:
        assert session.step([1, 2, 3]).shape == (2,)
        assert session.steps([[1, 2, 3], [4, 5, 6]]).shape == (2, 2)


def test_answers_all_last_and_none(client: longshort.Client, session: longshort.Session):
    everything = session.steps([1, 2, 3])
    with client.session(model="metro") as other:
        np.testing.assert_array_equal(other.steps([1, 2, 3], answers="last"), everything[-1:])
    with client.session(model="metro") as other:
        assert other.steps([1, 2], answers="none").shape == (0, 3)
        assert other.warm_up([3]) is None
        assert other.position == 3
        np.testing.assert_array_equal(other.step(4), session.step(4))


def test_more_values_than_fit_a_message_are_cut_and_give_the_same_answers(
    client: longshort.Client, session: longshort.Session
):
    values = np.sin(np.arange(9000)).astype(np.float32)
    long = session.steps(values)
    assert long.shape == (9000, 3)
    assert session.position == 9000
    with client.session(model="metro") as other:
        other.warm_up(values[:8999])
        np.testing.assert_array_equal(other.step(values[8999]), long[8999])


def test_forecast_and_explain_do_not_move_the_session(session: longshort.Session):
    session.steps([1, 2, 3])
    before = session.memory()
    session.forecast(5)
    explained = session.explain([4, 5])
    assert explained["layer0.forget_gate"].shape == (2, 32)
    for old, new in zip(before, session.memory(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert session.position == 3
    np.testing.assert_array_equal(session.steps([4, 5]), explained["y"])
    np.testing.assert_array_equal(session.memory().long_term[0], explained["layer0.cell_state"][-1])
    np.testing.assert_array_equal(session.memory().short_term[0], explained["layer0.hidden_state"][-1])


@pytest.mark.parametrize(
    ("ask", "error", "reason"),
    [
        (lambda session: session.step(np.inf), errors.InvalidRequest, "VALUE_NOT_FINITE"),
        (lambda session: session.step(1e300), errors.InvalidRequest, "VALUE_NOT_FINITE"),
        (lambda session: session.steps([]), errors.InvalidRequest, "EMPTY_VALUES"),
        (lambda session: session.step([1, 2]), errors.InvalidRequest, "WRONG_SHAPE"),
        (lambda session: session.steps([[1, 2]]), errors.InvalidRequest, "WRONG_SHAPE"),
        (lambda session: session.steps(3), errors.InvalidRequest, "WRONG_SHAPE"),
        (lambda session: session.steps([[1], [2, 3]]), errors.InvalidRequest, "WRONG_SHAPE"),
        (lambda session: session.step("12"), errors.InvalidRequest, "WRONG_TYPE"),
        (lambda session: session.step(None), errors.InvalidRequest, "WRONG_TYPE"),
        (lambda session: session.steps([1], answers="some"), errors.InvalidRequest, "INVALID_OPTION"),
        (lambda session: session.forecast(0), errors.InvalidRequest, "HORIZON_OUT_OF_RANGE"),
        (lambda session: session.forecast(-1), errors.InvalidRequest, "INVALID_OPTION"),
        (lambda session: session.forecast(2**32), errors.InvalidRequest, "INVALID_OPTION"),
        (lambda session: session.forecast(2.0), errors.InvalidRequest, "INVALID_OPTION"),
        (lambda session: session.step(1, at=-1), errors.InvalidRequest, "INVALID_OPTION"),
        (lambda session: session.step(1, at=2**63), errors.InvalidRequest, "INVALID_OPTION"),
        (lambda session: session.step(1, at=0.0), errors.InvalidRequest, "INVALID_OPTION"),
        (lambda session: session.steps([1, 2], at="2"), errors.InvalidRequest, "INVALID_OPTION"),
        (lambda session: session.step(1, at=9), errors.StepGap, "STEP_GAP"),
        (lambda session: session.step(1, at=0), errors.StepConflict, "STEP_CONFLICT"),
        (lambda session: session.step(9, at=1), errors.ValuesDiffer, "VALUES_DIFFER"),
        (lambda session: session.retry(), errors.FailedPrecondition, "NOT_IN_DOUBT"),
    ],
)
def test_what_is_refused_leaves_the_session_usable_and_where_it_was(
    session: longshort.Session, ask: Any, error: type[errors.LongshortError], reason: str
):
    session.steps([5])
    session.step(6)
    stream = session._stream
    with pytest.raises(error) as caught:
        ask(session)
    assert caught.value.reason == reason
    assert session.position == 2
    assert not session.in_doubt
    assert session._stream is stream  # nothing had to be opened anew
    assert session.step(7).shape == (3,)


def test_the_callers_own_numbers_make_its_retry_safe(client: longshort.Client):
    session_id = str(uuid.uuid4())
    with client.session(session_id, model="metro") as session:
        session.step(1, at=0)
        given = session.step(2, at=1)
        np.testing.assert_array_equal(session.step(2, at=1), given)
        assert session.position == 2
    with client.session(session_id) as session:  # the caller's process was restarted
        np.testing.assert_array_equal(session.step(2, at=1), given)
        assert session.position == 2


def test_number_of_the_caller_may_be_one_of_numpy(session: longshort.Session):
    session.step(1, at=np.int64(0))
    assert session.forecast(np.int32(2)).shape == (2, 3)
    assert session.position == 1


def test_step_that_was_taken_without_an_answer_has_none_to_give(session: longshort.Session):
    session.steps([1], answers="none")
    with pytest.raises(errors.FailedPrecondition) as caught:
        session.step(1, at=0)
    assert caught.value.reason == "NO_ANSWER"


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        ({"model": "nothing"}, errors.ModelNotFound, "MODEL_NOT_FOUND"),
        ({"model": "metro", "version": 9}, errors.ModelNotFound, "MODEL_NOT_FOUND"),
        ({"session_id": "nobody", "mode": "open"}, errors.SessionNotFound, "SESSION_NOT_FOUND"),
        ({"session_id": "a space", "model": "metro"}, errors.InvalidRequest, "INVALID_SESSION_ID"),
        ({"session_id": "zähler-1", "model": "metro"}, errors.InvalidRequest, "INVALID_SESSION_ID"),
        ({"model": "metro", "version": -1}, errors.InvalidRequest, "INVALID_OPTION"),
        ({"model": "metro", "version": 1.5}, errors.InvalidRequest, "INVALID_OPTION"),
        ({"model": "metro", "mode": "append"}, errors.InvalidRequest, "INVALID_OPTION"),
        ({"model": "metro", "durability": "eternal"}, errors.InvalidRequest, "INVALID_OPTION"),
    ],
)
def test_opening_that_is_refused_says_why(
    client: longshort.Client, arguments: dict[str, Any], error: type[errors.LongshortError], reason: str
):
    with pytest.raises(error) as caught:
        client.session(**arguments)
    assert caught.value.reason == reason


def test_creating_what_exists_is_refused(client: longshort.Client, session: longshort.Session):
    with pytest.raises(errors.SessionExists):
        client.session(session.id, model="metro", mode="create")
    assert session.step(1).shape == (3,)


def test_another_opening_takes_the_session_and_the_first_does_not_fight_back(
    client: longshort.Client, session: longshort.Session
):
    session.step(1)
    with client.session(session.id) as taker:
        with pytest.raises(errors.SessionTaken):
            session.step(2)
        with pytest.raises(errors.SessionTaken):
            session.forecast(1)
        assert taker.position == 1
        taker.step(2)
        assert taker.position == 2
    for _ in range(50):
        with (
            client.session(session.id) as first,
            client.session(session.id),
            pytest.raises(errors.SessionTaken),
        ):
            first.step(3)


def test_reset_replaces_the_session_under_its_stream(client: longshort.Client, session: longshort.Session):
    session.step(1)
    assert client.reset(session.id).step == 0
    with pytest.raises(errors.SessionReplaced):
        session.step(2)


def test_deleted_session_is_lost_to_its_stream_and_its_id_is_free(
    client: longshort.Client, session: longshort.Session
):
    session.step(1)
    client.delete(session.id)
    with pytest.raises(errors.SessionLost):
        session.step(2)
    with pytest.raises(errors.NotFound):
        client.get_session(session.id)
    with client.session(session.id, model="metro", mode="create") as anew:
        assert anew.position == 0


def test_sessions_are_described_and_listed_page_by_page(client: longshort.Client):
    prefix = str(uuid.uuid4())
    ids = [f"{prefix}-{number}" for number in range(5)]
    for session_id in reversed(ids):
        with client.session(session_id, model="metro") as session:
            session.step(1)
    listed = list(client.sessions(id_prefix=prefix, page_size=2))
    assert [info.id for info in listed] == ids
    info = client.get_session(ids[0], include_memory=True)
    assert (info.step, info.model, info.version, info.location) == (1, "metro", 1, "live")
    assert info.memory["h0"].shape == (1, 32)
    assert list(client.sessions(id_prefix=prefix, model="wide")) == []


def test_fork_export_and_import_copy_a_session(client: longshort.Client, session: longshort.Session):
    session.steps([1, 2])
    forked = client.fork(session.id, min_step=2)
    record = client.export(session.id)
    imported = client.import_(record, str(uuid.uuid4()))
    answer = session.step(3)
    for copy in (forked, imported):
        assert copy.step == 2
        assert copy.incarnation != session.incarnation
        with client.session(copy.id, mode="open") as other:
            np.testing.assert_array_equal(other.step(3), answer)
    with pytest.raises(errors.InvalidRequest) as caught:
        client.import_(b"no record")
    assert caught.value.reason == "INVALID_RECORD"


def test_models_are_described(client: longshort.Client):
    assert {"metro", "wide", "deep"} <= {model.name for model in client.models()}
    model = client.model("wide")
    assert (len(model.features), len(model.outputs), model.version, model.serving) == (3, 2, 1, True)
    with pytest.raises(errors.ModelNotFound):
        client.model("nothing")


def test_no_server_is_told_within_the_timeout_and_why():
    with longshort.Client(f"127.0.0.1:{free_port()}", timeout_s=0.5) as client:
        started_s = time.monotonic()
        with pytest.raises(errors.Unavailable) as caught:
            client.session(model="metro")
        with pytest.raises(errors.Unavailable):
            client.models()
        assert time.monotonic() - started_s < 5
    assert "refused" in str(caught.value).lower()


def test_client_waits_for_a_server_that_is_about_to_start(start_server: Any):
    port = free_port()
    with longshort.Client(f"127.0.0.1:{port}", timeout_s=30) as client:
        opened = []
        waiting = threading.Thread(target=lambda: opened.append(client.session(model="metro")))
        waiting.start()
        start_server(port=port)
        waiting.join()
        with opened[0] as session:
            assert session.step(1).shape == (3,)


def test_drained_server_without_a_store_loses_the_session_and_the_caller_hears_it(start_server: Any):
    first = start_server()
    with longshort.Client(first.address, timeout_s=30) as client:
        with client.session("s", model="metro") as session:
            session.step(1)
            assert first.stop() == 0
            start_server(port=first.port)
            with pytest.raises(errors.SessionLost) as caught:
                session.step(2)
            assert caught.value.reason == "SESSION_NOT_FOUND"
        with client.session("s", model="metro") as session:  # the same client goes on with the new server
            assert session.step(1).shape == (3,)


def test_many_threads_share_a_client(client: longshort.Client):
    values = np.arange(50, dtype=np.float32)
    with client.session(model="metro") as session:
        alone = session.steps(values)
    answers = {}

    def stream(number: int) -> None:
        with client.session(model="metro") as session:
            answers[number] = np.stack([session.step(value) for value in values])

    threads = [threading.Thread(target=stream, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    for rows in answers.values():
        np.testing.assert_array_equal(rows, alone)


def test_closed_session_and_closed_client_say_so(server: Any):
    client = longshort.Client(server.address)
    session, other = client.session(model="metro"), client.session(model="metro")
    session.close()
    session.close()
    for ask in (lambda: session.step(1), session.memory, lambda: session.explain([1])):
        with pytest.raises(errors.SessionClosed):
            ask()
    client.close()
    client.close()
    with pytest.raises(errors.SessionClosed):
        other.step(1)
    with pytest.raises(errors.SessionClosed):
        client.models()
    other.close()


def test_closing_lets_the_server_end_the_stream_first(client: longshort.Client):
    with client.session(model="metro") as session:
        session.step(1)
    assert not client.get_session(session.id).streaming


def test_forgotten_session_and_client_warn(server: Any):
    client = longshort.Client(server.address)
    forgotten = [client, client.session(model="metro")]
    with pytest.warns(ResourceWarning, match=forgotten[1].id):
        forgotten.pop()
    del client
    with pytest.warns(ResourceWarning, match=server.address):
        forgotten.pop()


def test_failed_openings_leave_no_threads(client: longshort.Client, session: longshort.Session):
    session.step(1)  # by now gRPC and the watchdog have their threads
    before = threading.active_count()
    for _ in range(20):
        with pytest.raises(errors.ModelNotFound):
            client.session(model="nothing")
    await_threads(before)


def test_call_that_fails_with_its_stream_leaves_no_thread(
    client: longshort.Client, session: longshort.Session
):
    before = threading.active_count()
    with client.session(model="metro") as other:
        other.step(1)
        client.delete(other.id)
        with pytest.raises(errors.SessionLost):
            other.step(2)
        await_threads(before)
    session.step(1)


def await_threads(count: int):
    deadline_s = time.monotonic() + 5
    while threading.active_count() > count and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert threading.active_count() <= count


def test_failed_opening_leaves_nothing_to_warn_of(client: longshort.Client):
    with pytest.raises(errors.ModelNotFound):
        client.session(model="nothing")
    gc.collect()
