"""The client's core against a server of dictionaries that obeys the step table, over schedules of faults."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from longshort import errors, status
from longshort.actions import RECEIVE, Connect, Done, Failed, Send, Wait
from longshort.backoff import Backoff
from longshort.core import SessionCore
from longshort.errors import Code
from longshort.opening import Opening, routing_header
from longshort.v1 import sequence_pb2, types_pb2

ALL, LAST, NONE = types_pb2.ANSWERS_ALL, types_pb2.ANSWERS_LAST, types_pb2.ANSWERS_NONE
BEHIND, UNSTORED = types_pb2.DURABILITY_BEHIND, types_pb2.DURABILITY_NONE
MAX_STEPS = 4


class StreamEndError(Exception):
    """The stream of the dictionary server has ended, or was cut."""

    def __init__(self, error: errors.LongshortError) -> None:
        super().__init__(str(error))
        self.error = error


def cut(code: Code = Code.UNAVAILABLE):
    return StreamEndError(status.make(code, "cut", "", {}, None))


def refused(code: Code, reason: str, metadata: Any = None, retry_delay_s: float | None = None):
    return StreamEndError(status.make(code, "refused", reason, metadata or {}, retry_delay_s))


def model(history: Any):
    """A model that remembers: each answer depends on every value before it, in order."""
    total = 0.0
    for place, value in enumerate(history, start=1):
        total = (total * 31 + place * value) % 65_521
    return total


@dataclass
class Stored:
    """What the server remembers of a session."""

    history: list[float] = field(default_factory=list)
    last: tuple[int, int, int, list[float]] | None = None  # first step, count, CRC-32, answer
    incarnation: int = 1

    def copy(self):
        return Stored(list(self.history), self.last, self.incarnation)


@dataclass
class DictServer:
    """One server: sessions in a dictionary, and what its store would hold after a crash."""

    durability: int = BEHIND
    sessions: dict[str, Stored] = field(default_factory=dict)
    stored: dict[str, Stored] = field(default_factory=dict)
    opener: dict[str, str] = field(default_factory=dict)
    requests: list[sequence_pb2.StreamRequest] = field(default_factory=list)

    def crash(self):
        self.sessions = {key: session.copy() for key, session in self.stored.items()}

    def store(self, key: str):
        if self.durability != UNSTORED:
            self.stored[key] = self.sessions[key].copy()

    def durable_step(self, key: str):
        return len(self.stored[key].history) if key in self.stored else 0

    def open(self, request: Any):
        key, mode = request.session.id, request.mode
        if key not in self.sessions and mode == types_pb2.OPEN_MODE_OPEN:
            raise refused(Code.NOT_FOUND, "SESSION_NOT_FOUND")
        if key in self.sessions and mode == types_pb2.OPEN_MODE_CREATE:
            raise refused(Code.ALREADY_EXISTS, "SESSION_EXISTS", {"client_id": self.opener[key]})
        created = key not in self.sessions
        if created:
            self.sessions[key] = Stored()
            self.store(key)
        self.opener[key] = request.client_id
        opened = sequence_pb2.Opened(
            session=request.session,
            model=request.model,
            version=1,
            created=created,
            step=len(self.sessions[key].history),
            durable_step=self.durable_step(key),
            durability=self.durability,
            incarnation=self.sessions[key].incarnation,
            num_features=1,
            num_outputs=1,
            max_steps=MAX_STEPS,
        )
        return sequence_pb2.StreamResponse(opened=opened)

    def values(self, key: str, request: Any):
        session = self.sessions[key]
        values, step, now = list(request.values), request.step, len(session.history)
        crc = zlib.crc32(np.asarray(values, np.float32).tobytes())
        place = (step, len(values))
        if step == now and values:
            rows = [model(session.history + values[: n + 1]) for n in range(len(values))]
            session.history += values
            rows = {ALL: rows, LAST: rows[-1:], NONE: []}[request.answers]
            session.last = (*place, crc, rows)
            return self.answer(key, rows, replayed=False)
        if session.last and session.last[:2] == place:
            if session.last[2] == crc:
                return self.answer(key, session.last[3], replayed=True)
            return self.error("VALUES_DIFFER", now)
        return self.error("STEP_GAP" if step > now else "STEP_CONFLICT", now)

    def answer(self, key: str, rows: Any, **flags: Any):
        step = len(self.sessions[key].history)
        answer = sequence_pb2.Answer(values=rows, step=step, durable_step=self.durable_step(key), **flags)
        return sequence_pb2.StreamResponse(answer=answer)

    def error(self, reason: str, expected_step: int):
        error = types_pb2.Error(
            code=Code.FAILED_PRECONDITION, reason=reason, metadata={"expected_step": str(expected_step)}
        )
        return sequence_pb2.StreamResponse(error=error)

    def handle(self, key: str, request: Any):
        self.requests.append(request)
        kind = request.WhichOneof("kind")
        if kind == "open":
            return self.open(request.open)
        if key not in self.sessions:
            raise refused(Code.ABORTED, "SESSION_MOVED", {"client_id": self.opener[key]})
        if kind == "values":
            return self.values(key, request.values)
        if kind == "forecast":
            return self.answer(
                key, [model(self.sessions[key].history)] * request.forecast.horizon, forecast=True
            )
        self.store(key)
        return sequence_pb2.StreamResponse(
            flushed=sequence_pb2.Flushed(durable_step=len(self.sessions[key].history))
        )


FAULTS = st.sampled_from(
    [
        "request lost",
        "answer lost",
        "crash before",
        "crash after",
        "store",
        "draining",
        "moved by us",
        "busy",
        "wait",
    ]
)


class Shell:
    """Drives a core as a real shell does, with a fault, if any, at each message."""

    def __init__(self, server: Any, core: SessionCore, faults: Any = ()) -> None:
        self.server, self.core = server, core
        self.faults = iter(faults)
        self.answers = []  # what the server has written and the client not read
        self.waits = []

    def run(self, *, gives_up_at: int | None = None):
        """Return the result; stop in the middle, as a timeout does, at the given action."""
        for count in range(10_000):
            action = self.core.next_action()
            if gives_up_at is not None and count >= gives_up_at and not isinstance(action, Done | Failed):
                self.answers = []
                raise self.core.timed_out()
            match action:
                case Done(result):
                    return result
                case Failed(error):
                    raise error
                case Wait(delay_s):
                    self.waits.append(delay_s)
                case Connect(request):
                    self.answers = []
                    self.send(request)
                case Send(request):
                    self.send(request)
                case _:
                    assert action is RECEIVE
                    self.receive()
        pytest.fail("the core does not come to an end")

    def send(self, request: Any):
        copy = sequence_pb2.StreamRequest.FromString(request.SerializeToString())
        try:
            self.answers.append(self.exchange(copy, next(self.faults, None)))
        except StreamEndError as end:
            self.answers.append(end)

    def exchange(self, request: Any, fault: Any):
        key = self.core._opening.session_id
        match fault:
            case "request lost":
                raise cut(Code.CANCELLED)
            case "crash before":
                self.server.crash()
                raise cut()
            case "draining":
                raise refused(Code.UNAVAILABLE, "DRAINING", retry_delay_s=0.5)
            case "moved by us":
                raise refused(Code.ABORTED, "SESSION_MOVED", {"client_id": self.core._opening.client_id})
            case "busy" if request.HasField("values") and self.core._expected.name == "RESENT":
                return sequence_pb2.StreamResponse(
                    error=types_pb2.Error(
                        code=Code.RESOURCE_EXHAUSTED, reason="QUEUE_FULL", retry_delay={"nanos": 10_000_000}
                    )
                )
        response = self.server.handle(key, request)
        if fault == "answer lost":
            raise cut(Code.INTERNAL)
        if fault == "crash after":
            self.server.crash()
            raise cut(Code.UNKNOWN)
        if fault == "store" and key in self.server.sessions:
            self.server.store(key)
        return response

    def receive(self):
        response = self.answers.pop(0) if self.answers else cut()
        if isinstance(response, StreamEndError):
            self.core.disconnected(response.error)
        else:
            self.core.received(response)


def a_core(session_id: str = "s", max_kept_steps: int = 100, **options: Any):
    opening = Opening(session_id, model="m", **options)
    return SessionCore(opening, Backoff(random.Random(1).random), max_kept_steps)


def a_session(durability: int = BEHIND, faults: Any = (), **options: Any):
    server, core = DictServer(durability), a_core(**options)
    shell = Shell(server, core, faults)
    shell.run()
    return server, core, shell


def steps(shell: Any, values: Any, answers: types_pb2.Answers = ALL, at: int | None = None, **run: Any):
    shell.core.begin_steps(np.asarray(values, np.float32).reshape(-1, 1), answers, at)
    result = shell.run(**run)
    return [] if result is None else result[:, 0].tolist()


def expected(history: Any, count: int):
    return [model(history[: len(history) - count + n + 1]) for n in range(count)]


CALLS = st.one_of(
    st.tuples(st.just("steps"), st.lists(st.integers(0, 9), min_size=1, max_size=10)),
    st.tuples(st.just("forecast"), st.integers(1, 3)),
    st.tuples(st.just("flush"), st.none()),
)


@given(
    calls=st.lists(CALLS, min_size=1, max_size=8),
    faults=st.lists(st.one_of(st.none(), FAULTS), max_size=60),
    give_ups=st.lists(st.one_of(st.none(), st.integers(0, 12)), max_size=12),
    max_kept_steps=st.integers(1, 12),
)
@settings(max_examples=400, deadline=None)
def test_every_answer_is_given_once_whatever_is_lost_and_whenever(
    calls: Any, faults: Any, give_ups: Any, max_kept_steps: int
):
    server = DictServer(BEHIND)
    core = a_core(max_kept_steps=max_kept_steps)
    shell, give_ups = Shell(server, core, faults), iter(give_ups)
    history, answers, wanted = [], [], []
    for kind, argument in calls:
        done = False
        while not done:
            try:
                result = ask(core, shell, kind, argument, next(give_ups, None))
                done = True
            except (errors.DeadlineExceeded, errors.Unavailable, errors.ServerFault):
                assert not core.has_ended
            except errors.SessionTaken:
                assert not core.has_ended  # only ever by ourselves
        if kind == "steps":
            history += map(float, argument)
            answers += result[:, 0].tolist()
            wanted += expected(history, len(argument))
        elif kind == "forecast":
            assert result[:, 0].tolist() == [model(history)] * argument
        else:
            assert core.durable_step == len(history)
    assert answers == wanted
    assert core.position == len(history)
    assert server.sessions["s"].history[: len(history)] == history[: len(server.sessions["s"].history)]


def ask(core: SessionCore, shell: Any, kind: str, argument: Any, give_up: int | None):
    if core.in_doubt:
        with pytest.raises(errors.StepInDoubt):
            core.begin_forecast(1)
        core.begin_retry()
    elif kind == "steps":
        core.begin_steps(np.asarray(argument, np.float32).reshape(-1, 1), ALL, None)
    elif kind == "forecast":
        core.begin_forecast(argument)
    else:
        core.begin_flush()
    return shell.run(gives_up_at=give_up)


def test_answer_lost_under_no_durability_is_given_from_the_server_store_of_answers():
    server, _core, shell = a_session(UNSTORED, faults=[None, None, "answer lost"])
    assert steps(shell, [3, 5]) == expected([3, 5], 2)
    assert steps(shell, [7]) == expected([3, 5, 7], 1)
    assert server.sessions["s"].history == [3, 5, 7]
    resent = [r.values for r in server.requests if r.HasField("values") and r.values.step == 2]
    assert resent[0] == resent[1]


def test_restarted_server_gets_the_kept_values_again_and_their_answers_are_dropped():
    server, _core, shell = a_session()
    for value in (1, 2, 3, 4, 5, 6):
        steps(shell, [value])
    server.crash()
    shell.faults = iter(["request lost"])
    assert steps(shell, [7]) == expected([1, 2, 3, 4, 5, 6, 7], 1)
    assert server.sessions["s"].history == [1, 2, 3, 4, 5, 6, 7]
    after_crash = [r.values for r in server.requests[-4:]]
    sent = [(values.step, len(values.values), values.answers) for values in after_crash]
    assert sent == [(0, 4, NONE), (4, 1, NONE), (5, 1, ALL), (6, 1, ALL)]


def test_kept_values_are_bounded_by_asking_the_server_to_store():
    server, core, shell = a_session(max_kept_steps=3)
    for value in range(10):
        steps(shell, [value])
        assert core._journal.num_steps <= 3
    assert sum(r.HasField("flush") for r in server.requests) == 3


def test_server_that_stores_nothing_of_what_it_promised_is_told_apart_from_a_full_one(
    monkeypatch: pytest.MonkeyPatch,
):
    _, core, shell = a_session(max_kept_steps=2)
    monkeypatch.setattr(DictServer, "store", lambda *_: None)
    monkeypatch.setattr(
        DictServer,
        "handle",
        lambda self, key, request, handle=DictServer.handle: (
            sequence_pb2.StreamResponse(flushed=sequence_pb2.Flushed(durable_step=0))
            if request.HasField("flush")
            else handle(self, key, request)
        ),
    )
    steps(shell, [1, 2])
    with pytest.raises(errors.ResourceExhausted) as caught:
        steps(shell, [3])
    assert caught.value.reason == "NOT_STORED"
    assert not core.in_doubt
    assert core.position == 2


class AwayStore(DictServer):
    """A server whose store is away for a number of flushes."""

    num_away = 0

    def handle(self, key: str, request: Any):
        if request.HasField("flush") and self.num_away:
            self.num_away -= 1
            delay = {"seconds": 1}
            error = types_pb2.Error(code=Code.UNAVAILABLE, reason="STORE_UNAVAILABLE", retry_delay=delay)
            return sequence_pb2.StreamResponse(error=error)
        return super().handle(key, request)


def test_values_wait_for_a_store_that_is_away_and_none_is_kept_beyond_the_bound():
    server, core = AwayStore(BEHIND), a_core(max_kept_steps=2)
    shell = Shell(server, core)
    server.num_away = 3
    assert steps(shell, [1, 2, 3, 4, 5, 6]) == expected([1, 2, 3, 4, 5, 6], 6)
    assert server.num_away == 0
    assert [wait for wait in shell.waits if wait >= 1] == shell.waits
    assert len(shell.waits) == 3
    assert core._journal.num_steps <= MAX_STEPS  # a message goes whole or not at all


def test_values_that_still_wait_for_the_store_when_the_time_is_up_are_withdrawn():
    server, core = AwayStore(BEHIND), a_core(max_kept_steps=2)
    shell = Shell(server, core)
    steps(shell, [1, 2])
    server.num_away = 1_000
    with pytest.raises(errors.LongshortError) as caught:
        steps(shell, [3], gives_up_at=40)
    assert isinstance(caught.value, errors.Unavailable | errors.DeadlineExceeded)
    assert not core.in_doubt
    server.num_away = 0
    assert steps(shell, [4]) == expected([1, 2, 4], 1)


def test_store_that_is_away_leaves_a_session_without_durability_on_its_stream():
    server, core = AwayStore(UNSTORED), a_core()
    shell = Shell(server, core)
    steps(shell, [1, 2])
    num_openings = sum(request.HasField("open") for request in server.requests)
    server.num_away = 2
    core.begin_flush()
    shell.run()
    assert len(shell.waits) == 2
    assert sum(request.HasField("open") for request in server.requests) == num_openings


def test_time_that_ends_in_a_wait_for_the_store_says_so():
    server, core = AwayStore(UNSTORED), a_core()
    shell = Shell(server, core)
    steps(shell, [1])
    server.num_away = 1_000
    core.begin_flush()
    with pytest.raises(errors.Unavailable) as caught:
        shell.run(gives_up_at=20)
    assert caught.value.reason == "STORE_UNAVAILABLE"


def test_time_that_ends_after_a_reopening_without_the_store_says_what_is_away():
    """A session in memory is opened again while the store is away: that answer says nothing of the store."""
    core = a_core()

    def opened(step: int) -> sequence_pb2.StreamResponse:
        return sequence_pb2.StreamResponse(
            opened=sequence_pb2.Opened(
                step=step, num_features=1, max_steps=MAX_STEPS, durability=types_pb2.DURABILITY_SYNC
            )
        )

    core.begin_steps(np.ones((1, 1), np.float32), ALL, None)
    core.next_action()
    core.received(opened(0))
    core.next_action()
    core.disconnected(status.make(Code.UNAVAILABLE, "away", "STORE_UNAVAILABLE", {}, 1.0))
    while not isinstance(core.next_action(), Connect):
        pass
    core.received(opened(1))
    error = core.timed_out()
    assert (type(error), error.reason) == (errors.Unavailable, "STORE_UNAVAILABLE")
    assert core.in_doubt


def test_store_that_went_back_behind_what_is_kept_is_told_apart_from_a_server_without_one():
    server, core, shell = a_session()
    for value in (1, 2, 3):
        steps(shell, [value])
    core.begin_flush()
    shell.run()
    server.sessions["s"] = Stored()
    shell.faults = iter(["request lost"])
    with pytest.raises(errors.SessionLost) as caught:
        steps(shell, [4])
    assert caught.value.reason == "STORE_WENT_BACK"
    assert caught.value.metadata == {"server_step": "0", "client_step": "3", "oldest_step": "3"}


def test_greatest_epoch_seen_is_told_on_every_reopening_and_a_change_of_the_model_on_none():
    _, core, _ = a_session(model_change="move")
    for epoch, greatest in ((0, 0), (7, 7), (5, 7)):
        core.begin_reopening()
        request = core.next_action().request.open
        assert request.model_change == types_pb2.MODEL_CHANGE_UNSPECIFIED
        opened = sequence_pb2.Opened(session=request.session, incarnation=1, epoch=epoch, max_steps=MAX_STEPS)
        core.received(sequence_pb2.StreamResponse(opened=opened))
        assert isinstance(core.next_action(), Done)
        core.begin_reopening()
        assert core.next_action().request.open.epoch == greatest
        core.received(sequence_pb2.StreamResponse(opened=opened))
        core.next_action()
    assert a_core(model_change="move").next_action().request.open.model_change == types_pb2.MODEL_CHANGE_MOVE


def test_whoever_gave_up_is_told_that_no_server_is_there_whatever_the_last_failure():
    for code in (Code.UNAVAILABLE, Code.INTERNAL, Code.CANCELLED, None):
        core = a_core()
        core.next_action()
        if code is not None:
            core.disconnected(status.make(code, "cut", "", {}, None))
        error = core.timed_out(gave_up=True)
        assert isinstance(error, errors.Unavailable)


def test_durable_message_without_an_answer_frees_kept_values():
    _, core, shell = a_session()
    steps(shell, [1, 2, 3])
    assert core._journal.num_steps == 3
    core.begin_forecast(1)
    shell.answers = [sequence_pb2.StreamResponse(durable=sequence_pb2.Durable(durable_step=3))]
    shell.run()
    assert core._journal.num_steps == 0


def test_server_behind_the_kept_values_is_a_lost_session():
    server, _core, shell = a_session(UNSTORED)
    steps(shell, [1, 2, 3])
    server.sessions["s"] = Stored()  # back at 0 with the same incarnation: an older record of it
    shell.faults = iter(["request lost"])
    with pytest.raises(errors.SessionLost) as caught:
        steps(shell, [4])
    assert caught.value.reason == "STEPS_LOST"
    assert caught.value.metadata == {"server_step": "0", "client_step": "3"}
    with pytest.raises(errors.SessionLost):
        steps(shell, [4])
    assert server.sessions["s"].history == []


def test_server_ahead_by_more_than_the_unanswered_message_is_a_lost_session():
    server, _core, shell = a_session()
    steps(shell, [1])
    server.sessions["s"].history += [8, 9]
    shell.faults = iter(["request lost"])
    with pytest.raises(errors.SessionLost) as caught:
        steps(shell, [2])
    assert caught.value.reason == "OTHER_WRITER"


def test_server_ahead_by_another_writers_message_of_the_same_length_gets_the_values_and_refuses():
    server, core, shell = a_session()
    steps(shell, [1])
    other = sequence_pb2.Values(values=[9], step=1, answers=ALL)
    server.values("s", other)
    shell.faults = iter(["request lost"])
    with pytest.raises(errors.ValuesDiffer):
        steps(shell, [2])
    assert not core.in_doubt


def test_server_without_the_session_is_a_lost_session_and_says_why():
    server, _core, shell = a_session()
    steps(shell, [1])
    del server.sessions["s"]
    shell.faults = iter(["request lost"])
    with pytest.raises(errors.SessionLost) as caught:
        steps(shell, [2])
    assert caught.value.reason == "SESSION_NOT_FOUND"


def test_another_incarnation_is_a_replaced_session_and_gets_no_value():
    server, _core, shell = a_session()
    steps(shell, [1])
    server.sessions["s"] = Stored(history=[0.0], incarnation=2)
    shell.faults = iter(["request lost"])
    with pytest.raises(errors.SessionReplaced):
        steps(shell, [2])
    assert server.sessions["s"].history == [0.0]


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ({"client_id": "another", "cause": "opened"}, errors.SessionTaken),
        ({"client_id": "", "cause": "reset"}, errors.SessionReplaced),
        ({"client_id": "", "cause": "deleted"}, errors.SessionLost),
    ],
)
def test_session_moved_by_another_ends_it_without_a_fight(metadata: Any, error: type[errors.LongshortError]):
    server, core, shell = a_session()
    core.begin_forecast(1)
    core.next_action()
    core.disconnected(refused(Code.ABORTED, "SESSION_MOVED", metadata).error)
    with pytest.raises(error):
        shell.run()
    assert core.has_ended
    assert sum(r.HasField("open") for r in server.requests) == 1


def test_session_moved_by_ourselves_opens_again():
    server, _core, shell = a_session(faults=[None, "moved by us"])
    assert steps(shell, [1]) == expected([1], 1)
    assert [r.open.mode for r in server.requests if r.HasField("open")] == [
        types_pb2.OPEN_MODE_OPEN_OR_CREATE,
        types_pb2.OPEN_MODE_OPEN,
    ]
    assert len({r.open.client_id for r in server.requests if r.HasField("open")}) == 1


def test_expired_session_says_so_on_reopening():
    _, core, shell = a_session()
    core.begin_forecast(1)
    core.next_action()
    core.disconnected(cut().error)
    assert isinstance(core.next_action(), Wait)
    assert isinstance(core.next_action(), Connect)
    core.disconnected(refused(Code.NOT_FOUND, "SESSION_EXPIRED").error)
    with pytest.raises(errors.SessionExpired):
        shell.run()
    assert core.has_ended


def test_created_by_an_opening_whose_answer_was_lost_counts_as_created():
    server, core = DictServer(), a_core(mode="create")
    Shell(server, core, faults=["answer lost"]).run()
    assert core._opening.created
    assert core.position == 0


def test_session_that_another_created_is_not_taken_for_our_own():
    server = DictServer()
    Shell(server, a_core(mode="create")).run()
    core = a_core(mode="create")
    with pytest.raises(errors.SessionExists):
        Shell(server, core, faults=["request lost"]).run()


def test_refusal_in_band_leaves_the_session_usable_and_where_it_was():
    _, core, shell = a_session()
    steps(shell, [1])
    with pytest.raises(errors.StepGap) as caught:
        steps(shell, [2], at=7)
    assert caught.value.metadata == {"expected_step": "1"}
    assert core.position == 1
    assert not core.in_doubt
    assert steps(shell, [2]) == expected([1, 2], 1)


def test_long_values_are_cut_and_a_refused_piece_hands_over_the_answers_before_it(
    monkeypatch: pytest.MonkeyPatch,
):
    server, core, shell = a_session()
    assert steps(shell, range(10)) == expected(list(range(10)), 10)
    assert [len(r.values.values) for r in server.requests[1:]] == [4, 4, 2]
    assert steps(shell, range(10), LAST) == expected([*range(10), *range(10)], 1)
    assert [r.values.answers for r in server.requests[4:]] == [NONE, NONE, LAST]
    values = DictServer.values
    monkeypatch.setattr(
        DictServer,
        "values",
        lambda self, key, request: (
            self.error("WRONG", 0) if 99 in request.values else values(self, key, request)
        ),
    )
    with pytest.raises(errors.FailedPrecondition) as caught:
        steps(shell, [1, 2, 3, 4, 99])
    assert caught.value.partial[:, 0].tolist() == expected([*range(10), *range(10), 1, 2, 3, 4], 4)
    assert core.position == 24
    assert not core.in_doubt


def test_call_given_up_before_its_values_were_sent_is_withdrawn():
    _server, core, shell = a_session()
    steps(shell, [1])
    core._disconnect()
    with pytest.raises(errors.DeadlineExceeded):
        steps(shell, [2], gives_up_at=1)
    assert not core.in_doubt
    assert steps(shell, [3]) == expected([1, 3], 1)


@pytest.mark.parametrize("fault", [None, "request lost", "crash before", "crash after"])
def test_call_given_up_after_its_values_were_sent_is_in_doubt_until_it_is_retried(fault: Any):
    server, core, shell = a_session(faults=[None, None, fault])
    steps(shell, [1])
    with pytest.raises(errors.DeadlineExceeded):
        steps(shell, [2], gives_up_at=1)
    assert core.in_doubt
    for begin in (
        lambda: steps(shell, [3]),
        lambda: core.begin_forecast(1),
        core.begin_flush,
        core.begin_reopening,
    ):
        with pytest.raises(errors.StepInDoubt):
            begin()
    core.begin_retry()
    assert shell.run()[:, 0].tolist() == expected([1, 2], 1)
    assert server.sessions["s"].history == [1, 2]
    with pytest.raises(errors.FailedPrecondition) as caught:
        core.begin_retry()
    assert caught.value.reason == "NOT_IN_DOUBT"


def test_refused_reopening_keeps_sent_values_in_doubt():
    _server, core, shell = a_session()
    core.begin_steps(np.ones((1, 1), np.float32), ALL, None)
    core.next_action()
    core.disconnected(cut().error)
    core.next_action()
    core.next_action()
    core.disconnected(refused(Code.UNAUTHENTICATED, "").error)
    with pytest.raises(errors.AccessDenied):
        shell.run()
    assert core.in_doubt
    core.begin_retry()
    assert shell.run()[:, 0].tolist() == expected([1], 1)


def test_the_same_number_again_is_answered_from_here_and_other_numbers_by_the_server():
    server, core, shell = a_session()
    steps(shell, [1])
    given = steps(shell, [np.nan, 2], at=1)
    num_requests = len(server.requests)
    np.testing.assert_array_equal(steps(shell, [np.nan, 2], at=1), given)
    assert len(server.requests) == num_requests
    with pytest.raises(errors.ValuesDiffer):
        steps(shell, [np.nan, 3], at=1)
    with pytest.raises(errors.StepConflict):
        steps(shell, [1], at=0)
    assert core.position == 3


def test_the_same_number_again_from_a_new_client_is_answered_by_the_server():
    server, _, shell = a_session()
    given = steps(shell, [1, 2])
    core = a_core()
    shell = Shell(server, core)
    shell.run()
    assert core.position == 2
    assert steps(shell, [1, 2], at=0) == given
    assert core.position == 2
    assert server.sessions["s"].history == [1, 2]


def test_server_of_the_caller_is_told_at_the_door_and_a_reopening_waits_for_a_place():
    full = refused(Code.RESOURCE_EXHAUSTED, "STREAMS_EXHAUSTED", retry_delay_s=2.0).error
    core = a_core()
    core.next_action()
    core.disconnected(full)
    assert isinstance(core.next_action(), Failed)

    _, core, _ = a_session()
    core.begin_reopening()
    core.next_action()
    core.disconnected(full)
    wait = core.next_action()
    assert isinstance(wait, Wait)
    assert 2.0 <= wait.delay_s <= 2.1


def test_pauses_grow_with_failures_and_shrink_with_an_answer():
    _, _, shell = a_session(faults=[None, *["draining"] * 4, None, None, "request lost"])
    steps(shell, [1])
    assert all(wait >= 0.5 for wait in shell.waits)
    assert shell.waits == sorted(shell.waits)
    longest = shell.waits[-1]
    steps(shell, [2])
    assert shell.waits[-1] < longest - 0.5


def test_timeout_without_a_connection_says_why_there_is_none():
    core = a_core()
    core.next_action()
    core.disconnected(status.make(Code.UNAVAILABLE, "Connection refused", "", {}, None))
    error = core.timed_out()
    assert isinstance(error, errors.Unavailable)
    assert "Connection refused" in str(error)


@pytest.mark.parametrize(
    "response",
    [
        sequence_pb2.StreamResponse(answer=sequence_pb2.Answer(step=5, values=[1])),
        sequence_pb2.StreamResponse(opened=sequence_pb2.Opened()),
        sequence_pb2.StreamResponse(flushed=sequence_pb2.Flushed()),
        sequence_pb2.StreamResponse(),
    ],
)
def test_answer_that_does_not_fit_ends_the_session_as_the_servers_fault(response: Any):
    _, core, shell = a_session()
    core.begin_steps(np.ones((1, 1), np.float32), ALL, None)
    core.next_action()
    core.received(response)
    with pytest.raises(errors.ServerFault) as caught:
        shell.run()
    assert caught.value.reason == "PROTOCOL_VIOLATION"
    assert core.has_ended


def test_ended_session_raises_the_same_error_for_ever_in_new_objects():
    core = a_core()
    core.end(errors.SessionLost("gone", reason="STEPS_LOST", metadata={"server_step": "0"}))
    raised = []
    for begin in (core.begin_flush, core.begin_retry, core.begin_reopening):
        with pytest.raises(errors.SessionLost) as caught:
            begin()
        raised.append(caught.value)
    assert len({id(error) for error in raised}) == 3
    assert all(error.metadata == {"server_step": "0"} for error in raised)


def test_unavailable_in_band_is_answered_elsewhere_or_later():
    server, core, shell = a_session()
    core.begin_steps(np.ones((1, 1), np.float32), ALL, None)
    core.next_action()
    core.received(
        sequence_pb2.StreamResponse(error=types_pb2.Error(code=Code.UNAVAILABLE, reason="DRAINING"))
    )
    assert shell.run()[:, 0].tolist() == expected([1], 1)
    assert sum(request.HasField("open") for request in server.requests) == 2


def test_refusal_of_the_opening_in_band_is_the_openings_error():
    core = a_core()
    core.next_action()
    core.received(sequence_pb2.StreamResponse(error=types_pb2.Error(code=5, reason="MODEL_NOT_FOUND")))
    action = core.next_action()
    assert isinstance(action, Failed)
    assert isinstance(action.error, errors.ModelNotFound)


def test_fault_of_the_server_with_a_reason_is_raised_and_leaves_the_values_in_doubt():
    _, core, shell = a_session()
    core.begin_steps(np.ones((1, 1), np.float32), ALL, None)
    core.next_action()
    core.disconnected(refused(Code.INTERNAL, "INTERNAL").error)
    with pytest.raises(errors.ServerFault):
        shell.run()
    assert core.in_doubt
    core.begin_retry()
    assert shell.run()[:, 0].tolist() == expected([1], 1)


def test_stream_that_ends_with_a_refusal_of_the_values_withdraws_them():
    _, core, shell = a_session()
    core.begin_steps(np.ones((1, 1), np.float32), ALL, None)
    core.next_action()
    core.disconnected(refused(Code.INVALID_ARGUMENT, "INVALID_MESSAGE").error)
    with pytest.raises(errors.InvalidRequest):
        shell.run()
    assert not core.in_doubt
    assert steps(shell, [2]) == expected([2], 1)


def test_unanswered_message_is_sent_again_unchanged_to_a_server_that_takes_shorter_ones():
    server, core, _ = a_session()
    core.begin_steps(np.arange(6, dtype=np.float32).reshape(-1, 1), ALL, None)
    first = core.next_action()
    server.handle("s", first.request)
    core.disconnected(cut().error)
    assert isinstance(core.next_action(), Wait)
    connect = core.next_action()
    opened = server.handle("s", connect.request)
    opened.opened.max_steps = 2
    core.received(opened)
    again = core.next_action()
    assert again.request == first.request
    core.received(server.handle("s", again.request))
    assert len(core.next_action().request.values.values) == 2


def restarted_with_values_to_send_again():
    server, core, shell = a_session()
    for value in (1, 2):
        steps(shell, [value])
    server.crash()
    core.begin_reopening()
    core.received(server.handle("s", core.next_action().request))
    assert core.next_action().request.values.step == 0
    return server, core, shell


def test_busy_server_gets_the_kept_values_again_after_the_pause_it_asks_for():
    server, core, shell = restarted_with_values_to_send_again()
    error = types_pb2.Error(code=Code.RESOURCE_EXHAUSTED, reason="QUEUE_FULL", retry_delay={"seconds": 1})
    core.received(sequence_pb2.StreamResponse(error=error))
    shell.run()
    assert server.sessions["s"].history == [1, 2]
    assert shell.waits[-1] >= 1


def test_refusal_of_kept_values_is_a_lost_session():
    _, core, shell = restarted_with_values_to_send_again()
    error = types_pb2.Error(code=Code.FAILED_PRECONDITION, reason="STEP_CONFLICT")
    core.received(sequence_pb2.StreamResponse(error=error))
    with pytest.raises(errors.SessionLost) as caught:
        shell.run()
    assert caught.value.reason == "STEP_CONFLICT"


def test_wrong_answer_to_kept_values_is_the_servers_fault():
    _, core, shell = restarted_with_values_to_send_again()
    core.received(sequence_pb2.StreamResponse(answer=sequence_pb2.Answer(step=7)))
    with pytest.raises(errors.ServerFault):
        shell.run()


def test_stream_that_ends_after_the_session_changes_nothing():
    _, core, _ = a_session()
    core.end(errors.SessionClosed("closed"))
    core.disconnected(cut().error)
    assert isinstance(core.next_action(), Failed)


def test_flush_says_when_all_is_stored():
    _, core, shell = a_session()
    steps(shell, [1, 2])
    assert core.durable_step == 0
    core.begin_flush()
    shell.run()
    assert core.durable_step == 2


@pytest.mark.parametrize("options", [{"mode": "append"}, {"durability": "eternal"}, {"model_change": 5}])
def test_unknown_option_is_refused_before_anything_is_sent(options: Any):
    with pytest.raises(errors.InvalidRequest):
        a_core(**options)


def test_id_that_no_header_can_hold_is_left_to_the_server_to_refuse():
    assert routing_header("sensor-42") == (("session-id", "sensor-42"),)
    for session_id in ("", "a space", "zähler-1", "x" * 257):
        assert routing_header(session_id) == ()


def test_refused_forecast_leaves_no_doubt():
    _, core, shell = a_session()
    core.begin_forecast(9)
    core.next_action()
    error = types_pb2.Error(code=Code.OUT_OF_RANGE, reason="HORIZON_OUT_OF_RANGE")
    core.received(sequence_pb2.StreamResponse(error=error))
    with pytest.raises(errors.InvalidRequest):
        shell.run()
    assert not core.in_doubt
    assert steps(shell, [1]) == expected([1], 1)


def test_message_numbered_beyond_the_answers_does_not_explain_a_server_that_is_ahead():
    server, _, shell = a_session()
    steps(shell, [1])
    server.sessions["s"].history += [8, 9]
    shell.faults = iter(["request lost"])
    with pytest.raises(errors.SessionLost):
        steps(shell, [9], at=2)


def test_values_to_send_again_are_planned_anew_at_every_reopening():
    server, core, shell = restarted_with_values_to_send_again()
    core.disconnected(cut().error)
    shell.run()
    assert server.sessions["s"].history == [1, 2]
    assert [request.values.step for request in server.requests[-2:]] == [0, 1]


def test_lost_session_can_still_be_closed():
    _, core, _ = a_session()
    core.end(errors.SessionLost("lost"))
    core.end(errors.SessionClosed("closed"))
    with pytest.raises(errors.SessionClosed):
        core.begin_flush()
