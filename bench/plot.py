"""The picture of a run of the bench: steps/s, server CPU and p99.9 by the number of sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure as Canvas

from bench.cases import LONGSHORT, SMALL, STREAMED, WINDOW, Case
from bench.claims import steps_per_s_of

if TYPE_CHECKING:
    from pathlib import Path

    from bench.results import Results


def plot(path: Path, results: Results) -> None:
    """Draw the closed loops of the small model to `path`; bars reach from the least to the most of the repetitions."""
    canvas = Canvas(figsize=(13, 4.2), layout="constrained")
    panels = canvas.subplots(1, 3)
    for axes, title, metric in zip(
        panels,
        ("steps/s", "server CPU, us a step", "p99.9, ms"),
        (steps_per_s_of, lambda run: run.server_us_per_step, lambda run: run.p999_us / 1e3),
        strict=True,
    ):
        for rival in (*STREAMED, WINDOW):
            cases = sorted(
                (case for case in results.runs if case == Case(rival, SMALL, case.sessions)),
                key=lambda case: case.sessions,
            )
            figures = [found for case in cases if (found := results.of(case, metric)) is not None]
            middles = [found.middle for found in figures]
            reach = (
                [found.middle - found.least for found in figures],
                [found.most - found.middle for found in figures],
            )
            sessions = [case.sessions for case in cases]
            width = 2.5 if rival == LONGSHORT else 1.0
            axes.errorbar(sessions, middles, reach, label=rival, linewidth=width, marker="o", capsize=2)
        axes.set(title=title, xscale="log", yscale="log", xlabel="sessions, one value a message each")
        axes.grid(visible=True, which="both", alpha=0.2)
    panels[0].legend(fontsize="small")
    canvas.suptitle(f"hidden {SMALL.hidden}, {results.machine['cpu']}, {results.machine['cores']} cores")
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=120)
