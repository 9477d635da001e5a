"""The client's core against a server of dictionaries that obeys the step table, over schedules of faults."""

import random
import zlib
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longshort import errors
from longshort.actions import RECEIVE, Connect, Done, Failed, Send, Wait
from longshort.backoff import Backoff
from longshort.core import SessionCore
from longshort.errors import Code
from longshort.opening import Opening
from longshort.v1 import sequence_pb2, types_pb2

ALL, LAST, NONE = types_pb2.ANSWERS_ALL, types_pb2.ANSWERS_LAST, types_pb2.ANSWERS_NONE
BEHIND, UNSTORED = types_pb2.DURABILITY_BEHIND, types_pb2.DURABILITY_NONE
MAX_STEPS = 4


class StreamEnd(Exception):
    """The stream of the dictionary server has ended, or was cut."""

    def __init__(self, error: errors.LongshortError):
        super().__init__(str(error))
        self.error = error


def cut(code=Code.UNAVAILABLE):
    return StreamEnd(errors.make(code, "cut", "", {}, None))


def refused(code, reason, metadata=None, retry_delay_s=None):
    return StreamEnd(errors.make(code, "refused", reason, metadata or {}, retry_delay_s))


def model(history):
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

    def store(self, key):
        if self.durability != UNSTORED:
            self.stored[key] = self.sessions[key].copy()

    def durable_step(self, key):
        return len(self.stored[key].history) if key in self.stored else 0

    def open(self, request):
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

    def values(self, key, request):
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

    def answer(self, key, rows, **flags):
        step = len(self.sessions[key].history)
        answer = sequence_pb2.Answer(values=rows, step=step, durable_step=self.durable_step(key), **flags)
        return sequence_pb2.StreamResponse(answer=answer)

    def error(self, reason, expected_step):
        error = types_pb2.Error(
            code=Code.FAILED_PRECONDITION, reason=reason, metadata={"expected_step": str(expected_step)}
        )
        return sequence_pb2.StreamResponse(error=error)

    def handle(self, key, request):
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

    def __init__(self, server, core, faults=()):
        self.server, self.core = server, core
        self.faults = iter(faults)
        self.answers = []  # what the server has written and the client not read
        self.waits = []

    def run(self, *, gives_up_at=None):
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

    def send(self, request):
        copy = sequence_pb2.StreamRequest.FromString(request.SerializeToString())
        try:
            self.answers.append(self.exchange(copy, next(self.faults, None)))
        except StreamEnd as end:
            self.answers.append(end)

    def exchange(self, request, fault):
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
        if isinstance(response, StreamEnd):
            self.core.disconnected(response.error)
        else:
            self.core.received(response)


def a_core(session_id="s", max_kept_steps=100, **options):
    opening = Opening(session_id, model="m", **options)
    return SessionCore(opening, Backoff(random.Random(1).random), max_kept_steps)


def a_session(durability=BEHIND, faults=(), **options):
    server, core = DictServer(durability), a_core(**options)
    shell = Shell(server, core, faults)
    shell.run()
    return server, core, shell


def steps(shell, values, answers=ALL, at=None, **run):
    shell.core.begin_steps(np.asarray(values, np.float32).reshape(-1, 1), answers, at)
    result = shell.run(**run)
    return [] if result is None else result[:, 0].tolist()


def expected(history, count):
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
def test_every_answer_is_given_once_whatever_is_lost_and_whenever(calls, faults, give_ups, max_kept_steps):
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


def ask(core, shell, kind, argument, give_up):
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
