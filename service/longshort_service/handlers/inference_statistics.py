"""What ModelStatistics says: requests of the Open Inference Protocol, and how long the stages of all steps took."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from longshort_service.inference.inference_pb2 import InferStatistics, ModelStatistics, StatisticDuration

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshort_service.repository import Model


class Stage(Protocol):
    """One histogram of seconds."""

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Return the cumulative buckets and the sum of all values."""


class Stages(Protocol):
    """Where the time of one model's steps goes, whichever way they came."""

    @property
    def queue(self) -> Stage:
        """From a message's arrival to the run that takes it."""

    @property
    def gather(self) -> Stage:
        """States gathered, of each run."""

    @property
    def run(self) -> Stage:
        """Each run of the model."""

    @property
    def scatter(self) -> Stage:
        """States put back, of each run."""


@dataclass(slots=True)
class _Count:
    """So many requests that took so long together."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds

    def message(self) -> StatisticDuration:
        return StatisticDuration(count=self.count, ns=round(self.seconds * 1e9))


class Statistics:
    """Counts of requests, by model version; those of stages are by model and of both protocols."""

    def __init__(self, stages: Callable[[str], Stages]) -> None:
        self._stages = stages
        self._succeeded: dict[tuple[str, int], _Count] = {}
        self._failed: dict[str, _Count] = {}
        self._last_ms: dict[tuple[str, int], int] = {}

    def succeeded(self, model: Model, seconds: float) -> None:
        """Count a request that was answered."""
        key = (model.name, model.version)
        self._succeeded.setdefault(key, _Count()).add(seconds)
        self._last_ms[key] = round(time.time() * 1000)

    def failed(self, model_name: str, seconds: float) -> None:
        """Count a request for a loaded model that was refused."""
        self._failed.setdefault(model_name, _Count()).add(seconds)

    def message(self, model: Model) -> ModelStatistics:
        """Return what there is to say of a version."""
        key, stages = (model.name, model.version), self._stages(model.name)
        queue, run = _stage(stages.queue), _stage(stages.run)
        return ModelStatistics(
            name=model.name,
            version=str(model.version),
            last_inference=self._last_ms.get(key, 0),
            inference_count=queue.count,
            execution_count=run.count,
            inference_stats=InferStatistics(
                success=self._succeeded.get(key, _Count()).message(),
                fail=self._failed.get(model.name, _Count()).message(),
                queue=queue,
                compute_input=_stage(stages.gather),
                compute_infer=run,
                compute_output=_stage(stages.scatter),
                cache_hit=StatisticDuration(),
                cache_miss=StatisticDuration(),
            ),
        )


def _stage(stage: Stage) -> StatisticDuration:
    buckets, seconds = stage.buckets()
    return StatisticDuration(count=round(buckets[-1][1]), ns=round(seconds * 1e9))
