"""What the README and the page of the command line show is what happens.

A `console` block holds commands, a `python` block a program; a `text` block after one holds its output. Words
must be the same; numbers may differ by a hundredth, since processors differ in the last bit, and those that are
drawn at random (an incarnation has some 20 digits) altogether.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from longshort_model.replay import Replay

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "service" / "longshort_service" / "models"
PAGES = ("README.md", "docs/command-line.md")
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
DRAWN_DIGITS = 12
NUMBER = re.compile(r"-?\d+\.?\d*(?:e[-+]\d+)?")
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


@dataclass(frozen=True)
class Block:
    page: str
    kind: str
    code: str
    output: str


def blocks() -> Iterator[Block]:
    for page in PAGES:
        for kind, code, output in BLOCK.findall((ROOT / page).read_text()):
            yield Block(page, kind, code, output)


BLOCKS = list(blocks())
MADE_BY_MAKE = [block for block in BLOCKS if block.code.startswith("$ make")]
RUN_HERE = [block for block in BLOCKS if block not in MADE_BY_MAKE]


def assert_alike(shown: str, got: str) -> None:
    assert NUMBER.sub("#", shown).split() == NUMBER.sub("#", got).split(), got
    for expected, number in zip(NUMBER.findall(shown), NUMBER.findall(got), strict=True):
        if len(expected) < DRAWN_DIGITS or "." in expected:
            assert float(number) == pytest.approx(float(expected), rel=1e-2, abs=1e-2), got


def run_python(code: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(code, "README.md", "exec"), {})
    return output.getvalue()


def run_console(code: str, port: int) -> str:
    """Run each line that begins with $, as a shell in the venv would, and return what a terminal would show."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "LONGSHORT_GRPC_PORT": str(port)}
    shown = ""
    for line in code.splitlines():
        command = ["bash", "-o", "pipefail", "-c", line.removeprefix("$ ")]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=60, check=False
        )
        assert done.returncode == (2 if "Error: " in done.stderr else 0), done.stderr
        shown += done.stdout + done.stderr
    return shown


def test_the_pages_have_blocks_of_every_kind():
    assert {(block.page, block.kind) for block in RUN_HERE} == {
        ("README.md", "python"),
        ("README.md", "console"),
        ("docs/command-line.md", "console"),
    }
    assert all(block.output for block in RUN_HERE)


def test_every_example_gives_the_output_that_is_shown(start_server):
    """One service for all, in the order of the pages: sessions go on from one example to the next."""
    port = start_server(models=SHIPPED).port
    for block in RUN_HERE:
        code = block.code.replace("127.0.0.1:50051", f"127.0.0.1:{port}")
        if "grpcurl" in code and not (Path(sys.executable).parent / "grpcurl").exists():
            continue  # its package is for Linux on x86-64 only
        got = run_python(code) if block.kind == "python" else run_console(code, port)
        assert_alike(block.output, got)


def test_the_figures_of_the_readme_are_those_of_the_models_that_ship():
    shown = next(block.output for block in MADE_BY_MAKE if block.code == "$ make run\n")
    scores = [Replay(SHIPPED / name / "1" / "model.onnx").signature.scores for name in ("metro", "parking")]
    rows = {line[:34].strip(): line[34:].split() for line in shown.splitlines()}
    assert rows["longshort"] == [f"{score['mae']:.4g}" for score in scores]
    assert rows["within the 10 % to 90 % band"] == [f"{score['coverage']:.1%}" for score in scores]


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in (*PAGES, "CONTRIBUTING.md"):
        named = re.findall(r"(?:`|\$ )make ([a-z]+)", (ROOT / page).read_text())
        assert set(named) <= targets


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "docs/README.md"])
def test_every_link_leads_somewhere(page):
    for target in LINK.findall((ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), target


def test_every_file_of_tests_that_is_named_exists():
    for page in (*PAGES, "CONTRIBUTING.md"):
        for name in re.findall(r"tests/test_[a-z_]+\.py", (ROOT / page).read_text()):
            assert (ROOT / name).is_file(), name


def test_every_page_of_the_docs_is_in_their_index():
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index
