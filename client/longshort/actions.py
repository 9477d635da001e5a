"""What the core of a session tells its shell to do: the whole vocabulary between the two."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longshort.errors import LongshortError
    from longshort.v1 import sequence_pb2


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a stream in place of the former one and send the request first."""

    request: sequence_pb2.StreamRequest


@dataclass(frozen=True, slots=True)
class Send:
    """Send the request on the stream."""

    request: sequence_pb2.StreamRequest


@dataclass(frozen=True, slots=True)
class Wait:
    """Let that time pass before the next action; `asked_s` of it is what the server asked for.

    `failure` is what has ended the stream; None where it goes on.
    """

    delay_s: float
    asked_s: float | None = None
    failure: LongshortError | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What was asked is done; `result` is [rows, outputs] f32 where it has rows."""

    result: NDArray[Any] | None


@dataclass(frozen=True, slots=True)
class Failed:
    """What was asked has failed; the error is to be raised."""

    error: LongshortError


class Receive(Enum):
    """Read one message from the stream."""

    RECEIVE = 0


RECEIVE: Final = Receive.RECEIVE
Action = Connect | Send | Receive | Wait | Done | Failed
