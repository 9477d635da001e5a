"""Requests of the Open Inference Protocol, on sessions and without: which session moves, by which step.

Sessions are those of longshort.v1. A request has the durability of that contract's unary calls. It moves its session
without a step number, as Triton does, unless it says one or the server is strict; docs/open-inference.md has the rules.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from longshort_service import errors
from longshort_service.beginning import begin_states
from longshort_service.handlers import inference_request, inference_tensors
from longshort_service.inference.inference_pb2 import ModelInferResponse
from longshort_service.opener import OpenRequest
from longshort_service.ports import WORD_BYTES
from longshort_service.protocol import unstored
from longshort_service.session import Answers
from longshort_service.stateless import run_alone
from longshort_service.stores.base import OpenMode
from longshort_service.values import check_num_steps, check_values

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from longshort_service.handlers.edge import Edge
    from longshort_service.handlers.inference_request import Place
    from longshort_service.handlers.inference_statistics import Statistics
    from longshort_service.inference.inference_pb2 import ModelInferRequest
    from longshort_service.repository import Model
    from longshort_service.session import Session
    from longshort_service.signature import Signature
    from longshort_service.stepper import Applied

# Sequences whose last request id is known; 350 bytes each.
MAX_REMEMBERED: Final = 100_000
# What protobuf puts into a message. Many rows of a model with wide answers come to more, and would be run for nothing.
MAX_ANSWER_BYTES: Final = 2**31 - 1
# So often a start takes the place of a sequence that somebody else starts meanwhile.
_MAX_STARTS: Final = 4


class _Sent(NamedTuple):
    """The last request of a sequence that had an id."""

    request: int  # the hash of its id, which may be as long as a message
    incarnation: int  # of the session
    step: int  # the first of the request


class Inference:
    """Answers requests, one call each. `is_strict`: what Triton lets pass by silently is refused, or done once."""

    def __init__(self, edge: Edge, statistics: Statistics, *, is_strict: bool) -> None:
        self.is_strict = is_strict
        self._edge = edge
        self._statistics = statistics
        self._last_sent: OrderedDict[str, _Sent] = OrderedDict()  # by session, if strict

    async def answer(self, request: ModelInferRequest) -> ModelInferResponse:
        """Return the answer to a request. Raises the ServiceError that its sender is to be told."""
        begin_s = time.perf_counter()
        try:
            model, response = await self._answer(request)
        except errors.ServiceError:
            with contextlib.suppress(errors.ModelNotFound):
                loaded = self._edge.repository.get(request.model_name)
                self._statistics.failed(loaded.name, time.perf_counter() - begin_s)
            raise
        seconds = time.perf_counter() - begin_s
        self._statistics.succeeded(model, seconds)
        self._edge.observer.step_total(model.name, seconds)
        return response

    async def _answer(self, request: ModelInferRequest) -> tuple[Model, ModelInferResponse]:
        where = inference_request.place(request)
        if where is None:
            model, answers = await self._without_sequence(request)
            response = _response(request, model)
        else:
            session, applied = await self._of_sequence(request, where)
            model, answers = session.model, applied.outputs[None]
            response = _response(request, model)
            response.parameters["sequence_step"].int64_param = applied.step
            if applied.is_replayed:
                response.parameters["sequence_replayed"].bool_param = True
        inference_tensors.fill(response, answers, model.signature, request.outputs)
        return model, response

    async def _without_sequence(self, request: ModelInferRequest) -> tuple[Model, NDArray[np.float32]]:
        version = inference_request.version(request.model_version)
        model = self._edge.repository.get(request.model_name, version)
        rows, given = self._rows(request, model.signature)
        if not 1 <= len(rows) <= self._edge.max_batch_rows:
            raise errors.WrongShape(f"{len(rows)} rows in one request: send 1 to {self._edge.max_batch_rows}")
        return model, await run_alone(self._edge.stepper, model, rows, given)

    async def _of_sequence(self, request: ModelInferRequest, where: Place) -> tuple[Session[Model], Applied]:
        if not where.is_start:
            session = await self._find(request, where)
            row, given = self._row(request, session.model.signature)
            if given:
                raise errors.WrongShape(f"{', '.join(given)}: {session.model.name} takes no such input here")
            step = self._step_of(session, request, where)
            return session, await self._apply(session, request, where, row, step)
        if where.step is None and not self.is_strict:
            return await self._start_anew(request, where)
        return await self._start_once(request, where)

    async def _find(self, request: ModelInferRequest, where: Place) -> Session[Model]:
        """Return the session of a sequence that is under way."""
        try:
            session, _ = await self._edge.keeper.ensure(self._open_request(request, where, OpenMode.OPEN))
        except errors.SessionNotFound as error:
            raise errors.SessionNotFound(
                f"{error.message}: the first request of a sequence says sequence_start", **error.metadata
            ) from None
        return session

    async def _start_anew(self, request: ModelInferRequest, where: Place) -> tuple[Session[Model], Applied]:
        """Start a sequence as Triton does: one that is under way by that id is given up."""
        model = self._edge.repository.get(
            request.model_name, inference_request.version(request.model_version)
        )
        row, given = self._row(request, model.signature)
        # All that can be wrong with it, before anything is given up for it.
        check_values(row, model.signature, None)
        begin_states(model, given)
        wanted = self._open_request(request, where, OpenMode.CREATE, model.version, given)
        for _ in range(_MAX_STARTS):
            # At step 0 and nowhere else: a request that crosses this one may come to the new session before it.
            with contextlib.suppress(errors.SessionExists, errors.StepRefused):
                session, created = await self._edge.keeper.ensure(wanted)
                return session, await self._apply(session, request, where, row, 0, created=created)
            await self._end(where.session_id)
        raise errors.SessionExists(
            f"sequence {where.session_id} is started by others again and again",
            session_id=where.session_id,
        )

    async def _start_once(self, request: ModelInferRequest, where: Place) -> tuple[Session[Model], Applied]:
        """Start a sequence, or answer again its start that was sent before. Raises SessionExists, if strict."""
        model = self._edge.repository.get(
            request.model_name, inference_request.version(request.model_version)
        )
        _, given = self._row(request, model.signature)
        wanted = self._open_request(request, where, OpenMode.OPEN_OR_CREATE, given=given)
        try:
            session, created = await self._edge.keeper.ensure(wanted)
            row, _ = self._row(request, session.model.signature)
            is_known = where.step is not None or not self.is_strict or self._step_sent(session, request) == 0
            return session, await self._apply(
                session, request, where, row, 0, created=created, is_known=is_known
            )
        except errors.StepRefused as error:
            if self.is_strict:
                raise errors.SessionExists(
                    f"sequence {where.session_id} is under way, at step {error.metadata['expected_step']}: "
                    "end it before it is started again",
                    session_id=where.session_id,
                ) from None
        except (errors.ModelMismatch, errors.ModelChanged):
            if self.is_strict:
                raise
        return await self._start_anew(request, where)

    async def _apply(
        self,
        session: Session[Model],
        request: ModelInferRequest,
        where: Place,
        row: NDArray[np.float32],
        step: int | None,
        *,
        created: bool = False,
        is_known: bool = True,
    ) -> Applied:
        """Move a session by a request's row `[time, width]`, and end it where that is asked for.

        Raises SessionExists where the session was moved by these values before, and not by a request that `is_known`:
        to answer it would have two callers share a sequence.
        """
        edge = self._edge
        # A copy that is on its way to the store may say that nothing is missing after it.
        strictly = edge.is_unary_sync or session.is_writing
        self._note_sent(session, request, step)
        try:
            applied = await edge.stepper.step(session, row, step, Answers.ALL)
        except errors.ServiceError:
            if created:  # sent again, corrected or later, the request shall find what it found this time
                await edge.keeper.uncreate(session)
            raise
        if applied.is_replayed and not is_known:
            self._last_sent.pop(session.id, None)
            raise errors.SessionExists(
                f"sequence {session.id} was started by a request of another id: end it before it is started again",
                session_id=session.id,
            )
        try:
            if where.is_end:
                await self._end(session.id)
            else:
                await edge.keeper.checkpointer.until_stored(session, applied.step, strictly=strictly)
        except errors.StoreUnavailable as error:
            raise unstored(error, numbered=step is not None) from error
        return applied

    async def _end(self, session_id: str) -> None:
        """End a session, if it is there."""
        self._last_sent.pop(session_id, None)
        with contextlib.suppress(errors.SessionNotFound, errors.SessionExpired):
            await self._edge.management.delete(session_id)

    # -- once -----

    def _step_of(self, session: Session[Model], request: ModelInferRequest, where: Place) -> int | None:
        """Return the step number of a request: the one that it says, or had when it was sent before, if strict."""
        if where.step is not None or not self.is_strict:
            return where.step
        return self._step_sent(session, request)

    def _step_sent(self, session: Session[Model], request: ModelInferRequest) -> int | None:
        """Return the step that the sequence's last request had, if that was this one: by its id; else None."""
        last = self._last_sent.get(session.id)
        is_again = request.id and last is not None and last[:2] == (hash(request.id), session.incarnation)
        return last.step if last is not None and is_again else None

    def _note_sent(self, session: Session[Model], request: ModelInferRequest, step: int | None) -> None:
        """Note where a request with an id is about to be applied, if strict; not one that comes again or is refused."""
        if not self.is_strict or step not in (None, session.step):
            return
        # Before it is applied: its sender may be gone when it is.
        self._last_sent.pop(session.id, None)
        if not request.id:
            return
        self._last_sent[session.id] = _Sent(hash(request.id), session.incarnation, session.step)
        if len(self._last_sent) > MAX_REMEMBERED:
            self._last_sent.popitem(last=False)

    # -- what a request holds -----

    def _rows(
        self, request: ModelInferRequest, signature: Signature
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        """Return rows `[rows, time, width]`, and what else there is, for states. Raises what is wrong with them."""
        inference_tensors.check_outputs(signature, request.outputs)
        arrays = inference_tensors.inputs(request)
        rows = inference_tensors.rows(arrays, signature)
        check_num_steps(rows.shape[1], self._edge.max_steps)
        num_bytes = len(rows) * rows.shape[1] * signature.answer_row.width * WORD_BYTES
        if num_bytes > MAX_ANSWER_BYTES:
            raise errors.WrongShape(
                f"the answers of {len(rows)} rows of {rows.shape[1]} steps would be {num_bytes} bytes, "
                "more than a message holds: send fewer in a request"
            )
        return rows, inference_tensors.initial_states(arrays, signature)

    def _row(
        self, request: ModelInferRequest, signature: Signature
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        """Return the one row `[time, width]` of a sequence's request, and what else there is, for states."""
        rows, given = self._rows(request, signature)
        if len(rows) != 1:
            raise errors.WrongShape(f"a request of a sequence has one row, not {len(rows)}")
        return rows[0], given

    @staticmethod
    def _open_request(
        request: ModelInferRequest,
        where: Place,
        mode: OpenMode,
        version: int | None = None,
        given: dict[str, NDArray[Any]] | None = None,
    ) -> OpenRequest:
        if version is None:
            version = inference_request.version(request.model_version)
        return OpenRequest(where.session_id, mode, request.model_name, version, initial=given or {})


def _response(request: ModelInferRequest, model: Model) -> ModelInferResponse:
    return ModelInferResponse(model_name=model.name, model_version=str(model.version), id=request.id)
