"""The answered values that a server might still lose, as columns, frame by frame.

It owns which are kept and for how long. It does not know connections, or when to send.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from longshort.journal import Journal, Message
from longshort.v1 import types_pb2

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(slots=True, eq=False)
class _Frame:
    slots: NDArray[np.intp]  # [rows]
    first_steps: NDArray[np.uint64]  # [rows]
    counts: NDArray[np.intp]  # [rows]
    values: NDArray[np.float32]  # [sum of counts, features] f32

    def only(self, rows: NDArray[np.bool_]) -> _Frame:
        steps = np.repeat(rows, self.counts)
        return _Frame(self.slots[rows], self.first_steps[rows], self.counts[rows], self.values[steps])

    def stored(self, durable_step: NDArray[np.uint64]) -> NDArray[np.bool_]:
        ends = self.first_steps + self.counts.astype(np.uint64)
        stored: NDArray[np.bool_] = ends <= durable_step[self.slots]
        return stored


class KeptValues:
    """Answered messages of all sessions from their durable steps on, in order, at most about `max_steps` steps."""

    def __init__(self, max_steps: int) -> None:
        self.num_steps = 0
        self._max_steps = max_steps
        self._frames: deque[_Frame] = deque()
        self._index: dict[int, list[Message]] | None = None  # by slot; made when it is needed, which is rare

    @property
    def is_full(self) -> bool:
        """Whether the server must store what it has before it gets more."""
        return self.num_steps >= self._max_steps

    def append(
        self,
        slots: NDArray[np.intp],
        first_steps: NDArray[np.uint64],
        counts: NDArray[np.intp],
        values: NDArray[np.float32],
    ) -> None:
        """Take messages that were answered: [rows] each, and [sum of counts, features] f32."""
        self._frames.append(_Frame(slots, first_steps, counts, values))
        self.num_steps += len(values)
        self._index = None

    def trim(self, durable_step: NDArray[np.uint64]) -> None:
        """Forget the oldest frames that are stored whole; `durable_step` is by slot."""
        while self._frames and self._frames[0].stored(durable_step).all():
            self.num_steps -= len(self._frames.popleft().values)
            self._index = None

    def compact(self, durable_step: NDArray[np.uint64]) -> None:
        """Forget every message that is stored whole, wherever it lies: one slow session must not hold the rest."""
        self._keep([frame.only(~frame.stored(durable_step)) for frame in self._frames])

    def forget(self, slots: NDArray[np.intp]) -> None:
        """Forget sessions: their slots are given to others."""
        self._keep([frame.only(~np.isin(frame.slots, slots)) for frame in self._frames])

    def _keep(self, frames: list[_Frame]) -> None:
        self._frames = deque(frame for frame in frames if len(frame.slots))
        self.num_steps = sum(len(frame.values) for frame in self._frames)
        self._index = None

    def missing(self, slot: int, step: int, position: int, max_steps: int) -> list[Message] | None:
        """Return what brings a server from `step` to the last answer at `position`, or None where it is not kept."""
        journal = Journal(self.num_steps)
        messages = self._contiguous(slot, position)
        journal.begin(messages[0].first_step if messages else position)
        for message in messages:
            journal.append(message)
        return journal.since(step, max_steps)

    def start_step(self, slot: int, position: int) -> int:
        """Return the least step from which a session's values up to `position` can be sent again."""
        messages = self._contiguous(slot, position)
        return messages[0].first_step if messages else position

    def oldest_slots(self, max_rows: int) -> NDArray[np.intp]:
        """Return the sessions of the oldest rows, at most about that many, each once."""
        found, num_rows = [np.empty(0, np.intp)], 0
        for frame in self._frames:
            if num_rows >= max_rows:
                break
            found.append(frame.slots)
            num_rows += len(frame.slots)
        return np.unique(np.concatenate(found))

    def _contiguous(self, slot: int, position: int) -> list[Message]:
        """Return a session's last messages up to `position`, without those before a gap: what was stored at once."""
        found: list[Message] = []
        for message in reversed(self._messages(slot)):
            if message.end_step != position:
                break
            found.append(message)
            position = message.first_step
        return found[::-1]

    def _messages(self, slot: int) -> list[Message]:
        if self._index is None:
            self._index = {}
            for frame in self._frames:
                ends = np.cumsum(frame.counts).tolist()
                columns = (frame.slots.tolist(), frame.first_steps.tolist(), frame.counts.tolist(), ends)
                for owner, first_step, count, end in zip(*columns, strict=True):
                    message = Message(first_step, frame.values[end - count : end], types_pb2.ANSWERS_ALL)
                    self._index.setdefault(owner, []).append(message)
        return self._index.get(slot, [])
