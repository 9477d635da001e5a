"""One frame: the rows that go together, as columns, and which of them an answer answers.

It owns the numbering of rows and the places of answers. It does not decide what is sent, or what failures mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from longshort import arrays
from longshort.gateway import wire
from longshort.gateway.rows import CloseRow, FlushRow, ForecastRow, Part, Row
from longshort.v1 import sequence_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from longshort.gateway.calls import StepCall
    from longshort.gateway.rows import Item
    from longshort.gateway.table import SessionTable


class Frame:
    """What goes out together. Its rows are those of `calls`, `parts` and `rows`, one after the other."""

    def __init__(self) -> None:
        self.calls: list[StepCall] = []
        self.parts: list[Part] = []
        self.rows: list[Row] = []
        self.forecasts: list[ForecastRow] = []
        self.flushes: list[FlushRow] = []
        self.closes: list[CloseRow] = []
        self.unwanted: list[int] = []  # handles to close whose sessions have ended
        self.opens: list[int] = []  # slots
        self.num_steps = 0
        self.slots: NDArray[np.intp] = np.empty(0, np.intp)  # [rows]
        self.counts: NDArray[np.intp] = np.empty(0, np.intp)  # [rows]
        self.steps: NDArray[np.uint64] = np.empty(0, np.uint64)  # [rows] of the sessions before them
        self._pieces: list[NDArray[np.float32]] = []

    def __bool__(self) -> bool:
        has_values = self.calls or self.parts or self.rows
        return bool(
            has_values or self.forecasts or self.flushes or self.closes or self.unwanted or self.opens
        )

    def encode(self, table: SessionTable, opens: list[sequence_pb2.FrameOpen]) -> bytes:
        """Return the frame for the wire: its rows are numbered now, and noted as sent."""
        self._make_columns()
        self.steps = table.position[self.slots]
        start = len(self.slots) - len(self.rows)
        for number, row in enumerate(self.rows, start):
            if row.first_step is None:
                row.first_step = int(self.steps[number])
            self.steps[number] = row.first_step
            row.count = int(self.counts[number])
            if row.sink is not None:
                row.sink.note_sent(row.index)
        for call in self.calls:
            call.is_sent = True
        for part in self.parts:
            part.call.is_sent[part.rows] = True
        messages = sequence_pb2.StreamFramesRequest(
            opens=opens,
            closes=[*(row.slot for row in self.closes), *self.unwanted],
            flushes=[row.slot for row in self.flushes],
            forecasts=[
                sequence_pb2.FrameForecast(handle=row.slot, horizon=row.horizon, known=row.known)
                for row in self.forecasts
            ],
        )
        all_ones = self.num_steps == len(self.slots)
        counts = None if all_ones else self.counts.astype("<u4")
        return wire.request(messages, self.slots.astype("<u4"), counts, self.steps, self._pieces)

    def _make_columns(self) -> None:
        slots, counts = [], []
        if self.calls:
            slots.append(np.array([call.slot for call in self.calls], np.intp))
            counts.append(np.ones(len(self.calls), np.intp))
            with np.errstate(over="ignore"):  # 1e300 becomes infinity, which the server refuses
                self._pieces.append(np.array([call.value for call in self.calls], "<f4"))
        for part in self.parts:
            slots.append(part.slots)
            counts.append(np.full(len(part.rows), part.count, np.intp))
            self._pieces.append(part.piece())
        if self.rows:
            slots.append(np.array([row.slot for row in self.rows], np.intp))
            counts.append(np.array([row.count for row in self.rows], np.intp))
            self._pieces += [row.values[row.start : row.start + row.count] for row in self.rows]
        if slots:
            self.slots = slots[0] if len(slots) == 1 else np.concatenate(slots)
            self.counts = counts[0] if len(counts) == 1 else np.concatenate(counts)
            self.num_steps = int(self.counts.sum())

    def values(self, rows: NDArray[np.bool_], num_features: int) -> NDArray[np.float32]:
        """Return the values of some rows, [steps, features] f32."""
        values = np.concatenate([piece.reshape(-1, num_features) for piece in self._pieces])
        return values[np.repeat(rows, self.counts)]

    def row_at(self, number: int) -> Row:
        """Return a row of the frame by itself, as one that was sent."""
        if number < len(self.calls):
            call = self.calls[number]
            values = arrays.one_row(call.value, None)
            return Row(call.slot, call, 0, values, count=1, first_step=int(self.steps[number]))
        for part, first, end in self.parts_with_places():
            if number < end:
                return part.row_at(number - first, int(self.steps[number]))
        return self.rows[number - len(self.slots)]  # they are the last

    def parts_with_places(self) -> Iterator[tuple[Part, int, int]]:
        """Iterate over the parts with the first of their rows in the frame and the one after the last."""
        start = len(self.calls)
        for part in self.parts:
            yield part, start, start + len(part.rows)
            start += len(part.rows)

    def items(self) -> list[Item]:
        """Return what was put in it and is awaited, as it came."""
        return [*self.calls, *self.parts, *self.rows, *self.forecasts, *self.flushes]

    def unanswered(self, *, is_refused: bool) -> Iterator[Row | ForecastRow | FlushRow]:
        """Iterate over what is to be asked again where no answer came: as sent, or as never sent where it was refused.

        What the server has taken before remains sent, whatever a later stream ends with.
        """
        for row in map(self.row_at, range(len(self.slots))):
            if is_refused and row.sink is not None and not row.is_taken:
                row.count = 0
            yield row
        yield from self.forecasts
        yield from (flush for flush in self.flushes if flush.sink is not None)
