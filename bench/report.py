"""The report of a run of the bench as Markdown, for a terminal as for docs/benchmarks.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bench import cases
from bench.claims import claims, p50, p99, steps_per_s_of
from bench.million import FEW, MANY, STATE_BYTES
from bench.results import figure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.cases import Case
    from bench.measured import Measured
    from bench.million import Million
    from bench.results import Figure, Results

    Metric = Callable[[Measured], float]

IN_BATCHES: Final = (cases.BARE, cases.FRAMES, cases.GATEWAY_ARRAYS, cases.GATEWAY_CALLS)


def report(results: Results) -> str:
    """Return all tables."""
    return "\n".join([*_origin(results), *_claims(results), *_tables(results), *_failures(results)])


def _origin(results: Results) -> Iterator[str]:
    about = results.machine
    versions = ", ".join(f"{name} {about[name]}" for name in ("python", "onnxruntime", "grpcio", "protobuf"))
    yield (
        f"{about['cpu']}, {about['cores']} cores shared by server and load, {about['memory_gib']} GiB, "
        f"load before {about['load_before']}; {about['system']}; {versions}."
    )
    most = max((len(runs) for runs in results.runs.values()), default=len(results.millions))
    yield (
        f"Commit {about['commit']}, {about['date']}, profile {results.profile}: {results.duration_s / 60:.0f} minutes, "
        f"each case {most} times {results.seconds:g} s. Middle of the repetitions, least to most in brackets."
    )


def _claims(results: Results) -> Iterator[str]:
    rows = [
        (
            claim.words,
            f"at {'most' if claim.is_upper else 'least'} {claim.bound:.3g}",
            _shown(claim.found),
            "pass" if claim.holds else "short",
        )
        for claim in claims(results)
    ]
    if (
        rows and results.profile == "smoke"
    ):  # half a second each, once: it shows that everything runs, and no more
        yield from ("", "A smoke run measures too little to hold a claim against: `make bench` does.")
    elif rows:
        yield from ("", "### What it must show", "", *_table(("claim", "wanted", "found", ""), rows))


def _tables(results: Results) -> Iterator[str]:
    for model in dict.fromkeys(case.model for case in results.runs):
        measured = [case for case in results.runs if case.model == model]
        of_model = [case for case in measured if not case.is_durable]
        for title, chosen in (
            ("One value a message, one stream a session, closed loop", _closed(of_model)),
            ("Batches", [case for case in of_model if case.rival in IN_BATCHES]),
            ("Stored on the way", [case for case in measured if case.is_durable]),
            ("Open loop", [case for case in of_model if case.load != "closed"]),
        ):
            if chosen:
                lines = _table(_HEAD, [_row(case, results) for case in chosen])
                yield from ("", f"### {title}: hidden {model.hidden}, layers {model.layers}", "", *lines)
    if results.millions:
        yield from ("", f"### {MANY:,} sessions on one stream", "", *_million(results.millions))


def _closed(of_model: list[Case]) -> list[Case]:
    chosen = [case for case in of_model if case.load == "closed" and case.rival not in IN_BATCHES]
    return sorted(chosen, key=lambda case: case.sessions)


_HEAD: Final = (
    *("rival", "sessions", "load", "served", "slowest stream", "steps/s", "p50 ms", "p99 ms", "p99.9 ms"),
    *("server us/step", "client us/step"),
)


def _row(case: Case, results: Results) -> tuple[str, ...]:
    runs = results.runs[case]
    served = slowest = ""
    if case.rival in (*cases.STREAMED, cases.WINDOW):
        served = f"{min(run.served for run in runs):,} of {case.sessions:,}"
        slowest = f"{min(run.slowest_share for run in runs):.0%}"
    load = case.load if case.load == "closed" else f"{case.rate:,.0f}/s"
    if case.load == "replay":
        load += f" beside a replay of {min(run.replayed_per_s for run in runs):,.0f}/s"
    latencies: tuple[Metric, ...] = (p50, p99, lambda run: run.p999_us)
    return (
        f"{case.rival}, {case.durability.upper()} on {case.store}" if case.is_durable else case.rival,
        f"{case.sessions:,}",
        load,
        served,
        slowest,
        _shown(results.of(case, steps_per_s_of)),
        *(_shown(results.of(case, _milliseconds(latency))) for latency in latencies),
        # That of a replay beside it would be counted too.
        "" if case.load == "replay" else _shown(results.of(case, lambda run: run.server_us_per_step)),
        "" if case.rival == cases.BARE else _shown(results.of(case, lambda run: run.client_us_per_step)),
    )


def _million(millions: list[Million]) -> Iterator[str]:
    each: tuple[tuple[str, Callable[[Million], float]], ...] = (
        (f"memory, bytes each, for {STATE_BYTES} of state", lambda m: m.resident_bytes_each),
        (f"server us/step with {FEW:,} sessions", lambda m: m.few.server_us_per_step),
        (f"server us/step with {MANY:,} sessions", lambda m: m.many.server_us_per_step),
        ("opening, sessions/s", lambda m: MANY / m.opening.seconds),
        ("opening, server us each", lambda m: m.opening.cpu_us_each),
        ("idling (from memory to the store), sessions/s", lambda m: MANY / m.idling.seconds),
        ("idling, server us each", lambda m: m.idling.cpu_us_each),
        ("ending (their time to live is over), sessions/s", lambda m: MANY / m.ending.seconds),
        ("ending, server us each", lambda m: m.ending.cpu_us_each),
    )
    rows = [(words, _shown(figure([metric(million) for million in millions]))) for words, metric in each]
    yield from _table(("", "found"), rows)


def _failures(results: Results) -> Iterator[str]:
    if results.failures:
        yield from ("", "### Failed", "", *(f"- {words}" for words in results.failures))


def _milliseconds(metric: Metric) -> Metric:
    return lambda run: metric(run) / 1e3


def _shown(found: Figure | None) -> str:
    if found is None:
        return ""
    if found.least == found.most:
        return _digits(found.middle)
    return f"{_digits(found.middle)} ({_digits(found.least)} to {_digits(found.most)})"


def _digits(number: float) -> str:
    """Return three digits, or all of them before the point."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yield the lines of a Markdown table whose columns are aligned, so that it reads in a terminal too."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    for cells in (head, tuple("-" * width for width in widths), *rows):
        yield "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)) + " |"
