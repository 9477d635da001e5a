"""Many streams opened at once under full load: the slowest one counts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

NUM_STREAMS = 1024
# What callers were promised; three tries, since the machines that run this are shared.
FIRST_ANSWER_LIMIT_S = 3.0
TRIES = 3

CLIENT = Path(__file__).parent / "support" / "many_streams.py"


@pytest.mark.timeout(150)
def test_every_one_of_1024_streams_opened_at_once_has_its_first_answer_within_three_seconds(start_server):
    server = start_server()
    slowest = []
    for _ in range(TRIES):
        command = [sys.executable, str(CLIENT), server.address, "metro", str(NUM_STREAMS), "8"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=45, check=True)
        result = json.loads(done.stdout)
        assert result["served"] == NUM_STREAMS
        slowest.append(result["slowest_s"])
        if slowest[-1] < FIRST_ANSWER_LIMIT_S:
            return
    pytest.fail(f"the slowest first answers took {slowest} s")
