"""What the demo says: the table, demo.json, the pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from longshort_model.evaluation import summary
from longshort_model.report import draw, write_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from longshort_service.demo.streaming import Run

FIGURES: Final = {
    "metro": ("mae", "weekly_naive_mae", "coverage"),
    "parking": ("mae", "weekly_naive_mae"),
}
BASELINES: Final = {
    "persistence": "persistence (the last value again)",
    "daily_naive": "the value one day before",
    "weekly_naive": "the value one week before",
    "linear_ar": "linear autoregression",
}


def save(run: Run, out: Path) -> str:
    """Write demo.json and a picture for each data set to the folder; return the table."""
    reports = {}
    pictures = []
    for streamed in run.streamed:
        dataset = streamed.dataset
        report = summary(dataset, streamed.predictions, dataset.validation_end)
        reports[dataset.name] = report
        pictures.append(out / f"demo-{dataset.name}.png")
        draw(pictures[-1], dataset, streamed.predictions, report)
    write_json(out / "demo.json", figures(run, reports))
    saved = ", ".join(str(path) for path in [*pictures, out / "demo.json"])
    return "\n".join(["", *table(run, reports), "", f"saved {saved}"])


def figures(run: Run, reports: dict[str, Any]) -> dict[str, Any]:
    """Return what demo.json holds."""
    return {
        **{name: {key: report[key] for key in FIGURES[name]} for name, report in reports.items()},
        "steps_per_second": run.num_steps / run.seconds,
        "p50_ms": 1000 * run.p50_s,
        "p99_ms": 1000 * run.p99_s,
    }


def table(run: Run, reports: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the table."""
    units = [streamed.dataset.unit.replace("share of capacity", "of capacity") for streamed in run.streamed]
    yield "one step ahead on the held-out part, as served over gRPC"
    yield _row("", reports)
    yield _row("mean absolute error", units)
    yield _row("  longshort", (f"{report['mae']:.4g}" for report in reports.values()))
    for name, words in BASELINES.items():
        yield _row(f"  {words}", (f"{report[f'{name}_mae']:.4g}" for report in reports.values()))
    yield _row("within the 10 % to 90 % band", (f"{report['coverage']:.1%}" for report in reports.values()))
    yield _row("series, each a session", (report["num_series"] for report in reports.values()))
    yield _row("predictions scored", (f"{report['num_scored']:,}" for report in reports.values()))
    rate = f"{run.num_steps / run.seconds:,.0f} steps/s"
    clients = f"{run.num_clients} clients at once, a value a message"
    yield f"{clients}: {run.num_steps:,} steps in {run.seconds:.1f} s, {rate}"
    latencies = f"p50 {1000 * run.p50_s:.2f} ms, p99 {1000 * run.p99_s:.2f} ms"
    yield f"latency inside the service, by its /metrics: {latencies}"


def _row(label: str, cells: Iterable[object]) -> str:
    return f"{label:<34}" + "".join(f" {cell:>14}" for cell in cells)
