"""The shell of one frame stream over grpc.aio: it does what the core says, in one task, on one server or the next."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import grpc

from longshort import errors, operations, view
from longshort.aio.writing import is_cancelled, write
from longshort.gateway.actions import CONNECT, RECEIVE, Idle, SendFrame
from longshort.options import CLOSE_TIMEOUT_S
from longshort.route import Route

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshort.aio.names import Lookups
    from longshort.gateway.stream import FrameStream
    from longshort.servers import Servers

METHOD: Final = "/longshort.v1.SequenceService/StreamFrames"
_EOF = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the type stubs


class FramePump:
    """Moves frames between one core and the server where its `key` is; after a failure that may be another.

    `on_answer` is told after each frame that came, `on_end` when none will come any more.
    """

    def __init__(
        self,
        core: FrameStream,
        servers: Servers[grpc.aio.Channel],
        lookups: Lookups,
        key: str,
        *,
        on_answer: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self._core = core
        self._servers = servers
        self._lookups = lookups
        self._route = Route(servers, key)
        self._on_answer = on_answer
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._call: Any = None
        self._is_met = False  # the call has had an answer
        self._waker: asyncio.Future[None] | None = None  # while there is nothing to do
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Take that something was asked."""
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)
        elif self._task is None:
            self._task = self._loop.create_task(self._run(), name="longshort-frames")
            self._task.add_done_callback(self._ended)  # of one that never ran too

    async def close(self, error: errors.LongshortError) -> None:
        """Half-close the stream, wait briefly for its end, and fail what waits. The sessions live on."""
        is_quiet = self._core.is_quiet
        self._core.close(error)
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
            if self._call is not None and is_quiet:
                await self._half_close()
        self._drop()

    async def _half_close(self) -> None:
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._call.done_writing()
                await self._call.read()

    async def _run(self) -> None:
        try:
            await self._converse()
        except Exception as error:
            # A bug of ours: nobody must wait for ever.
            self._core.close(errors.ServerFault(f"the gateway has failed: {error!r}", reason="INTERNAL"))
            raise

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # by `close`, which has told it, or with all tasks at the end of the loop
            self._core.close(view.closed_error("gateway"))
        elif (error := task.exception()) is not None:
            # Now: asyncio itself tells of it when the task is collected, whenever that is.
            told = {"message": "the gateway has failed", "exception": error, "task": task}
            self._loop.call_exception_handler(told)
        self._on_end()

    async def _converse(self) -> None:
        while True:
            action = self._core.next_action(self._loop.time())
            if action is RECEIVE:
                await self._receive()
                self._on_answer()
                # Those who were answered ask again in this turn of the loop: their calls go with the next frame.
                await asyncio.sleep(0)
            elif isinstance(action, SendFrame):
                await self._send(action.raw)
            elif action is CONNECT:
                self._drop()
                await self._connect()
            elif isinstance(action, Idle):
                await self._rest(action.until_s)

    async def _rest(self, until_s: float | None) -> None:
        self._waker = self._loop.create_future()
        try:
            async with asyncio.timeout_at(until_s):
                await self._waker
        except TimeoutError:
            pass
        finally:
            self._waker = None

    async def _connect(self) -> None:
        await self._lookups.look_up()
        channel = self._servers.channel(self._route.take())
        new_call: Any = channel.stream_stream(METHOD, None, None)  # bytes in, bytes out
        self._call = new_call()
        self._is_met = False

    async def _send(self, raw: bytes) -> None:
        # A stream that has ended does not take it; why it has ended, the next read says.
        try:
            await write(self._call, raw, raw)
        except (grpc.RpcError, grpc.aio.InternalError):
            pass
        except asyncio.CancelledError:
            if is_cancelled():
                raise

    async def _receive(self) -> None:
        try:
            raw = await self._call.read()
        except grpc.RpcError as error:
            failure = operations.error_of(error)
        else:
            if raw is not _EOF:
                self._take(raw)
                return
            failure = operations.ended_early()
        self._lose(failure)

    def _take(self, raw: bytes) -> None:
        if not self._is_met:
            self._is_met = True
            self._route.succeeded()
        failure = self._core.received(raw, self._loop.time())
        if failure is not None:
            self._lose(failure)

    def _lose(self, failure: errors.LongshortError) -> None:
        self._route.failed(failure)
        self._core.disconnected(failure, self._loop.time(), has_other=self._route.moves_on())

    def _drop(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None
