"""What a caller has asked of a session: one task at a time, each one or more messages long."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

from longshort.journal import Message
from longshort.named import answer_rows
from longshort.v1 import sequence_pb2, types_pb2

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Expected(Enum):
    """Which answer is awaited on an open stream."""

    NOTHING = "nothing"
    RESENT = "an answer that was given before"
    VALUES = "an answer to values"
    FORECAST = "a forecast"
    FLUSHED = "flushed"


class StepsTask:
    """Values to be taken in order, cut into messages; its result is the rows of all their answers.

    `sent` turns true with the first byte that may have left: from then on the values belong to the sequence.
    """

    __slots__ = ("_answers", "_first_step", "_inflight", "_num_answered", "_parts", "_rows", "sent")

    def __init__(self, rows: NDArray[Any], first_step: int, answers: types_pb2.Answers) -> None:
        self._rows = rows  # [time, features] f32, or [time] of named fields
        self._first_step = first_step
        self._answers = answers
        self._num_answered = 0
        self._inflight: Message | None = None
        self._parts: list[NDArray[Any]] = []
        self.sent = False

    @property
    def num_answered(self) -> int:
        """The number of its rows that were taken and answered."""
        return self._num_answered

    @property
    def inflight(self) -> Message | None:
        """The message that was sent and not answered yet."""
        return self._inflight

    def next_message(self, max_steps: int) -> Message:
        """Return the message to send now: the unanswered one unchanged, or the next piece."""
        if self._inflight is None:
            end = min(self._num_answered + max_steps, len(self._rows))
            is_last = end == len(self._rows)
            wants_rows = is_last or self._answers == types_pb2.ANSWERS_ALL
            answers = self._answers if wants_rows else types_pb2.ANSWERS_NONE
            piece = self._rows[self._num_answered : end]
            self._inflight = Message(self._first_step + self._num_answered, piece, answers)
        self.sent = True
        return self._inflight

    def answered(self, message: Message, answer: sequence_pb2.Answer, num_outputs: int) -> bool:
        """Take the answer to the message in flight; return whether the task is done."""
        self._num_answered += len(message.rows)
        self._inflight = None
        self._parts.append(answer_rows(answer, num_outputs))
        return self._num_answered >= len(self._rows)

    def result(self) -> NDArray[Any] | None:
        """Return the rows answered so far, [rows, outputs] f32 or [rows] of fields; None where no message was."""
        if len(self._parts) == 1:
            return self._parts[0]
        return np.concatenate(self._parts) if self._parts else None


class ForecastTask:
    """A forecast; it may be asked any number of times."""

    __slots__ = ("horizon", "known")

    def __init__(self, horizon: int, known: NDArray[np.float32] | None = None) -> None:
        self.horizon = horizon
        self.known = known  # [horizon - 1 or horizon, known features] f32

    def request(self) -> sequence_pb2.StreamRequest:
        """Return it for the wire."""
        known = [] if self.known is None else self.known.ravel().tolist()
        return sequence_pb2.StreamRequest(
            forecast=sequence_pb2.StreamForecast(horizon=self.horizon, known=known)
        )


class FlushTask:
    """A wish to know when all that was applied is stored; it may be asked any number of times."""

    __slots__ = ()

    @staticmethod
    def request() -> sequence_pb2.StreamRequest:
        """Return it for the wire."""
        return sequence_pb2.StreamRequest(flush=sequence_pb2.Flush())


Task = StepsTask | ForecastTask | FlushTask
