"""The stubs that are committed are those that the contract gives, and the contract is clean."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
STUBS = ROOT / "client" / "longshort" / "v1"


def test_stubs_are_what_the_contract_generates(tmp_path):
    command = [ROOT / "tools" / "generate_stubs.sh", tmp_path]
    subprocess.run(command, env=os.environ | {"PYTHON": sys.executable}, check=True, timeout=60)
    made = {path.name: path.read_text() for path in (tmp_path / "longshort" / "v1").iterdir()}
    committed = {path.name: path.read_text() for path in STUBS.glob("*_pb2*")}
    assert len(made) == 12  # four files of the contract: messages, their types, services
    assert made.keys() == committed.keys()
    assert [name for name in made if made[name] != committed[name]] == []


def test_the_contract_is_clean_under_buf_lint():
    buf = Path(sys.executable).with_name("buf")
    done = subprocess.run([buf, "lint"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")
