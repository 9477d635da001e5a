"""The sync gateway: the async one on a loop of its own, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Self, TypeVar

from longshort import view
from longshort.aio.gateway import MAX_KEPT_STEPS, MAX_WAITING_STEPS
from longshort.aio.gateway import Gateway as AsyncGateway
from longshort.options import DEFAULT_GIVE_UP_S, DEFAULT_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from types import TracebackType

    import grpc
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from longshort.gateway.group import Group
    from longshort.named import Named
    from longshort.opening import Durability, Mode, ModelChange

T = TypeVar("T")


class Gateway:
    """Follows many sessions of one model, for threads: what several of them ask goes into the same frames.

    Its arguments and methods are those of `longshort.aio.Gateway`; each call blocks until it has its result. An
    interrupted one (Ctrl-C) is withdrawn, or leaves its sessions in doubt.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        model: str | None = None,
        version: int | None = None,
        *,
        mode: Mode = "open_or_create",
        durability: Durability | None = None,
        model_change: ModelChange = "refuse",
        credentials: grpc.ChannelCredentials | None = None,
        options: Sequence[tuple[str, Any]] = (),
        timeout_s: float = DEFAULT_TIMEOUT_S,
        give_up_s: float = DEFAULT_GIVE_UP_S,
        client_id: str | None = None,
        max_waiting_steps: int = MAX_WAITING_STEPS,
        max_kept_steps: int = MAX_KEPT_STEPS,
    ) -> None:
        self._is_closed = True  # until it is open
        # Held while a call is handed to the loop: one that came to a loop that has ended would never be answered.
        # Re-entrant for a signal handler that closes.
        self._handing_over = threading.RLock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=_serve, args=(self._loop,), name="longshort-gateway", daemon=True
        )
        self._thread.start()
        try:
            self._gateway = self._on_loop(
                lambda: AsyncGateway(
                    address,
                    model,
                    version,
                    mode=mode,
                    durability=durability,
                    model_change=model_change,
                    credentials=credentials,
                    options=options,
                    timeout_s=timeout_s,
                    give_up_s=give_up_s,
                    client_id=client_id,
                    max_waiting_steps=max_waiting_steps,
                    max_kept_steps=max_kept_steps,
                )
            )
        except BaseException:
            self._stop()
            raise
        self._is_closed = False
        self.address = self._gateway.address
        self.client_id = self._gateway.client_id

    def step(
        self, session_id: str, value: ArrayLike, *, at: int | None = None, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        """Take one step of a session with a number or [features]; return its answer [outputs] f32."""
        return self._run(lambda: self._gateway.step(session_id, value, at=at, timeout_s=timeout_s))

    def steps(
        self, ids: Iterable[str] | Group, values: ArrayLike, *, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        """Take [n], [n, features] or [n, time, features]; return [n, outputs] or [n, time, outputs] f32."""
        return self._run(lambda: self._gateway.steps(ids, values, timeout_s=timeout_s))

    def forecast(
        self,
        session_id: str,
        horizon: int,
        *,
        known: ArrayLike | None = None,
        timeout_s: float | None = None,
    ) -> NDArray[np.float32]:
        """Return the model's own continuation of a session, [horizon, outputs] f32. The session does not move."""
        return self._run(
            lambda: self._gateway.forecast(session_id, horizon, known=known, timeout_s=timeout_s)
        )

    def forecasts(
        self,
        ids: Iterable[str] | Group,
        horizon: int,
        *,
        known: ArrayLike | None = None,
        timeout_s: float | None = None,
    ) -> NDArray[np.float32]:
        """Return the continuations of n sessions, [n, horizon, outputs] f32."""
        return self._run(lambda: self._gateway.forecasts(ids, horizon, known=known, timeout_s=timeout_s))

    def open(
        self,
        ids: Iterable[str] | Group,
        *,
        initial: Named | None = None,
        timeout_s: float | None = None,
    ) -> NDArray[np.bool_]:
        """Open n sessions without values, in bulk; return of each whether that has created it."""
        return self._run(lambda: self._gateway.open(ids, initial=initial, timeout_s=timeout_s))

    def group(self, ids: Iterable[str]) -> Group:
        """Return ids for repeated array calls, which then cost no look-up of each."""
        return self._gateway.group(ids)

    def flush(self, ids: Iterable[str] | Group | None = None, *, timeout_s: float | None = None) -> None:
        """Wait until all that was asked of some sessions (None: all) before is stored, where the server stores."""
        self._run(lambda: self._gateway.flush(ids, timeout_s=timeout_s))

    def close_session(self, ids: str | Iterable[str] | Group, *, timeout_s: float | None = None) -> None:
        """Forget a session, or many, after all that was asked of it before; it lives on at the server."""
        self._run(lambda: self._gateway.close_session(ids, timeout_s=timeout_s))

    def retry(self, session_id: str, *, timeout_s: float | None = None) -> NDArray[np.float32]:
        """Return what the call in doubt would have returned for this session."""
        return self._run(lambda: self._gateway.retry(session_id, timeout_s=timeout_s))

    def position(self, session_id: str) -> int:
        """Return the session's next step, the number of its steps answered; NOT_OPEN before its first use."""
        return self._gateway.position(session_id)

    def durability(self, session_id: str) -> str:
        """Return what the server gives the session, "none", "behind" or "sync"; NOT_OPEN before its first use."""
        return self._gateway.durability(session_id)

    def durable_step(self, session_id: str) -> int:
        """Return the step that would survive the server, as last heard; NOT_OPEN before its first use."""
        return self._gateway.durable_step(session_id)

    def created(self, session_id: str) -> bool:
        """Return whether its first opening here has created the session; NOT_OPEN before that."""
        return self._gateway.created(session_id)

    def in_doubt(self, session_id: str) -> bool:
        """Return whether a call ended without its answer after its values were sent; `retry` gets it."""
        return self._look(lambda: self._gateway.in_doubt(session_id))

    def doubts(self) -> list[str]:
        """Return the ids of all sessions that are in doubt."""
        return self._look(self._gateway.doubts)

    def close(self) -> None:
        """Close the stream and the channel; what waits raises SessionClosed or StepInDoubt. The sessions live on."""
        with self._handing_over:
            if self._is_closed:
                return
            self._is_closed = True
        asyncio.run_coroutine_threadsafe(self._gateway.close(), self._loop).result()
        self._stop()

    def __enter__(self) -> Self:
        if self._is_closed:
            raise view.closed_error("gateway")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_is_closed", True):
            # The async gateway warns, with this one's address.
            self._loop.call_soon_threadsafe(_end, self._loop)

    def _run(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Run a call on the loop; its arguments are looked at there too."""
        future: Future[T] = (
            Future()
        )  # made here: an interrupt at any moment must find what it has to withdraw
        try:
            self._hand_over(ask, future)
            return future.result()
        except BaseException:
            future.cancel()  # interrupted; a call that has failed is done, and this does nothing
            raise

    def _hand_over(self, ask: Callable[[], Awaitable[T]], future: Future[T]) -> None:
        with self._handing_over:
            if self._is_closed:
                raise view.closed_error("gateway")
            self._loop.call_soon_threadsafe(_begin, ask, future)

    def _look(self, at: Callable[[], T]) -> T:
        """Look at something behind what an interrupt has begun."""
        with self._handing_over:
            return at() if self._is_closed else self._on_loop(at)

    def _on_loop(self, make: Callable[[], T]) -> T:
        return asyncio.run_coroutine_threadsafe(_made(make), self._loop).result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(_end, self._loop)
        self._thread.join()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _end(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what still runs and, a turn later, stop the loop."""
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.call_soon(loop.stop)


def _begin(ask: Callable[[], Awaitable[T]], future: Future[T]) -> None:
    """Run a call in a task on this loop, and tell its future: cancelled, it cancels the task."""
    if future.cancelled():
        return
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(_awaited(ask))
    task.add_done_callback(lambda _: _tell(task, future))
    future.add_done_callback(lambda _: loop.call_soon_threadsafe(task.cancel) if future.cancelled() else None)


def _tell(task: asyncio.Task[T], future: Future[T]) -> None:
    if task.cancelled():
        future.cancel()
    elif not future.set_running_or_notify_cancel():
        task.exception()  # looked at: nobody awaits it any more
    elif (error := task.exception()) is None:
        future.set_result(task.result())
    else:
        future.set_exception(error)


async def _awaited(ask: Callable[[], Awaitable[T]]) -> T:
    return await ask()


async def _made(make: Callable[[], T]) -> T:
    return make()
