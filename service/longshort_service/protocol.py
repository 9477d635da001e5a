"""What a stream may say next, and what a step number means. No sockets, no clocks, no asyncio.

A stream is in one of five states; `TRANSITIONS` is all that may happen. An event that the table lacks raises and
changes nothing.

    AWAITING_OPEN --OPEN--> OPENING --ANSWERED--> READY --VALUES|FORECAST|FLUSH--> ANSWERING --ANSWERED--> READY
    every state --FAIL--> ENDED          (a client that half-closes just ends the stream: nothing is left to say)

A session holds at most one unanswered message of a stream by construction: only READY takes one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from longshort_service import errors


class StreamState(enum.Enum):
    """Where a stream stands."""

    AWAITING_OPEN = enum.auto()
    OPENING = enum.auto()
    READY = enum.auto()
    ANSWERING = enum.auto()
    ENDED = enum.auto()

    # Members are what they are by identity. Enum's own hash is Python code, and the table is asked for every message.
    __hash__ = object.__hash__


class StreamEvent(enum.Enum):
    """What may happen to a stream."""

    OPEN = enum.auto()
    VALUES = enum.auto()
    FORECAST = enum.auto()
    FLUSH = enum.auto()
    ANSWERED = enum.auto()
    FAIL = enum.auto()

    __hash__ = object.__hash__  # as above


_S, _E = StreamState, StreamEvent

TRANSITIONS: Final[dict[StreamState, dict[StreamEvent, StreamState]]] = {
    _S.AWAITING_OPEN: {_E.OPEN: _S.OPENING, _E.FAIL: _S.ENDED},
    _S.OPENING: {_E.ANSWERED: _S.READY, _E.FAIL: _S.ENDED},
    _S.READY: {
        _E.VALUES: _S.ANSWERING,
        _E.FORECAST: _S.ANSWERING,
        _E.FLUSH: _S.ANSWERING,
        _E.FAIL: _S.ENDED,
    },
    _S.ANSWERING: {_E.ANSWERED: _S.READY, _E.FAIL: _S.ENDED},
    _S.ENDED: {_E.FAIL: _S.ENDED},
}


class StreamProtocol:
    """The state of one stream."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state = StreamState.AWAITING_OPEN

    def handle(self, event: StreamEvent) -> None:
        """Move on by `event`. Raises NotOpen or InvalidMessage, changing nothing, where it is out of place."""
        successor = TRANSITIONS[self.state].get(event)
        if successor is None:
            raise _out_of_place(self.state, event)
        self.state = successor


def _out_of_place(state: StreamState, event: StreamEvent) -> errors.ServiceError:
    if state is StreamState.AWAITING_OPEN:
        return errors.NotOpen(f"the first message of a stream must be `open`, not `{event.name.lower()}`")
    if event is StreamEvent.OPEN:
        return errors.InvalidMessage("the stream is open already; use another stream for another session")
    return errors.InvalidMessage(f"`{event.name.lower()}` is out of place while the stream is {state.name}")


@dataclass(frozen=True, slots=True)
class MessageIdentity:
    """What a numbered message is known by: its first step, its count of steps, the CRC-32 of its values."""

    first_step: int
    num_steps: int
    crc: int


class Verdict(enum.Enum):
    """What to do with a message of values that is not refused."""

    APPLY = enum.auto()
    REPLAY = enum.auto()


def judge(position: int, last: MessageIdentity | None, message: MessageIdentity) -> Verdict:
    """Decide about a numbered message at a session that has consumed `position` steps.

    `last` is the identity of the last message applied. The rules are the step table of the contract. Raises one of
    the StepRefused; never changes anything.
    """
    if message.first_step == position:
        return Verdict.APPLY
    if message.first_step > position:
        raise errors.StepGap(
            f"the message starts at step {message.first_step}, the session expects step {position}: "
            f"send the values from step {position} on",
            expected_step=position,
        )
    if last is not None and (last.first_step, last.num_steps) == (message.first_step, message.num_steps):
        if last.crc == message.crc:
            return Verdict.REPLAY
        raise errors.ValuesDiffer(
            f"step {message.first_step} was applied with other values: two writers share this session",
            expected_step=position,
        )
    raise errors.StepConflict(
        f"step {message.first_step} was applied already and this is not the last message again: "
        f"the session expects step {position}",
        expected_step=position,
    )


def judge_unnumbered(position: int, *, gapless: bool) -> Verdict:
    """Decide about a message without a step: applied where it is known that nothing is missing before it.

    Raises StepRequired otherwise.
    """
    if gapless:
        return Verdict.APPLY
    raise errors.StepRequired(
        f"the session was restored at step {position} and values may be missing: number the message",
        expected_step=position,
    )


def unstored(error: errors.ServiceError, *, numbered: bool) -> errors.ServiceError:
    """Return what the sender of applied values is told, whose answer waited for the store in vain.

    A numbered message may be sent again. One without a number would move the session twice.
    """
    if numbered or not isinstance(error, errors.StoreUnavailable):
        return error
    return errors.TakenUnstored(
        "the session store does not answer: the values were taken and may not be stored; "
        "they have no step, so do not send them again: they would count twice"
    )


# Errors after which a stream cannot go on, whatever message caused them.
_STREAM_ENDING: Final = (
    errors.NotOpen,
    errors.InvalidMessage,
    errors.MalformedMessage,
    errors.SessionMoved,
    errors.Draining,
    errors.EngineDead,
    errors.OurFault,
)


def ends_stream(error: errors.ServiceError, state: StreamState, *, numbered: bool) -> bool:
    """Whether `error` ends the stream instead of being answered in band.

    A refused opening ends it: nothing could follow. So does a PeerFault of unnumbered values: they are good values
    that were not applied, and the next ones, perhaps sent already, would close over the gap unseen; or they were
    applied and are in danger (TakenUnstored), and who sends them has to know before more follow.
    """
    if state is not StreamState.ANSWERING or isinstance(error, _STREAM_ENDING):
        return True
    return isinstance(error, errors.PeerFault) and not numbered
