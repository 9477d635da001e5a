"""Counters and histograms cheap enough for the way of a value: plain Python numbers, read by a scrape.

Owns counting alone; names, labels and exposition are `metrics`'. A histogram has one writer (the event loop's
thread); a scrape reads it from another thread and may find it one observation behind, never torn.
"""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

# One onnxruntime step of a small model takes 20 to 34 us, a whole answer some 50 us: nothing of interest lies
# below the first bound; beyond 10 s callers have given up. Six bounds a decade (1, 1.5, 2, 3, 5, 7) grow
# by at most 1.67, so a quantile read from the buckets is off by less than that factor; the round numbers that
# objectives are written in (1 ms, 5 ms, 100 ms) are bounds, and the share below one of them is exact.
LATENCY_BOUNDS_S: Final = (
    *(50e-6, 70e-6),
    *(round(m * 10.0**e, 7) for e in range(-4, 1) for m in (1, 1.5, 2, 3, 5, 7)),
    10.0,
)
# Powers of two up to the greatest batch that anyone configures.
ROWS_BOUNDS: Final = tuple(float(1 << power) for power in range(14))
# From about ten values on, counting an array is cheaper than counting one by one.
_MANY: Final = 10


class Histogram:
    """Counts of observations by bucket; a value equal to a bound belongs below it, as Prometheus has it."""

    __slots__ = ("_bounds", "_bounds_array", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = list(bounds)
        self._bounds_array = np.asarray(bounds)  # [bounds] f64
        self._counts = [0] * (len(bounds) + 1)  # the last is everything above the greatest bound
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count one observation, or the same one several times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def observe_many(self, values: npt.NDArray[np.float64], times: int = 1) -> None:
        """Count every element of an array, each so many times."""
        if len(values) < _MANY:
            for value in values.tolist():
                self.observe(value, times)
            return
        places = np.searchsorted(self._bounds_array, values)  # [values] i64
        for place, count in enumerate(np.bincount(places).tolist()):
            if count:
                self._counts[place] += count * times
        self._sum += float(values.sum()) * times

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Return the cumulative buckets, each with its upper bound as text, and the sum of all values."""
        total = self._sum
        running = itertools.accumulate(list(self._counts))
        bounds = [*map(str, self._bounds), "+Inf"]
        return [(bound, float(count)) for bound, count in zip(bounds, running, strict=True)], total


class StageHistograms:
    """Where the time of one model's steps goes. All in seconds.

    A message counts once in `queue` (from its arrival to the run that takes it), `store` (waiting until its
    state is stored) and `total` (from its arrival to its answer); an engine run counts once in `gather`,
    `run` and `scatter`, however many sessions share it.
    """

    __slots__ = ("gather", "queue", "run", "scatter", "store", "total")

    def __init__(self) -> None:
        self.queue = Histogram(LATENCY_BOUNDS_S)
        self.gather = Histogram(LATENCY_BOUNDS_S)
        self.run = Histogram(LATENCY_BOUNDS_S)
        self.scatter = Histogram(LATENCY_BOUNDS_S)
        self.store = Histogram(LATENCY_BOUNDS_S)
        self.total = Histogram(LATENCY_BOUNDS_S)

    def __iter__(self) -> Iterator[tuple[str, Histogram]]:
        return ((stage, getattr(self, stage)) for stage in self.__slots__)


class Counter:
    """Totals by label values; any thread may add."""

    __slots__ = ("_lock", "_totals")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[tuple[str, ...], int] = {}

    def add(self, labels: tuple[str, ...], count: int = 1) -> None:
        """Raise the total of these label values; a count of 0 makes the series exist."""
        with self._lock:
            self._totals[labels] = self._totals.get(labels, 0) + count

    def totals(self) -> list[tuple[tuple[str, ...], int]]:
        """Return every total with its label values."""
        with self._lock:
            return list(self._totals.items())
