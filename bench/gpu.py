"""From which size a GPU pays: CPU against CUDA, states on the device against states copied for each run.

No service and no network: gather, run, scatter, as the service's lanes do them, one step a session, each batch of
other sessions than the one before. Prints a table and writes JSON; where there is no CUDA device it says so and
measures the CPU alone.

Usage: python -m bench.gpu [--seconds 1] [--rows 16384] [--threads 1] [--json build/bench/gpu.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
from longshort_model.synthetic import write_random_model
from longshort_service.engine import Engine
from longshort_service.graph_check import ModelError
from longshort_service.host_states import HostStates, StateLayout
from longshort_service.resident_engine import ResidentEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Run = Callable[[NDArray[np.float32], NDArray[np.intp]], object]

BATCHES = (1, 32, 128, 512, 1024, 4096)
SIZES = ((64, 1), (256, 2), (1024, 2))  # hidden, layers
WAYS = (("cpu", "host"), ("cpu", "resident"), ("cuda", "host"), ("cuda", "resident"))


@dataclass(frozen=True)
class Figure:
    """One case's result; a run is one step of each session of a batch."""

    provider: str
    states: str
    hidden: int
    layers: int
    batch: int
    runs: int
    run_us: float  # the median
    steps_per_s: float


def main() -> None:
    """Measure every size, way and batch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each case")
    parser.add_argument("--rows", type=int, default=16384, help="sessions that have a state, at least 4096")
    parser.add_argument("--threads", type=int, default=1, help="onnxruntime's threads on the CPU")
    parser.add_argument("--json", type=Path, default=Path("build/bench/gpu.json"))
    arguments = parser.parse_args()
    missing = why_no_device()
    if missing:
        print(f"NO CUDA DEVICE HERE: only the CPU is measured. {missing}\n")
    machine = describe_machine()
    print(f"{json.dumps(machine)}\n\n{heading()}")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for hidden, layers in SIZES:
            write_random_model(path, hidden=hidden, layers=layers)
            for provider, states in WAYS:
                if provider == "cuda" and missing:
                    continue
                run = prepare(path, provider, states, arguments.rows, arguments.threads)
                row = []
                for batch in BATCHES:
                    runs, run_s = measure(run, batch, arguments.rows, arguments.seconds)
                    row.append(
                        Figure(provider, states, hidden, layers, batch, runs, run_s * 1e6, batch / run_s)
                    )
                figures += row
                print(line(row), flush=True)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine, "no_device": missing, "figures": [asdict(figure) for figure in figures]}
    arguments.json.write_text(json.dumps(report, indent=1))
    print(f"\nWritten to {arguments.json}")


def why_no_device() -> str:
    """Return why CUDA does not start here; empty where it does."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_random_model(path, hidden=8)
        try:
            Engine(path, provider="cuda", intra_op_num_threads=1)
        except ModelError as error:
            return str(error)
    return ""


def prepare(path: Path, provider: str, states: str, num_rows: int, num_threads: int) -> Run:
    """Load the model and return a run of values `[batch, 1, features]` for rows `[batch]`."""
    if states == "resident":
        resident = ResidentEngine(
            path, provider=provider, intra_op_num_threads=num_threads, num_rows=num_rows
        )
        return lambda values, rows: resident.run(values, None, rows, rows)
    engine = Engine(path, provider=provider, intra_op_num_threads=num_threads)
    layouts = [StateLayout(state.shape, state.batch_axis, state.initial) for state in engine.signature.states]
    memory = HostStates(layouts, num_rows)

    def run(values: NDArray[np.float32], rows: NDArray[np.intp]) -> None:
        _, after = engine.run(values, None, memory.gather(rows))
        memory.scatter(rows, after)

    return run


def measure(run: Run, batch: int, num_rows: int, seconds: float) -> tuple[int, float]:
    """Run batches of other rows each for so long; return how many runs there were and their median in seconds."""
    random = np.random.default_rng(0)
    values = random.normal(size=(batch, 1, 1)).astype(np.float32)
    orders = [random.permutation(num_rows)[:batch] for _ in range(8)]
    for rows in orders:
        run(values, rows)
    durations: list[float] = []
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        begin_s = time.perf_counter()
        run(values, orders[len(durations) % len(orders)])
        durations.append(time.perf_counter() - begin_s)
    return len(durations), statistics.median(durations)


def heading() -> str:
    """Return the table's head; its figures are steps a second and, in brackets, microseconds a run."""
    return f"{'hidden':>8} {'provider':8} {'states':8}" + "".join(f"{f'batch {n}':>21}" for n in BATCHES)


def line(row: list[Figure]) -> str:
    """Return a line of the table."""
    first = row[0]
    cells = (f"{figure.steps_per_s:,.0f} ({figure.run_us:,.0f})" for figure in row)
    size = f"{first.hidden} x {first.layers}"
    return f"{size:>8} {first.provider:8} {first.states:8}" + "".join(f"{cell:>21}" for cell in cells)


def describe_machine() -> dict[str, str]:
    """Return what the figures were measured on."""
    cpu = next(
        (text.partition(":")[2].strip() for text in _lines("/proc/cpuinfo") if text.startswith("model name")),
        platform.processor(),
    )
    return {
        "cpu": f"{os.cpu_count()} x {cpu}",
        "gpu": _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
        "onnxruntime": onnxruntime.__version__,
        "commit": _output("git", "describe", "--always", "--dirty"),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return "none"
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "none"


if __name__ == "__main__":
    main()
