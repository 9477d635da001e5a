"""Prints the tests that skipped, one node id a line, from a JUnit report of pytest: `skipped.py REPORT`."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree as ET

for case in ET.parse(Path(sys.argv[1])).iter("testcase"):
    skipped = case.find("skipped")
    if skipped is not None and skipped.get("type") == "pytest.skip":
        module, name = case.get("classname") or "", case.get("name") or ""
        # A module that skips as a whole is reported by its own name, without a test.
        path = (module or name).replace(".", "/") + ".py"
        print(f"{path}::{name}" if module else path)
