"""The values of one session that its server might still lose, so that they can be sent again.

It owns which answered messages are kept and for how long. It does not know connections, or when to send.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from longshort import named
from longshort.v1 import sequence_pb2, types_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """One numbered message of values, known to the server by its first step, its count and its bits."""

    first_step: int
    rows: NDArray[Any]  # [time, features] f32, or [time] of named fields
    answers: types_pb2.Answers

    @property
    def end_step(self) -> int:
        """The session's step after it."""
        return self.first_step + len(self.rows)

    def request(self) -> sequence_pb2.StreamRequest:
        """Return it for the wire, a new object each time: gRPC serialises in a thread of its own."""
        values = sequence_pb2.Values(step=self.first_step, answers=self.answers)
        if self.rows.dtype.names is None:
            values.values.extend(self.rows.ravel().tolist())
        else:
            values.tensors.extend(named.step_messages(self.rows))
        return sequence_pb2.StreamRequest(values=values)

    def same_values(self, other: Message) -> bool:
        """Return whether both are the same message to the server, bit for bit (a NaN equals itself)."""
        return (
            self.first_step == other.first_step
            and self.rows.dtype == other.rows.dtype
            and self.rows.tobytes() == other.rows.tobytes()
        )


class Journal:
    """Answered messages from the durable step on, contiguous up to the last answer.

    `start_step` is the least step from which it can send again. With `keeps` off (durability NONE) it holds
    nothing: what such a server forgets, it forgets with the whole session.
    """

    __slots__ = ("_messages", "end_step", "keeps", "max_steps", "num_steps")

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps
        self.keeps = True
        self.end_step = 0
        self.num_steps = 0
        self._messages: deque[Message] = deque()

    @property
    def start_step(self) -> int:
        """The least step from which it can send again."""
        return self.end_step - self.num_steps

    @property
    def is_full(self) -> bool:
        """Whether the server must store what it has before it gets more."""
        return self.num_steps >= self.max_steps

    def begin(self, step: int) -> None:
        """Forget everything and go on from a step."""
        self._messages.clear()
        self.num_steps = 0
        self.end_step = step

    def append(self, message: Message) -> None:
        """Take a message that was answered; one that does not follow the last is not kept (a replay)."""
        if message.first_step != self.end_step:
            return
        if not self.keeps:
            self.begin(message.end_step)
            return
        self._messages.append(message)
        self.num_steps += len(message.rows)
        self.end_step = message.end_step

    def trim(self, durable_step: int) -> None:
        """Forget the messages that are stored whole."""
        while self._messages and self._messages[0].end_step <= durable_step:
            self.num_steps -= len(self._messages.popleft().rows)

    def since(self, step: int, max_steps: int) -> list[Message] | None:
        """Return what brings a server from `step` to the last answer, or None where it is not kept.

        Older messages are joined into ones of at most `max_steps` without answers, since theirs were given
        long ago: one round trip instead of thousands. The last one stays as it was, so that the server
        holds its answer again, should the caller ask for it by number.
        """
        if not self.start_step <= step <= self.end_step:
            return None
        missing = [message for message in self._messages if message.end_step > step]
        if not missing:
            return []
        *older, last = missing
        return [*_joined(older, step, max_steps), _from_step(last, step)]


def _from_step(message: Message, step: int) -> Message:
    if step <= message.first_step:
        return message
    return Message(step, message.rows[step - message.first_step :], message.answers)


def _joined(messages: list[Message], step: int, max_steps: int) -> Iterator[Message]:
    if not messages:
        return
    first_step = max(step, messages[0].first_step)
    # What was sent as numbers goes as numbers, what was sent by name by name.
    for _, alike in itertools.groupby(messages, lambda message: message.rows.dtype):
        rows = np.concatenate([_from_step(message, step).rows for message in alike])
        for start in range(0, len(rows), max_steps):
            yield Message(first_step + start, rows[start : start + max_steps], types_pb2.ANSWERS_NONE)
        first_step += len(rows)
