"""The client's guide: its code runs, its output is real, its tables are complete."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import longshort
import longshort_service
import pytest
from longshort import errors

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "client.md"
SHIPPED = Path(longshort_service.__file__).parent / "models"
BLOCK = re.compile(r"```python\n(.*?)```\n(?:```text\n(.*?)```)?", re.DOTALL)


def without_figures(text: str) -> list[str]:
    """Return the words of an output, each figure as #: those of a model change with its training."""
    return re.sub(r"-?\d+\.?\d*(e-?\d+)?", "#", text).replace("[", " [ ").replace("]", " ] ").split()


@pytest.mark.parametrize("page", [GUIDE, ROOT / "client" / "README.md"], ids=lambda page: page.name)
def test_code_of_the_guide_runs_twice_and_prints_what_it_says(page: Path, start_server: Callable[..., Any]):
    server = start_server(models=SHIPPED)
    blocks = BLOCK.findall(page.read_text())
    assert blocks
    names: dict[str, Any] = {}
    for code, output in blocks * (2 if page == GUIDE else 1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code.replace("127.0.0.1:50051", server.address), names)
        assert without_figures(printed.getvalue()) == without_figures(output)


def test_every_error_is_in_the_guide():
    guide = GUIDE.read_text()
    for name, cls in inspect.getmembers(errors, inspect.isclass):
        if issubclass(cls, longshort.LongshortError):
            assert f"`{name}`" in guide, name


def test_every_reason_of_the_client_is_in_the_guide():
    guide = GUIDE.read_text()
    sources = [path for path in (ROOT / "client" / "longshort").rglob("*.py") if path.parent.name != "v1"]
    reasons = {
        reason for path in sources for reason in re.findall(r'reason="([A-Z_]+)"', path.read_text())
    } | {"STEPS_LOST", "OTHER_WRITER", "STORE_WENT_BACK", "NO_SERVER"}
    assert len(reasons) > 10
    for reason in reasons:
        assert f"`{reason}`" in guide, reason
