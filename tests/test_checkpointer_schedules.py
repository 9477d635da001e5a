"""Any schedule of steps, openings, moves, crashes, spills and store failures keeps what was called stored.

In virtual time, on two servers over one store: `durable_step` is never above what the store has, never goes down, and
whoever opens a session finds at least what anybody was told of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from itertools import count
from typing import TYPE_CHECKING, Any

from desk import INTERVAL_S, STEPS, Desk
from flaky_store import FlakyStore
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from longshort_service import errors
from longshort_service.checkpointer import TICK_S
from longshort_service.durability import Durability
from longshort_service.management import Management
from tables import RecordingOwner, TableModel
from virtual import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from longshort_service.repository import Model
    from longshort_service.session import Session

NUM_SERVERS = 2
NUM_ROWS = 1  # fewer than sessions: openings drive others out

# Mostly one session on one server, so that much happens to it.
SERVERS, SESSIONS = st.sampled_from([0, 0, 0, 1]), st.sampled_from(["s", "s", "s", "t"])
OPENINGS = st.tuples(st.just("open"), SERVERS, SESSIONS, st.sampled_from(list(Durability)))
MESSAGES = st.one_of(
    st.tuples(st.just("answer"), SERVERS, SESSIONS, st.booleans()),
    st.tuples(st.just("flood"), SERVERS, SESSIONS, st.sampled_from([(STEPS + 2, 0.0), (30, 0.1)])),
    st.tuples(st.just("hold"), SERVERS, SESSIONS, st.sampled_from([0.001, 0.4, 1.5])),
)
DUTIES = st.one_of(
    st.tuples(st.sampled_from(["leave", "leave", "delete", "reset"]), SERVERS, SESSIONS, st.none()),
    st.tuples(st.sampled_from(["sweep", "refresh", "store_all", "crash"]), SERVERS, st.none(), st.none()),
)
STORE = st.one_of(
    st.tuples(st.just("delay"), st.none(), st.none(), st.sampled_from([0.0, 0.01, 0.7, 3.0])),
    st.tuples(
        st.sampled_from(["is_down", "is_full", "loses_replies"]),
        st.none(),
        st.none(),
        st.sampled_from([True, False, False]),
    ),
)
OPERATIONS = OPENINGS | MESSAGES | DUTIES | STORE
PAUSES = st.sampled_from([0.0, 0.0, 0.005, 0.3, 1.1, 6.0, 61.0])


class Play:
    """Two servers, one store, and what anybody was told."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.store = FlakyStore(loop.time, is_shared=True)
        self.incarnations = count(1)
        self.desks: list[Desk] = []
        self.tasks: list[set[asyncio.Task[None]]] = [set() for _ in range(NUM_SERVERS)]
        # By session and incarnation: the step that somebody was told to be stored.
        self.told: defaultdict[tuple[str, int], int] = defaultdict(int)
        self.durable_steps: dict[Session[Model], tuple[int, int]] = {}

    def _new_desk(self) -> Desk:
        made = Desk(
            self.store,
            self.loop.time,
            models=[TableModel(num_rows=NUM_ROWS)],
            max_sessions=NUM_ROWS,
            draw_incarnation=self.incarnations.__next__,
        )
        made.checkpointer.start()
        return made

    async def play(self, schedule: list[tuple[tuple[Any, ...], float]]) -> None:
        """Do one thing after the other, whatever is still under way, and let the store be well at the end."""
        self.desks = [self._new_desk() for _ in range(NUM_SERVERS)]
        for (operation, server, name, argument), pause_s in schedule:
            if operation == "crash":
                await self._crash(server)
            elif operation == "delay":
                self.store.delay_s = argument
            elif server is None:
                setattr(self.store, operation, argument)
            else:
                call = getattr(self, f"_{operation}")(self.desks[server], name, argument)
                self._start(server, call)
            await self._pass(pause_s)
        self.store.delay_s, self.store.is_down, self.store.is_full = 0.0, False, False
        self.store.loses_replies = False
        await self._pass(10.0)
        assert not any(self.tasks)
        self._check_end()
        for desk in self.desks:
            await desk.stop()
        assert self.store.overlaps == set()

    async def _pass(self, seconds: float) -> None:
        """Let time pass, and look at everything while it does."""
        end_s = self.loop.time() + seconds
        for _ in range(3):
            await asyncio.sleep(0)
            self._check()
        while self.loop.time() < end_s:
            await asyncio.sleep(min(0.15, max(end_s - self.loop.time(), 1e-6)))
            self._check()

    def _start(self, server: int, call: Coroutine[Any, Any, None]) -> None:
        async def answered() -> None:
            try:
                await call
            except errors.OurFault:
                raise
            except errors.ServiceError:
                pass

        task = self.loop.create_task(answered())
        self.tasks[server].add(task)
        task.add_done_callback(self.tasks[server].discard)
        task.add_done_callback(lambda ended: ended.cancelled() or ended.result())

    async def _crash(self, server: int) -> None:
        """End a server in the middle of everything, and start another in its place."""
        desk = self.desks[server]
        under_way = [
            *self.tasks[server],
            *desk.checkpointer._tasks,
            *desk.checkpointer._writer._judging,
            *desk.turns._under_way,
        ]
        for task in under_way:
            task.cancel()
        self.desks[server] = self._new_desk()  # at once: what the other one would still do comes to nobody
        self.durable_steps = {
            session: seen
            for session, seen in self.durable_steps.items()
            if desk.table.get(session.id) is not session
        }
        await asyncio.gather(*under_way, return_exceptions=True)

    # -- what callers do ------------------------------------------------------------------------------------------

    async def _open(self, desk: Desk, name: str, durability: Durability) -> None:
        live = desk.table.get(name)
        epoch = 0 if live is None else live.epoch
        known = {key: step for key, step in self.told.items() if key[0] == name}
        session = await desk.open(name, durability, RecordingOwner(), epoch=epoch)
        if not session.is_ended:
            assert session.step >= known.get((name, session.incarnation), 0)

    async def _answer(self, desk: Desk, name: str, strictly: bool) -> None:  # noqa: FBT001  of a schedule
        session = desk.table.get(name)
        if session is None:
            return
        incarnation, durability = session.incarnation, session.durability
        step, _, _ = await desk.answer(session, strictly=strictly)
        if strictly or (not session.is_ended and durability is session.durability is Durability.SYNC):
            stored = [
                record.step
                for record in self.store.stored
                if (record.session_id, record.incarnation) == (name, incarnation)
            ]
            assert max(stored, default=0) >= step, "an answer went that is not stored"
            self._tell(name, incarnation, step)

    async def _flood(self, desk: Desk, name: str, messages: tuple[int, float]) -> None:
        num_messages, pause_s = messages
        for _ in range(num_messages):
            await self._answer(desk, name, strictly=False)
            await asyncio.sleep(pause_s)

    async def _hold(self, desk: Desk, name: str, seconds: float) -> None:
        session = desk.table.get(name)
        if session is not None and not session.is_busy:
            job = desk.begin(session)
            await asyncio.sleep(seconds)
            desk.end(session, job)

    async def _leave(self, desk: Desk, name: str, _argument: None) -> None:
        session = desk.table.get(name)
        if session is not None and session.owner is not None:
            desk.leave(session)

    async def _delete(self, desk: Desk, name: str, _argument: None) -> None:
        await Management(desk.keeper).delete(name)

    async def _reset(self, desk: Desk, name: str, _argument: None) -> None:
        async def reset() -> None:
            live = desk.table.get(name)
            if live is not None:
                await desk.keeper.restart(live, live.model.arena.read(live.slot), lambda: None)

        await desk.turns.through(name, reset)

    async def _sweep(self, desk: Desk, _name: None, _argument: None) -> None:
        await desk.evictor.sweep()

    async def _refresh(self, desk: Desk, _name: None, _argument: None) -> None:
        desk.checkpointer.refresh(desk.clock() - 1)

    async def _store_all(self, desk: Desk, _name: None, _argument: None) -> None:
        with contextlib.suppress(TimeoutError):  # a drain has a limit too
            async with asyncio.timeout(2 * INTERVAL_S):
                await desk.checkpointer.store_all()

    # -- what must be true ----------------------------------------------------------------------------------------

    def _tell(self, name: str, incarnation: int, step: int) -> None:
        self.told[name, incarnation] = max(self.told[name, incarnation], step)

    def _check(self) -> None:
        for desk in self.desks:
            for session in desk.table:
                self._check_session(session)
        assert self.store.overlaps == set()
        assert self.loop.unhandled == []

    def _check_session(self, session: Session[Model]) -> None:
        incarnation, durable_step = session.incarnation, session.durable_step
        assert durable_step <= session.step
        before_incarnation, before_step = self.durable_steps.get(session, (incarnation, 0))
        assert durable_step >= before_step or incarnation != before_incarnation, "durable_step went down"
        self.durable_steps[session] = (incarnation, durable_step)
        entry = self.store.entries.get(session.id)
        if entry is not None and entry.record.incarnation == incarnation:
            assert entry.record.step >= durable_step, "durable_step is above what the store holds"
            assert entry.record.step >= self.told[session.id, incarnation], "the store went back"
            self._tell(session.id, incarnation, durable_step)

    def _check_end(self) -> None:
        """The store was well for long: who still has a session has it stored, and nobody waits."""
        for desk in self.desks:
            assert desk.checkpointer.waiters.sessions() == []
            assert all(session.is_ended for session in desk.checkpointer._urgent)
            assert desk.checkpointer.lag_s < 2 * INTERVAL_S + TICK_S
            for session in desk.table:
                assert not session.is_writing
                assert session.durable_step == session.step or session.durability is Durability.NONE


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(begin=OPENINGS, schedule=st.lists(st.tuples(MESSAGES | OPERATIONS, PAUSES), min_size=4, max_size=40))
@example(  # a record is refused while the opening that raised its epoch is under way
    begin=("open", 0, "s", Durability.SYNC),
    schedule=[
        (("delay", None, None, 0.7), 0.0),
        (("open", 0, "s", Durability.SYNC), 0.3),
        (("answer", 0, "s", False), 6.0),
    ],
)
def test_what_was_called_stored_is_found_again(
    begin: tuple[Any, ...], schedule: list[tuple[tuple[Any, ...], float]]
):
    loop = VirtualLoop()
    loop.play(Play(loop).play([(begin, 0.3), *schedule]))
