"""What a stream does of most messages in a short way comes to the same as in the general way."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from inside import Gate, service, until
from longshort.v1 import sequence_pb2, types_pb2
from longshort_service.handlers.stream import StreamConversation
from wire import OPEN, Caller, Refusal, in_band, refusal_of, values_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from longshort_service.session import Session

    Run = Callable[..., Any]

_numbers = itertools.count()


@dataclass
class ShortWay:
    """Sessions whose id begins with `slow` are kept off it."""

    taken: list[str] = field(default_factory=list)  # by whose messages it was

    def installed(self, patch: pytest.MonkeyPatch) -> None:
        original = StreamConversation._take_single

        def take_single(stream: StreamConversation, session: Session[Any], raw: bytes) -> bool:
            is_taken = not session.id.startswith("slow") and original(stream, session, raw)
            if is_taken:
                self.taken.append(session.id)
            return is_taken

        patch.setattr(StreamConversation, "_take_single", take_single)


@pytest.fixture
def short_way(monkeypatch: pytest.MonkeyPatch) -> ShortWay:
    way = ShortWay()
    way.installed(monkeypatch)
    return way


@pytest.fixture(scope="module", params=[0.0, 1.0], ids=["thread", "inline"])
def address(request: pytest.FixtureRequest, run: Run, adders: Path) -> Iterator[str]:
    """A service with both ways, at the end of which the short one was taken often."""
    way = ShortWay()
    context = service(adders, inline_run_limit_s=request.param, max_steps=3, max_message_bytes=200)
    with pytest.MonkeyPatch.context() as patch:
        way.installed(patch)
        app, _ = run(context.__aenter__())
        yield f"127.0.0.1:{app.grpc_port}"
        run(context.__aexit__(None, None, None))
    assert len(way.taken) > 60


@dataclass(frozen=True)
class Sent:
    """A message of values, its step counted from the session's."""

    values: tuple[float, ...]
    offset: int | None
    answers: int
    is_tensor: bool
    is_both: bool

    def message(self, step: int) -> sequence_pb2.Values:
        number = None if self.offset is None else max(step + self.offset, 0) % (1 << 64)
        message = values_of((), number)
        message.answers = self.answers  # type: ignore[assignment]
        if self.is_tensor:
            data = sequence_pb2.Values(values=self.values).SerializeToString()
            message.tensors.add(
                name="x",
                dtype=types_pb2.DATA_TYPE_FLOAT32,
                shape=[len(self.values), 1],
                data=data[len(data) - 4 * len(self.values) :],
            )
        if self.is_both or not self.is_tensor:
            message.values.extend(self.values)
        return message


ONE = st.tuples(st.integers(-9, 9).map(float))
SENT = st.builds(
    Sent,
    values=ONE
    | ONE
    | st.tuples(st.sampled_from([float("nan"), float("inf"), 3e38]))
    | st.lists(st.integers(-9, 9).map(float), max_size=4).map(tuple)
    | st.just((1.0,) * 60),
    offset=st.sampled_from([0, 0, 0, 0, None, None, -1, 1, -2, 2**63, 2**64 - 1]),
    answers=st.sampled_from([0, 1, 2, 3, 3, 4, -1]),
    is_tensor=st.sampled_from([False] * 5 + [True]),
    is_both=st.sampled_from([False] * 9 + [True]),
)


class Half:
    """One of two sessions that are sent the same."""

    def __init__(self, caller: Caller, session_id: str, model: str) -> None:
        self._caller = caller
        self._id = session_id
        self._model = model
        self._stream: Any = None
        self.step = 0

    async def send(self, sent: Sent) -> Any:
        """Return what came back: the answer, or how the message was refused, and whether that ended the stream."""
        if self._stream is None:
            self._stream, opened = await self._caller.open(self._id, self._model)
            assert opened.step == self.step
        try:
            response = await self._stream.ask(values=sent.message(self.step))
        except grpc.aio.AioRpcError as error:
            self._stream = None
            return self._words(refusal_of(error)), "ended"
        if response.WhichOneof("kind") == "error":
            return self._words(in_band(response.error)), "goes on"
        self.step = response.answer.step
        return response.SerializeToString(deterministic=True)

    def _words(self, refusal: Refusal) -> tuple[Any, ...]:
        return (
            refusal.code,
            refusal.reason,
            refusal.message.replace(self._id, "it"),
            refusal.metadata,
            refusal.retry_delay_s,
        )


@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking over sockets would take minutes
)
@given(
    model=st.sampled_from(["adder", "strict", "passing"]), messages=st.lists(SENT, min_size=5, max_size=20)
)
def test_short_way_and_general_way_answer_alike(run: Run, address: str, model: str, messages: list[Sent]):
    async def scenario() -> None:
        number = next(_numbers)
        async with asyncio.timeout(20), Caller(address) as caller:
            halves = [Half(caller, f"{kind}-{number}", model) for kind in ("slow", "fast")]
            for sent in messages:
                general, short = [await half.send(sent) for half in halves]
                assert short == general, sent

    run(scenario())


def test_step_of_the_usual_form_goes_the_short_way(run: Run, adders: Path, short_way: ShortWay):
    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (_, caller):
            stream, _ = await caller.open("s", "adder")
            for step, number in enumerate([0, None, 2]):
                assert list((await stream.step([1], number)).values) == [step + 1]
            assert short_way.taken == ["s"] * 3
            assert list((await stream.step([1, 1])).values) == [4, 5]
            assert len(short_way.taken) == 3

    run(scenario())


def test_step_of_a_session_that_a_unary_call_is_moving_waits(run: Run, adders: Path, short_way: ShortWay):
    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (app, caller):
            gate = Gate.before(app.repository.get("adder").lane)
            stream, _ = await caller.open("s", "adder")
            step = asyncio.ensure_future(caller.step("s", [5], 0, "adder"))
            await gate.arrival()
            await stream.send(values=values_of([1], 1))
            session = app._table.get("s")
            assert session is not None
            await until(lambda: session.num_waiting == 1)
            gate.open()
            assert list((await step).answer.values) == [5]
            assert list((await stream.receive()).answer.values) == [6]
            assert short_way.taken == []

    run(scenario())


def test_step_of_a_session_with_a_gap_needs_a_number(run: Run, adders: Path, short_way: ShortWay):
    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (app, caller):
            stream, _ = await caller.open("s", "adder")
            session = app._table.get("s")
            assert session is not None
            session.model.columns.is_gapless[session.row] = False
            refusal = await stream.error(values=values_of([1]))
            assert refusal == ("FAILED_PRECONDITION", "STEP_REQUIRED")
            assert short_way.taken == []
            assert list((await stream.step([1], 0)).values) == [1]
            assert list((await stream.step([1])).values) == [2]
            assert short_way.taken == ["s", "s"]

    run(scenario())


def test_step_of_a_session_that_was_taken_away_is_not_applied(run: Run, adders: Path, short_way: ShortWay):
    async def scenario() -> None:
        async with asyncio.timeout(20), service(adders) as (_, caller):
            stream, _ = await caller.open("s", "adder")
            await stream.step([1], 0)
            other, _ = await caller.open("s", "", mode=OPEN)
            assert await stream.end(values=values_of([1], 1)) == ("ABORTED", "SESSION_MOVED")
            assert list((await other.step([2], 1)).values) == [3]
            assert short_way.taken == ["s", "s"]

    run(scenario())
