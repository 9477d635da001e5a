"""A session of the async client: the shell that does the I/O for `core`, over grpc.aio."""

from __future__ import annotations

import asyncio
import contextlib
import time
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import grpc

from longshort import actions, errors, operations, results, view
from longshort.aio.writing import is_cancelled, write
from longshort.options import CLOSE_TIMEOUT_S
from longshort.v1 import types_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType

    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from longshort import named
    from longshort.aio.client import Client
    from longshort.opening import Opening
    from longshort.v1 import sequence_pb2

T = TypeVar("T")
_EOF = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the type stubs


class Session(view.SessionView):
    """One session on one stream, which is opened again as often as it breaks: the caller sees a pause.

    It belongs to one task at a time; a call while another is under way raises ConcurrentUse. A call that
    fails or is cancelled leaves the session where it was, unless `in_doubt` says otherwise. Made by
    `Client.session`, opened by `async with` or `await`. Its methods are those of `longshort.Session`.
    """

    def __init__(self, client: Client, opening: Opening, timeout_s: float) -> None:
        super().__init__(opening, client.servers, timeout_s, client.give_up_s)
        self._client = client
        self._call_on_wire: Any = None
        self._is_busy = False
        self._finish: Callable[[NDArray[Any] | None], Any] = view.no_rows
        self._is_closed = True  # until it is opened

    def __await__(self) -> Generator[Any, None, Self]:
        return self._open().__await__()

    async def __aenter__(self) -> Self:
        return await self._open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _open(self) -> Self:
        await self._call(lambda: None, view.no_rows, None)
        self._is_closed = False
        return self

    @overload
    async def step(
        self, value: named.Named, *, at: int | None = None, timeout_s: float | None = None
    ) -> dict[str, NDArray[Any]]: ...

    @overload
    async def step(
        self, value: ArrayLike, *, at: int | None = None, timeout_s: float | None = None
    ) -> NDArray[np.float32]: ...

    async def step(
        self, value: ArrayLike | named.Named, *, at: int | None = None, timeout_s: float | None = None
    ) -> NDArray[np.float32] | dict[str, NDArray[Any]]:
        """Take one step with a number or [features]; return its answer [outputs] f32."""
        rows = view.one_step(value, self.num_features)
        begin = partial(self._core.begin_steps, rows, types_pb2.ANSWERS_ALL, at)
        answer: NDArray[np.float32] | dict[str, NDArray[Any]]
        answer = await self._call(begin, view.single_row, timeout_s)
        return answer

    @overload
    async def steps(
        self,
        values: named.Named,
        *,
        at: int | None = None,
        answers: view.AnswersName = "all",
        timeout_s: float | None = None,
    ) -> dict[str, NDArray[Any]]: ...

    @overload
    async def steps(
        self,
        values: ArrayLike,
        *,
        at: int | None = None,
        answers: view.AnswersName = "all",
        timeout_s: float | None = None,
    ) -> NDArray[np.float32]: ...

    async def steps(
        self,
        values: ArrayLike | named.Named,
        *,
        at: int | None = None,
        answers: view.AnswersName = "all",
        timeout_s: float | None = None,
    ) -> NDArray[np.float32] | dict[str, NDArray[Any]]:
        """Take [time] (one feature) or [time, features]; return the answers [rows, outputs] f32."""
        rows = view.many_steps(values, self.num_features)
        begin = partial(self._core.begin_steps, rows, view.answers_named(answers), at)
        found: NDArray[np.float32] | dict[str, NDArray[Any]]
        found = await self._call(begin, view.all_rows, timeout_s)
        return found

    async def warm_up(self, values: ArrayLike | named.Named, *, timeout_s: float | None = None) -> None:
        """Take values as `steps` does, without answers: for a long history."""
        rows = view.many_steps(values, self.num_features)
        begin = partial(self._core.begin_steps, rows, types_pb2.ANSWERS_NONE, None)
        await self._call(begin, view.no_rows, timeout_s)

    async def forecast(
        self, horizon: int, *, known: ArrayLike | None = None, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        """Return the model's own continuation, [horizon, outputs] f32. The session does not move.

        `known` is what the features that the model does not predict will be, [horizon - 1, known features], row k of
        the step `position + k`; a last row more is not looked at. `ModelInfo.known_features` names them.
        """
        begin = partial(self._core.begin_forecast, horizon, view.known_rows(known))
        rows: NDArray[np.float32] = await self._call(begin, view.all_rows, timeout_s)
        return rows

    async def flush(self, *, timeout_s: float | None = None) -> int:
        """Wait until all that was answered is stored, where the server stores; return the durable step."""
        await self._call(self._core.begin_flush, view.no_rows, timeout_s)
        return self.durable_step

    async def retry(self, *, timeout_s: float | None = None) -> Any:
        """Return what the call in doubt would have returned; its values are taken exactly once."""
        return await self._call(self._core.begin_retry, self._finish, timeout_s)

    async def memory(self, *, timeout_s: float | None = None) -> results.Memory:
        """Return the long-term and the short-term memory, each [layers, hidden] f32."""
        operation = operations.get_session(self.id, include_memory=True, min_step=self.position)
        return results.Memory.of(await self._read(operation, timeout_s))

    async def explain(
        self, values: ArrayLike | named.Named, *, timeout_s: float | None = None
    ) -> dict[str, NDArray[Any]]:
        """Return gates and memories of every layer and step for values as of `steps`, by tensor name."""
        rows = view.many_steps(values, self.num_features)
        return await self._read(operations.explain(self.id, rows, self.position), timeout_s)

    async def close(self) -> None:
        """Half-close the stream and wait briefly for its end. The session lives on at the server."""
        if self._is_closed:
            return
        self._is_closed = True
        self._core.end(view.closed_error("session"))
        call, self._call_on_wire = self._call_on_wire, None
        if call is not None and not self._is_busy:
            with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError, TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await call.done_writing()
                    while await call.read() is not _EOF:  # `durable` messages on the way
                        pass
        if call is not None:
            call.cancel()

    def __del__(self) -> None:
        if not getattr(self, "_is_closed", True):
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)

    async def _read(self, operation: operations.Operation[T], timeout_s: float | None) -> T:
        """Read beside the stream. A server that is behind the answers here is brought up to them first."""
        self._core.check_can_begin()  # in doubt, nobody knows which state would be read
        timeout_s = self._within(timeout_s)
        try:
            return await self._client.run(operation, timeout_s, self._route.address)
        except (errors.Stale, errors.SessionNotFound):
            await self._call(self._core.begin_reopening, view.no_rows, timeout_s)
            return await self._client.run(operation, timeout_s, self._route.address)

    async def _call(
        self,
        begin: Callable[[], None],
        finish: Callable[[NDArray[Any] | None], T],
        timeout_s: float | None,
    ) -> T:
        if self._is_busy:
            raise view.concurrent_use()
        self._is_busy = True
        try:
            self._begin_call(timeout_s)
            begin()
            self._finish = finish
            async with asyncio.timeout(None) as self._limit:
                self._limit_anew()
                return finish(await self._converse())
        except TimeoutError:
            self._drop_stream()
            raise self._time_is_up() from None
        except errors.LongshortError:
            if not self._core.has_stream:
                self._drop_stream()
            raise
        except BaseException:  # cancelled: an answer may be on its way, so this stream cannot be read on
            self._drop_stream()
            self._core.abandoned()
            raise
        finally:
            self._is_busy = False

    async def _converse(self) -> NDArray[Any] | None:
        """Do what the core says until it has a result; raise its error, or that the time is up."""
        while True:
            action = self._core.next_action()
            if action is actions.RECEIVE:
                await self._receive()
            elif isinstance(action, actions.Send):
                await self._send(action.request)
            elif isinstance(action, actions.Done):
                return action.result
            elif isinstance(action, actions.Failed):
                raise action.error
            elif isinstance(action, actions.Wait):
                await self._wait(action)
            elif isinstance(action, actions.Connect):
                await self._connect(action.request)

    async def _receive(self) -> None:
        try:
            response = await self._call_on_wire.read()
        except grpc.RpcError as error:
            self._core.disconnected(operations.error_of(error))
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            self._core.disconnected(operations.ended_early())  # closed under this call by another task
        else:
            if response is _EOF:
                self._core.disconnected(operations.ended_early())
            elif self._take(response):
                self._limit_anew()

    async def _wait(self, action: actions.Wait) -> None:
        if action.failure is not None:
            self._route.failed(action.failure)
            await self._seek()
        pause = self._pause_s(action)
        if pause is None:
            raise TimeoutError
        await asyncio.sleep(pause)

    async def _send(self, request: sequence_pb2.StreamRequest) -> None:
        # A stream that has ended does not take it; why it has ended, the next read says.
        try:
            await write(self._call_on_wire, request, request.SerializeToString())
        except (grpc.RpcError, grpc.aio.InternalError):
            pass
        except asyncio.CancelledError:
            if is_cancelled():
                raise

    async def _connect(self, request: sequence_pb2.StreamRequest) -> None:
        self._drop_stream()
        await self._seek()
        try:
            self._call_on_wire = self._client.new_stream(self.id, self._route.take())
        except errors.SessionClosed as error:  # the client was closed before its session
            self._core.end(error)
        else:
            await self._send(request)

    async def _seek(self) -> None:
        """Note that there is no server, and learn where there may be one."""
        self._patience.alone(time.monotonic())
        self._limit_anew()
        await self._client.lookups.look_up(self._patience.ends_at_s - time.monotonic())

    def _limit_anew(self) -> None:
        left_s = self._patience.ends_at_s - time.monotonic()
        self._limit.reschedule(asyncio.get_running_loop().time() + left_s)

    def _drop_stream(self) -> None:
        if self._call_on_wire is not None:
            self._call_on_wire.cancel()
            self._call_on_wire = None
