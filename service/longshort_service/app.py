"""The composition root: builds every part of the service in order and stops it in reverse."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from longshort_service import errors
from longshort_service.behind import CheckpointLimits
from longshort_service.checkpointer import Checkpointer
from longshort_service.config import ConfigError, ServeConfig
from longshort_service.durability import Durability
from longshort_service.eviction import Evictor, Limits
from longshort_service.handlers import inference, sequence, session
from longshort_service.handlers import model as model_handler
from longshort_service.handlers.edge import Edge
from longshort_service.http_endpoint import HttpEndpoint
from longshort_service.keeper import Keeper
from longshort_service.management import Management
from longshort_service.metrics import Metrics
from longshort_service.model_loader import ModelLoader
from longshort_service.observers import CallMetrics
from longshort_service.repository import Model, ReloadResult, Repository
from longshort_service.repository_watch import RepositoryWatch
from longshort_service.scheduler import Scheduler
from longshort_service.sessions import SessionTable
from longshort_service.stepper import Stepper
from longshort_service.stores.backend import StoreConfigError
from longshort_service.stores.opening import make_store
from longshort_service.transport.server import Server
from longshort_service.turns import Turns
from longshort_service.version_folder import MODEL_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

# gRPC itself refuses what is far beyond our own limit, before it is held in memory.
HARD_LIMIT_FACTOR: Final = 4
# How long calls of other services (health watches, reflection) may take to end once ours have.
STOP_GRACE_S: Final = 0.2
# Shares of the drain's time after which it is gone on with: who is stuck costs the others' sessions no last word.
HOLD_SHARE: Final = 0.5
QUIET_SHARE: Final = 0.75
# An open session is noted in the store so often in its time to live, lest another server take it for unused.
REFRESHES_PER_TTL: Final = 8
# Names for health checks only: whether the store is there, and whether a restart would not help.
STORE_HEALTH_NAME: Final = "longshort.store"
LIVE_HEALTH_NAME: Final = "longshort.live"
SERVICE_NAMES: Final = (
    sequence.SERVICE_NAME,
    session.SERVICE_NAME,
    model_handler.SERVICE_NAME,
    inference.SERVICE_NAME,
)


class App:
    """The whole service. `start`, then `stop`; both once, on one CompletionLoop."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self.metrics = Metrics(error_reasons=all_reasons())
        self._calls = CallMetrics(self.metrics)
        self._table: SessionTable[Model] = SessionTable()
        try:
            self._store = make_store(config.store, max_entries=config.max_stored_sessions, environ=os.environ)
        except StoreConfigError as error:
            raise ConfigError(str(error)) from error
        loader = ModelLoader(config, self.metrics)
        self.repository = Repository(repository_root(config), loader.load, loader)
        self._watch_of_models = RepositoryWatch(self.repository, self._is_in_use, config.repository_watch_s)
        self._scheduler = Scheduler(
            inline_run_limit_s=config.inline_run_limit_s,
            max_queued_steps=config.max_queued_steps,
            on_engine_death=lambda _lane: self._engine_died(),
        )
        turns = Turns()
        self._checkpointer = Checkpointer(
            table=self._table,
            store=self._store,
            turns=turns,
            limits=CheckpointLimits(
                config.checkpoint_interval_s,
                config.checkpoint_steps,
                config.store_timeout_s,
                config.store_outage_limit_s,
                is_unary_sync=config.unary_durability == "sync",
            ),
            clock=time.time,
            observer=self._calls,
            on_store_change=self._store_changed,
        )
        self._evictor = Evictor(
            table=self._table,
            store=self._store,
            turns=turns,
            waiters=self._checkpointer.waiters,
            limits=Limits(
                config.max_sessions, config.idle_timeout_s, config.session_ttl_s, config.tombstone_ttl_s
            ),
            clock=time.time,
            observer=self._calls,
        )
        self._keeper = Keeper(
            table=self._table,
            store=self._store,
            repository=self.repository,
            turns=turns,
            evictor=self._evictor,
            checkpointer=self._checkpointer,
            durability=Durability[config.durability.upper()],
            clock=time.time,
            draw_incarnation=lambda: secrets.randbits(64),
            observer=self._calls,
        )
        self._explain_thread = ThreadPoolExecutor(1, thread_name_prefix="explain")
        self._edge = Edge(
            keeper=self._keeper,
            stepper=Stepper(self._scheduler, self._calls, time.time, self._explain_thread),
            management=Management(self._keeper),
            repository=self.repository,
            observer=self._calls,
            max_steps=config.max_steps,
            max_message_bytes=config.max_message_bytes,
            max_streams=config.max_streams,
            max_batch_rows=config.max_batch_rows,
            is_unary_sync=config.unary_durability == "sync",
            max_stream_age_s=config.max_stream_age_s,
        )
        self._streams = sequence.SequenceHandler(self._edge)
        self._inference = inference.InferenceHandler(
            self._edge,
            inference.Surroundings(
                reload=self._reload,
                stages=self.metrics.step_stages,
                is_live=lambda: not self._is_engine_dead,
                is_ready=lambda: not self._why_not_serving(),
                max_sequences=config.max_sessions,
                session_ttl_s=config.session_ttl_s,
            ),
            is_strict=config.sequence_mode == "strict",
        )
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._is_engine_dead = False
        self._why_not_ready = "starting"  # empty from the end of `start` to `stop`
        self._sweeper: asyncio.Task[None] | None = None
        self.grpc_port = 0
        self.metrics_port = 0

    async def start(self) -> None:
        """Load and warm the models, then bind the ports. Raises ConfigError where something cannot be had."""
        await self._load_repository()
        self._server = self._build_server()
        try:
            self.grpc_port = self._server.add_port(
                f"{_bracketed(self._config.host)}:{self._config.grpc_port}"
            )
        except RuntimeError as error:
            raise ConfigError(
                f"port {self._config.grpc_port} of {self._config.host} is taken or not ours: "
                "stop what listens there or give another --grpc-port"
            ) from error
        self._http = HttpEndpoint(
            self._config.host,
            self._config.metrics_port,
            registry=self.metrics.registry,
            is_alive=lambda: not self._is_engine_dead,
            why_not_ready=self._why_not_serving,
        )
        self._watch()
        self._server.start()
        self._http.start()
        self.metrics_port = self._http.port
        self._checkpointer.start()
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep_regularly())
        self._watch_of_models.start()
        self._why_not_ready = ""
        await self._say_health()

    async def stop(self) -> None:
        """Drain: answer what is in flight, store the sessions, end the streams; at most `drain_timeout_s` for that."""
        self._why_not_ready = "draining"
        self._watch_of_models.stop()
        await self._say_health()
        self._edge.is_draining = True
        begin_s, limit_s = asyncio.get_running_loop().time(), self._config.drain_timeout_s
        try:
            async with asyncio.timeout_at(begin_s + limit_s):
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(begin_s + HOLD_SHARE * limit_s):
                        await self._streams.hold_streams()
                # Before their streams end: their clients open them elsewhere at once.
                await self._checkpointer.store_all()
                self._end_streams()
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(begin_s + QUIET_SHARE * limit_s):
                        await self._edge.until_quiet()
                # What unary calls that were in hand have moved since.
                await self._checkpointer.store_all()
                await self._edge.until_quiet()
        except TimeoutError:
            self._end_streams()
            logger.warning("calls did not end in time", extra={"fields": {"calls": self._edge.num_calls}})
        self._checkpointer.log_what_is_lost()
        await self._server.stop(STOP_GRACE_S)
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._scheduler.close()
        await self._keeper.close()
        self._explain_thread.shutdown(cancel_futures=True)
        self._http.stop()

    def _end_streams(self) -> None:
        self._streams.end_streams(errors.Draining("the server is shutting down: connect again"))

    async def _load_repository(self) -> None:
        if not self.repository.root.is_dir():
            raise ConfigError(f"{self.repository.root}: there is no such folder of models")
        result = await self._reload()
        if not self.repository.models():
            why = "; ".join(result.failed.values()) or f"no <name>/<version>/{MODEL_FILE} in it"
            raise ConfigError(f"{self.repository.root}: no model to serve: {why}")

    async def _reload(self) -> ReloadResult:
        return await self.repository.reload(self._is_in_use)

    async def _is_in_use(self, model: Model) -> bool:
        """Whether a session, live or stored, is on a version."""
        # The table last: a session may begin while the store is asked.
        is_stored = await self._store.has_records_of(model.name, model.version)
        return is_stored or self._table.num_sessions_of(model) > 0

    def _watch(self) -> None:
        table, store = self._table, self._store
        self.metrics.watch_sessions(
            live=lambda: len(table) - table.num_idle, idle=lambda: table.num_idle, spilled=store.num_records
        )
        self.metrics.watch_streams(self._streams.num_streams)
        self.metrics.watch_serving(lambda: not self._why_not_serving())
        self.metrics.watch_store(lambda: not self._checkpointer.outage.is_away)
        self.metrics.watch_checkpoint_lag(lambda: self._checkpointer.lag_s)

    def _build_server(self) -> Server:
        limit = min(self._config.max_message_bytes * HARD_LIMIT_FACTOR, 2**31 - 1)  # gRPC counts in 32 bits
        server = Server(
            [
                # On by default, it would let a second server take half of the connections of a taken port.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", -1),
                # A client that vanished without a word is found within 80 s; its session becomes idle then.
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                # Clients may ask every 5 s whether we are there; gRPC's own limit is 5 minutes.
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ]
        )
        for path, accept in {**self._streams.routes(), **self._inference.routes(self._streams)}.items():
            server.route(path, accept)
        server.add_generic_rpc_handlers(
            (
                self._streams.generic_handler(),
                session.SessionHandler(self._edge).generic_handler(),
                model_handler.ModelHandler(self._edge, self._reload).generic_handler(),
                self._inference.generic_handler(),
            )
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (*SERVICE_NAMES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        servicer = reflection.aio.ReflectionServicer(names)  # type: ignore[attr-defined]
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
        return server

    async def _sweep_regularly(self) -> None:
        """Spill and expire while the service runs; a failed sweep is logged and the next one tried."""
        pause_s = min(max(self._config.idle_timeout_s / 4, 0.05), 15.0)
        while True:
            await asyncio.sleep(pause_s)
            try:
                self._checkpointer.refresh(time.time() - self._config.session_ttl_s / REFRESHES_PER_TTL)
                await self._evictor.sweep()
            except errors.StoreUnavailable:
                continue  # it is in the log already
            except Exception:
                logger.exception("the sweep of idle sessions failed")

    def _engine_died(self) -> None:
        self._is_engine_dead = True
        self._store_changed()

    def _store_changed(self) -> None:
        # Kept, as the loop itself keeps only a weak reference.
        self._telling = asyncio.get_running_loop().create_task(self._say_health())

    def _why_not_serving(self) -> str:
        """Return in a few words why no new work is taken; empty where it is."""
        if self._is_engine_dead:
            return "the engine is dead"
        if not self._why_not_ready and self._checkpointer.outage.is_over_limit:
            return "the session store is away for too long"
        return self._why_not_ready

    async def _say_health(self) -> None:
        """Tell all who watch: of the service, and of its store, which may be away while the service goes on."""
        is_serving = not self._why_not_serving()
        for name in ("", *SERVICE_NAMES):
            await self._health.set(name, _serving_status(is_serving=is_serving))
        is_stored = is_serving and not self._checkpointer.outage.is_away
        await self._health.set(STORE_HEALTH_NAME, _serving_status(is_serving=is_stored))
        await self._health.set(LIVE_HEALTH_NAME, _serving_status(is_serving=not self._is_engine_dead))


def repository_root(config: ServeConfig) -> Path:
    """Return the folder of models: the configured one, else the one that ships."""
    if config.repository is not None:
        return config.repository
    return Path(str(resources.files("longshort_service") / "models"))


def all_reasons() -> Iterator[str]:
    """Yield the reason of every error that a caller may be given."""
    pending: list[type[errors.ServiceError]] = [errors.ServiceError]
    while pending:
        error = pending.pop()
        subclasses = error.__subclasses__()
        pending.extend(subclasses)
        if not subclasses:
            yield error.reason


def _serving_status(*, is_serving: bool) -> health_pb2.HealthCheckResponse.ServingStatus:
    status = health_pb2.HealthCheckResponse
    return status.SERVING if is_serving else status.NOT_SERVING


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
