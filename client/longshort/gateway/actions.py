"""What the core of a frame stream tells its shell to do: the whole vocabulary between the two."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from longshort.actions import RECEIVE, Receive


class Connect(Enum):
    """Open a stream in place of the former one."""

    CONNECT = 0


@dataclass(frozen=True, slots=True)
class SendFrame:
    """Send the serialised StreamFramesRequest on the stream."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class Idle:
    """Do nothing until something is asked, or that time has passed."""

    until_s: float | None = None  # of the clock that the core is told


CONNECT: Final = Connect.CONNECT
Action = Connect | SendFrame | Receive | Idle
__all__ = ["CONNECT", "RECEIVE", "Action", "Connect", "Idle", "SendFrame"]
