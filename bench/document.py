"""`python -m bench.document`: puts build/bench.json into docs/benchmarks.md, between its two marks, and the picture."""

from __future__ import annotations

from typing import Final

from bench import results
from bench.plot import plot
from bench.processes import ROOT
from bench.report import report

PAGE: Final = ROOT / "docs" / "benchmarks.md"
BEGIN: Final = "<!-- results: written by python -m bench.document -->"
END: Final = "<!-- end of results -->"


def with_results(page: str, told: str) -> str:
    """Return a page with what stood between its marks replaced. ValueError where it lacks one."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} or no {END}")
    return f"{before}{BEGIN}\n\n{told}\n\n{END}{after}"


def main() -> None:
    """Write the page."""
    found = results.read(ROOT / "build" / "bench.json")
    plot(PAGE.with_suffix(".png"), found)
    told = f"![steps/s, CPU and p99.9 by sessions]({PAGE.with_suffix('.png').name})\n\n{report(found)}"
    PAGE.write_text(with_results(PAGE.read_text("utf-8"), told), encoding="utf-8")


if __name__ == "__main__":
    main()
