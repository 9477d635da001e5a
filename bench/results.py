"""What a whole run of the bench gave: runs by case, and their way to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench.cases import Case, Model
from bench.measured import Measured
from bench.million import Million, Phase

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure over the repetitions: its middle and how far it went."""

    middle: float
    least: float
    most: float


@dataclass
class Results:
    """Everything that was measured, and what failed instead, in words."""

    profile: str
    machine: dict[str, Any]
    seconds: float  # of each time of measuring
    duration_s: float = 0.0
    runs: dict[Case, list[Measured]] = field(default_factory=dict)
    millions: list[Million] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def of(self, case: Case, metric: Callable[[Measured], float]) -> Figure | None:
        """Return one figure of a case; None where it was not measured."""
        return figure([metric(run) for run in self.runs.get(case, [])])

    def ratio(self, case: Case, over: Case, metric: Callable[[Measured], float]) -> Figure | None:
        """Return a case's figure over another's, repetition by repetition: those ran next to each other."""
        pairs = zip(self.runs.get(case, []), self.runs.get(over, []), strict=False)
        return figure([metric(above) / metric(below) for above, below in pairs if metric(below) > 0])


def figure(values: list[float]) -> Figure | None:
    """Return the middle and the ends of some values; None where there are none."""
    return Figure(statistics.median(values), min(values), max(values)) if values else None


def write(path: Path, results: Results) -> None:
    """Write results as JSON; folders are made as needed."""
    told = dataclasses.asdict(dataclasses.replace(results, runs={}))
    told["runs"] = [
        {"case": dataclasses.asdict(case), "measured": [dataclasses.asdict(run) for run in runs]}
        for case, runs in results.runs.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Results:
    """Read what `write` wrote. ValueError, KeyError or TypeError where it is something else."""
    told = json.loads(path.read_text("utf-8"))
    runs = {}
    for entry in told.pop("runs"):
        case = Case(**{**entry["case"], "model": Model(**entry["case"]["model"])})
        runs[case] = [Measured(**run) for run in entry["measured"]]
    millions = [_million(million) for million in told.pop("millions")]
    return Results(**told, runs=runs, millions=millions)


def _million(told: dict[str, Any]) -> Million:
    few, many = Measured(**told["few"]), Measured(**told["many"])
    phases = {name: Phase(**told[name]) for name in ("opening", "idling", "ending")}
    return Million(few=few, many=many, resident_bytes_each=told["resident_bytes_each"], **phases)
