"""Fails where a JSON file lacks a figure or holds one that is no positive number: `check_figures.py FILE KEY...`.

Of figures that docs/training.md lists with their spread over seeds (`metro.mae` and the like), those in the file must
lie within twice that spread around its middle: another processor sums in another order, and that is another seed.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

TRAINING = Path(__file__).parents[1] / "docs" / "training.md"


def spreads() -> dict[str, tuple[float, float]]:
    """Return least and greatest value by figure, from the table of docs/training.md."""
    rows = re.findall(
        r"^\| (\w+) \| (\w+) \|[^|]*\| ([\d.]+) to ([\d.]+) \|", TRAINING.read_text("utf-8"), re.MULTILINE
    )
    return {f"{name}.{score}": (float(least), float(most)) for name, score, least, most in rows}


def main(path: Path, keys: list[str]) -> None:
    """Check every key and print its figure."""
    known = spreads()
    if not known:
        raise SystemExit(f"{TRAINING} lists no spreads")
    for key in keys:
        figure = json.loads(path.read_text("utf-8"))
        for part in key.split("."):
            figure = figure[part]
        if not isinstance(figure, int | float) or not figure > 0:
            raise SystemExit(f"{path}: {key} is {figure}")
        if key in known:
            least, most = known[key]
            middle, reach = (least + most) / 2, most - least
            if abs(figure - middle) > reach:
                raise SystemExit(f"{path}: {key} is {figure}, seeds give {least} to {most}")
        print(f"{key} {figure:.4g}")


main(Path(sys.argv[1]), sys.argv[2:])
