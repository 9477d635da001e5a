"""onnxruntime in a loop with nothing around it: the reference. Prints what a load client prints.

Usage: python -m bench.rivals.bare MODEL BATCH SECONDS
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from bench.rivals.model import Follower, load


def main(path: str, batch: int, seconds: float) -> None:
    """Step `batch` sequences side by side for so long, after a tenth of it unmeasured."""
    follower = Follower(load(path), batch)
    values = np.full((batch, 1, 1), 0.5, np.float32)  # [batch, time, features] f32
    warm_s = time.perf_counter() + seconds / 10
    while time.perf_counter() < warm_s:
        follower.step(values)
    runs_s = []
    begin_s, cpu_begin_s = time.perf_counter(), time.process_time()
    before_s = begin_s
    while before_s < begin_s + seconds:
        follower.step(values)
        now_s = time.perf_counter()
        runs_s.append(now_s - before_s)
        before_s = now_s
    used_s = time.process_time() - cpu_begin_s
    p50_us, p99_us, p999_us, max_us = (1e6 * np.quantile(runs_s, [0.5, 0.99, 0.999, 1.0])).tolist()
    said = {"seconds": before_s - begin_s, "messages": len(runs_s), "steps": batch * len(runs_s)}
    said |= {"p50_us": p50_us, "p99_us": p99_us, "p999_us": p999_us, "max_us": max_us}
    print(json.dumps(said | {"server_cpu_s": used_s}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
