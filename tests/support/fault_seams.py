"""Crashes on purpose: seams of the service, and the fuse that kills the process at one of them.

A seam is a method that is about to be called, or has just returned. The service knows nothing of it.
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
    """A method, and whether the point is before or after it. `holds` says whether a call counts.

    It is given what the call is given, its object first.
    """

    owner: type[Any]
    method: str
    is_after: bool
    holds: Callable[..., bool]


@dataclass(frozen=True)
class FaultPoint:
    """A point; it has several seams where the service has several ways through it."""

    name: str
    phase: Phase
    seams: tuple[Seam, ...]


def always(*_: Any) -> bool:
    return True


def before(*methods: tuple[type[Any], str], holds: Callable[..., bool] = always) -> tuple[Seam, ...]:
    return tuple(Seam(owner, method, is_after=False, holds=holds) for owner, method in methods)


def after(*methods: tuple[type[Any], str], holds: Callable[..., bool] = always) -> tuple[Seam, ...]:
    return tuple(Seam(owner, method, is_after=True, holds=holds) for owner, method in methods)


class Fuse:
    """Kills the process, as a crash does, at the n-th arrival at its point after it was lit."""

    def __init__(self, arrival: int) -> None:
        self._arrival = arrival
        self._arrivals = itertools.count(1)
        self.is_lit = False  # a start warms its models up: those runs are no messages

    def arrived(self) -> None:
        if self.is_lit and next(self._arrivals) == self._arrival:
            os.kill(os.getpid(), signal.SIGKILL)


def wrap(seam: Seam, fuse: Fuse) -> None:
    """Have every call that passes a seam arrive at the fuse."""
    wrapped = getattr(seam.owner, seam.method)

    @functools.wraps(wrapped)
    def call(owner: Any, *arguments: Any, **named: Any) -> Any:
        counts = seam.holds(owner, *arguments)
        if counts and not seam.is_after:
            fuse.arrived()
        result = wrapped(owner, *arguments, **named)
        if counts and seam.is_after:
            fuse.arrived()
        return result

    @functools.wraps(wrapped)
    async def await_(owner: Any, *arguments: Any, **named: Any) -> Any:
        counts = seam.holds(owner, *arguments)
        if counts and not seam.is_after:
            fuse.arrived()
        result = await wrapped(owner, *arguments, **named)
        if counts and seam.is_after:
            fuse.arrived()
        return result

    setattr(seam.owner, seam.method, await_ if asyncio.iscoroutinefunction(wrapped) else call)
