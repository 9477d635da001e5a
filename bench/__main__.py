"""`python -m bench [PROFILE]`: measure, print the report, write build/bench.json and build/bench.png.

Exit code 1 where a case failed. Whether a claim holds is in the report and changes no exit code: machines differ.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from typing import Final

from bench import load_client, results
from bench.cases import profiles
from bench.machine import machine
from bench.measure import measure
from bench.million import measure_million
from bench.plot import plot
from bench.processes import LOG, ROOT
from bench.report import report

OUT: Final = ROOT / "build" / "bench.json"
FAILURES: Final = (RuntimeError, subprocess.SubprocessError, OSError)


def main() -> int:
    """Run a profile and return the exit code."""
    known = profiles()
    arguments = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    arguments.add_argument("profile", nargs="?", choices=known, default="quick", help="default: quick")
    profile_name = arguments.parse_args().profile
    profile = known[profile_name]
    try:
        load_client.build()
    except load_client.NoCompiler as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    LOG.unlink(missing_ok=True)
    found = results.Results(profile_name, machine(), profile.seconds)
    begin_s = time.monotonic()
    # Repetition by repetition, so that a machine's slow hour meets all rivals.
    for repetition in range(1, profile.repetitions + 1):
        for number, case in enumerate(profile.cases, 1):
            words = f"{case.rival}, {case.model}, {case.sessions:,} sessions, {case.load} {case.rate or ''}".strip()
            _say(f"{repetition}/{profile.repetitions} {number}/{len(profile.cases)} {words}")
            try:
                found.runs.setdefault(case, []).append(measure(case, profile.seconds))
            except FAILURES as error:
                found.failures.append(f"{words}: {error}")
        if profile.million:
            _say(f"{repetition}/{profile.repetitions} a million sessions")
            try:
                found.millions.append(measure_million(profile.seconds))
            except FAILURES as error:
                found.failures.append(f"a million sessions: {error}")
    found.duration_s = time.monotonic() - begin_s
    # A case that failed once would be paired with other repetitions of its rivals: it is told as a failure alone.
    found.runs = {case: runs for case, runs in found.runs.items() if len(runs) == profile.repetitions}
    results.write(OUT, found)
    OUT.with_suffix(".md").write_text(report(found) + "\n", encoding="utf-8")
    plot(OUT.with_suffix(".png"), found)
    print(report(found))
    _say("saved build/bench.json, .md and .png; `python -m bench.document` puts them into docs/benchmarks.md")
    if not found.failures:
        return 0
    _say(f"{len(found.failures)} failed, see above; what servers said is in {LOG.relative_to(ROOT)}")
    return 1


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
