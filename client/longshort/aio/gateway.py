"""The async gateway: many sessions over frame streams to their servers, a call at a time or as arrays."""

from __future__ import annotations

import asyncio
import warnings
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from longshort import arrays, errors, view
from longshort.addresses import parsed
from longshort.aio.calls import RetryFuture, StepFuture
from longshort.aio.channel import new_channel
from longshort.aio.lanes import Lanes
from longshort.aio.waits import Waits
from longshort.gateway.calls import rows_failed
from longshort.gateway.group import Group
from longshort.gateway.values import session_fields, session_known, session_rows
from longshort.opening import Durability, Mode, ModelChange, Opening, own_client_id
from longshort.options import DEFAULT_GIVE_UP_S, DEFAULT_TIMEOUT_S
from longshort.results import durability_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Sequence
    from types import TracebackType

    import grpc
    from numpy.typing import ArrayLike, NDArray

    from longshort.named import Named

MAX_WAITING_STEPS = 262_144  # some 200 MB where each is a call of its own
MAX_KEPT_STEPS = 262_144


class Gateway:
    """Follows many sessions of one model. Whatever waits while a frame is in flight goes with the next one.

    `model`, `version`, `mode`, `durability` and `model_change` are as in `Client.session`, for every session; a session
    is opened when it is used first. `address`, `credentials`, `options` and `client_id` are as in `Client`. `timeout_s`
    is what a call takes at most, reconnecting included, unless it says otherwise; what waits longer is given up after
    `give_up_s` without any server. While `max_waiting_steps` or more wait, further calls wait for room before they are
    taken; an array call counts for a quarter of them at most. `max_kept_steps` is how many answered steps are kept for
    servers that store behind their answers; beyond it new ones wait until more is stored.

    It may be used by all tasks of its loop. Calls of one session are taken in the order in which they were made;
    a call that fails or is cancelled harms no other.
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
        self._loop = asyncio.get_running_loop()  # gRPC would bind the channel to a loop that nobody runs
        target = parsed(address)
        self.address = target.text
        self.client_id = own_client_id(client_id)
        opening = Opening(
            None,
            model=model,
            version=version,
            mode=mode,
            durability=durability,
            model_change=model_change,
            client_id=self.client_id,
        )
        settings = (*target.channel_options, *options)
        self._lanes = Lanes(
            target,
            lambda address: new_channel(address, credentials, settings),
            opening,
            name=self.client_id,
            max_waiting_steps=arrays.whole_number(max_waiting_steps, "max_waiting_steps", 2**63) or 1,
            max_kept_steps=arrays.whole_number(max_kept_steps, "max_kept_steps", 2**63) or 1,
            give_up_s=arrays.seconds(give_up_s, "give_up_s"),
        )
        self._room = self._lanes.room
        self._waits = Waits(self._lanes, self.address, timeout_s)
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
        lane = self._lanes.of(session_id)
        future = StepFuture(loop=self._loop)
        future.turns = lane.core.turns
        try:
            future.deadline_s = lane.deadlines.after(self._waits.within(timeout_s))
            lane.core.step(future, session_id, value, at)
        except errors.LongshortError as error:
            future.set_exception(error)
        else:
            lane.pump.wake()
        return future

    async def _step_when_there_is_room(
        self, session_id: str, value: ArrayLike, at: int | None, timeout_s: float | None
    ) -> NDArray[np.float32]:
        left_s = await self._waits.enter(timeout_s)
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
        left_s = await self._waits.enter(timeout_s)
        group = _group(ids)
        rows, is_flat = session_rows(values, len(group), self._lanes.shape.num_features)
        return await self._lanes.ask(
            group,
            rows.shape[1],
            self._waits.within(left_s),
            lambda core, call, own: core.steps(call, rows[own]),
            is_flat=is_flat,
        )

    async def forecast(
        self,
        session_id: str,
        horizon: int,
        *,
        known: ArrayLike | None = None,
        timeout_s: float | None = None,
    ) -> NDArray[np.float32]:
        """Return the model's own continuation of a session, [horizon, outputs] f32. The session does not move.

        `known` is as of `Session.forecast`.
        """
        try:
            answers = await self.forecasts([session_id], horizon, known=known, timeout_s=timeout_s)
        except errors.RowsFailed as failure:
            raise failure.errors[0] from None
        ahead: NDArray[np.float32] = answers[0]
        return ahead

    async def forecasts(
        self,
        ids: Iterable[str] | Group,
        horizon: int,
        *,
        known: ArrayLike | None = None,
        timeout_s: float | None = None,
    ) -> NDArray[np.float32]:
        """Return the continuations of n sessions, [n, horizon, outputs] f32; RowsFailed as in `steps`.

        `known` is as of `Session.forecast`, for all sessions alike, or [n, rows, known features], each session's own.
        """
        left_s = await self._waits.enter(timeout_s)
        horizon = arrays.whole_number(horizon, "horizon", 2**32)
        group = _group(ids)
        told = session_known(known, len(group), horizon)
        return await self._lanes.ask(
            group,
            horizon,
            self._waits.within(left_s),
            lambda core, call, own: core.forecast(call, horizon, None if told is None else told[own]),
            is_flat=False,
        )

    async def open(
        self,
        ids: Iterable[str] | Group,
        *,
        initial: Named | None = None,
        timeout_s: float | None = None,
    ) -> NDArray[np.bool_]:
        """Open n sessions without values, in bulk; return of each whether that has created it, as `created` does.

        `initial` is what those begin with that are created, as of `Client.session`: by name one array [n, *shape].
        It stays with a session until that is open: values that come after a refusal do not begin elsewhere, and
        another `open` replaces it.
        RowsFailed as in `steps`; its `answers` is then 1, 0 or NaN, [n, 1] f32.
        """
        left_s = await self._waits.enter(timeout_s)
        group = _group(ids)
        begun = None if initial is None else session_fields(initial, len(group))
        created = await self._lanes.ask(
            group,
            1,
            self._waits.within(left_s),
            lambda core, call, own: core.open(call, None if begun is None else begun[own]),
            is_flat=True,
        )
        return created.astype(np.bool_).reshape(len(group))

    def group(self, ids: Iterable[str]) -> Group:
        """Return ids for repeated array calls, which then cost no look-up of each."""
        self._check_open()
        return Group(ids)

    async def flush(
        self, ids: Iterable[str] | Group | None = None, *, timeout_s: float | None = None
    ) -> None:
        """Wait until all that was asked of some sessions before is answered and stored, where the server stores.

        None: of all that have not ended. RowsFailed as in `steps`; a session in doubt raises StepInDoubt. What is asked
        of them meanwhile waits for it.
        """
        left_s = await self._waits.enter(timeout_s)
        group = Group(self._lanes.ids()) if ids is None else _group(ids)
        await self._lanes.ask(
            group, 1, self._waits.within(left_s), lambda core, call, _: core.flush(call), is_flat=True
        )

    async def close_session(
        self, ids: str | Iterable[str] | Group, *, timeout_s: float | None = None
    ) -> None:
        """Forget a session, or many, after all that was asked of it before; it lives on at the server.

        A session that has ended (SessionTaken, SessionReplaced, SessionLost) may then be opened anew. One in doubt
        raises StepInDoubt; of many, RowsFailed has the errors. Calls made before this has returned raise
        SessionClosed.
        """
        group = _group([ids] if isinstance(ids, str) else ids)
        waiters: list[asyncio.Future[None]] = [self._loop.create_future() for _ in group.ids]
        for lane, share in self._lanes.shares(group):
            own = [waiters[share.row(index)] for index in range(len(share.group))]
            lane.core.close_sessions(zip(share.group.ids, own, strict=True))
        outcomes = await self._waits.until(asyncio.gather(*waiters, return_exceptions=True), timeout_s)
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
        core = self._lanes.of(session_id).core
        slot = core.table.slots.get(session_id, -1)
        waiter = RetryFuture(loop=self._loop)
        waiter.turns, waiter.slot = core.turns, slot
        waiter.doubt = core.retry(slot if slot >= 0 else None, waiter)
        return await self._waits.until(waiter, timeout_s)

    def position(self, session_id: str) -> int:
        """Return the session's next step, the number of its steps answered; NOT_OPEN before its first use."""
        self._check_open()
        table = self._lanes.of(session_id).core.table
        return int(table.position[table.opened_slot(session_id)[0]])

    def durability(self, session_id: str) -> str:
        """Return what the server gives the session, "none", "behind" or "sync"; NOT_OPEN before its first use."""
        self._check_open()
        return durability_name(self._lanes.of(session_id).core.table.opened_slot(session_id)[1].durability)

    def durable_step(self, session_id: str) -> int:
        """Return the step that would survive the server, as last heard; NOT_OPEN before its first use.

        Under durability NONE, and of a session that has ended, as it was at the last opening.
        """
        self._check_open()
        table = self._lanes.of(session_id).core.table
        slot, opened = table.opened_slot(session_id)
        is_followed = table.keeps[slot] and slot not in table.ends
        return int(table.durable_step[slot]) if is_followed else opened.durable_step

    def created(self, session_id: str) -> bool:
        """Return whether its first opening here has created the session; NOT_OPEN before that."""
        self._check_open()
        return self._lanes.of(session_id).core.table.opened_slot(session_id)[1].created

    def in_doubt(self, session_id: str) -> bool:
        """Return whether a call ended without its answer after its values were sent; `retry` gets it."""
        self._check_open()
        core = self._lanes.of(session_id).core
        return core.table.slots.get(session_id, -1) in core.turns.doubts

    def doubts(self) -> list[str]:
        """Return the ids of all sessions that are in doubt."""
        self._check_open()
        return [lane.core.table.ids[slot] for lane in self._lanes for slot in lane.core.turns.doubts]

    async def close(self) -> None:
        """Close the streams and the channels. The sessions live on.

        What waits raises SessionClosed, or StepInDoubt where its values had been sent.
        """
        if self._is_closed:
            return
        self._is_closed = True
        await self._lanes.close(view.closed_error("gateway"))

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


def _group(ids: Iterable[str] | Group) -> Group:
    return ids if isinstance(ids, Group) else Group(ids)
