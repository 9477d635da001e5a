"""Every point between receiving a message and sending its answer where a crash can fall, in order, by name.

Owns where each point is in the service, as seams: a method that is about to be called, or has just returned. The
service knows nothing of it. `install` wraps the seams of one point in a process that is to kill itself there.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import itertools
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longshort_service.checkpointer import Checkpointer
from longshort_service.columns import SessionColumns
from longshort_service.engine import Engine
from longshort_service.handlers.edge import Edge
from longshort_service.handlers.sequence import SequenceHandler
from longshort_service.handlers.stream import StreamConversation
from longshort_service.keeper import Keeper
from longshort_service.opener import Opener
from longshort_service.protocol import StreamState
from longshort_service.scheduler import Scheduler
from longshort_service.session_writer import SessionWriter
from longshort_service.small_run import SmallRun
from longshort_service.stores.memory import MemoryStore
from longshort_service.stores.redis import RedisBackend
from longshort_service.stores.sqlite import SqliteBackend
from longshort_service.stores.threaded import ThreadedStore

if TYPE_CHECKING:
    from collections.abc import Callable


class Phase(enum.Enum):
    """What has to happen for a point to be reached."""

    OPENING = enum.auto()
    MESSAGE = enum.auto()
    WRITE = enum.auto()  # of a record: where the store is durable and the session is BEHIND or SYNC
    FLUSH = enum.auto()
    HALF_CLOSE = enum.auto()
    DRAIN = enum.auto()


@dataclass(frozen=True)
class Seam:
    """A method, and whether the point is before or after it. `holds` says of its object whether a call counts."""

    owner: type[Any]
    method: str
    is_after: bool
    holds: Callable[[Any], bool] = lambda _owner: True


@dataclass(frozen=True)
class FaultPoint:
    """A point; it has several seams where the service has several ways through it."""

    name: str
    phase: Phase
    seams: tuple[Seam, ...]


def before(
    *methods: tuple[type[Any], str], holds: Callable[[Any], bool] = lambda _owner: True
) -> tuple[Seam, ...]:
    return tuple(Seam(owner, method, is_after=False, holds=holds) for owner, method in methods)


def after(
    *methods: tuple[type[Any], str], holds: Callable[[Any], bool] = lambda _owner: True
) -> tuple[Seam, ...]:
    return tuple(Seam(owner, method, is_after=True, holds=holds) for owner, method in methods)


def _is_opening(stream: Any) -> bool:
    return bool(stream._protocol.state is StreamState.OPENING)


def _is_answering(stream: Any) -> bool:
    return bool(stream._protocol.state is StreamState.ANSWERING)


def _is_open(stream: Any) -> bool:
    return stream._session is not None


_STORES = (MemoryStore, ThreadedStore)
_BACKENDS = (SqliteBackend, RedisBackend)
_SUBMIT = ((Scheduler, "submit"), (Scheduler, "submit_single"))  # a message of several steps, and of one
_SETTLE = ((SessionColumns, "settle"), (SessionColumns, "settle_one"))

FAULT_POINTS = (
    FaultPoint("an opening is received", Phase.OPENING, before((Keeper, "open_many"))),
    FaultPoint(
        "its epoch is raised in the store and not in memory",
        Phase.OPENING,
        after(*((store, "open_many") for store in _STORES)),
    ),
    FaultPoint("its session has a row and no stream", Phase.OPENING, after((Opener, "bring"))),
    FaultPoint("its stream has the session", Phase.OPENING, after((Keeper, "open_many"))),
    FaultPoint("opened is written", Phase.OPENING, after((StreamConversation, "_answer"), holds=_is_opening)),
    FaultPoint(
        "a message is received",
        Phase.MESSAGE,
        before((StreamConversation, "_take"), holds=_is_open),
    ),
    FaultPoint("it is judged and not queued", Phase.MESSAGE, before(*_SUBMIT)),
    FaultPoint("it is queued", Phase.MESSAGE, after(*_SUBMIT)),
    FaultPoint(
        "it has run and its states are not written", Phase.MESSAGE, after((Engine, "run"), (SmallRun, "run"))
    ),
    FaultPoint("its states are written and its step is not", Phase.MESSAGE, before(*_SETTLE)),
    FaultPoint("states, step and stored answer have moved", Phase.MESSAGE, after(*_SETTLE)),
    FaultPoint(
        "its answer is about to be written",
        Phase.MESSAGE,
        before((StreamConversation, "_answer"), holds=_is_answering),
    ),
    FaultPoint(
        "its answer is written",
        Phase.MESSAGE,
        after((StreamConversation, "_answer"), holds=_is_answering),
    ),
    FaultPoint("a session is copied for the store", Phase.WRITE, after((SessionWriter, "copy"))),
    FaultPoint("its record is handed to the store", Phase.WRITE, before((ThreadedStore, "write"))),
    FaultPoint(
        "it has the store's thread", Phase.WRITE, before(*((backend, "write") for backend in _BACKENDS))
    ),
    FaultPoint("it is stored", Phase.WRITE, after(*((backend, "write") for backend in _BACKENDS))),
    FaultPoint("it is durable and not noted", Phase.WRITE, after((ThreadedStore, "write"))),
    FaultPoint("it is noted", Phase.WRITE, after((SessionWriter, "write"))),
    FaultPoint("a flush is received", Phase.FLUSH, before((StreamConversation, "_flush"))),
    FaultPoint("a flush is done and not answered", Phase.FLUSH, after((StreamConversation, "_flush"))),
    FaultPoint("a half-closed stream still has its session", Phase.HALF_CLOSE, before((Keeper, "detach"))),
    FaultPoint("a half-closed stream has let go", Phase.HALF_CLOSE, after((Keeper, "detach"))),
    FaultPoint("a drain holds the streams", Phase.DRAIN, after((SequenceHandler, "hold_streams"))),
    FaultPoint("a drain has stored the sessions", Phase.DRAIN, after((Checkpointer, "store_all"))),
    FaultPoint("a drain has ended the streams", Phase.DRAIN, after((SequenceHandler, "end_streams"))),
    FaultPoint("a drain waits for no call any more", Phase.DRAIN, after((Edge, "until_quiet"))),
    FaultPoint("a drain has closed the store", Phase.DRAIN, after((Keeper, "close"))),
)


class Fuse:
    """Kills the process, as a crash does, at the n-th arrival at its point after it was lit."""

    def __init__(self, arrival: int) -> None:
        self._arrival = arrival
        self._arrivals = itertools.count(1)
        self.is_lit = False  # a start warms its models up: those runs are no messages

    def arrived(self) -> None:
        if self.is_lit and next(self._arrivals) == self._arrival:
            os.kill(os.getpid(), signal.SIGKILL)


def install(name: str, arrival: int) -> Fuse:
    """Have this process kill itself at a point, once the fuse that is returned is lit."""
    (point,) = (each for each in FAULT_POINTS if each.name == name)
    fuse = Fuse(arrival)
    for seam in point.seams:
        _wrap(seam, fuse)
    return fuse


def _wrap(seam: Seam, fuse: Fuse) -> None:
    wrapped = getattr(seam.owner, seam.method)

    @functools.wraps(wrapped)
    def call(owner: Any, *arguments: Any, **named: Any) -> Any:
        counts = seam.holds(owner)
        if counts and not seam.is_after:
            fuse.arrived()
        result = wrapped(owner, *arguments, **named)
        if counts and seam.is_after:
            fuse.arrived()
        return result

    @functools.wraps(wrapped)
    async def await_(owner: Any, *arguments: Any, **named: Any) -> Any:
        counts = seam.holds(owner)
        if counts and not seam.is_after:
            fuse.arrived()
        result = await wrapped(owner, *arguments, **named)
        if counts and seam.is_after:
            fuse.arrived()
        return result

    setattr(seam.owner, seam.method, await_ if asyncio.iscoroutinefunction(wrapped) else call)
