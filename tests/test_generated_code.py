"""The stubs that are committed are those that the contract gives, and the contract is clean."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
STUBS = {
    "longshort/v1": ROOT / "client" / "longshort" / "v1",
    "inference": ROOT / "service" / "longshort_service" / "inference",
}


def test_stubs_are_what_the_contract_generates(tmp_path):
    command = [ROOT / "tools" / "generate_stubs.sh", tmp_path]
    subprocess.run(command, env=os.environ | {"PYTHON": sys.executable}, check=True, timeout=60)
    made, committed = {}, {}
    for package, folder in STUBS.items():
        made |= {path.name: path.read_text() for path in (tmp_path / package).iterdir()}
        committed |= {path.name: path.read_text() for path in folder.glob("*_pb2*")}
    # Four files of the contract: messages, their types, services; and one of the Open Inference Protocol: messages.
    assert len(made) == 14
    assert made.keys() == committed.keys()
    assert [name for name in made if made[name] != committed[name]] == []


def test_the_contract_is_clean_under_buf_lint():
    buf = Path(sys.executable).with_name("buf")
    done = subprocess.run([buf, "lint"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")
