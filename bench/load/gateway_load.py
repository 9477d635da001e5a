"""One client process with a gateway, in a closed loop; prints what stream_load prints.

`arrays` steps all sessions with one call and then again; `single` has a task for each session that awaits one step
after another. Usage: python -m bench.load.gateway_load --target=HOST:PORT --calls=arrays --sessions=N --seconds=S
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import dataclass, field

import numpy as np
from longshort import aio

SETTLE_S = 0.5


@dataclass
class Load:
    """The gateway, its sessions, and how long each call took."""

    gateway: aio.Gateway
    ids: list[str]
    seconds: float
    latencies_s: list[float] = field(default_factory=list)
    end_s: float = 0.0

    async def arrays(self) -> None:
        """Step all sessions at once, until the end."""
        group = self.gateway.group(self.ids)
        values = np.full(len(self.ids), 0.5, np.float32)
        while (begin_s := time.perf_counter()) < self.end_s:
            await self.gateway.steps(group, values)
            self.latencies_s.append(time.perf_counter() - begin_s)

    async def single(self) -> None:
        """Step each session by itself, until the end."""
        await asyncio.gather(*map(self._follow, self.ids))

    async def _follow(self, session_id: str) -> None:
        while (begin_s := time.perf_counter()) < self.end_s:
            await self.gateway.step(session_id, 0.5)
            self.latencies_s.append(time.perf_counter() - begin_s)

    async def measure(self, calls: str) -> None:
        """Open the sessions, settle, measure, and print."""
        begin_s = time.perf_counter()
        await self.gateway.steps(self.ids, np.full(len(self.ids), 0.5, np.float32))
        ramp_s = time.perf_counter() - begin_s
        load = {"arrays": self.arrays, "single": self.single}[calls]
        self.end_s = time.perf_counter() + SETTLE_S
        await load()
        self.latencies_s.clear()
        print("measuring", flush=True)
        begin_s, cpu_begin_s = time.perf_counter(), time.process_time()
        self.end_s = begin_s + self.seconds
        await load()
        print("measured", flush=True)
        said = {"seconds": time.perf_counter() - begin_s, "client_cpu_s": time.process_time() - cpu_begin_s}
        p50_us, p99_us, p999_us, max_us = (
            1e6 * np.quantile(self.latencies_s, [0.5, 0.99, 0.999, 1])
        ).tolist()
        said |= {"p50_us": p50_us, "p99_us": p99_us, "p999_us": p999_us, "max_us": max_us, "ramp_s": ramp_s}
        num_calls = len(self.latencies_s)
        steps = num_calls * len(self.ids) if calls == "arrays" else num_calls
        print(json.dumps({**said, "messages": num_calls, "steps": steps, "errors": {}}))


async def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--calls", choices=("arrays", "single"), required=True)
    parser.add_argument("--sessions", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args()
    ids = [f"gateway-{number}" for number in range(given.sessions)]
    async with aio.Gateway(given.target, model="m") as gateway:
        await Load(gateway, ids, given.seconds).measure(given.calls)


if __name__ == "__main__":
    asyncio.run(main())
