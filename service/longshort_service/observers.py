"""Telling Prometheus what the core does: the core's observers on one side, `metrics` on the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from longshort_service.metrics import Metrics


class LaneMetrics:
    """The scheduler's observer of one model."""

    def __init__(self, metrics: Metrics, model: str, version: int) -> None:
        self._metrics = metrics
        self._model = model
        self._version = version
        self._stages = metrics.step_stages(model)

    def batch_formed(self, num_rows: int, waited_s: list[tuple[NDArray[np.float64], int]]) -> None:
        """See LaneObserver."""
        self._metrics.batch_rows(self._model, num_rows)
        for seconds, messages in waited_s:
            self._stages.queue.observe_many(seconds, messages)

    def answered(self, seconds: NDArray[np.float64]) -> None:
        """See LaneObserver."""
        self._stages.total.observe_many(seconds)

    def batch_done(self, num_applied: int, gather_s: float, run_s: float, scatter_s: float) -> None:
        """See LaneObserver."""
        if num_applied:
            self._metrics.steps(self._model, self._version, num_applied)
        self._stages.gather.observe(gather_s)
        self._stages.run.observe(run_s)
        self._stages.scatter.observe(scatter_s)

    def few_done(
        self,
        *,
        num_applied: int,
        waited_s: list[float],
        gather_s: float,
        run_s: float,
        scatter_s: float,
        total_s: list[float],
    ) -> None:
        """See LaneObserver."""
        self._metrics.batch_rows(self._model, len(waited_s))
        for seconds in waited_s:
            self._stages.queue.observe(seconds)
        for seconds in total_s:
            self._stages.total.observe(seconds)
        self.batch_done(num_applied, gather_s, run_s, scatter_s)


class CallMetrics:
    """The observer of handlers, stepper and keeper."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.replay = metrics.replay
        self.error = metrics.error
        self.conflict = metrics.conflict
        self.move = metrics.move
        self.eviction = metrics.eviction
        self.store_seconds = metrics.store_seconds

    def store_wait(self, model: str, seconds: float) -> None:
        """See CheckpointObserver."""
        self._metrics.step_stages(model).store.observe(seconds)

    def step_total(self, model: str, seconds: float, num_messages: int = 1) -> None:
        """See EdgeObserver."""
        self._metrics.step_stages(model).total.observe(seconds, num_messages)
