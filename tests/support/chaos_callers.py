"""A caller in a run of chaos: the series that it sends, the answers that it got, and when."""

from __future__ import annotations

import time
from array import array
from bisect import bisect_right
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from longshort_model.dataset import metro, parking, repeat_last
from oracle import OracleSession

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from oracle import OracleModel

NUM_OUTPUTS = 3


@dataclass(eq=False)
class Caller:
    """One session: what it sends, and what came back. Times are `time.monotonic`."""

    id: str
    model: str
    source: NDArray[np.float32]  # [time], the first is known; begun again where it ends
    answers: NDArray[np.float32] = field(  # [room, outputs], room enough for `position`
        default_factory=lambda: np.empty((1024, NUM_OUTPUTS), np.float32)
    )
    position: int = 0
    # Of every call: values, openings, flushes, closings.
    begins_s: array[float] = field(default_factory=lambda: array("d"))
    ends_s: array[float] = field(default_factory=lambda: array("d"))
    where: Callable[[], str | None] = lambda: None  # the address of its server

    @contextmanager
    def call(self) -> Iterator[None]:
        """Note how long what the block awaits takes."""
        begin_s = time.monotonic()
        yield
        self.begins_s.append(begin_s)
        self.ends_s.append(time.monotonic())

    def values(self, count: int) -> NDArray[np.float32]:
        """Return the next values."""
        return self._part(self.position, count)

    def take(self, rows: NDArray[np.float32], position: int) -> None:
        """Note answers [time, outputs], and where the client says that the session is."""
        end = self.position + len(rows)
        assert end == position, f"{self.id}: {len(rows)} answers from {self.position}, position {position}"
        if end > len(self.answers):
            self.answers = np.concatenate([self.answers, np.empty_like(self.answers)])
        self.answers[self.position : end] = rows
        self.position = end

    def check(self, oracle: OracleModel) -> None:
        """Hold every answer against the model that has run these values alone."""
        rows = repeat_last(self._part(0, self.position))[:, None]
        wanted = oracle.run_series(rows)
        few = min(50, len(rows))
        np.testing.assert_array_equal(wanted[:few], OracleSession(oracle).feed(rows[:few]))
        differ = (self.answers[: self.position] != wanted).any(axis=1)
        assert not differ.any(), (
            f"{self.id}: {differ.sum()} of {self.position} answers, from {differ.argmax()}"
        )

    def answered_after_s(self, moment_s: float) -> float | None:
        """Return how long after a moment a call was over that had begun after it."""
        call = bisect_right(self.begins_s, moment_s)
        return self.ends_s[call] - moment_s if call < len(self.ends_s) else None

    def longest_s(self) -> float:
        """Return the longest time that a call took."""
        return max(end - begin for begin, end in zip(self.begins_s, self.ends_s, strict=True))

    def _part(self, first: int, count: int) -> NDArray[np.float32]:
        return self.source.take(range(first, first + count), mode="wrap")


def new_callers(count: int) -> list[Caller]:
    """Return callers whose values are those of no other: a road or one of 28 car parks, from a day of its own."""
    datasets = (metro(), parking())
    callers = []
    for number in range(count):
        dataset = datasets[number % 2]
        series = dataset.values[number % len(dataset.values)]
        first = number * (dataset.day or 1) % (len(series) // 2)
        begun = series[first:].copy()
        begun[0] = repeat_last(series)[first]  # a session begins with a known value
        callers.append(Caller(f"chaos-{number:03}", dataset.name, begun))
    return callers
