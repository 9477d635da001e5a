"""Many sessions on one bidirectional stream: a frame in, a frame out."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from longshort.v1 import sequence_pb2

from longshort_service import errors
from longshort_service.frame_answer import collect
from longshort_service.frames import FrameReader
from longshort_service.handlers import codec, frame_codec, status
from longshort_service.handlers.conversation import Conversation
from longshort_service.handles import MAX_HANDLES, HandleTable
from longshort_service.keeper import DETACH_BATCH, OPEN_BATCH
from longshort_service.opener import OpenRequest
from longshort_service.protocol import unstored

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    import numpy as np
    from numpy.typing import NDArray

    from longshort_service.batching import Job
    from longshort_service.frame_answer import FrameAnswer
    from longshort_service.frame_work import FrameWork
    from longshort_service.handlers.edge import Edge
    from longshort_service.record import SessionRecord
    from longshort_service.repository import Model
    from longshort_service.session import Session
    from longshort_service.transport.call import Call

_OPEN, _VALUES, _FORECAST, _FLUSH = (
    sequence_pb2.FRAME_PART_OPEN,
    sequence_pb2.FRAME_PART_VALUES,
    sequence_pb2.FRAME_PART_FORECAST,
    sequence_pb2.FRAME_PART_FLUSH,
)
_NOTHING = sequence_pb2.StreamFramesResponse()
# Good values without a number that were not applied: the next ones would close over the gap unseen. Or applied and in
# danger: who sends them has to know before more follow.
_ENDS_UNNUMBERED: Final = (errors.QueueFull, errors.SessionsExhausted, errors.TakenUnstored)
# Each takes a row to work on, and 30 us of the loop's turn in which it begins.
_FORECASTS_AT_ONCE: Final = 64


class FrameConversation(Conversation):
    """The server's half of a StreamFrames call. It owns the sessions that its handles name."""

    def __init__(self, edge: Edge, call: Call, is_over: Callable[[Conversation], None]) -> None:
        self._handles: HandleTable[Model] = HandleTable()
        self._reader = FrameReader(self._handles, edge.max_steps, edge.max_batch_rows)
        self._num_running = 0  # jobs of the frame in hand
        self._all_ended: Callable[[], None] = _do_nothing
        self._losses: dict[str, errors.ServiceError] = {}  # of sessions that have no handle yet, by id
        super().__init__(edge, call, is_over)

    def lose(self, session_id: str, error: errors.ServiceError) -> None:
        """See StreamOwner: only the next row of that session hears of it."""
        session = self._edge.keeper.table.get(session_id)
        if session is None or not self._handles.lose(session, error):
            self._losses[session_id] = error

    def stored(self, session_id: str, durable_step: int) -> None:
        """See StreamOwner: the session's next answer says it, or the answer to a flush."""

    def _take(self, raw: bytes) -> None:
        begin_s = time.perf_counter()
        self._open_timer.cancel()
        request = frame_codec.parse(raw, self._edge.max_message_bytes)
        frame = request.frame
        if request.opens or len(request.closes) or request.forecasts or len(request.flushes):
            self._slowly(self._take_slowly(request, begin_s))
            return
        work = self._reader.begin_again(frame, self._edge.keeper.clock())
        if work is None:
            if self._reader.busy_sessions(frame):
                self._slowly(self._take_slowly(request, begin_s))
                return
            work = self._reader.begin(frame, self._edge.keeper.clock())
        self._start(work)
        if self._num_running:
            # It is the scheduler that calls: nothing may be raised to it.
            self._all_ended = lambda: self._guarded(self._finish, work, begin_s)
        else:
            self._finish(work, begin_s)

    def _finish(self, work: FrameWork[Model], begin_s: float) -> None:
        waiting = self._waiting_for_store(work)
        if waiting:
            self._slowly(self._finish_stored(work, waiting, begin_s))
        else:
            self._answer(self._response(work, begin_s, None))

    async def _finish_stored(
        self, work: FrameWork[Model], waiting: list[tuple[int, Session[Model], int]], begin_s: float
    ) -> bytes:
        await self._until_stored(work, waiting)
        return self._response(work, begin_s, None)

    async def _take_slowly(self, request: frame_codec.FrameRequest, begin_s: float) -> bytes:
        """Answer a frame that has to wait for more than its jobs."""
        for begin in range(0, len(request.closes), DETACH_BATCH):
            self._close(request.closes[begin : begin + DETACH_BATCH].tolist())
            await asyncio.sleep(0)
        rest = sequence_pb2.StreamFramesResponse()
        if request.opens:
            await self._open(request.opens, rest)
        while busy := self._reader.busy_sessions(request.frame):
            for session in busy:
                await self._edge.keeper.until_settled(session)
        work = self._reader.begin(request.frame, self._edge.keeper.clock())
        self._start(work)
        if self._num_running:
            ended = asyncio.Event()
            self._all_ended = ended.set
            await ended.wait()
        await self._until_stored(work, self._waiting_for_store(work))
        await self._forecast(request.forecasts, rest)
        await self._flush(request.flushes.tolist(), rest)
        return self._response(work, begin_s, rest)

    def _refuse(self, error: errors.ServiceError) -> None:
        """End the stream: an error of a whole frame leaves nobody knowing what it held."""
        self._fail(error)

    def _sessions(self) -> list[Session[Model]]:
        return list(self._handles)

    def _leave(self) -> Coroutine[None, None, None]:
        return self._edge.keeper.detach_many(list(self._handles), self)

    # -- values --------------------------------------------------------------------------------------------------

    def _start(self, work: FrameWork[Model]) -> None:
        """Start the jobs of a frame."""
        for part in list(work.parts):
            part.job.on_end = self._job_ended
            try:
                self._edge.stepper.submit(part.model, part.job)
            except errors.ServiceError as error:
                work.give_up(part, error)
            else:
                self._num_running += 1

    def _job_ended(self, _job: Job) -> None:
        self._num_running -= 1
        if not self._num_running:
            all_ended, self._all_ended = self._all_ended, _do_nothing  # it holds the frame
            all_ended()

    def _response(
        self, work: FrameWork[Model], begin_s: float, rest: sequence_pb2.StreamFramesResponse | None
    ) -> bytes:
        answer = collect(work)
        durable_steps = (
            self._durable_steps(work, answer) if self._edge.keeper.checkpointer.is_active else None
        )
        for position in work.replays:
            self._edge.stepper.replayed(self._handles.models[work.found.models[position]])
        for repeats in work.repeats:
            self._edge.stepper.replayed(repeats.model, len(repeats.positions))
        if work.failures:
            rest = sequence_pb2.StreamFramesResponse() if rest is None else rest
            for position in sorted(work.failures):
                error = work.failures[position]
                self._add_error(rest, int(work.frame.handles[position]), _VALUES, error)
                if work.frame.steps is None and isinstance(error, _ENDS_UNNUMBERED):
                    self._end_error = self._end_error or error
        seconds = time.perf_counter() - begin_s
        for part in work.parts:
            self._edge.observer.step_total(part.model.name, seconds, part.job.num_applied)
        return frame_codec.response(answer, durable_steps, _NOTHING if rest is None else rest)

    # -- the store -----------------------------------------------------------------------------------------------

    def _durable_steps(self, work: FrameWork[Model], answer: FrameAnswer) -> NDArray[np.int64]:
        """Return up to which step the answered rows' sessions are stored."""
        is_as_found = len(answer.handles) == len(work.frame.handles) and work.version == self._handles.version
        return self._handles.durable_steps(work.found if is_as_found else self._handles.find(answer.handles))

    def _waiting_for_store(self, work: FrameWork[Model]) -> list[tuple[int, Session[Model], int]]:
        """Return position, session and step of the rows whose answers wait for the store.

        Those whose session was lost meanwhile have failed: whether their steps are stored is the taker's affair.
        """
        waiting: list[tuple[int, Session[Model], int]] = []
        if not self._edge.keeper.checkpointer.is_active:
            return waiting
        is_as_found = work.version == self._handles.version
        for model, rows, positions, steps in work.reached():
            # Where a handle was lost, a row may be another session's by now: all are judged by their sessions.
            chosen = steps >= model.columns.waits_from[rows] if is_as_found else slice(None)
            for position, step in zip(positions[chosen].tolist(), steps[chosen].tolist(), strict=True):
                handle = int(work.frame.handles[position])
                session = self._handles.find_session(handle)
                if session is None:
                    work.unstored[position] = self._handles.refusal(handle)
                elif step >= model.columns.waits_from[session.row]:
                    waiting.append((position, session, step))
        return waiting

    async def _until_stored(
        self, work: FrameWork[Model], waiting: list[tuple[int, Session[Model], int]]
    ) -> None:
        """Wait until the store has caught up with all of them; those that it does not take have failed."""
        if not waiting:
            return
        all_told = asyncio.Event()
        num_waiting = len(waiting)

        def told(position: int, error: errors.ServiceError | None) -> None:
            nonlocal num_waiting
            handle = int(work.frame.handles[position])
            if error is not None and self._handles.find_session(handle) is None:
                # Who has taken a session away is known by its loss; the store knows only that it has ended.
                work.unstored[position] = self._handles.refusal(handle)
            elif error is not None:
                work.unstored[position] = unstored(error, numbered=work.frame.steps is not None)
            num_waiting -= 1
            if not num_waiting:
                all_told.set()

        for position, session, step in waiting:
            self._edge.keeper.checkpointer.when_stored(session, step, partial(told, position))
        await all_told.wait()

    async def _flush(self, handles: list[int], rest: sequence_pb2.StreamFramesResponse) -> None:
        """Wait until all that was applied to sessions is stored."""
        outcomes = await asyncio.gather(*map(self._flush_one, handles), return_exceptions=True)
        for handle, outcome in zip(handles, outcomes, strict=True):
            if isinstance(outcome, errors.ServiceError):
                self._add_error(rest, handle, _FLUSH, outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                rest.flushed.append(handle)
                rest.flushed_steps.append(outcome)

    async def _flush_one(self, handle: int) -> int:
        session = self._handles.get(handle)
        await self._edge.keeper.until_settled(session)
        await self._edge.keeper.checkpointer.until_stored(session, self._handles.get(handle).step)
        return self._handles.get(handle).durable_step

    # -- errors --------------------------------------------------------------------------------------------------

    def _add_error(
        self,
        rest: sequence_pb2.StreamFramesResponse,
        handle: int,
        part: sequence_pb2.FramePart,
        error: errors.ServiceError,
    ) -> None:
        self._edge.count(error)
        if isinstance(error, errors.EngineDead | errors.OurFault) and self._end_error is None:
            self._end_error = error  # after this answer
        rest.errors.append(sequence_pb2.FrameError(handle=handle, error=status.in_band(error), part=part))

    # -- sessions ------------------------------------------------------------------------------------------------

    def _close(self, handles: Iterable[int]) -> None:
        named = [self._handles.close(handle) for handle in handles]
        sessions = [session for session in named if session is not None]
        self._edge.keeper.detach(sessions, self)

    async def _open(
        self, opens: list[sequence_pb2.FrameOpen], rest: sequence_pb2.StreamFramesResponse
    ) -> None:
        """Open sessions, as many in one turn of the loop as the keeper does; each is answered or in `errors`."""
        for begin in range(0, len(opens), OPEN_BATCH):
            await self._open_part(opens[begin : begin + OPEN_BATCH], rest)

    async def _open_part(
        self, opens: list[sequence_pb2.FrameOpen], rest: sequence_pb2.StreamFramesResponse
    ) -> None:
        edge = self._edge
        asked = [self._asked(each) for each in opens]
        self._close(each.handle for each in opens)  # those that are open already change hands
        self._losses.clear()
        requests = [request for request in asked if isinstance(request, OpenRequest)]
        outcomes = iter(await edge.keeper.open_many(requests, self))
        for each, request in zip(opens, asked, strict=True):
            handle = each.handle
            opened = next(outcomes) if isinstance(request, OpenRequest) else request
            if isinstance(opened, errors.ServiceError):
                self._close([handle])  # given twice in this frame, it may name another by now
                self._add_error(rest, handle, _OPEN, opened)
                continue
            session, created = opened
            if session.owner is not self:  # taken away before all of them were open
                self._close([handle])
                self._add_error(rest, handle, _OPEN, self._losses[session.id])
                continue
            moved = errors.SessionMoved(
                f"session {session.id} was given handle {handle}",
                cause="opened",
                client_id=each.open.client_id,
            )
            self._handles.lose(session, moved)  # opened twice in this frame: a row is moved by one handle
            self._close([handle])
            self._handles.open(handle, session)
            message = codec.opened_message(session, created=created, max_steps=edge.max_steps)
            rest.opened.append(sequence_pb2.FrameOpened(handle=handle, opened=message))

    def _asked(self, each: sequence_pb2.FrameOpen) -> OpenRequest | errors.ServiceError:
        """Return what an opening asks for, or why it is refused before anything is looked at."""
        try:
            self._edge.refuse_while_draining()
            if each.handle >= MAX_HANDLES:
                raise errors.HandleOutOfRange(
                    f"handle {each.handle} is too great: handles are below {MAX_HANDLES}",
                    handle=each.handle,
                    max_handles=MAX_HANDLES,
                )
            return codec.open_request(each.open)
        except errors.ServiceError as error:
            return error

    async def _forecast(
        self, forecasts: list[sequence_pb2.FrameForecast], rest: sequence_pb2.StreamFramesResponse
    ) -> None:
        """Look ahead from each session, many at once; the scheduler lets live steps through between."""
        for begin in range(0, len(forecasts), _FORECASTS_AT_ONCE):
            looks: list[tuple[SessionRecord, Model, sequence_pb2.FrameForecast]] = []
            for each in forecasts[begin : begin + _FORECASTS_AT_ONCE]:
                try:
                    looks.append((*await self._look(each.handle), each))
                except errors.ServiceError as error:
                    self._add_error(rest, each.handle, _FORECAST, error)
            outcomes = await self._edge.forecast_many(looks)
            for (record, _, each), outcome in zip(looks, outcomes, strict=True):
                if isinstance(outcome, errors.ServiceError):
                    self._add_error(rest, each.handle, _FORECAST, outcome)
                else:
                    rest.forecasts.add(handle=each.handle, values=outcome.ravel().tolist(), step=record.step)

    async def _look(self, handle: int) -> tuple[SessionRecord, Model]:
        """Return a session between two messages, and its model. Raises why the handle names none."""
        await self._edge.keeper.until_settled(self._handles.get(handle))
        session = self._handles.get(handle)
        return session.record(), session.model


def _do_nothing() -> None:
    pass
