"""A call in which the client asks and is answered in turn, until either side ends it: what both kinds of stream share.

Callbacks, no coroutine: a message that needs nothing but a run is answered without a task and without a future. What
has to wait for something else goes on in a task.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, Final

from longshort_service import errors
from longshort_service.handlers import status

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from longshort_service.handlers.edge import Edge
    from longshort_service.repository import Model
    from longshort_service.session import Session
    from longshort_service.transport.call import Call

# A stream that says nothing holds a place that another could use.
OPEN_TIMEOUT_S: Final = 30.0
# Streams that began together, after a restart, do not end together.
AGE_SPREAD: Final = 0.1
# An old stream whose store is away goes on for so long, then looks again: outages are seconds, ages hours.
AGED_AGAIN_S: Final = 5.0


class Conversation:
    """The server's half of a call. It reads the next message once the answer to this one is written."""

    def __init__(self, edge: Edge, call: Call, is_over: Callable[[Conversation], None]) -> None:
        self._edge = edge
        self._call = call
        self._is_over = is_over  # told once, when nothing is left to do
        self._is_answering = False  # a message is in hand
        self._speaks_unasked = False  # it may write while it waits for a message
        self._held: asyncio.Future[None] | None = None  # done when it says and takes nothing more
        self._kept_back: list[bytes] = []  # what came while it was held, one at most
        self._end_error: errors.ServiceError | None = None
        self._task: asyncio.Task[None] | None = None
        call.on_closed = self._closed
        edge.call_began()
        overdue = errors.NotOpen(f"the stream was not opened within {OPEN_TIMEOUT_S:.0f} s")
        self._open_timer = asyncio.get_running_loop().call_later(OPEN_TIMEOUT_S, self.end, overdue)
        self._age_timer: asyncio.TimerHandle | None = None  # None: it never ends for its age
        self._is_old = False
        self._retiring: asyncio.Task[None] | None = None
        if edge.max_stream_age_s:
            spread = random.uniform(1 - AGE_SPREAD, 1 + AGE_SPREAD)  # noqa: S311  no secret
            self._retire_in(edge.max_stream_age_s * spread)
        call.read(self._received)

    # What a kind of stream says

    def _take(self, raw: bytes) -> None:
        """Take a message, and answer it now or later. May raise a ServiceError."""
        raise NotImplementedError

    def _refuse(self, error: errors.ServiceError) -> None:
        """Tell the client that its message came to nothing."""
        raise NotImplementedError

    def _leave(self) -> Coroutine[None, None, None] | None:
        """Let go of what the stream has: the call is over. Return what is left to do where that takes long."""
        raise NotImplementedError

    def _sessions(self) -> Sequence[Session[Model]]:
        """Return the sessions that the stream has, each once."""
        raise NotImplementedError

    def hold(self) -> asyncio.Future[None]:
        """Take no further message; return what is done when the one in hand is answered."""
        if self._held is None:
            self._held = asyncio.get_running_loop().create_future()
            if not self._is_answering:
                self._held.set_result(None)
        return self._held

    # What it is built of

    def end(self, error: errors.ServiceError) -> None:
        """End the stream: at once where it is between messages, otherwise after the answer in hand."""
        if self._end_error is None:
            self._end_error = error
            if not self._is_answering:
                self._fail(error)

    def _received(self, raw: bytes | None) -> None:
        if self._end_error is not None or not self._call.is_active:
            return  # its sender learns from the status that it was not taken
        if raw is None:
            self._call.finish()  # also while it is held: its client has had all that it asked for
        elif self._held is not None:
            self._kept_back.append(raw)  # not taken either, unless the stream goes on after all
        else:
            self._is_answering = True
            self._guarded(self._take, raw)

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        """Do something for the client; whatever is raised is its to hear, and nobody's else."""
        try:
            work(*arguments)
        except errors.ServiceError as error:
            self._refuse(error)
        except Exception as error:  # noqa: BLE001  the edge: a bug ends this stream and no other
            self._fail(self._edge.wrap(error), is_counted=True)

    def _slowly(self, work: Coroutine[None, None, bytes]) -> None:
        """Answer with what a coroutine returns; it is cancelled where the call ends."""
        self._task = asyncio.get_running_loop().create_task(self._awaited(work))
        # A call that ends in the turn in which its message came cancels the task before it has begun with the work.
        self._task.add_done_callback(lambda _: work.close())

    async def _awaited(self, work: Coroutine[None, None, bytes]) -> None:
        try:
            response = await work
        except errors.ServiceError as error:
            self._task = None
            self._refuse(error)
        except Exception as error:  # noqa: BLE001  as above
            self._task = None
            self._fail(self._edge.wrap(error), is_counted=True)
        else:
            self._task = None
            self._answer(response)

    def _answer(self, response: bytes) -> None:
        """Write the answer to the message in hand, and read the next message."""
        self._is_answering = False
        if self._end_error is not None:
            self._call.write(response)
            self._fail(self._end_error)
        elif self._held is not None:
            self._call.write(response)
            self._call.read(self._received)
            self._held.set_result(None)
        elif self._speaks_unasked:  # an exchange would keep what is written until the next message comes
            self._call.write(response)
            self._call.read(self._received)
        else:
            self._call.exchange(response, self._received)
        if self._is_old:
            self._retire_soon()

    def _fail(self, error: errors.ServiceError, *, is_counted: bool = False) -> None:
        """End the call with the error as its status."""
        self._end_error = error
        if not is_counted:
            self._edge.count(error)
        status.finish(self._call, error)

    # Growing old: its sessions go where their place is now, among replicas that have come back or were added

    def _retire_in(self, seconds: float) -> None:
        self._age_timer = asyncio.get_running_loop().call_later(seconds, self._grown_old)

    def _grown_old(self) -> None:
        # It ends behind its next answer: a client that is silent would not come back to keep its sessions in use.
        self._is_old = True

    def _retire_soon(self) -> None:
        self._is_old = False
        if self._end_error is not None or self._held is not None:
            return  # it ends anyway
        if self._edge.keeper.checkpointer.outage.is_away:
            self._retire_in(AGED_AGAIN_S)  # nobody else could be given the sessions
        else:
            self.hold()
            self._retiring = asyncio.get_running_loop().create_task(self._retire())

    async def _retire(self) -> None:
        """End the stream when its sessions are stored, as clean as those that a client has left."""
        try:
            sessions = self._sessions()
            # First as sessions of a stream that may go on: no value follows one that is called clean.
            if not await self._store(sessions, before_stream=True):
                self._release()
                return
            leaving = self._leave()
            if leaving is not None:
                await leaving
            await self._store(sessions)
        except Exception as error:  # noqa: BLE001  as above
            self._fail(self._edge.wrap(error), is_counted=True)
        else:
            self.end(errors.StreamAged("the stream has been open for long: connect again, nothing was lost"))

    async def _store(self, sessions: Sequence[Session[Model]], *, before_stream: bool = False) -> bool:
        """Write sessions; return whether the store was there. A call that ends cuts no write off half-way."""
        keeper = self._edge.keeper
        work = keeper.checkpointer.store_parts(sessions, before_stream=before_stream)
        return await keeper.turns.to_its_end(work)

    def _release(self) -> None:
        """Go on after a hold that came to nothing, unless a drain holds the stream too."""
        if self._edge.is_draining:
            return
        self._retire_in(AGED_AGAIN_S)
        self._held = None
        if self._kept_back:
            self._received(self._kept_back.pop())

    def _closed(self, is_cancelled: bool) -> None:  # noqa: FBT001, ARG002  a callback; both ends are the same to us
        self._open_timer.cancel()
        if self._age_timer is not None:
            self._age_timer.cancel()
        if self._retiring is not None:
            self._retiring.cancel()
        if self._held is not None and not self._held.done():
            self._held.set_result(None)
        if self._task is not None:
            self._task.cancel()
        leaving = self._leave()
        if leaving is None:
            self._ended()
        else:
            self._task = asyncio.get_running_loop().create_task(leaving)
            self._task.add_done_callback(self._ended)

    def _ended(self, _task: asyncio.Task[None] | None = None) -> None:
        self._edge.call_ended()
        self._is_over(self)
