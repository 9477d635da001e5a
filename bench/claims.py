"""What the bench must show: each claim as a ratio within one run, and whether it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import cases
from bench.cases import SMALL, Case
from bench.million import STATE_BYTES
from bench.results import figure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.measured import Measured
    from bench.results import Figure, Results

BARE_STEPS_PER_S = 1_300_000  # of the core that the claims in steps a second are made for


@dataclass(frozen=True, slots=True)
class Claim:
    """One row: what is claimed, the bound, and what was found."""

    words: str
    bound: float
    is_upper: bool  # whether the figure must stay below the bound
    found: Figure

    @property
    def holds(self) -> bool:
        """Whether the middle of the repetitions keeps the bound."""
        return self.found.middle <= self.bound if self.is_upper else self.found.middle >= self.bound


def claims(results: Results) -> list[Claim]:
    """Return the claims whose cases were measured."""
    rows = [*_frames(results), *_durable(results), *_streams(results), *_light(results), *_million(results)]
    return [
        Claim(words, bound, is_upper, found) for words, bound, is_upper, found in rows if found is not None
    ]


Row = tuple[str, float, bool, "Figure | None"]


def _frames(results: Results) -> Iterator[Row]:
    bare, frames = Case(cases.BARE, SMALL, 1024), Case(cases.FRAMES, SMALL, 1024)
    yield (
        "frames of 1,024: steps for a CPU second of the server, over bare onnxruntime's",
        0.85,
        False,
        results.ratio(frames, bare, lambda run: run.steps / run.server_cpu_s),
    )
    for words, case, steps_per_s in (
        ("frames of 1,024: steps/s over bare onnxruntime's", frames, 1_000_000),
        ("gateway, array calls: steps/s over bare", Case(cases.GATEWAY_ARRAYS, SMALL, 1024), 400_000),
        ("gateway, single awaited calls: steps/s over bare", Case(cases.GATEWAY_CALLS, SMALL, 1024), 40_000),
    ):
        yield words, steps_per_s / BARE_STEPS_PER_S, False, results.ratio(case, bare, steps_per_s_of)


def _durable(results: Results) -> Iterator[Row]:
    none = Case(cases.FRAMES, SMALL, 1024)
    for durability, store in cases.DURABLE:
        if durability == "behind":
            case = Case(cases.FRAMES, SMALL, 1024, store=store, durability=durability)
            words = f"frames of 1,024, BEHIND on {store}: steps/s over those of NONE"
            yield words, 0.85, False, results.ratio(case, none, steps_per_s_of)


def _streams(results: Results) -> Iterator[Row]:
    def at(rival: str, sessions: int) -> Case:
        return Case(rival, SMALL, sessions)

    naive = [
        results.ratio(at(cases.LONGSHORT, 1), at(rival, 1), p50) for rival in (cases.THREADS, cases.ASYNCIO)
    ]
    worst = max((found for found in naive if found is not None), key=lambda found: found.middle, default=None)
    yield "one client: p50 over the better naive service's", 1.1, True, worst
    many = at(cases.LONGSHORT, 128)
    for rival, bound in ((cases.THREADS, 3.0), (cases.ASYNCIO, 1.4)):
        found = results.ratio(many, at(rival, 128), steps_per_s_of)
        yield f"128 clients: steps/s over those of {rival}", bound, False, found
    runs, echoes = results.runs.get(many, []), results.runs.get(at(cases.ECHO, 128), [])
    over = [run.server_us_per_step - echo.server_us_per_step for run, echo in zip(runs, echoes, strict=False)]
    yield "128 clients: us of server CPU a step over the echo's", 20.0, True, figure(over)
    for sessions in (128, 1024, 10_000):
        case = at(cases.LONGSHORT, sessions)
        yield (
            f"{sessions:,} clients: share of the streams that were served",
            1.0,
            False,
            results.of(case, served),
        )
    for sessions in (128, 1024):
        case = at(cases.LONGSHORT, sessions)
        found = results.of(case, lambda run: run.p999_us / run.p50_us)
        yield f"{sessions:,} clients: p99.9 over p50", 5.0, True, found


def _light(results: Results) -> Iterator[Row]:
    load = (SMALL, cases.LIGHT_CLIENTS, "open", cases.LIGHT_RATE)
    ours, theirs = Case(cases.LONGSHORT, *load), Case(cases.ASYNCIO, *load)
    yield (
        "lightly loaded: server CPU a step over that of naive asyncio",
        0.4,
        True,
        results.ratio(ours, theirs, lambda run: run.server_us_per_step),
    )
    yield "lightly loaded: p99 over that of naive asyncio", 0.5, True, results.ratio(ours, theirs, p99)
    live = (cases.LONGSHORT, SMALL, cases.LIVE_SESSIONS)
    before, during = Case(*live, "open", cases.LIVE_RATE), Case(*live, "replay", cases.LIVE_RATE)
    found = results.ratio(during, before, p99)
    yield "100 live sessions while one replays: p99 over that before", 2.0, True, found


def _million(results: Results) -> Iterator[Row]:
    millions = results.millions
    memory = [each.resident_bytes_each / (1.5 * STATE_BYTES + 300) for each in millions]
    yield "a million sessions: memory over 1.5 times the states and 300 bytes each", 1.0, True, figure(memory)
    costs = [each.many.server_us_per_step / each.few.server_us_per_step for each in millions]
    # "The same": repetitions of one case differ by as much.
    yield "a million sessions: server CPU a step over that with a thousand", 1.1, True, figure(costs)


def steps_per_s_of(run: Measured) -> float:
    """Return steps a second."""
    return run.steps_per_s


def served(run: Measured) -> float:
    """Return the share of the streams wanted that got an answer while it was measured."""
    return run.served / run.streams


def p50(run: Measured) -> float:
    """Return the median latency in microseconds."""
    return run.p50_us


def p99(run: Measured) -> float:
    """Return the 99th percentile in microseconds."""
    return run.p99_us
