"""Random schedules for sessions, what each must be answered, and the walk through them over gRPC."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st
from longshort.v1 import sequence_pb2, session_pb2, types_pb2
from oracle import OracleModel, OracleSession
from wire import ALL, LAST, NONE, OPEN, Caller, Stream, key, values_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Lengths on both sides of the pieces that messages are cut into (64, or 7 on the tight server), up to 200.
LENGTHS = st.one_of(
    st.integers(1, 3), st.sampled_from([6, 7, 8, 14, 63, 64, 65, 128, 129]), st.integers(1, 200)
)
MOVES = ("values", "values", "values", "values", "cut")
LOOKS = (
    "replay",
    "refusal",
    "forecast",
    "explain",
    "memory",
    "half_close",
    "cancel",
    "supersede",
    "fork",
    "rest",
    "replay",
)

_numbers = itertools.count()


@dataclass(frozen=True)
class Act:
    """One thing that is done to a session."""

    kind: str
    count: int
    answers: types_pb2.Answers
    is_numbered: bool
    is_unary: bool
    is_tensor: bool
    seed: int


ACTS = st.builds(
    Act,
    kind=st.sampled_from(MOVES + LOOKS),
    count=LENGTHS,
    answers=st.sampled_from([ALL, ALL, LAST, NONE]),
    is_numbered=st.booleans(),
    is_unary=st.sampled_from([False, False, True]),
    is_tensor=st.sampled_from([False, False, False, True]),
    seed=st.integers(0, 2**32 - 1),
)


@dataclass
class Planned:
    """An act, the values that go with it, and what must come back."""

    act: Act
    rows: NDArray[np.float32]  # [time, features] f32
    step: int  # the session's step before it, or of the message that is repeated
    expected: NDArray[np.float32] | None = None  # [rows, outputs] f32
    memory: list[NDArray[np.float32]] = field(default_factory=list)


def plan(model: OracleModel, acts: list[Act]) -> list[Planned]:
    """Step the oracle through the acts of one session; what cannot be done yet is left out."""
    session = OracleSession(model)
    last: Planned | None = None
    planned = []
    for act in acts:
        entry = Planned(
            act, _rows(act, len(model.signature.features), is_first=session.step == 0), session.step
        )
        if act.kind in MOVES:
            entry.expected = _chosen(session.feed(entry.rows), act.answers)
            last = entry
        elif act.kind == "replay":
            if last is None:
                continue
            entry = Planned(act, last.rows, last.step, last.expected)
        elif act.kind in ("forecast", "explain", "memory", "fork"):
            if not session.step or (act.kind == "forecast" and not model.signature.can_forecast):
                continue
            _look(session, entry)
            last = None if act.kind == "fork" else last  # a copy does not know its source's last message
        planned.append(entry)
    return planned


def _look(session: OracleSession, entry: Planned) -> None:
    """Fill in what a session says without moving."""
    if entry.act.kind == "forecast":
        entry.expected = session.forecast(entry.act.count)
    elif entry.act.kind == "explain":
        entry.expected = session.fork().feed(entry.rows)
    entry.memory = session.memory()


def _rows(act: Act, width: int, *, is_first: bool) -> NDArray[np.float32]:
    rng = np.random.default_rng(act.seed)
    rows = rng.normal(0, 10, (act.count, width)).astype(np.float32)
    missing = rng.random(rows.shape) < 0.05
    missing[0] &= not is_first
    rows[missing] = np.nan
    return rows


def _chosen(answers: NDArray[np.float32], wanted: types_pb2.Answers) -> NDArray[np.float32]:
    return {ALL: answers, LAST: answers[-1:], NONE: answers[:0]}[wanted]


class Walk:
    """One session on its way through its plan."""

    def __init__(self, caller: Caller, name: str, model: OracleModel) -> None:
        self._caller = caller
        self._name = name
        self._signature = model.signature
        self._id = f"walk-{next(_numbers)}"
        self._exists = False
        self._stream: Stream | None = None

    async def run(self, planned: list[Planned]) -> None:
        """Do everything in order, then look once more at where it has led."""
        for entry in planned:
            await getattr(self, f"_{entry.act.kind}")(entry)
        if self._stream is not None:
            await self._stream.half_close()

    async def _open(self, step: int) -> Stream:
        if self._stream is None:
            mode = OPEN if self._exists else types_pb2.OPEN_MODE_UNSPECIFIED
            self._stream, opened = await self._caller.open(self._id, self._name, mode=mode, client_id="first")
            assert opened.created is not self._exists
            assert opened.step == step
            self._exists = True
        return self._stream

    def _message(self, entry: Planned, *, is_numbered: bool) -> sequence_pb2.Values:
        message = values_of((), entry.step if is_numbered else None, entry.act.answers)
        if entry.act.is_tensor:
            message.tensors.append(
                types_pb2.Tensor(
                    name="x",
                    dtype=types_pb2.DATA_TYPE_FLOAT32,
                    shape=entry.rows.shape,
                    data=entry.rows.tobytes(),
                )
            )
        else:
            message.values.extend(entry.rows.ravel().tolist())
        return message

    def _check(self, answer: sequence_pb2.Answer, entry: Planned, *, is_replay: bool | None = False) -> None:
        width = len(self._signature.outputs)
        if entry.act.is_tensor and entry.act.kind != "forecast":
            (tensor,) = answer.tensors
            have = np.frombuffer(tensor.data, "<f4").reshape(tensor.shape)
        else:
            have = np.array(answer.values, np.float32).reshape(-1, width)
        assert entry.expected is not None
        assert have.shape == entry.expected.shape
        assert have.tobytes() == entry.expected.tobytes(), (self._name, entry.act)
        if not answer.forecast:
            assert answer.step == entry.step + len(entry.rows)
        if is_replay is not None:
            assert answer.replayed is is_replay

    async def _apply(self, entry: Planned, *, is_numbered: bool, is_replay: bool | None) -> None:
        message = self._message(entry, is_numbered=is_numbered)
        if entry.act.is_unary:
            request = sequence_pb2.StepRequest(session=key(self._id), model=self._name, values=message)
            response = await self._caller.sequence.Step(request)
            assert response.created is not self._exists
            self._exists = True
            answer = response.answer
        else:
            response = await (await self._open(entry.step)).ask(values=message)
            assert response.WhichOneof("kind") == "answer", response
            answer = response.answer
        self._check(answer, entry, is_replay=is_replay)

    async def _values(self, entry: Planned) -> None:
        await self._apply(entry, is_numbered=entry.act.is_numbered, is_replay=False)

    async def _replay(self, entry: Planned) -> None:
        if not entry.act.is_unary:
            await self._open(entry.step + len(entry.rows))
        # The answer has the form that is asked for now, and the rows that were asked for then.
        await self._apply(entry, is_numbered=True, is_replay=True)

    async def _cut(self, entry: Planned) -> None:
        """Send a message, leave without the answer, come back: it was applied or it was not, and never twice."""
        stream = await self._open(entry.step)
        await stream.send(values=self._message(entry, is_numbered=True))
        await asyncio.sleep(entry.act.seed % 4 / 1000)
        stream.call.cancel()
        self._stream, opened = await self._caller.open(self._id, mode=OPEN, model="")
        assert opened.step in (entry.step, entry.step + len(entry.rows))
        response = await self._stream.ask(values=self._message(entry, is_numbered=True))
        self._check(response.answer, entry, is_replay=opened.step > entry.step)

    async def _refusal(self, entry: Planned) -> None:
        stream = await self._open(entry.step)
        gap = await stream.error(values=values_of(entry.rows.ravel().tolist(), entry.step + 1))
        assert gap == ("FAILED_PRECONDITION", "STEP_GAP")
        assert gap.metadata == {"expected_step": str(entry.step)}
        assert await stream.error(values=values_of([])) == ("INVALID_ARGUMENT", "EMPTY_VALUES")

    async def _forecast(self, entry: Planned) -> None:
        if entry.act.is_unary:
            request = sequence_pb2.ForecastRequest(session=key(self._id), horizon=entry.act.count)
            response = await self._caller.sequence.Forecast(request)
            assert response.step == entry.step
            answer = sequence_pb2.Answer(values=response.values, step=response.step, forecast=True)
        else:
            answer = await (await self._open(entry.step)).forecast(entry.act.count)
        assert answer.step == entry.step
        self._check(answer, entry, is_replay=None)

    async def _explain(self, entry: Planned) -> None:
        request = sequence_pb2.ExplainRequest(session=key(self._id), values=entry.rows.ravel().tolist())
        response = await self._caller.sequence.Explain(request)
        assert response.step == entry.step
        tensor = next(tensor for tensor in response.tensors if tensor.name == "y")
        have = np.frombuffer(tensor.data, "<f4").reshape(tensor.shape)
        np.testing.assert_allclose(have, entry.expected, rtol=1e-5, atol=1e-5)

    async def _memory(self, entry: Planned) -> None:
        request = session_pb2.GetSessionRequest(session=key(self._id), include_memory=True)
        response = await self._caller.sessions.GetSession(request)
        assert response.session.step == entry.step
        assert [tensor.name for tensor in response.memory] == ["c0", "h0"]
        for tensor, expected in zip(response.memory, entry.memory, strict=True):
            assert (list(tensor.shape), tensor.data) == (list(expected.shape), expected.tobytes())

    async def _half_close(self, entry: Planned) -> None:
        stream = await self._open(entry.step)
        await stream.half_close()
        self._stream = None

    async def _rest(self, entry: Planned) -> None:
        """Leave the session alone until the tight server has spilled it."""
        if self._stream is not None:
            await self._half_close(entry)
        await asyncio.sleep(0.15)

    async def _cancel(self, entry: Planned) -> None:
        stream = await self._open(entry.step)
        stream.call.cancel()
        self._stream = None

    async def _supersede(self, entry: Planned) -> None:
        older = await self._open(entry.step)
        self._stream, opened = await self._caller.open(self._id, mode=OPEN, model="", client_id="second")
        assert opened.step == entry.step
        end = await older.end()
        assert end == ("ABORTED", "SESSION_MOVED")
        assert end.metadata == {"cause": "opened", "client_id": "second"}

    async def _fork(self, entry: Planned) -> None:
        """Go on with a copy; the source is left where it was."""
        fork_id = f"walk-{next(_numbers)}"
        request = session_pb2.ForkRequest(session=key(self._id), fork=key(fork_id), min_step=entry.step)
        response = await self._caller.sessions.Fork(request)
        assert response.session.step == entry.step
        if self._stream is not None:
            await self._stream.half_close()
            self._stream = None
        self._id = fork_id


def walk(caller: Caller, name: str, model: OracleModel, planned: list[Planned]) -> Any:
    """Return the coroutine that takes a session of its own through a plan."""
    return Walk(caller, name, model).run(planned)
