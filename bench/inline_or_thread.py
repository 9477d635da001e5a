"""Engine runs on the event loop against runs in the engine thread: steps, latency, and health checks meanwhile.

Starts the service once a case, drives it from this process with closed-loop streams of raw messages, and asks the
health service every 20 ms. Prints one line a case. Usage: bench/inline_or_thread.py [SECONDS_PER_CASE]
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2
from longshort.v1 import sequence_pb2, types_pb2
from longshort_model.synthetic import write_random_model

STREAM = "/longshort.v1.SequenceService/Stream"
HEALTH = "/grpc.health.v1.Health/Check"


@dataclass(frozen=True)
class Case:
    """A model and a load."""

    name: str
    hidden: int
    layers: int
    num_streams: int
    steps_per_message: int


CASES = (
    Case("small, 1 stream", 64, 1, 1, 1),
    Case("small, 128 streams", 64, 1, 128, 1),
    Case("large, 32 streams", 512, 2, 32, 64),
)


@dataclass
class Measured:
    """Latencies in seconds."""

    messages: list[float] = field(default_factory=list)
    health_checks: list[float] = field(default_factory=list)


async def follow(channel: grpc.aio.Channel, case: Case, end_s: float, measured: Measured) -> None:
    """Keep one stream busy."""
    call = channel.stream_stream(STREAM)()  # type: ignore[call-arg]  # the stubs want what grpcio does not
    opening = sequence_pb2.Open(session=types_pb2.SessionKey(id=str(uuid.uuid4())), model="m")
    await call.write(sequence_pb2.StreamRequest(open=opening).SerializeToString())
    await call.read()
    values = sequence_pb2.Values(values=[0.5] * case.steps_per_message, answers=types_pb2.ANSWERS_LAST)
    message = sequence_pb2.StreamRequest(values=values).SerializeToString()
    while time.perf_counter() < end_s:
        begin_s = time.perf_counter()
        await call.write(message)
        await call.read()
        measured.messages.append(time.perf_counter() - begin_s)
    await call.done_writing()


async def check_health(channel: grpc.aio.Channel, end_s: float, measured: Measured) -> None:
    """Ask whether the service serves, as a load balancer does."""
    check = channel.unary_unary(HEALTH)  # type: ignore[call-arg]  # as above
    request = health_pb2.HealthCheckRequest().SerializeToString()
    while time.perf_counter() < end_s:
        begin_s = time.perf_counter()
        await check(request)
        measured.health_checks.append(time.perf_counter() - begin_s)
        await asyncio.sleep(0.02)


async def drive(address: str, case: Case, seconds: float) -> Measured:
    """Load the service and return what was measured."""
    measured = Measured()
    end_s = time.perf_counter() + seconds
    async with grpc.aio.insecure_channel(address) as busy, grpc.aio.insecure_channel(address) as calm:
        streams = (follow(busy, case, end_s, measured) for _ in range(case.num_streams))
        await asyncio.gather(check_health(calm, end_s, measured), *streams)
    return measured


def run(case: Case, limit: str, seconds: float) -> str:
    """Start the service with one limit of inline runs, measure, and return the line to print."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m/1/model.onnx"
        path.parent.mkdir(parents=True)
        write_random_model(path, hidden=case.hidden, layers=case.layers, name="m")
        command = [sys.executable, "-m", "longshort_service", "serve", folder, "--inline-run-limit", limit]
        command += ["--grpc-port", "0", "--metrics-port", "0", "--log-format", "json", "--store", "memory://"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as service:
            try:
                assert service.stderr is not None
                address = next(json.loads(line)["grpc"] for line in service.stderr if '"serving"' in line)
                cpu_before_s = cpu_s(service.pid)
                measured = asyncio.run(drive(address, case, seconds))
                used_s = cpu_s(service.pid) - cpu_before_s
            finally:
                service.terminate()
    num_steps = len(measured.messages) * case.steps_per_message
    where = "thread" if limit == "0" else "loop"
    return (
        f"{case.name:20} {where:7} {num_steps / seconds:10.0f} {used_s / num_steps * 1e6:12.1f} "
        f"{milliseconds(measured.messages):>16} {milliseconds(measured.health_checks):>16}"
    )


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def milliseconds(latencies_s: list[float]) -> str:
    """Return median and 99th percentile."""
    p99 = statistics.quantiles(latencies_s, n=100)[98]
    return f"{statistics.median(latencies_s) * 1e3:.2f} / {p99 * 1e3:.2f}"


def main() -> None:
    """Run every case both ways, alternating, twice."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    print(
        f"{'case':20} {'runs on':7} {'steps/s':>10} {'CPU us/step':>12} {'message ms':>16} {'health ms':>16}"
    )
    for case in CASES:
        for limit in ("10", "0") * 2:
            print(run(case, limit, seconds), flush=True)


if __name__ == "__main__":
    main()
