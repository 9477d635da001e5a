"""The load of streams: builds bench/load once, runs it against a server and returns what it and the server's clock say.

Owns the program and its command line. Knows no rival and no case.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

from bench.measured import Measured
from bench.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from bench.processes import Server

SOURCES: Final = ROOT / "bench" / "load"
PROGRAM: Final = ROOT / "build" / "bench" / "stream_load"
DEBIAN: Final = "apt-get install g++ pkg-config libgrpc++-dev"


class NoCompiler(RuntimeError):
    """What the load client is built with is not there; the message says what to install."""


def build() -> Path:
    """Compile the load client where it is missing or older than its sources; return its path. Raises NoCompiler."""
    sources = sorted(SOURCES.glob("*.h")) + sorted(SOURCES.glob("*.cc"))
    if PROGRAM.exists() and PROGRAM.stat().st_mtime >= max(path.stat().st_mtime for path in sources):
        return PROGRAM
    for tool in ("g++", "pkg-config"):
        if shutil.which(tool) is None:
            raise NoCompiler(f"the load client needs {tool}; on Debian: {DEBIAN}")
    found = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "grpc", "gpr"], capture_output=True, text=True, check=False
    )
    if found.returncode != 0:
        raise NoCompiler(f"the load client needs gRPC's C library; on Debian: {DEBIAN}")
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    made = PROGRAM.with_suffix(".new")  # never half a program under its name
    units = [str(path) for path in sources if path.suffix == ".cc"]
    flags = ["-O2", "-std=c++17", "-Wall", "-Wextra"]
    subprocess.run(["g++", *flags, *units, "-o", str(made), *found.stdout.split()], check=True)
    return made.rename(PROGRAM)


def stream_load(server: Server, **options: object) -> Measured:
    """Run the load with the options of bench/load/options.h and return what was measured."""
    return run([str(build()), f"--target={server.address}", *flags(options)], server)


def flags(options: dict[str, object]) -> list[str]:
    """Return options as a command line has them."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]


def python_load(module: str, server: Server, **options: object) -> Measured:
    """Run a load that is written in Python and speaks as stream_load does."""
    command = [sys.executable, "-m", module, f"--target={server.address}", *flags(options)]
    return run(command, server)


def run(command: Sequence[str], server: Server, on_begun: Callable[[], object] = lambda: None) -> Measured:
    """Run a load program, reading the server's clock where it says that the measuring begins and ends.

    `on_begun` is told when it begins. RuntimeError where it ends without a word or nothing was answered.
    """
    cpu_s = {"begun": server.cpu_s()}
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() in ("measuring", "measured"):
                cpu_s[line.strip()] = server.cpu_s()
                if line.strip() == "measuring":
                    on_begun()
                continue
            said: dict[str, Any] = json.loads(line)
            if said["messages"] == 0:
                raise RuntimeError(f"nothing was answered: {said['errors']}")
            return Measured(
                server_cpu_s=cpu_s["measured"] - cpu_s["measuring"],
                ramp_cpu_s=cpu_s["measuring"] - cpu_s["begun"],
                resident_bytes=server.resident_bytes(),
                **said,
            )
    raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")
