"""One session on one bidirectional stream: read, apply, write, in that order, until either side ends it."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

from longshort.v1 import sequence_pb2, types_pb2

from longshort_service import errors
from longshort_service.durability import Durability
from longshort_service.handlers import codec, status
from longshort_service.handlers.conversation import Conversation
from longshort_service.handlers.wire import single_values, varint
from longshort_service.protocol import StreamEvent, StreamProtocol, StreamState, ends_stream, unstored

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshort_service.handlers.edge import Edge
    from longshort_service.repository import Model
    from longshort_service.session import Session
    from longshort_service.signature import Signature
    from longshort_service.transport.call import Call

_EVENTS: Final = {
    "open": StreamEvent.OPEN,
    "values": StreamEvent.VALUES,
    "forecast": StreamEvent.FORECAST,
    "flush": StreamEvent.FLUSH,
}


class StreamConversation(Conversation):
    """The server's half of a Stream call. It owns its session from `opened` on until it ends or another takes it."""

    def __init__(self, edge: Edge, call: Call, is_over: Callable[[Conversation], None]) -> None:
        self._protocol = StreamProtocol()
        self._session: Session[Model] | None = None
        self._is_numbered = True  # whether the message in hand has a step
        self._told_durable_step = 0
        super().__init__(edge, call, is_over)

    def lose(self, session_id: str, error: errors.ServiceError) -> None:  # noqa: ARG002  it has only the one
        """See StreamOwner."""
        self.end(error)

    def stored(self, session_id: str, durable_step: int) -> None:  # noqa: ARG002  as above
        """See StreamOwner: said at once, unless an answer is about to say it."""
        if self._protocol.state is StreamState.READY and durable_step > self._told_durable_step:
            self._told_durable_step = durable_step
            durable = sequence_pb2.Durable(durable_step=durable_step)
            self._call.write(sequence_pb2.StreamResponse(durable=durable).SerializeToString())

    def _take(self, raw: bytes) -> None:
        if self._session is not None and self._take_single(self._session, raw):
            return
        self._is_numbered = True
        # A message too large is refused in band: it is known to be one, if not of which kind.
        if self._protocol.state is StreamState.READY and len(raw) > self._edge.max_message_bytes:
            self._protocol.handle(StreamEvent.VALUES)
        request = codec.parse(sequence_pb2.StreamRequest, raw, self._edge.max_message_bytes)
        kind = request.WhichOneof("kind")
        if kind is None:
            raise errors.InvalidMessage("the message says nothing: set open, values, forecast or flush")
        self._protocol.handle(_EVENTS[kind])
        if kind == "values":
            self._is_numbered = request.values.HasField("step")
            self._slowly(self._values(request.values))
        elif kind == "open":
            self._slowly(self._open(request.open))
        elif kind == "forecast":
            self._slowly(self._forecast(request.forecast))
        else:
            self._slowly(self._flush())

    def _take_single(self, session: Session[Model], raw: bytes) -> bool:
        """Take what most messages are: one finite step in its place, for a session that nobody else is at.

        Return whether it was one; everything else goes the general way. The two differ in cost alone.
        """
        single = single_values(raw, self._num_features)
        if single is None or session.owner is not self:
            return False
        values, step, answers = single
        row, columns = self._slot.row, self._columns
        is_in_place = step == columns.step_of[row] if step is not None else columns.is_gapless[row]
        if (
            not is_in_place
            or columns.is_busy_of[row]
            or answers > types_pb2.ANSWERS_NONE
            or not all(map(math.isfinite, values))
        ):
            return False
        self._protocol.handle(StreamEvent.VALUES)
        self._is_numbered = step is not None
        answer_rows = 0 if answers == types_pb2.ANSWERS_NONE else 1
        self._edge.stepper.submit_single(session.model, self._slot, values, answer_rows, self)
        return True

    def answered(self, outputs: bytes, step: int) -> None:
        """See SingleWaiter."""
        if step >= self._columns.waits_from_of[self._slot.row]:
            self._when_stored(outputs, step)
        else:
            self._guarded(self._write_answer, outputs, step)

    def _when_stored(self, outputs: bytes, step: int) -> None:
        """Answer when the store has caught up."""
        session = self._session
        assert session is not None  # noqa: S101  it is open

        def told(error: errors.ServiceError | None) -> None:
            if self._protocol.state is not StreamState.ANSWERING:
                return  # the stream has ended meanwhile
            if error is None:
                self._guarded(self._write_answer, outputs, step)
            else:
                self._guarded(self._refuse, unstored(error, numbered=self._is_numbered))

        self._edge.keeper.checkpointer.when_stored(session, step, told)

    def _write_answer(self, outputs: bytes, step: int) -> None:
        """Write the answer as protobuf would write it."""
        body = b"\x18" + varint(step)
        if outputs:
            body = b"\x0a" + varint(len(outputs)) + outputs + body
        durable_step = self._durable_step()
        if durable_step:
            body += b"\x20" + varint(durable_step)
        self._answer(b"\x12" + varint(len(body)) + body)

    def _durable_step(self) -> int:
        """Return how far the session is stored: the client is told now."""
        session = self._session
        if session is not None and not session.is_ended:
            self._told_durable_step = session.durable_step
        return self._told_durable_step

    async def _flush(self) -> bytes:
        session = self._settled_session()
        await self._edge.keeper.until_settled(session)
        step = self._settled_session().step
        await self._edge.keeper.checkpointer.until_stored(session, step)
        flushed = sequence_pb2.Flushed(durable_step=self._durable_step())
        return sequence_pb2.StreamResponse(flushed=flushed).SerializeToString()

    def failed(self, error: errors.ServiceError) -> None:
        """See SingleWaiter."""
        self._guarded(self._refuse, error)

    def _answer(self, response: bytes) -> None:
        self._protocol.handle(StreamEvent.ANSWERED)
        super()._answer(response)

    def _refuse(self, error: errors.ServiceError) -> None:
        if ends_stream(error, self._protocol.state, numbered=self._is_numbered):
            # It may have lost its session while it answered: to whom is known by that error only.
            self._fail(self._end_error or error)
            return
        self._edge.count(error)
        self._answer(sequence_pb2.StreamResponse(error=status.in_band(error)).SerializeToString())

    def _fail(self, error: errors.ServiceError, *, is_counted: bool = False) -> None:
        self._protocol.handle(StreamEvent.FAIL)
        super()._fail(error, is_counted=is_counted)

    def _sessions(self) -> list[Session[Model]]:
        return [] if self._session is None else [self._session]

    def _leave(self) -> None:
        if self._session is not None:
            self._edge.keeper.detach([self._session], self)

    async def _open(self, request: sequence_pb2.Open) -> bytes:
        edge = self._edge
        self._open_timer.cancel()
        edge.refuse_while_draining()
        session, created = await edge.keeper.open(codec.open_request(request), self)
        self._session = session
        self._settled_session()  # it may have been taken or ended since, and its row be another's
        self._slot, self._columns = session.slot, session.model.columns
        self._num_features = _num_fast_features(session.model.signature)
        self._speaks_unasked = session.durability is not Durability.NONE
        self._told_durable_step = session.durable_step
        opened = codec.opened_message(session, created=created, max_steps=edge.max_steps)
        return sequence_pb2.StreamResponse(opened=opened).SerializeToString()

    async def _values(self, message: sequence_pb2.Values) -> bytes:
        begin_s = time.perf_counter()
        session = self._settled_session()
        signature = session.model.signature
        rows = codec.rows(message, signature, self._edge.max_steps)
        wanted = codec.answers(message.answers)
        await self._edge.keeper.until_settled(session)  # a unary call may be moving it just now
        self._settled_session()
        applied = await self._edge.stepper.step(
            session, rows, message.step if self._is_numbered else None, wanted
        )
        try:
            await self._edge.keeper.checkpointer.until_stored(session, applied.step, strictly=False)
        except errors.StoreUnavailable as error:
            raise unstored(error, numbered=self._is_numbered) from error
        response = sequence_pb2.StreamResponse()
        codec.fill_answer(
            response.answer,
            applied.outputs,
            signature,
            step=applied.step,
            durable_step=self._durable_step(),
            as_tensors=bool(message.tensors),
        )
        response.answer.replayed = applied.is_replayed
        self._edge.observer.step_total(session.model.name, time.perf_counter() - begin_s)
        return response.SerializeToString()

    async def _forecast(self, wanted: sequence_pb2.StreamForecast) -> bytes:
        session = self._settled_session()
        await self._edge.keeper.until_settled(session)
        record = self._settled_session().record()
        numbers = await self._edge.forecast(record, session.model, wanted)
        answer = sequence_pb2.Answer(
            values=numbers.ravel().tolist(),
            step=record.step,
            durable_step=self._durable_step(),
            forecast=True,
        )
        return sequence_pb2.StreamResponse(answer=answer).SerializeToString()

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


def _num_fast_features(signature: Signature) -> int:
    """Return how many numbers a message has that goes the short way; -1, as none has, where numbers are no rows."""
    is_row = signature.value_row.is_float32 and signature.answer_row.is_float32
    return len(signature.features) if is_row else -1
