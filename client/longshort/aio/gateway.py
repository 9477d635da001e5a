"""The async gateway: many sessions over one frame stream a server, a call at a time or as arrays."""

from __future__ import annotations

import asyncio
import random
import warnings
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from longshort import arrays, errors, view
from longshort.aio.calls import ArrayFuture, RetryFuture, StepFuture
from longshort.aio.channel import new_channel
from longshort.aio.deadlines import Deadlines
from longshort.aio.frame_pump import FramePump
from longshort.aio.room import Room
from longshort.backoff import Backoff
from longshort.gateway.calls import ArrayCall, rows_failed
from longshort.gateway.group import Group
from longshort.gateway.stream import FrameStream
from longshort.gateway.values import session_rows
from longshort.opening import Durability, Mode, Opening, own_client_id
from longshort.options import DEFAULT_TIMEOUT_S, checked_address

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from types import TracebackType

    import grpc
    from numpy.typing import ArrayLike, NDArray

T = TypeVar("T")

MAX_WAITING_STEPS = 262_144  # some 200 MB where each is a call of its own
MAX_KEPT_STEPS = 262_144


class Gateway:
    """Follows many sessions of one model. Whatever waits while a frame is in flight goes with the next one.

    `model`, `version`, `mode` and `durability` are as in `Client.session`, for every session; a session is opened
    when it is used first. `address`, `credentials`, `options` and `client_id` are as in `Client`. `timeout_s` is
    what a call takes at most, reconnecting included, unless it says otherwise. While `max_waiting_steps` or more
    wait, further calls wait for room before they are taken; an array call counts for a quarter of them at most.
    `max_kept_steps` is how many answered steps are kept for a server that stores behind its answers; beyond it new
    ones wait until it has stored more.

    It may be used by all tasks of its loop. Calls of one session are taken in the order in which they were made;
    a call that fails or is cancelled harms no other.
    """

    def __init__(
        self,
        address: str,
        model: str | None = None,
        version: int | None = None,
        *,
        mode: Mode = "open_or_create",
        durability: Durability | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        options: Sequence[tuple[str, Any]] = (),
        timeout_s: float = DEFAULT_TIMEOUT_S,
        client_id: str | None = None,
        max_waiting_steps: int = MAX_WAITING_STEPS,
        max_kept_steps: int = MAX_KEPT_STEPS,
    ) -> None:
        self._loop = asyncio.get_running_loop()  # gRPC would bind the channel to a loop that nobody runs
        self.address = checked_address(address)
        self.client_id = own_client_id(client_id)
        self._timeout_s = arrays.seconds(timeout_s, "timeout_s")
        max_waiting = arrays.whole_number(max_waiting_steps, "max_waiting_steps", 2**63) or 1
        opening = Opening(
            None, model=model, version=version, mode=mode, durability=durability, client_id=self.client_id
        )
        kept = arrays.whole_number(max_kept_steps, "max_kept_steps", 2**63) or 1
        self._core = FrameStream(opening, lambda: Backoff(random.random), kept)
        self._channel = new_channel(address, credentials, options)
        self._room = Room(self._core.turns, max_waiting)
        self._deadlines = Deadlines(self._core, address, self._room.let_in)
        self._pump = FramePump(
            self._core, self._channel, on_answer=self._room.let_in, on_end=self._room.close
        )
        self._is_closed = False

    def step(
        self,
        session_id: str,
        value: ArrayLike,
        *,
        at: int | None = None,
        timeout_s: float | None = None,
    ) -> Awaitable[NDArray[np.float32]]:
        """Take one step of a session with a number or [features]; the result is its answer [outputs] f32.

        The step is taken when this returns: await the result, or many with asyncio.gather. `at` is the step's
        number where the caller owns it: the last step's again returns the answer that was given, any other than
        `position` raises StepConflict, StepGap or ValuesDiffer. SessionTaken, SessionReplaced and SessionLost
        end the session here until `close_session`; StepInDoubt asks for `retry`; all else leaves it where it was.
        """
        if self._room.is_full:
            return self._step_when_there_is_room(session_id, value, at, timeout_s)
        return self._step(session_id, value, at, timeout_s)

    def _step(self, session_id: str, value: ArrayLike, at: int | None, timeout_s: float | None) -> StepFuture:
        future = StepFuture(loop=self._loop)
        future.turns = self._core.turns
        try:
            future.deadline_s = self._deadlines.after(self._within(timeout_s))
            self._core.step(future, session_id, value, at)
        except errors.LongshortError as error:
            future.set_exception(error)
        else:
            self._pump.wake()
        return future

    async def _step_when_there_is_room(
        self, session_id: str, value: ArrayLike, at: int | None, timeout_s: float | None
    ) -> NDArray[np.float32]:
        left_s = await self._enter(timeout_s)
        return await self._step(session_id, value, at, left_s)

    async def steps(
        self, ids: Iterable[str] | Group, values: ArrayLike, *, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        """Take one step each of n sessions, [n] or [n, features], or several, [n, time, features].

        Where the model is known (a session was opened) to have one feature, [n, time] is several steps too.
        Return the answers, [n, outputs] or [n, time, outputs] f32. Where rows fail, RowsFailed has the answers of
        the others and the error of each; a row whose session is in doubt or ended fails by itself. Cancelled or
        out of time, the call leaves those of its sessions in doubt whose values were sent.
        """
        left_s = await self._enter(timeout_s)
        group = ids if isinstance(ids, Group) else Group(ids)
        table = self._core.table
        rows, is_flat = session_rows(values, len(group), table.num_features)
        future = self._array_future(group, rows.shape[1], left_s, is_flat=is_flat)
        self._core.steps(future.call, rows)
        self._pump.wake()
        return await future

    async def forecast(
        self, session_id: str, horizon: int, *, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        """Return the model's own continuation of a session, [horizon, outputs] f32. The session does not move."""
        try:
            answers = await self.forecasts([session_id], horizon, timeout_s=timeout_s)
        except errors.RowsFailed as failure:
            raise failure.errors[0] from None
        ahead: NDArray[np.float32] = answers[0]
        return ahead

    async def forecasts(
        self, ids: Iterable[str] | Group, horizon: int, *, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        """Return the continuations of n sessions, [n, horizon, outputs] f32; RowsFailed as in `steps`."""
        left_s = await self._enter(timeout_s)
        horizon = arrays.whole_number(horizon, "horizon", 2**32)
        group = ids if isinstance(ids, Group) else Group(ids)
        future = self._array_future(group, horizon, left_s, is_flat=False)
        self._core.forecast(future.call, horizon)
        self._pump.wake()
        return await future

    async def open(self, ids: Iterable[str] | Group, *, timeout_s: float | None = None) -> NDArray[np.bool_]:
        """Open n sessions without values, in bulk; return of each whether that has created it, as `created` does.

        RowsFailed as in `steps`; its `answers` is then 1, 0 or NaN, [n, 1] f32.
        """
        left_s = await self._enter(timeout_s)
        group = ids if isinstance(ids, Group) else Group(ids)
        future = self._array_future(group, 1, left_s, is_flat=True)
        self._core.open(future.call)
        self._pump.wake()
        return (await future).astype(np.bool_).reshape(len(group))

    def group(self, ids: Iterable[str]) -> Group:
        """Return ids for repeated array calls, which then cost no look-up of each."""
        self._check_open()
        return Group(ids)

    async def flush(
        self, ids: Iterable[str] | Group | None = None, *, timeout_s: float | None = None
    ) -> None:
        """Wait until all that was answered of some sessions (None: all) is stored, where the server stores."""
        group = ids if ids is None or isinstance(ids, Group) else Group(ids)
        slots = None if group is None else group.slots(self._core.table)
        await self._ask(lambda waiter: self._core.flush(waiter, slots), timeout_s)

    async def close_session(
        self, ids: str | Iterable[str] | Group, *, timeout_s: float | None = None
    ) -> None:
        """Forget a session, or many, after all that was asked of it before; it lives on at the server.

        A session that has ended (SessionTaken, SessionReplaced, SessionLost) may then be opened anew. One in doubt
        raises StepInDoubt; of many, RowsFailed has the errors. Calls made before this has returned raise
        SessionClosed.
        """
        group = ids if isinstance(ids, Group) else Group([ids] if isinstance(ids, str) else ids)
        waiters: list[asyncio.Future[None]] = [self._loop.create_future() for _ in group.ids]
        self._core.close_sessions(zip(group.ids, waiters, strict=True))
        outcomes = await self._wait(asyncio.gather(*waiters, return_exceptions=True), timeout_s)
        failures = {
            index: outcome
            for index, outcome in enumerate(outcomes)
            if isinstance(outcome, errors.LongshortError)
        }
        if failures and isinstance(ids, str):
            raise failures[0]
        if failures:
            raise rows_failed(group.ids, failures, None)

    async def retry(self, session_id: str, *, timeout_s: float | None = None) -> NDArray[np.float32]:
        """Return what the call in doubt would have returned for this session; its values are taken exactly once."""
        slot = self._core.table.slots.get(session_id, -1)
        waiter = RetryFuture(loop=self._loop)
        waiter.turns, waiter.slot = self._core.turns, slot
        waiter.doubt = self._core.retry(slot if slot >= 0 else None, waiter)
        return await self._wait(waiter, timeout_s)

    def position(self, session_id: str) -> int:
        """Return the session's next step, the number of its steps answered; NOT_OPEN before its first use."""
        self._check_open()
        table = self._core.table
        return int(table.position[table.opened_slot(session_id)[0]])

    def created(self, session_id: str) -> bool:
        """Return whether its first opening here has created the session; NOT_OPEN before that."""
        self._check_open()
        return self._core.table.opened_slot(session_id)[1].created

    def in_doubt(self, session_id: str) -> bool:
        """Return whether a call ended without its answer after its values were sent; `retry` gets it."""
        self._check_open()
        return self._core.table.slots.get(session_id, -1) in self._core.turns.doubts

    def doubts(self) -> list[str]:
        """Return the ids of all sessions that are in doubt."""
        self._check_open()
        return [self._core.table.ids[slot] for slot in self._core.turns.doubts]

    async def close(self) -> None:
        """Close the stream and the channel. The sessions live on.

        What waits raises SessionClosed, or StepInDoubt where its values had been sent.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._deadlines.stop()
        await self._pump.close(view.closed_error("gateway"))
        self._room.close()
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        if not getattr(self, "_is_closed", True):
            warnings.warn(f"unclosed longshort.Gateway of {self.address}", ResourceWarning, 2, source=self)

    def _check_open(self) -> None:
        if self._is_closed:
            raise view.closed_error("gateway")

    # How long calls wait

    def _array_future(
        self, group: Group, num_steps: int, timeout_s: float | None, *, is_flat: bool
    ) -> ArrayFuture:
        future = ArrayFuture(loop=self._loop)
        future.turns = self._core.turns
        future.call = ArrayCall(
            future,
            group.ids,
            group.slots(self._core.table),
            num_steps,
            is_flat=is_flat,
            deadline_s=self._deadlines.after(self._within(timeout_s)),
            max_weight=self._room.max_weight,
        )
        if not len(group):  # nothing will answer it
            shape = (
                (0, self._core.table.num_outputs) if is_flat else (0, num_steps, self._core.table.num_outputs)
            )
            future.set_result(np.empty(shape, np.float32))
        return future

    async def _enter(self, timeout_s: float | None) -> float | None:
        """Wait until a call may be taken, in the order of calls; return what is left of its time."""
        if not self._room.is_full:
            return timeout_s
        limit_s = self._within(timeout_s)
        deadline_s = self._loop.time() + limit_s
        await self._wait(self._room.enter(), limit_s)
        return max(
            deadline_s - self._loop.time(), 1e-6
        )  # it is told that its time is up, not of a wrong limit

    async def _ask(self, ask: Callable[[asyncio.Future[None]], None], timeout_s: float | None) -> None:
        waiter = self._loop.create_future()
        ask(waiter)
        await self._wait(waiter, timeout_s)

    async def _wait(self, waiter: asyncio.Future[T], timeout_s: float | None) -> T:
        limit_s = self._within(timeout_s)
        self._pump.wake()
        try:
            async with asyncio.timeout(limit_s):
                return await waiter
        except TimeoutError:
            raise self._deadlines.time_is_up(limit_s, in_doubt=isinstance(waiter, RetryFuture)) from None

    def _within(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else arrays.seconds(timeout_s, "timeout_s")
