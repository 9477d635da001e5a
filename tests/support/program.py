"""`longshort` as a shell meets it: a real process, its output, its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from servers import Server

ROOT = Path(__file__).parent.parent.parent
SHIPPED = ROOT / "service" / "longshort_service" / "models"
PROGRAM = (sys.executable, "-m", "longshort_service")
NOWHERE = "127.0.0.1:1"  # tcpmux: nobody listens there


def longshort(
    *arguments: str, text: str | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, `text` on its standard input."""
    return subprocess.run(
        [*PROGRAM, *arguments],
        input=text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=os.environ | (env or {}),
    )


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start a command with a pipe at each end."""
    pipe = subprocess.PIPE
    return subprocess.Popen([*PROGRAM, *arguments], stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def the_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line of an error."""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("Error: ")
    return done.stderr


def new_id() -> str:
    """Return a session id of the test's own."""
    return f"cli-{uuid4().hex[:12]}"


def at_step(session_id: str, server: Server) -> int:
    """Return where a session stands."""
    done = longshort("sessions", "get", session_id, "--json", "--address", server.address)
    return int(json.loads(done.stdout)["step"])
