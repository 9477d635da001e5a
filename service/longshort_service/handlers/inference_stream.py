"""ModelStreamInfer: many requests on one stream, of any sequences, answered in the order in which they came.

Requests of one sequence are applied one after the other, those of different sequences share runs. A bounded number is
in hand at a time; the stream reads on when answers have gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from longshort_service import errors
from longshort_service.handlers import codec, inference_request, status
from longshort_service.inference.inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshort_service.handlers.edge import Edge
    from longshort_service.handlers.inference_request import Place
    from longshort_service.handlers.inference_sequences import Inference
    from longshort_service.handlers.sequence import OpenStream
    from longshort_service.transport.call import Call

MAX_IN_HAND: Final = 64  # requests of one stream whose answers gRPC has not taken yet
ERROR_HEADER: Final = "triton_grpc_error"


@dataclass(frozen=True, slots=True)
class _Refused:
    """What a request came to that was not answered."""

    error: errors.ServiceError
    request_id: str = ""


_Outcome = ModelInferResponse | _Refused


class InferenceStream:
    """The server's half of a ModelStreamInfer call."""

    def __init__(
        self, inference: Inference, edge: Edge, call: Call, is_over: Callable[[OpenStream], None]
    ) -> None:
        self._inference = inference
        self._edge = edge
        self._call = call
        self._is_over = is_over
        # Triton's clients ask with a header for errors that end the stream with a status.
        self._errors_end_it = (ERROR_HEADER, "true") in call.metadata
        self._in_hand: deque[asyncio.Task[_Outcome]] = deque()  # in the order in which they came
        self._last_of: dict[str, asyncio.Task[_Outcome]] = {}  # of each sequence
        self._num_unwritten = 0
        self._is_reading = False
        self._has_all = False  # the client has half-closed
        self._held: asyncio.Future[None] | None = None
        self._end_error: errors.ServiceError | None = None
        call.on_closed = self._closed
        edge.call_began()
        self._go_on()

    def hold(self) -> asyncio.Future[None]:
        """See OpenStream."""
        if self._held is None:
            self._held = asyncio.get_running_loop().create_future()
            self._go_on()
        return self._held

    def end(self, error: errors.ServiceError) -> None:
        """See OpenStream."""
        if self._end_error is None:
            self._end_error = error
            self._edge.count(error)
            self._go_on()

    def _received(self, raw: bytes | None) -> None:
        self._is_reading = False
        if raw is None:
            self._has_all = (
                True  # also while it is held: its client has had all that it asked for, or soon will
            )
        elif self._call.is_active and self._held is None and self._end_error is None:
            self._take(raw)  # otherwise its sender learns from the status that it was not taken
        self._go_on()

    def _take(self, raw: bytes) -> None:
        request, where, refusal = ModelInferRequest(), None, None
        try:
            request = codec.parse(ModelInferRequest, raw, self._edge.max_message_bytes)
        except errors.ServiceError as error:
            refusal = error
        else:
            with contextlib.suppress(
                errors.ServiceError
            ):  # `answer` refuses it, and counts it with its model
                where = inference_request.place(request)
        before = None if where is None else self._last_of.get(where.session_id)
        task = asyncio.get_running_loop().create_task(self._outcome(request, where, before, refusal))
        if where is not None:
            self._last_of[where.session_id] = task
        self._in_hand.append(task)
        task.add_done_callback(lambda _: self._answered(task, where))

    async def _outcome(
        self,
        request: ModelInferRequest,
        where: Place | None,
        before: asyncio.Task[_Outcome] | None,
        refusal: errors.ServiceError | None,
    ) -> _Outcome:
        """Return what a request comes to, once the one before it in its sequence has come to something."""
        if refusal is not None:
            self._edge.count(refusal)
            return _Refused(refusal, request.id)
        try:
            if before is not None:
                await asyncio.wait([before])
                self._check_gap(where, before)
            return await self._inference.answer(request)
        except errors.ServiceError as error:
            self._edge.count(error)
            return _Refused(error, request.id)
        except Exception as error:  # noqa: BLE001  the edge: a bug is this request's and no other's
            return _Refused(self._edge.wrap(error), request.id)

    def _check_gap(self, where: Place | None, before: asyncio.Task[_Outcome]) -> None:
        """Refuse, if strict, what was sent before its sender knew that the request before it was refused."""
        if not self._inference.is_strict or where is None or where.is_start or where.step is not None:
            return
        if before.cancelled() or isinstance(before.result(), _Refused):
            raise errors.StepRequired(
                "the request before this one in its sequence was refused, so that values are missing: "
                "send both again, or say sequence_step"
            )

    def _answered(self, task: asyncio.Task[_Outcome], where: Place | None) -> None:
        if where is not None and self._last_of.get(where.session_id) is task:
            del self._last_of[where.session_id]
        while self._in_hand and self._in_hand[0].done():
            first = self._in_hand.popleft()
            if not first.cancelled():
                self._write(first.result())
        self._go_on()

    def _write(self, outcome: _Outcome) -> None:
        if not isinstance(outcome, _Refused):
            outcome.parameters["triton_final_response"].bool_param = True
            response = ModelStreamInferResponse(infer_response=outcome)
        elif self._errors_end_it:
            self._fail(outcome.error)
            return
        else:
            response = ModelStreamInferResponse(
                error_message=f"{outcome.error.reason}: {outcome.error.message}",
                infer_response=ModelInferResponse(id=outcome.request_id),
            )
        self._num_unwritten += 1
        self._call.write(response.SerializeToString(), self._written)

    def _written(self, _was_taken: bool) -> None:  # noqa: FBT001  callbacks are told by position
        self._num_unwritten -= 1
        self._go_on()

    def _go_on(self) -> None:
        """Do what is due: read on, say that nothing is in hand any more, or end the call."""
        is_idle = not self._in_hand
        if is_idle and self._held is not None and not self._held.done():
            self._held.set_result(None)
        if is_idle and self._end_error is not None:
            self._fail(self._end_error)
        elif self._has_all:
            if is_idle:
                self._call.finish()
        elif (
            not self._is_reading
            and self._held is None
            and self._call.is_active
            and len(self._in_hand) + self._num_unwritten < MAX_IN_HAND
        ):
            self._is_reading = True
            self._call.read(self._received)

    def _fail(self, error: errors.ServiceError) -> None:
        """End the call with an error, which is counted, as its status; what is in hand still is withdrawn."""
        status.finish(self._call, error)
        for task in self._in_hand:
            task.cancel()

    def _closed(self, _is_cancelled: bool) -> None:  # noqa: FBT001  as above; both ends are the same to us
        if self._held is not None and not self._held.done():
            self._held.set_result(None)
        left = list(self._in_hand)
        for task in left:
            task.cancel()
        self._leaving = asyncio.get_running_loop().create_task(self._leave(left))

    async def _leave(self, left: list[asyncio.Task[_Outcome]]) -> None:
        if left:
            await asyncio.wait(left)
        self._edge.call_ended()
        self._is_over(self)
