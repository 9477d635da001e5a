"""What callers ask of a gateway, and how their answers are put together.

It owns results and failures by row. It does not know frames, or when anything is sent.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import numpy as np

from longshort import errors, recovery
from longshort.gateway.doubts import Doubt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from longshort.errors import LongshortError
    from longshort.gateway.doubts import Waiter


class StepCall:
    """One step of one session. The shell mixes it into its future, so that a call is one object.

    `value` is a number where the model has one feature, else [features] f32.
    """

    slot: int
    value: float | NDArray[np.float32]
    deadline_s: float  # of the shell's clock
    number = 0  # in the order of calls
    weight = 1  # how much room it takes, in steps
    is_sent = False
    heir: Doubt | None = None

    def done(self) -> bool:
        """Return whether nobody awaits it any more."""
        raise NotImplementedError

    def set_result(self, result: NDArray[np.float32], /) -> None:
        """Take the answer [outputs] f32."""
        raise NotImplementedError

    def set_exception(self, error: LongshortError, /) -> None:
        """Take the failure."""
        raise NotImplementedError

    def abandon(self, _ids: Sequence[str]) -> list[tuple[int, Doubt]]:
        """Take that nobody awaits it any more; return the slots whose values may be taken, with a doubt each.

        `ids` are those of all slots now: what belongs to a session that was closed since is forgotten.
        """
        if not self.is_sent:
            return []
        self.heir = Doubt(self.number)
        return [(self.slot, self.heir)]

    # As the sink of its row

    def note_sent(self, _index: int) -> None:
        """Take that the row may have left: from now on its values belong to the sequence."""
        self.is_sent = True

    def is_gone(self, _index: int) -> bool:
        """Return whether nobody awaits the row."""
        return self.done() and not (self.heir is not None and self.heir.is_awaited)

    def row_answered(self, _index: int, _start: int, answers: NDArray[np.float32], _num_left: int) -> int:
        """Take [count, outputs] f32 for the row's steps from a start on, with some of its steps to come.

        Return by how many steps less is waited for: the whole call's, once nothing of it is left.
        """
        return self.answered(answers[0])

    def answered(self, answer: NDArray[np.float32]) -> int:
        """Take [outputs] f32. Return as `row_answered`."""
        row = answer.copy()  # whoever keeps a view would keep the whole frame
        if self.done():
            if self.heir is not None:
                self.heir.settle(row)
            return 0
        self.set_result(row)
        return 1

    def row_failed(self, _index: int, error: LongshortError) -> int:
        """Take that the row has failed. Return as `row_answered`."""
        if self.done():
            if self.heir is not None:
                self.heir.settle(None, error)
            return 0
        self.set_exception(error)
        return 1

    def told_before(self, _index: int, _num_before: int, error: LongshortError) -> LongshortError:
        """Return the refusal of a row's later message with the answers of the steps before it."""
        return error  # it has one step

    def row_doubted(self, _index: int, error: LongshortError) -> tuple[Doubt, int]:
        """Take that the row was sent and is given up; return where its outcome goes, and as `row_answered`."""
        if self.heir is not None:
            self.heir.put_off(error)
            return self.heir, 0
        self.heir = Doubt(self.number)
        self.set_exception(error)
        return self.heir, 1


class ArrayCall:
    """Values or forecasts of many sessions, a row each. The result is one array, or RowsFailed.

    `num_steps` is the length of each row's answer; `is_flat` leaves the axis of time out of the result. It weighs
    as many steps as it waits for, but at most `max_weight`.
    """

    def __init__(
        self,
        waiter: Waiter,
        ids: Sequence[str],
        slots: NDArray[np.intp],
        num_steps: int,
        *,
        is_flat: bool,
        deadline_s: float = math.inf,
        max_weight: int = sys.maxsize,
    ) -> None:
        self.waiter = waiter
        self.weight = min(len(slots) * num_steps, max_weight)
        self.number = 0  # in the order of calls
        self.deadline_s = deadline_s  # of the shell's clock
        self.slots = slots  # [n]
        self.is_sent = np.zeros(
            len(slots), np.bool_
        )  # of each row whether its session may have taken any of it
        self.is_abandoned = False
        self.heirs: dict[int, Doubt] = {}  # of its rows that are in doubt
        self.num_steps = num_steps
        self._ids = ids
        self._is_flat = is_flat
        self._num_left = len(slots)
        self._is_answered = np.zeros(len(slots), np.bool_)
        self._answers: NDArray[np.float32] | None = None  # [n, time, outputs] f32
        self._errors: dict[int, LongshortError] = {}

    def abandon(self, ids: Sequence[str]) -> list[tuple[int, Doubt]]:
        """See StepCall. Rows that were answered are in doubt too: their answers were not handed out."""
        self.is_abandoned = True
        doubts = []
        for index in np.flatnonzero(self.is_sent).tolist():
            if index in self.heirs or ids[self.slots[index]] != self._ids[index]:
                continue
            doubt = self.heirs[index] = Doubt(self.number)
            if index in self._errors:
                doubt.settle(None, self._errors[index])
            elif self._is_answered[index]:
                doubt.settle(self._row(index, self.num_steps))
            doubts.append((int(self.slots[index]), doubt))
        return doubts

    def note_sent(self, index: int) -> None:
        """See StepCall."""
        self.is_sent[index] = True

    def is_gone(self, index: int) -> bool:
        """See StepCall."""
        return self.is_abandoned and not (index in self.heirs and self.heirs[index].is_awaited)

    def row_answered(self, index: int, start: int, answers: NDArray[np.float32], num_left: int) -> int:
        """See StepCall."""
        return self.rows_answered(np.array([index]), start, answers[None], num_left)

    def rows_answered(
        self, rows: NDArray[np.intp], start: int, answers: NDArray[np.float32], num_left: int
    ) -> int:
        """Take [rows, count, outputs] f32 for the steps from `start` on. Return as `row_answered`."""
        end = start + answers.shape[1]
        if len(answers) == len(self.slots) and answers.shape[1] == self.num_steps:
            self._answers = answers.copy()  # all at once: the common case
        else:
            if self._answers is None:
                shape = (len(self.slots), self.num_steps, answers.shape[2])
                self._answers = np.full(shape, np.nan, np.float32)
            self._answers[rows, start:end] = answers
        if num_left:
            return 0
        self._is_answered[rows] = True
        num_told = 0
        for index in self.heirs.keys() & set(rows.tolist()) if self.heirs else ():
            self.heirs[index].settle(self._row(index, self.num_steps))
            num_told += index in self._errors
        return self._finished(len(rows) - num_told)

    def row_failed(self, index: int, error: LongshortError) -> int:
        """See StepCall. What came before of a long row is in the error's `partial`."""
        self.is_sent[index] = error.partial is not None
        is_told = index in self._errors  # when it was given up
        self._errors.setdefault(index, error)
        if index in self.heirs:
            self.heirs[index].settle(None, error)
        return 0 if is_told else self._finished(1)

    def row_doubted(self, index: int, error: LongshortError) -> tuple[Doubt, int]:
        """See StepCall."""
        if index in self.heirs:
            self.heirs[index].put_off(error)
            return self.heirs[index], 0
        self.heirs[index] = Doubt(self.number)
        self._errors[index] = error
        return self.heirs[index], self._finished(1)

    def told_before(self, index: int, num_before: int, error: LongshortError) -> LongshortError:
        """See StepCall."""
        if num_before:
            recovery.count_from(error, num_before)
            error.partial = self._row(index, num_before)
        return error

    def _row(self, index: int, num_steps: int) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = self._answers[index, :num_steps].copy()  # type: ignore[index]
        return rows[-1] if self._is_flat else rows

    def _finished(self, num_rows: int) -> int:
        self._num_left -= num_rows
        if self._num_left or self.is_abandoned or self.waiter.done():
            return 0
        answers = self._answers
        if answers is not None and self._is_flat:
            answers = answers[:, -1]
        if not self._errors:
            self.waiter.set_result(answers)
        else:
            self.waiter.set_exception(self._failure(answers))
        return self.weight

    def _failure(self, answers: NDArray[np.float32] | None) -> LongshortError:
        if answers is not None:
            answers = answers.copy()  # a row in doubt may still be answered
            answers[list(self._errors)] = np.nan  # also of one whose first steps were answered
        return rows_failed(self._ids, self._errors, answers)


def rows_failed(
    ids: Sequence[str], failures: Mapping[int, LongshortError], answers: NDArray[np.float32] | None
) -> errors.RowsFailed:
    """Return the error of a call of which some rows have failed: `failures` is by row, and not empty."""
    first = min(failures)
    return errors.RowsFailed(
        f"{len(failures)} of {len(ids)} rows failed; the first, {ids[first]}: {failures[first]}",
        answers=answers,
        errors=dict(sorted(failures.items())),
    )


Sink = StepCall | ArrayCall
