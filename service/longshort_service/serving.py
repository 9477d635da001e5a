"""Running the service as a process: its event loop, its signals, its exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

from longshort_service import logs
from longshort_service.app import App
from longshort_service.garbage import GarbagePolicy
from longshort_service.option_kinds import without_password
from longshort_service.transport.event_loop import CompletionLoop

if TYPE_CHECKING:
    from longshort_service.config import ServeConfig

logger = logging.getLogger(__name__)


def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the process at once.

    Raises ConfigError where the service cannot start.
    """
    logs.setup(config.log_format, config.log_level, sys.stderr)
    with asyncio.Runner(loop_factory=CompletionLoop) as runner:
        runner.run(_serve(config))


async def _serve(config: ServeConfig) -> None:
    app = App(config)
    await app.start()
    garbage = GarbagePolicy(asyncio.get_running_loop())
    garbage.start()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, number, stop, loop)
    models = ", ".join(f"{model.name}/{model.version}" for model in app.repository.models())
    logger.info(
        "serving",
        extra={
            "fields": {
                "grpc": f"{config.host}:{app.grpc_port}",
                "metrics": f"http://{config.host}:{app.metrics_port}/metrics",
                "models": models,
                "store": without_password(config.store),
                "pid": os.getpid(),
            }
        },
    )
    await stop.wait()
    garbage.stop()
    await app.stop()
    logger.info("stopped")


def _on_signal(number: signal.Signals, stop: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
    logger.info("draining", extra={"fields": {"signal": number.name}})
    stop.set()
    for again in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(again)
        signal.signal(again, signal.SIG_DFL)
