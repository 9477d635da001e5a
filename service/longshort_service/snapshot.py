"""Copies of many sessions at one moment, from which records are made later, also in another thread.

Copying rows holds the loop for a fraction of what making their records does. Knows no stores and no asyncio.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

import numpy as np

from longshort_service.protocol import MessageIdentity
from longshort_service.record import SessionRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longshort_service.served_model import ModelT
    from longshort_service.session import Session


class Snapshot(Sequence[SessionRecord]):
    """Sessions of one model between two messages. A record is made each time that one is looked at.

    `is_clean` `[sessions]` says of which no step can be missing where they go on from what is written: their owner
    writes their last step. The caller has seen that nothing of theirs is in flight.
    """

    def __init__(
        self, sessions: Sequence[Session[ModelT]], is_clean: NDArray[np.bool_], copied_s: float = 0.0
    ) -> None:
        self.copied_s = copied_s  # by a clock of the caller's
        model = sessions[0].model
        columns = model.columns
        rows = np.array([session.row for session in sessions], np.intp)
        self.rows = rows
        self.steps = columns.step[rows]  # [sessions] i64
        self.epochs = columns.epoch[rows]  # [sessions] u64
        self._ids = [session.id for session in sessions]
        self._origin = model.origin
        self._axes = [state.batch_axis for state in model.signature.states]
        self._states = model.arena.memory.read_many(rows)
        self._incarnations = columns.incarnation[rows]
        self._used_s = columns.used_s[rows]
        self._is_clean = is_clean & columns.is_gapless[rows]
        self._messages = columns.last_messages(rows)
        self._output = columns.output[rows]
        self._sent = columns.sent[rows]
        self._seen = self._sent if columns.seen is columns.sent else columns.seen[rows]

    def __len__(self) -> int:
        """Return the number of sessions."""
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> SessionRecord: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[SessionRecord]: ...

    def __getitem__(self, index: int | slice) -> SessionRecord | Sequence[SessionRecord]:
        """Make the record of a session, or several."""
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        step, index = int(self.steps[index]), index % len(self)
        last_message, last_answer = self._last_message(index, step)
        return SessionRecord(
            session_id=self._ids[index],
            origin=self._origin,
            step=step,
            incarnation=int(self._incarnations[index]),
            epoch=int(self.epochs[index]),
            is_gapless=bool(self._is_clean[index]),
            last_used_s=float(self._used_s[index]),
            states=tuple(
                np.asarray(state.take(index, axis))
                for state, axis in zip(self._states, self._axes, strict=True)
            ),
            last_message=last_message,
            last_answer=last_answer,
            last_values=self._seen[index].copy() if step else None,
            last_output=self._output[index].copy() if step else None,
        )

    def _last_message(
        self, index: int, step: int
    ) -> tuple[MessageIdentity | None, NDArray[np.float32] | None]:
        messages = self._messages
        num_steps = int(messages.num_steps[index])
        if not num_steps:
            return None, None
        crc = int(messages.crcs[index]) if messages.has_crc[index] else zlib.crc32(self._sent[index].data)
        long = messages.long_answers.get(int(self.rows[index]))
        if long is None:
            answer = self._output[index : index + 1][: messages.answer_rows[index]].copy()
        else:
            answer = np.frombuffer(long, np.float32).reshape(-1, self._output.shape[1])
        return MessageIdentity(step - num_steps, num_steps, crc), answer
