"""Runs one case: starts the rival, loads it, returns what was measured."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from longshort_model.synthetic import write_random_model

from bench import cases, load_client
from bench.measured import Measured
from bench.processes import ROOT, server
from bench.stores import store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.cases import Case, Model
    from bench.processes import Server

MODELS: Final = ROOT / "build" / "bench" / "models"
FRAMES_METHOD: Final = "/longshort.v1.SequenceService/StreamFrames"
WINDOW_STEPS: Final = 128
ANSWERS_LAST: Final = 2  # of enum longshort.v1.Answers
ANSWERS_NONE: Final = 3
REPLAYED_STEPS: Final = 4096  # in a message: as many as the service takes
RAMP_TIMEOUT_S: Final = 30.0
SETTLE_S: Final = 0.5
BESIDE_S: Final = 1.5  # the ramp and the settling of the load beside it
# Connections that a load's streams share: one would make gRPC's own fairness between streams of a connection the
# thing that is measured, one for each stream is what gateways avoid.
MAX_CHANNELS: Final = 8
_PROGRAMS: Final = {
    cases.ECHO: "echo",
    cases.ECHO_AIO: "echo_aio",
    cases.THREADS: "naive_threads",
    cases.ASYNCIO: "naive_asyncio",
    cases.WINDOW: "window",
}


def measure(case: Case, seconds: float) -> Measured:
    """Run a case for so long, after its ramp. RuntimeError where the rival or its load fails."""
    if case.rival == cases.BARE:
        return _bare(case, seconds)
    with store(case.store) as url:
        ours = service(case.model, "--store", url, "--durability", case.durability)
        return _measure(case, rival(case) if case.rival in _PROGRAMS else ours, seconds)


def _measure(case: Case, command: list[str], seconds: float) -> Measured:
    with server(command) as running:
        if case.rival == cases.FRAMES:
            return load_client.stream_load(
                running, method=FRAMES_METHOD, sessions=case.sessions, rows=case.sessions, seconds=seconds
            )
        if case.rival in (cases.GATEWAY_ARRAYS, cases.GATEWAY_CALLS):
            calls = "arrays" if case.rival == cases.GATEWAY_ARRAYS else "single"
            return load_client.python_load(
                "bench.load.gateway_load", running, calls=calls, sessions=case.sessions, seconds=seconds
            )
        if case.load != "replay":
            return _streams(case, running, seconds)
        with replay(running, seconds) as replayed:
            live = _streams(case, running, seconds)
        return replace(live, replayed_per_s=replayed[0].steps_per_s)


def rival(case: Case) -> list[str]:
    """Return the command of a rival."""
    program = _PROGRAMS[case.rival]
    takes_model = case.rival not in (cases.ECHO, cases.ECHO_AIO)
    return [f"bench.rivals.{program}", *([str(model_file(case.model))] if takes_model else [])]


def service(model: Model, *flags: str) -> list[str]:
    """Return the command of longshort with one model, `m`; it says where it listens in its log."""
    repository = model_file(model).parents[2]
    ports = ["--grpc-port", "0", "--metrics-port", "0"]
    # The default is a file of the user's own, with the sessions of the run before.
    flags = flags if "--store" in flags else ("--store", "memory://", *flags)
    return ["longshort_service", "serve", str(repository), *ports, "--log-format", "json", *flags]


def model_file(model: Model) -> Path:
    """Return the file of a model, made on first use: a repository with it alone."""
    path = MODELS / f"{model.hidden}-{model.layers}" / "m" / "1" / "model.onnx"
    if not path.exists():
        write_random_model(path, hidden=model.hidden, layers=model.layers, name="m")
    return path


@contextlib.contextmanager
def replay(running: Server, seconds: float) -> Iterator[list[Measured]]:
    """Have one session replay values as fast as it can beside a load that measures for so long.

    Gives a list that holds what was measured of it after the block. RuntimeError where the replay broke off.
    """
    options: dict[str, object] = {
        "target": running.address,
        "id_prefix": "replay-",
        "steps": REPLAYED_STEPS,
        "answers": ANSWERS_NONE,
        "seconds": seconds + BESIDE_S,
    }
    replayed: list[Measured] = []
    with ThreadPoolExecutor(1) as thread:
        begun = threading.Event()
        command = [str(load_client.build()), *load_client.flags(options)]
        other = thread.submit(load_client.run, command, running, begun.set)
        begun.wait(RAMP_TIMEOUT_S)
        yield replayed
        replayed.append(other.result())
    if replayed[0].errors:
        raise RuntimeError(f"the replay broke off: {replayed[0].errors}")


def _bare(case: Case, seconds: float) -> Measured:
    command = [sys.executable, "-m", "bench.rivals.bare", str(model_file(case.model))]
    done = subprocess.run(
        [*command, str(case.sessions), str(seconds)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return Measured(**json.loads(done.stdout))


def _streams(case: Case, running: Server, seconds: float) -> Measured:
    windows = {"steps": WINDOW_STEPS, "answers": ANSWERS_LAST} if case.rival == cases.WINDOW else {}
    measured = load_client.stream_load(
        running,
        streams=case.sessions,
        channels=MAX_CHANNELS,
        rate=case.rate,
        seconds=seconds,
        settle_s=SETTLE_S,
        ramp_timeout_s=RAMP_TIMEOUT_S,
        **windows,
    )
    return measured.of_predictions() if case.rival == cases.WINDOW else measured
