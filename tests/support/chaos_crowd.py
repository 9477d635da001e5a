"""Two hundred callers that stream real series as fast as they are answered.

They use the client as anybody does: async sessions, a gateway's single calls and array calls, sessions in threads. An
error that a caller sees ends the run.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import longshort
import numpy as np
from chaos_callers import new_callers
from longshort.route import Route
from oracle import OracleModel
from program import SHIPPED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chaos_callers import Caller

NUM_ASYNC, NUM_GATEWAY, NUM_GROUP, NUM_THREADS = 100, 60, 20, 20
SHARE_OF_LONG_CALLS = 0.05  # a message of several steps, so that a replay meets boundaries of every kind
MOST_STEPS = 40
# A session is closed then and opened again: at the first place of its hash, where that is up.
CALLS_OF_A_SESSION = (100, 800)

# The server allows a ping every 5 s. A frozen server is found at most 6 s after its last word.
KEEPALIVE_MS, PING_TIMEOUT_MS = 5_000, 1_000
OPTIONS = (
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
)


class Crowd:
    """All callers of one run."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.callers = new_callers(NUM_ASYNC + NUM_GATEWAY + NUM_GROUP + NUM_THREADS)
        self.num_streams = 0
        self._stop = threading.Event()

    def run(self, address: str, disturb: Callable[[threading.Event], None]) -> None:
        """Stream until `disturb`, in a thread of its own, has returned; it stops early when its event is set.

        Everything is stored and closed then. Raises what a caller or `disturb` raised.
        """
        with self._counted_streams():
            asyncio.run(self._run(address, disturb))

    def check(self) -> None:
        """Hold every answer of everybody against a run without faults."""
        for model in ("metro", "parking"):
            oracle = OracleModel(SHIPPED / model / "1" / "model.onnx")
            for caller in self.callers:
                if caller.model == model:
                    caller.check(oracle)

    async def _run(self, address: str, disturb: Callable[[threading.Event], None]) -> None:
        left = iter(self.callers)
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            client = await stack.enter_async_context(longshort.aio.Client(address, options=OPTIONS))
            gateways = {
                model: await stack.enter_async_context(
                    longshort.aio.Gateway(address, model, durability="behind", options=OPTIONS)
                )
                for model in ("metro", "parking")
            }
            threads = stack.enter_context(longshort.Client(address, options=OPTIONS))
            pool = stack.enter_context(ThreadPoolExecutor(NUM_THREADS))
            for _ in range(NUM_ASYNC):
                group.create_task(self._follow(client, next(left)))
            for _ in range(NUM_GATEWAY):
                caller = next(left)
                group.create_task(self._follow_one(gateways[caller.model], caller))
            for _ in range(NUM_THREADS):
                group.create_task(self._in_thread(pool, threads, next(left)))
            together = list(left)
            for model, gateway in gateways.items():
                some = [caller for caller in together if caller.model == model]
                group.create_task(self._follow_all(gateway, some))
            group.create_task(self._disturb(disturb))

    async def _disturb(self, disturb: Callable[[threading.Event], None]) -> None:
        try:
            await asyncio.to_thread(disturb, self._stop)
        finally:
            self._stop.set()

    async def _follow(self, client: longshort.aio.Client, caller: Caller) -> None:
        while not self._stop.is_set():
            with caller.call():
                session = await client.session(caller.id, caller.model, durability="behind")
            try:
                await self._step(session, caller)
            finally:
                with caller.call():
                    await session.close()

    async def _step(self, session: longshort.aio.Session, caller: Caller) -> None:
        caller.where = lambda: session._route.address
        assert session.position == caller.position
        for _ in self._calls():
            values = caller.values(self._count())
            with caller.call():
                if len(values) == 1:
                    rows = (await session.step(values[0]))[None]
                else:
                    rows = await session.steps(values)
            caller.take(rows, session.position)
        with caller.call():
            assert await session.flush() == caller.position

    async def _follow_one(self, gateway: longshort.aio.Gateway, caller: Caller) -> None:
        caller.where = _lane_of(gateway, caller)
        while not self._stop.is_set():
            with caller.call():
                row = await gateway.step(caller.id, caller.values(1)[0])
            caller.take(row[None], gateway.position(caller.id))
        with caller.call():
            await gateway.flush([caller.id])

    async def _follow_all(self, gateway: longshort.aio.Gateway, callers: list[Caller]) -> None:
        group = gateway.group([caller.id for caller in callers])
        await gateway.open(group.ids)
        for caller in callers:
            caller.where = _lane_of(gateway, caller)
        while not self._stop.is_set():
            count = self._count()
            values = np.stack([caller.values(count) for caller in callers])[:, :, None]
            with ExitStack() as calls:
                for caller in callers:
                    calls.enter_context(caller.call())
                answers = await gateway.steps(group, values)  # [callers, count, outputs] f32
            for caller, rows in zip(callers, answers, strict=True):
                caller.take(rows, gateway.position(caller.id))
        await gateway.flush(group.ids)

    async def _in_thread(self, pool: ThreadPoolExecutor, client: longshort.Client, caller: Caller) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(pool, self._follow_here, client, caller)
        finally:  # cancelled, as another caller has failed: the threads have to hear of it
            self._stop.set()

    def _follow_here(self, client: longshort.Client, caller: Caller) -> None:
        while not self._stop.is_set():
            with caller.call():
                session = client.session(caller.id, caller.model, durability="behind")
            try:
                self._step_here(session, caller)
            finally:
                with caller.call():
                    session.close()

    def _step_here(self, session: longshort.Session, caller: Caller) -> None:
        caller.where = lambda: session._route.address
        assert session.position == caller.position
        for _ in self._calls():
            values = caller.values(self._count())
            with caller.call():
                rows = session.steps(values)
            caller.take(rows, session.position)
        with caller.call():
            assert session.flush() == caller.position

    def _calls(self) -> Iterator[None]:
        """Go on until the session object is to be closed."""
        yield from itertools.takewhile(
            lambda _: not self._stop.is_set(),
            itertools.repeat(None, self._random.randint(*CALLS_OF_A_SESSION)),
        )

    def _count(self) -> int:
        return self._random.randint(2, MOST_STEPS) if self._random.random() < SHARE_OF_LONG_CALLS else 1

    @contextmanager
    def _counted_streams(self) -> Iterator[None]:
        """Count every stream that any client makes: each takes its way from a route."""
        take = Route.take

        def counted(route: Route) -> Any:
            self.num_streams += 1
            return take(route)

        Route.take = counted  # type: ignore[method-assign]
        try:
            yield
        finally:
            Route.take = take  # type: ignore[method-assign]


def _lane_of(gateway: longshort.aio.Gateway, caller: Caller) -> Callable[[], str | None]:
    return lambda: gateway._lanes.of(caller.id).pump._route.address
