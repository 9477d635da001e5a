"""A session of the sync client: the shell that does the I/O for `core`, over gRPC's sync stubs."""

from __future__ import annotations

import queue
import threading
import time
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import grpc

from longshort import actions, errors, operations, results, view
from longshort.options import CLOSE_TIMEOUT_S
from longshort.v1 import sequence_pb2, types_pb2

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from longshort import named
    from longshort.client import Client
    from longshort.opening import Opening

T = TypeVar("T")


class Stream:
    """One bidirectional stream. gRPC's own thread feeds it from the queue; None half-closes."""

    def __init__(self, method: Any, metadata: tuple[tuple[str, str], ...]) -> None:
        self._requests: queue.SimpleQueue[sequence_pb2.StreamRequest | None] = queue.SimpleQueue()
        self.send = self._requests.put
        self.call = method(iter(self._requests.get, None), metadata=metadata)

    def drop(self) -> None:
        """End it at once and let gRPC's thread go; may be called from any thread, and again."""
        self.call.cancel()
        self._requests.put(None)


class Session(view.SessionView):
    """One session on one stream, which is opened again as often as it breaks: the caller sees a pause.

    It belongs to one thread at a time; a call while another is under way raises ConcurrentUse. A call that
    fails leaves the session where it was, unless `in_doubt` says otherwise. Made by `Client.session`.
    """

    def __init__(self, client: Client, opening: Opening, timeout_s: float) -> None:
        super().__init__(opening, client.servers, timeout_s, client.give_up_s)
        self._client = client
        self._stream: Stream | None = None
        self._turn = threading.Lock()
        self._alarm = client.watchdog.new_alarm()
        self._finish: Callable[[NDArray[Any] | None], Any] = view.no_rows
        try:
            self._call(lambda: None, view.no_rows, None)
        except BaseException:
            self._is_closed = True
            raise

    @overload
    def step(
        self, value: named.Named, *, at: int | None = None, timeout_s: float | None = None
    ) -> dict[str, NDArray[Any]]: ...

    @overload
    def step(
        self, value: ArrayLike, *, at: int | None = None, timeout_s: float | None = None
    ) -> NDArray[np.float32]: ...

    def step(
        self, value: ArrayLike | named.Named, *, at: int | None = None, timeout_s: float | None = None
    ) -> NDArray[np.float32] | dict[str, NDArray[Any]]:
        """Take one step with a number or [features]; return its answer [outputs] f32.

        Of a model with several inputs, or of other dtypes, the value is one array [*shape] for each input by name, and
        the answer one for each output. An array is sent in the dtype that it has.

        `at` is the step's number where the caller owns it: the last step's again returns the answer that was
        given, any other than `position` raises StepConflict, StepGap or ValuesDiffer.
        """
        rows = view.one_step(value, self.num_features)
        begin = partial(self._core.begin_steps, rows, types_pb2.ANSWERS_ALL, at)
        answer: NDArray[np.float32] | dict[str, NDArray[Any]]
        answer = self._call(begin, view.single_row, timeout_s)
        return answer

    @overload
    def steps(
        self,
        values: named.Named,
        *,
        at: int | None = None,
        answers: view.AnswersName = "all",
        timeout_s: float | None = None,
    ) -> dict[str, NDArray[Any]]: ...

    @overload
    def steps(
        self,
        values: ArrayLike,
        *,
        at: int | None = None,
        answers: view.AnswersName = "all",
        timeout_s: float | None = None,
    ) -> NDArray[np.float32]: ...

    def steps(
        self,
        values: ArrayLike | named.Named,
        *,
        at: int | None = None,
        answers: view.AnswersName = "all",
        timeout_s: float | None = None,
    ) -> NDArray[np.float32] | dict[str, NDArray[Any]]:
        """Take [time] (one feature) or [time, features]; return the answers [rows, outputs] f32.

        By name: one array [time, *shape] for each input, and the answers one [rows, *shape] for each output.

        `answers` is "all" (a row a step), "last" (one row) or "none". More than `max_steps` go as several
        messages: where one of them is refused, those before it have moved the session, and the error's
        `partial` holds their answers.
        """
        rows = view.many_steps(values, self.num_features)
        begin = partial(self._core.begin_steps, rows, view.answers_named(answers), at)
        found: NDArray[np.float32] | dict[str, NDArray[Any]]
        found = self._call(begin, view.all_rows, timeout_s)
        return found

    def warm_up(self, values: ArrayLike | named.Named, *, timeout_s: float | None = None) -> None:
        """Take values as `steps` does, without answers: for a long history."""
        rows = view.many_steps(values, self.num_features)
        begin = partial(self._core.begin_steps, rows, types_pb2.ANSWERS_NONE, None)
        self._call(begin, view.no_rows, timeout_s)

    def forecast(
        self, horizon: int, *, known: ArrayLike | None = None, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        """Return the model's own continuation, [horizon, outputs] f32. The session does not move.

        `known` is what the features that the model does not predict will be, [horizon - 1, known features], row k of
        the step `position + k`; a last row more is not looked at. `ModelInfo.known_features` names them.
        """
        begin = partial(self._core.begin_forecast, horizon, view.known_rows(known))
        rows: NDArray[np.float32] = self._call(begin, view.all_rows, timeout_s)
        return rows

    def flush(self, *, timeout_s: float | None = None) -> int:
        """Wait until all that was answered is stored, where the server stores; return the durable step."""
        self._call(self._core.begin_flush, view.no_rows, timeout_s)
        return self.durable_step

    def retry(self, *, timeout_s: float | None = None) -> Any:
        """Return what the call in doubt would have returned; its values are taken exactly once."""
        return self._call(self._core.begin_retry, self._finish, timeout_s)

    def memory(self, *, timeout_s: float | None = None) -> results.Memory:
        """Return the long-term and the short-term memory, each [layers, hidden] f32."""
        operation = operations.get_session(self.id, include_memory=True, min_step=self.position)
        return results.Memory.of(self._read(operation, timeout_s))

    def explain(
        self, values: ArrayLike | named.Named, *, timeout_s: float | None = None
    ) -> dict[str, NDArray[Any]]:
        """Return gates and memories of every layer and step for values as of `steps`, by tensor name.

        The session does not move.
        """
        rows = view.many_steps(values, self.num_features)
        return self._read(operations.explain(self.id, rows, self.position), timeout_s)

    def close(self) -> None:
        """Half-close the stream and wait briefly for its end. The session lives on at the server."""
        if self._is_closed:
            return
        self._is_closed = True
        self._core.end(view.closed_error("session"))
        stream = self._stream
        if stream is not None:
            if self._turn.acquire(blocking=False):
                self._half_close(stream)
                self._turn.release()
            stream.drop()  # under another thread's call: that one ends with SessionClosed

    def _half_close(self, stream: Stream) -> None:
        self._client.watchdog.arm(self._alarm, time.monotonic() + CLOSE_TIMEOUT_S)
        stream.send(None)
        try:
            for _ in stream.call:  # `durable` messages on the way
                pass
        except grpc.RpcError:
            pass  # cut or overdue: the server knows what was applied
        finally:
            self._alarm.disarm()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_is_closed", True):
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            if self._stream is not None:
                self._stream.drop()

    def _read(self, operation: operations.Operation[T], timeout_s: float | None) -> T:
        """Read beside the stream. A server that is behind the answers here is brought up to them first."""
        self._core.check_can_begin()  # in doubt, nobody knows which state would be read
        timeout_s = self._within(timeout_s)
        try:
            return self._client.run(operation, timeout_s, self._route.address)
        except (errors.Stale, errors.SessionNotFound):
            self._call(self._core.begin_reopening, view.no_rows, timeout_s)
            return self._client.run(operation, timeout_s, self._route.address)

    def _call(
        self,
        begin: Callable[[], None],
        finish: Callable[[NDArray[Any] | None], T],
        timeout_s: float | None,
    ) -> T:
        if not self._turn.acquire(blocking=False):
            raise view.concurrent_use()
        try:
            self._begin_call(timeout_s)
            begin()
            self._finish = finish
            self._client.watchdog.arm(self._alarm, self._patience.ends_at_s)
            return finish(self._converse())
        except errors.LongshortError:
            if not self._core.has_stream:
                self._drop_stream()
            raise
        except BaseException:  # interrupted: an answer may be on its way, so this stream cannot be read on
            self._drop_stream()
            self._core.abandoned()
            raise
        finally:
            self._alarm.disarm()
            self._turn.release()

    def _converse(self) -> NDArray[Any] | None:
        """Do what the core says until it has a result; raise its error, or that the time is up."""
        while True:
            action = self._core.next_action()
            if action is actions.RECEIVE:
                self._receive()
            elif isinstance(action, actions.Send):
                self._stream.send(action.request)  # type: ignore[union-attr]  # after Connect there is one
            elif isinstance(action, actions.Done):
                return action.result
            elif isinstance(action, actions.Failed):
                raise action.error
            elif isinstance(action, actions.Wait):
                self._wait(action)
            elif isinstance(action, actions.Connect):
                self._connect(action.request)

    def _receive(self) -> None:
        try:
            response = next(self._stream.call)  # type: ignore[union-attr]  # after Connect there is one
        except StopIteration:
            self._core.disconnected(operations.ended_early())
        except grpc.RpcError as error:
            if time.monotonic() >= self._patience.ends_at_s:
                raise self._cut() from None
            self._core.disconnected(operations.error_of(error))
        else:
            if self._take(response):
                self._client.watchdog.arm(self._alarm, self._patience.ends_at_s)

    def _wait(self, action: actions.Wait) -> None:
        if action.failure is not None:
            self._route.failed(action.failure)
            self._seek()
        pause = self._pause_s(action)
        if pause is None:
            raise self._cut()
        time.sleep(pause)

    def _connect(self, request: sequence_pb2.StreamRequest) -> None:
        self._drop_stream()
        self._seek()
        try:
            self._stream = self._client.new_stream(self.id, self._route.take())
        except errors.SessionClosed as error:  # the client was closed before its session
            self._core.end(error)
        else:
            self._alarm.ring = self._stream.call.cancel
            if (
                time.monotonic() >= self._patience.ends_at_s
            ):  # it may have rung already, and cut the former stream
                raise self._cut()
            self._stream.send(request)

    def _seek(self) -> None:
        """Note that there is no server, and learn where there may be one."""
        self._patience.alone(time.monotonic())
        self._client.watchdog.arm(self._alarm, self._patience.ends_at_s)
        self._client.lookups.look_up(self._patience.ends_at_s - time.monotonic())

    def _cut(self) -> errors.LongshortError:
        """Drop the stream at the end of the call's time; return what to raise."""
        self._drop_stream()
        return self._time_is_up()

    def _drop_stream(self) -> None:
        if self._stream is not None:
            self._stream.drop()
            self._stream = None
