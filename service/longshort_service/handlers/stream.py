"""One session on one bidirectional stream: read, apply, write, in that order, until either side ends it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final

import grpc
from longshort.v1 import sequence_pb2, types_pb2

from longshort_service import errors
from longshort_service.handlers import codec, status
from longshort_service.keeper import OpenRequest
from longshort_service.protocol import StreamEvent, StreamProtocol, StreamState, ends_stream

if TYPE_CHECKING:
    from longshort_service.handlers.edge import Edge
    from longshort_service.repository import Model
    from longshort_service.session import Session

# A stream that says nothing holds a place that another could use.
OPEN_TIMEOUT_S: Final = 30.0

_EVENTS: Final = {
    "open": StreamEvent.OPEN,
    "values": StreamEvent.VALUES,
    "forecast": StreamEvent.FORECAST,
    "flush": StreamEvent.FLUSH,
}


class StreamConversation:
    """The server's half of a Stream call. It owns its session from `opened` on until it ends or another takes it."""

    def __init__(self, edge: Edge, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        self._edge = edge
        self._context = context
        self._protocol = StreamProtocol()
        self._session: Session[Model] | None = None
        self._is_numbered = True  # whether the message in hand has a step
        self._end_error: errors.ServiceError | None = None
        self._end_task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Converse until the client half-closes, leaves, or an error ends the stream."""
        loop = asyncio.get_running_loop()
        overdue = errors.NotOpen(f"the stream was not opened within {OPEN_TIMEOUT_S:.0f} s")
        self._open_timer = loop.call_later(OPEN_TIMEOUT_S, self.end, overdue)
        try:
            while await self._exchange():
                pass
        finally:
            self._open_timer.cancel()
            if self._session is not None:
                self._edge.keeper.table.detach(self._session, self, self._edge.keeper.clock())
            if self._end_task is not None:
                await asyncio.wait([self._end_task])

    def lose(self, session_id: str, error: errors.ServiceError) -> None:  # noqa: ARG002
        """See StreamOwner: the stream has only the one."""
        self.end(error)

    def end(self, error: errors.ServiceError) -> None:
        """End the stream: at once where it is between messages, otherwise after the answer in hand."""
        if self._end_error is not None or self._protocol.state is StreamState.ENDED:
            return
        self._end_error = error
        if self._protocol.state in (StreamState.READY, StreamState.AWAITING_OPEN):
            # The handler sleeps in read(); a status sent from here makes that read return.
            self._end_task = asyncio.get_running_loop().create_task(self._abort_asleep(error))

    async def _abort_asleep(self, error: errors.ServiceError) -> None:
        # abort() unwinds whoever calls it by raising; the client may also have left meanwhile.
        with contextlib.suppress(grpc.aio.BaseError, asyncio.InvalidStateError):
            await self._fail(error)

    async def _exchange(self) -> bool:
        """Read one message and answer it; return whether the stream goes on."""
        raw = await self._context.read()
        if self._end_error is not None:
            return False
        if raw is grpc.aio.EOF:  # type: ignore[attr-defined]
            self._protocol.handle(StreamEvent.HALF_CLOSE)
            return False
        begin_s = time.perf_counter()
        self._is_numbered = True
        try:
            response = await self._answer(raw)
        except errors.ServiceError as error:
            if ends_stream(error, self._protocol.state, numbered=self._is_numbered):
                await self._fail(error)
            self._edge.count(error)
            response = sequence_pb2.StreamResponse(error=status.in_band(error))
        except Exception as error:  # noqa: BLE001  the edge: a bug ends this stream and no other
            await self._fail(self._edge.wrap(error), is_counted=True)
        await self._context.write(response.SerializeToString())
        self._protocol.handle(StreamEvent.ANSWERED)
        if self._session is not None and response.HasField("answer") and not response.answer.forecast:
            self._edge.observer.step_total(self._session.model.name, time.perf_counter() - begin_s)
        if self._end_error is not None:
            await self._fail(self._end_error)
        return True

    async def _answer(self, raw: bytes) -> sequence_pb2.StreamResponse:
        # A message too large is refused in band: it is known to be one, if not of which kind.
        if self._protocol.state is StreamState.READY and len(raw) > self._edge.max_message_bytes:
            self._protocol.handle(StreamEvent.VALUES)
        request = codec.parse(sequence_pb2.StreamRequest, raw, self._edge.max_message_bytes)
        kind = request.WhichOneof("kind")
        if kind is None:
            raise errors.InvalidMessage("the message says nothing: set open, values, forecast or flush")
        self._protocol.handle(_EVENTS[kind])
        if kind == "values":
            return await self._values(request.values)
        if kind == "open":
            return await self._open(request.open)
        session = self._settled_session()
        if kind == "forecast":
            return await self._forecast(session, request.forecast.horizon)
        durable_step = self._edge.keeper.durable_step(session.step)
        return sequence_pb2.StreamResponse(flushed=sequence_pb2.Flushed(durable_step=durable_step))

    async def _open(self, request: sequence_pb2.Open) -> sequence_pb2.StreamResponse:
        self._edge.refuse_while_draining()
        if len(request.client_id) > codec.MAX_CLIENT_ID:
            raise errors.InvalidMessage(f"client_id is longer than {codec.MAX_CLIENT_ID} characters")
        session, created = await self._edge.keeper.open(
            OpenRequest(
                codec.session_id(request.session, may_be_empty=True),
                codec.open_mode(request.mode),
                request.model,
                request.version,
                request.client_id,
            ),
            self,
        )
        self._open_timer.cancel()
        self._session = session
        model = session.model
        return sequence_pb2.StreamResponse(
            opened=sequence_pb2.Opened(
                session=types_pb2.SessionKey(id=session.id),
                model=model.name,
                version=model.version,
                created=created,
                step=session.step,
                durable_step=self._edge.keeper.durable_step(session.step),
                durability=types_pb2.DURABILITY_NONE,
                incarnation=session.incarnation,
                epoch=session.epoch,
                num_features=len(model.signature.features),
                num_outputs=len(model.signature.outputs),
                max_steps=self._edge.max_steps,
                fingerprint=model.signature.fingerprint,
            )
        )

    async def _values(self, message: sequence_pb2.Values) -> sequence_pb2.StreamResponse:
        session = self._settled_session()
        self._is_numbered = message.HasField("step")
        signature = session.model.signature
        rows = codec.rows(message, signature, self._edge.max_steps)
        wanted = codec.answers(message.answers)
        if session.is_busy:  # a unary call is moving the session just now
            await self._edge.keeper.until_settled(session)
            self._settled_session()
        applied = await self._edge.stepper.step(
            session, rows, message.step if self._is_numbered else None, wanted
        )
        response = sequence_pb2.StreamResponse()
        answer = response.answer
        codec.fill_answer(
            answer,
            applied.outputs,
            signature,
            step=applied.step,
            durable_step=self._edge.keeper.durable_step(applied.step),
            as_tensors=bool(message.tensors),
        )
        answer.replayed = applied.is_replayed
        return response

    async def _forecast(self, session: Session[Model], horizon: int) -> sequence_pb2.StreamResponse:
        await self._edge.keeper.until_settled(session)
        record = self._settled_session().record()
        outputs = await self._edge.stepper.forecast(record, session.model, horizon, self._edge.max_steps)
        response = sequence_pb2.StreamResponse()
        codec.fill_answer(
            response.answer,
            outputs,
            session.model.signature,
            step=record.step,
            durable_step=self._edge.keeper.durable_step(record.step),
            as_tensors=False,
        )
        response.answer.forecast = True
        return response

    def _settled_session(self) -> Session[Model]:
        """Return the stream's session. Raises SessionMoved where it was taken or ended meanwhile."""
        session = self._session
        if session is None:
            raise errors.InternalError("the stream is open without a session")
        if session.owner is not self or session.is_ended:
            raise self._end_error or errors.SessionMoved(
                f"session {session.id} has ended", cause="ended", client_id=""
            )
        return session

    async def _fail(self, error: errors.ServiceError, *, is_counted: bool = False) -> None:
        """End the stream with the error as its status. Raises AbortError to unwind the handler."""
        self._protocol.handle(StreamEvent.FAIL)
        if not is_counted:
            self._edge.count(error)
        await status.abort(self._context, error)
