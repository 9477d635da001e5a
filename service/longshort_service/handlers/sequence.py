"""SequenceService: streams, and the unary calls that step, forecast and explain."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import grpc
from longshort.v1 import sequence_pb2

from longshort_service import errors
from longshort_service.handlers import codec, status, tensors
from longshort_service.handlers.frames import FrameConversation
from longshort_service.handlers.stream import StreamConversation
from longshort_service.opener import OpenRequest
from longshort_service.protocol import unstored

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshort.v1 import types_pb2

    from longshort_service.handlers.edge import Edge
    from longshort_service.record import SessionRecord
    from longshort_service.repository import Model
    from longshort_service.transport.call import Call

SERVICE_NAME: Final = "longshort.v1.SequenceService"


class OpenStream(Protocol):
    """A stream as the server sees it that is to stop."""

    def hold(self) -> asyncio.Future[None]:
        """Take no further message; return what is done when what it has in hand is answered."""

    def end(self, error: errors.ServiceError) -> None:
        """End the stream after the answers that it has in hand."""


class SequenceHandler:
    """The handlers of SequenceService, and the streams that are open: those of other services too."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._streams: set[OpenStream] = set()

    def routes(self) -> dict[str, Callable[[Call], None]]:
        """Return who takes the calls of the streaming methods, by path."""
        return {
            f"/{SERVICE_NAME}/Stream": lambda call: self.converse(call, StreamConversation),
            f"/{SERVICE_NAME}/StreamFrames": lambda call: self.converse(call, FrameConversation),
        }

    def generic_handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """Return what a gRPC server is given. Messages pass as bytes: parsing them is the edge's affair."""
        edge = self._edge
        methods = {
            "Step": edge.unary(sequence_pb2.StepRequest, self._step),
            "Forecast": edge.unary(sequence_pb2.ForecastRequest, self._forecast),
            "Explain": edge.unary(sequence_pb2.ExplainRequest, self._explain),
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    def num_streams(self) -> int:
        """Return how many streams are open."""
        return len(self._streams)

    async def hold_streams(self) -> None:
        """Have every stream take nothing more; return when what they have in hand is answered."""
        held = [stream.hold() for stream in list(self._streams)]
        if held:
            await asyncio.wait(held)

    def end_streams(self, error: errors.ServiceError) -> None:
        """End every stream, each after the answer it has in hand."""
        for stream in list(self._streams):
            stream.end(error)

    def converse(
        self, call: Call, kind: Callable[[Edge, Call, Callable[[OpenStream], None]], OpenStream]
    ) -> None:
        """Have a stream of a kind take a call, or refuse it where there are too many."""
        try:
            self._admit()
        except errors.ServiceError as error:
            self._edge.count(error)
            status.finish(call, error)
        else:
            self._streams.add(kind(self._edge, call, self._streams.discard))

    def _admit(self) -> None:
        """Refuse a stream at the door. Raises Draining or StreamsExhausted."""
        self._edge.refuse_while_draining()
        if len(self._streams) >= self._edge.max_streams:
            raise errors.StreamsExhausted(
                f"{len(self._streams)} streams are open, the most that this server takes: wait and connect again",
                max_streams=self._edge.max_streams,
            )

    async def _step(self, request: sequence_pb2.StepRequest) -> sequence_pb2.StepResponse:
        edge, begin_s = self._edge, time.perf_counter()
        wanted = codec.answers(request.values.answers)
        session, created = await edge.keeper.ensure(
            OpenRequest(
                codec.session_id(request.session),
                codec.open_mode(request.mode),
                request.model,
                request.version,
                initial=tensors.by_name(request.initial),
            )
        )
        # A copy that is on its way to the store may say that nothing is missing after it.
        strictly = edge.is_unary_sync or session.is_writing
        try:
            rows = codec.rows(request.values, session.model.signature, edge.max_steps)
            step = request.values.step if request.values.HasField("step") else None
            applied = await edge.stepper.step(session, rows, step, wanted)
        except errors.ServiceError:
            if created:  # sent again, corrected or later, the call shall find what it found this time
                await edge.keeper.uncreate(session)
            raise
        try:
            await edge.keeper.checkpointer.until_stored(session, applied.step, strictly=strictly)
        except errors.StoreUnavailable as error:
            raise unstored(error, numbered=step is not None) from error
        response = sequence_pb2.StepResponse(created=created, incarnation=session.incarnation)
        codec.fill_answer(
            response.answer,
            applied.outputs,
            session.model.signature,
            step=applied.step,
            durable_step=0 if session.is_ended else session.durable_step,
            as_tensors=bool(request.values.tensors),
        )
        response.answer.replayed = applied.is_replayed
        edge.observer.step_total(session.model.name, time.perf_counter() - begin_s)
        return response

    async def _forecast(self, request: sequence_pb2.ForecastRequest) -> sequence_pb2.ForecastResponse:
        record, model = await self._look(request.session, request.min_step)
        numbers = await self._edge.forecast(record, model, request)
        return sequence_pb2.ForecastResponse(values=numbers.ravel().tolist(), step=record.step)

    async def _explain(self, request: sequence_pb2.ExplainRequest) -> sequence_pb2.ExplainResponse:
        record, model = await self._look(request.session, request.min_step)
        message = sequence_pb2.Values(values=request.values, tensors=request.tensors)
        rows = codec.rows(message, model.signature, self._edge.max_steps)
        outputs = await self._edge.stepper.explain(record, model, rows)
        found = [tensors.message(name, array) for name, array in outputs.items()]
        return sequence_pb2.ExplainResponse(tensors=found, step=record.step)

    async def _look(self, key: types_pb2.SessionKey, min_step: int) -> tuple[SessionRecord, Model]:
        """Return a session as it is between two messages, wherever it is; it is not touched.

        Raises SessionNotFound, SessionExpired, Stale, or ModelNotFound where its version is not loaded here.
        """
        record = (await self._edge.management.get(codec.session_id(key), min_step)).record
        return record, self._edge.repository.get(record.model, record.version)
