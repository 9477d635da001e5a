"""Lanes without a service: an engine with rows, columns and an observer that remembers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from longshort_service.arena import Arena
from longshort_service.batching import BatchPolicy, RunCost
from longshort_service.columns import SessionColumns
from longshort_service.host_states import HostStates, layouts_of
from longshort_service.lane import Lane

if TYPE_CHECKING:
    from collections.abc import Sequence

    from longshort_service.engine import Engine
    from longshort_service.errors import ServiceError
    from longshort_service.host_states import StateLayout
    from numpy.typing import NDArray

PIECE_STEPS = 4


@dataclass
class Observer:
    """A LaneObserver that remembers what it is told."""

    rows: list[int] = field(default_factory=list)  # of each batch
    num_done: int = 0
    num_applied: int = 0
    num_answered: int = 0  # that came one by one

    def batch_formed(self, num_rows: int, waited_s: list[tuple[NDArray[np.float64], int]]) -> None:
        assert sum(len(seconds) * messages for seconds, messages in waited_s) == num_rows
        assert all((seconds >= 0).all() for seconds, _ in waited_s)
        self.rows.append(num_rows)

    def answered(self, seconds: NDArray[np.float64]) -> None:
        assert (seconds >= 0).all()
        self.num_answered += len(seconds)

    def batch_done(self, num_applied: int, gather_s: float, run_s: float, scatter_s: float) -> None:
        assert min(gather_s, run_s, scatter_s) >= 0
        self.num_applied += num_applied
        self.num_done += 1

    def few_done(
        self, *, num_applied: int, waited_s: list[float], total_s: list[float], **parts: float
    ) -> None:
        assert set(parts) == {"gather_s", "run_s", "scatter_s"}
        assert min(parts.values()) >= 0
        for waited, total in zip(waited_s, total_s, strict=True):
            assert total >= waited + sum(parts.values())
        self.rows.append(len(waited_s))
        self.num_applied += num_applied
        self.num_done += 1
        self.num_answered += len(total_s)


@dataclass
class Waiter:
    """A SingleWaiter that remembers what it is told."""

    answers: list[tuple[list[float], int]] = field(default_factory=list)
    failures: list[ServiceError] = field(default_factory=list)

    def answered(self, outputs: bytes, step: int) -> None:
        self.answers.append((np.frombuffer(outputs, "<f4").tolist(), step))

    def failed(self, error: ServiceError) -> None:
        self.failures.append(error)


def lane_of(
    engine: Engine | Any,
    *,
    layouts: Sequence[StateLayout],
    num_rows: int,
    widths: tuple[int, int] = (1, 1),
    can_pad: bool = False,
    max_rows: int = 8,
    observer: Observer | None = None,
    name: str = "adder",
) -> Lane:
    """Return a lane of an engine; `widths` are its numbers of features and of outputs."""
    states = HostStates(layouts, num_rows)
    return Lane(
        name=name,
        engine=engine,
        arena=Arena(states, num_rows),
        states=states,
        columns=SessionColumns(num_rows, *widths, repeats_last=True),
        policy=BatchPolicy(max_rows, PIECE_STEPS, can_pad, RunCost(1e-5, 1e-6, 1e-6)),
        observer=observer or Observer(),
    )


def lane_of_model(engine: Engine, *, num_rows: int, **settings: Any) -> Lane:
    """Return a lane of an engine of a model file."""
    signature = engine.signature
    return lane_of(
        engine,
        layouts=layouts_of(signature),
        num_rows=num_rows,
        widths=(len(signature.features), len(signature.outputs)),
        can_pad=signature.sequence_lens is not None,
        **settings,
    )
