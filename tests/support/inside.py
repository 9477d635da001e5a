"""The whole service inside a test's own process, and a gate at its engine: for what happens in mid-batch."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from longshort_service.app import App
from longshort_service.config import ServeConfig
from wire import Caller

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from longshort_service.engine import Engine
    from longshort_service.lane import Lane

PATIENCE_S = 20.0
LULL_S = 0.002


@asynccontextmanager
async def service(
    models: Path, *, may_log_errors: bool = False, **settings: Any
) -> AsyncIterator[tuple[App, Caller]]:
    """Start the service on a free port with a caller; it is drained at the end.

    Runs go to the engine's thread, so that the loop goes on while a gate holds one. Nothing may be left to the
    loop's exception handler, and no error may be logged: an exception that nobody took is a bug.
    """
    errors = ErrorLog()
    logging.getLogger().addHandler(errors)
    loop, unhandled = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _loop, context: unhandled.append(context))
    settings = {"inline_run_limit_s": 0.0, "drain_timeout_s": 2.0} | settings
    settings = {"store": "memory://"} | settings  # the default is a file that all tests would share
    app = App(ServeConfig(repository=models, grpc_port=0, metrics_port=0, **settings))
    await app.start()
    try:
        async with Caller(f"127.0.0.1:{app.grpc_port}") as caller:
            yield app, caller
    finally:
        await app.stop()
        gc.collect()
        loop.set_exception_handler(None)
        logging.getLogger().removeHandler(errors)
    assert unhandled == []
    assert may_log_errors or errors.messages == []


class ErrorLog(logging.Handler):
    """Keeps what is logged as an error or worse, gRPC's words included."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record's words."""
        self.messages.append(f"{record.getMessage()} {record.exc_info}")


class Gate:
    """Stands before an engine: each run waits until it is let through."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._arrived = threading.Semaphore(0)
        self._let = threading.Semaphore(0)
        self.batches: list[int] = []  # rows of each run that has arrived

    @classmethod
    def before(cls, lane: Lane) -> Gate:
        """Put a gate before a lane's engine."""
        gate = cls(lane.engine)
        lane.engine = gate  # type: ignore[assignment]
        return gate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, values: Any, counts: Any, states: Any) -> Any:
        """Run as the engine does, when let through."""
        self.batches.append(len(values))
        self._arrived.release()
        if not self._let.acquire(timeout=PATIENCE_S):
            raise TimeoutError("nobody has let the run through")
        return self._engine.run(values, counts, states)

    async def arrival(self) -> None:
        """Wait until a run has come to the gate."""
        assert await asyncio.to_thread(self._arrived.acquire, timeout=PATIENCE_S)

    def let_through(self, count: int = 1) -> None:
        """Let so many runs through, now or when they come."""
        self._let.release(count)

    def open(self) -> None:
        """Let everything through from now on."""
        self.let_through(1_000_000)


class Lull:
    """Stands before an engine: each run waits a little, so that batches gather as they do under load."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.num_shared = 0  # runs of more than one row
        self.num_padded = 0  # of these, runs of rows of unequal length

    @classmethod
    def before(cls, lane: Lane) -> Lull:
        """Put a lull before a lane's engine."""
        lull = cls(lane.engine)
        lane.engine = lull  # type: ignore[assignment]
        return lull

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, values: Any, counts: Any, states: Any) -> Any:
        """Run as the engine does, a little later."""
        self.num_shared += len(values) > 1
        self.num_padded += counts is not None and len(set(counts.tolist())) > 1
        time.sleep(LULL_S)
        return self._engine.run(values, counts, states)


async def until(condition: Any, pause_s: float = 0.005) -> None:
    """Wait until something becomes true; with a pause of 0 it is asked in every turn of the loop."""
    deadline_s = asyncio.get_running_loop().time() + PATIENCE_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline_s, "it did not become true"
        await asyncio.sleep(pause_s)
