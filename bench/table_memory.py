"""A million sessions in this process, without gRPC: bytes of each by part, and what opening, leaving, spilling cost.

Times are this process's CPU time, so that neighbours do not count; memory is what the operating system has made
resident. Usage: python -m bench.table_memory [SESSIONS]
"""

from __future__ import annotations

import asyncio
import gc
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from longshort_service.app import repository_root
from longshort_service.behind import CheckpointLimits
from longshort_service.checkpointer import Checkpointer
from longshort_service.config import ServeConfig
from longshort_service.durability import Durability
from longshort_service.eviction import Evictor, Limits
from longshort_service.garbage import GarbagePolicy
from longshort_service.keeper import Keeper
from longshort_service.metrics import Metrics
from longshort_service.model_loader import ModelLoader
from longshort_service.observers import CallMetrics
from longshort_service.opener import OpenRequest
from longshort_service.repository import Model, Repository
from longshort_service.sessions import SessionTable
from longshort_service.stores.memory import MemoryStore
from longshort_service.turns import Turns

from bench.machine import machine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from longshort_service.session import Session
    from longshort_service.sharded_dict import ShardedDict

FRAME: Final = 1000  # sessions opened in one call
IDLE_TIMEOUT_S: Final = 10.0
SESSION_TTL_S: Final = 1000.0
PAGE_BYTES: Final = 4096


class Pauses:
    """How long Python's collector stops the process."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        gc.callbacks.append(self._on_collection)

    def _on_collection(self, phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            self._begin_s = time.thread_time()
        else:
            self.seconds.append(time.thread_time() - self._begin_s)

    def take(self) -> str:
        """Return the longest and the sum since this was asked last."""
        longest, total = max(self.seconds, default=0.0), sum(self.seconds)
        self.seconds.clear()
        return f"gc longest {longest * 1e3:.1f} ms, sum {total:.2f} s"


class Stream:
    """A frame stream that has all sessions open."""

    def lose(self, session_id: str, error: Exception) -> None:
        """See StreamOwner: nobody takes one here."""
        raise AssertionError(f"{session_id}: {error}")

    def stored(self, session_id: str, durable_step: int) -> None:
        """See StreamOwner: nothing is stored on the way here."""


class Core:
    """The service's core with the shipped models, and a clock that is set by hand."""

    def __init__(self, num_sessions: int) -> None:
        config = ServeConfig(max_sessions=num_sessions, max_stored_sessions=num_sessions)
        metrics = Metrics(error_reasons=())
        observer, loader, turns = CallMetrics(metrics), ModelLoader(config, metrics), Turns()
        self.now_s = 0.0
        self.repository = Repository(repository_root(config), loader.load, loader)
        self.table: SessionTable[Model] = SessionTable()
        self.store = MemoryStore(num_sessions)
        limits = Limits(num_sessions, IDLE_TIMEOUT_S, SESSION_TTL_S, 1.0)
        checkpointer = Checkpointer(
            table=self.table,
            store=self.store,
            turns=turns,
            limits=CheckpointLimits(1.0, config.checkpoint_steps, 1.0, 1.0),
            clock=lambda: self.now_s,
            observer=observer,
            on_store_change=lambda: None,
        )
        self.evictor = Evictor(
            table=self.table,
            store=self.store,
            turns=turns,
            waiters=checkpointer.waiters,
            limits=limits,
            clock=lambda: self.now_s,
            observer=observer,
        )
        self.keeper = Keeper(
            table=self.table,
            store=self.store,
            repository=self.repository,
            turns=turns,
            evictor=self.evictor,
            checkpointer=checkpointer,
            durability=Durability.NONE,
            clock=lambda: self.now_s,
            draw_incarnation=lambda: secrets.randbits(64),
            observer=observer,
        )

    async def load(self) -> Model:
        """Load the shipped models; return the one to be used."""

        async def nobody_uses(_model: Model) -> bool:
            return False

        await self.repository.reload(nobody_uses)
        return self.repository.models()[0]


def resident_bytes() -> int:
    """Return this process's resident memory."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * PAGE_BYTES


def huge_page_bytes() -> int:
    """Return how much of it lies in huge pages, which come whole where one byte is touched."""
    lines = Path("/proc/self/smaps_rollup").read_text("ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages")) * 1024


def parts_of(core: Core, model: Model, session: Session[Model]) -> dict[str, float]:
    """Return the bytes of one session by part, as the objects tell; a dictionary's are shared among its entries."""
    count = len(core.table)
    arrays = [array for array in vars(model.columns).values() if isinstance(array, np.ndarray)]
    unique = {id(array): array for array in arrays}.values()
    index: Any = core.table._by_row[model]  # noqa: SLF001  what is measured is inside
    return {
        "states": model.arena.row_bytes,
        "columns": sum(array.itemsize * array[0].size for array in unique) + 8,  # 8: the row's generation
        "id": sys.getsizeof(session.id),
        "session": sys.getsizeof(session) + sys.getsizeof(session.row),
        "table": _size(core.table._sessions) / count,  # noqa: SLF001
        "row index": sys.getsizeof(index._sessions) / count,  # noqa: SLF001
        "store": _size(core.store._entries) / count + sys.getsizeof(count),  # noqa: SLF001
    }


def _size(ids: ShardedDict[Any]) -> int:
    return sum(sys.getsizeof(shard) for shard in ids.shards)


async def phase(name: str, count: int, work: Callable[[], Awaitable[Any]], pauses: Pauses) -> None:
    """Do something to all sessions and print what it cost and for how long it held the loop."""
    holds, is_over = [0.0], False

    async def watch() -> None:
        last_s = time.thread_time()
        while not is_over:
            await asyncio.sleep(0)
            now_s = time.thread_time()
            holds.append(now_s - last_s)
            last_s = now_s

    pauses.take()
    watcher = asyncio.ensure_future(watch())
    begin_s, before = time.thread_time(), resident_bytes()
    await work()
    seconds = time.thread_time() - begin_s
    is_over = True
    await watcher
    grown = (resident_bytes() - before) / count
    print(
        f"{name:28} {count / seconds:10,.0f}/s  {seconds / count * 1e6:6.2f} us each  {grown:+7.0f} bytes each  "
        f"loop held {max(holds) * 1e3:5.1f} ms  {pauses.take()}"
    )


async def measure(count: int, *, has_policy: bool) -> None:
    """Open, reopen, leave, spill, resume and outlive so many sessions."""
    core = Core(count)
    before = resident_bytes()
    model = await core.load()
    print(f"models loaded, rows for {count:,}: {(resident_bytes() - before) / 2**20:.0f} MiB resident")
    policy = GarbagePolicy(asyncio.get_running_loop())
    if has_policy:
        policy.start()
    pauses, stream, keeper = Pauses(), Stream(), core.keeper

    async def open_all() -> None:
        for begin in range(0, count, FRAME):
            numbers = range(begin, min(begin + FRAME, count))
            await keeper.open_many(
                [OpenRequest(f"sensor-{number:09}", model=model.name) for number in numbers], stream
            )

    async def leave_all() -> None:
        await keeper.detach_many(list(core.table), stream)
        core.now_s += IDLE_TIMEOUT_S + 1

    async def expire_all() -> None:
        core.now_s += SESSION_TTL_S
        await core.evictor.sweep()

    await phase("open, new", count, open_all, pauses)
    parts = parts_of(core, model, next(iter(core.table)))
    print("  bytes of each: " + ", ".join(f"{name} {size:.0f}" for name, size in parts.items()))
    print(f"  in all {sum(parts.values()):.0f}; allowed {1.5 * parts['states'] + 300:.0f}")
    print(f"  in huge pages {huge_page_bytes() / 2**20:.0f} MiB")
    await phase("leave", count, leave_all, pauses)
    await phase("open, live", count, open_all, pauses)
    await phase("leave", count, leave_all, pauses)
    await phase("spill", count, core.evictor.sweep, pauses)
    await phase("open, spilled", count, open_all, pauses)
    await phase("leave", count, leave_all, pauses)
    await phase("spill and expire", count, expire_all, pauses)
    if has_policy:
        policy.stop()


def main() -> None:
    """Measure with the garbage policy and without."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    print(machine())
    for has_policy in (True, False):
        print(f"-- {'with' if has_policy else 'without'} the garbage policy")
        asyncio.run(measure(count, has_policy=has_policy))
        gc.collect()


if __name__ == "__main__":
    main()
