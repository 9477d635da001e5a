"""What the client's distribution carries beside its code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_wheel_of_the_client_carries_the_licence(tmp_path: Path):
    """The wheel's metadata folder is made as pip makes it, with the setuptools that is installed here."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "client"
    (source / "longshort").mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        source.joinpath(name).write_bytes((ROOT / "client" / name).read_bytes())
    make = "from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel('.')"
    subprocess.run([sys.executable, "-c", make], cwd=source, check=True, capture_output=True)
    (folder,) = source.glob("*.dist-info")
    assert "License-File: LICENSE" in (folder / "METADATA").read_text().splitlines()
    assert (folder / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
