"""Calling the service as any gRPC client does: the generated stubs on asyncio, without longshort's client."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2_grpc
from longshort.v1 import (
    model_pb2_grpc,
    sequence_pb2,
    sequence_pb2_grpc,
    session_pb2_grpc,
    types_pb2,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

CODES = {code.value[0]: code for code in grpc.StatusCode}

ALL, LAST, NONE = types_pb2.ANSWERS_ALL, types_pb2.ANSWERS_LAST, types_pb2.ANSWERS_NONE
OPEN, CREATE = types_pb2.OPEN_MODE_OPEN, types_pb2.OPEN_MODE_CREATE
OPEN_OR_CREATE = types_pb2.OPEN_MODE_OPEN_OR_CREATE


@dataclass(frozen=True)
class Refusal:
    """An error as a caller sees it, in band or as a status."""

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: dict[str, str]
    retry_delay_s: float | None

    def __eq__(self, other: object) -> bool:
        """Compare with another refusal, or with just (code, reason)."""
        if isinstance(other, tuple):
            return (self.code.name, self.reason) == other
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    """Read a status; it must carry exactly one ErrorInfo of domain longshort."""
    trailers = dict(error.trailing_metadata() or ())
    assert "grpc-status-details-bin" in trailers, f"a status without details: {error!r}"
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])  # type: ignore[arg-type]
    infos, retries = [], []
    for detail in status.details:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            infos.append(info)
        elif detail.Unpack(retry):
            retries.append(retry)
    assert len(infos) == 1
    assert infos[0].domain == "longshort"
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    assert len(retries) + 1 == len(status.details)
    delay_s = retries[0].retry_delay.ToTimedelta().total_seconds() if retries else None
    return Refusal(error.code(), infos[0].reason, status.message, dict(infos[0].metadata), delay_s)


def in_band(error: types_pb2.Error) -> Refusal:
    """Read an error of a stream that goes on."""
    delay_s = error.retry_delay.ToTimedelta().total_seconds() if error.HasField("retry_delay") else None
    return Refusal(CODES[error.code], error.reason, error.message, dict(error.metadata), delay_s)


async def refused(call: Awaitable[Any]) -> Refusal:
    """Return how a call is refused."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return refusal_of(error)
    raise AssertionError(f"the call was answered: {answer}")


def key(session_id: str) -> types_pb2.SessionKey:
    """Return the key of a session."""
    return types_pb2.SessionKey(id=session_id)


def values_of(
    values: Iterable[float],
    step: int | None = None,
    answers: types_pb2.Answers = types_pb2.ANSWERS_UNSPECIFIED,
) -> sequence_pb2.Values:
    """Return a message of values."""
    return sequence_pb2.Values(values=values, step=step, answers=answers)


class Stream:
    """One Stream call."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def send(self, **kind: Any) -> None:
        """Write one message without waiting for its answer; where the stream has ended, `receive` says how."""
        await self.send_bytes(sequence_pb2.StreamRequest(**kind).SerializeToString())

    async def send_bytes(self, message: bytes) -> None:
        """Write the bytes of one message.

        Not with gRPC's own `write`: meeting the end of the stream it makes up INTERNAL, and the real status is lost.
        """
        with contextlib.suppress(grpc.aio.AioRpcError, grpc.aio.BaseError):
            await self.call.wait_for_connection()
            if not self.call.done():
                await self.call._cython_call.send_serialized_message(message)

    async def receive(self) -> sequence_pb2.StreamResponse:
        """Read one message; raises EOFError where the stream has ended well, AioRpcError otherwise."""
        response = await self.call.read()
        if response is grpc.aio.EOF:
            raise EOFError
        assert isinstance(response, sequence_pb2.StreamResponse)
        return response

    async def ask(self, **kind: Any) -> sequence_pb2.StreamResponse:
        """Write one message and read one."""
        await self.send(**kind)
        return await self.receive()

    async def step(
        self, values: Iterable[float], step: int | None = None, answers: Any = 0
    ) -> sequence_pb2.Answer:
        """Send values; they must be answered."""
        response = await self.ask(values=values_of(values, step, answers))
        assert response.WhichOneof("kind") == "answer", response
        return response.answer

    async def forecast(self, horizon: int) -> sequence_pb2.Answer:
        """Ask for a forecast; it must be answered."""
        response = await self.ask(forecast=sequence_pb2.StreamForecast(horizon=horizon))
        assert response.WhichOneof("kind") == "answer", response
        assert response.answer.forecast
        return response.answer

    async def error(self, **kind: Any) -> Refusal:
        """Send a message that must be refused in band."""
        response = await self.ask(**kind)
        assert response.WhichOneof("kind") == "error", response
        return in_band(response.error)

    async def end(self, **kind: Any) -> Refusal:
        """Return how the stream ends, after one more message where one is given."""
        if kind:
            await self.send(**kind)
        return await refused(self.receive())

    async def half_close(self) -> None:
        """End the stream well; nothing more may come."""
        await self.call.done_writing()
        assert await self.call.read() is grpc.aio.EOF
        assert await self.call.code() is grpc.StatusCode.OK


class Caller:
    """A connection of its own with every stub."""

    def __init__(self, address: str) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.aio.insecure_channel(address, options=options)
        self.sequence = sequence_pb2_grpc.SequenceServiceStub(self.channel)
        self.sessions = session_pb2_grpc.SessionServiceStub(self.channel)
        self.models = model_pb2_grpc.ModelServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()

    def stream(self) -> Stream:
        """Begin a stream that is not open yet."""
        return Stream(self.sequence.Stream())

    async def open(
        self, session_id: str = "", model: str = "metro", **fields: Any
    ) -> tuple[Stream, sequence_pb2.Opened]:
        """Open a session on a stream of its own."""
        stream = self.stream()
        response = await stream.ask(open=sequence_pb2.Open(session=key(session_id), model=model, **fields))
        assert response.WhichOneof("kind") == "opened", response
        return stream, response.opened

    async def refused_open(self, session_id: str = "", model: str = "metro", **fields: Any) -> Refusal:
        """Return how an opening is refused."""
        return await self.stream().end(open=sequence_pb2.Open(session=key(session_id), model=model, **fields))

    async def step(
        self,
        session_id: str,
        values: Iterable[float],
        step: int | None = None,
        model: str = "metro",
        **fields: Any,
    ) -> sequence_pb2.StepResponse:
        """Apply values by a unary call."""
        message = values_of(values, step, fields.pop("answers", 0))
        request = sequence_pb2.StepRequest(session=key(session_id), model=model, values=message, **fields)
        response = await self.sequence.Step(request)
        assert isinstance(response, sequence_pb2.StepResponse)
        return response


async def assert_goes_on(stream: Stream, step: int, total: float) -> None:
    """Step an adder that stands at `step` with `total`: it has not moved, and the next good message works."""
    answer = await stream.step([1], step)
    assert (answer.step, list(answer.values), answer.replayed) == (step + 1, [total + 1], False)
