"""What a run of chaos prints: what was done, how often, and what callers saw of it."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
from chaos_faults import COUNTED

if TYPE_CHECKING:
    from chaos_crowd import Crowd
    from chaos_faults import Fault, Faults


def text_of(title: str, seed: int, crowd: Crowd, faults: Faults) -> str:
    """Return the report of a run, whose answers were all found right."""
    callers = crowd.callers
    seconds = max(caller.ends_s[-1] for caller in callers) - min(caller.begins_s[0] for caller in callers)
    steps = [caller.position for caller in callers]
    counts = faults.counts
    kept = f"{len(callers)} sessions, {sum(steps):,} steps ({min(steps):,} to {max(steps):,} each) in {seconds:.0f} s"
    healed = ", ".join(f"{counts[name]:,} {name}" for name in COUNTED)
    longest_s = max(caller.longest_s() for caller in callers)
    lines = [
        f"{title}, CHAOS_SEED={seed}",
        f"{kept}: every answer is, bit for bit, that of a run without faults",
        f"{len(faults.done)} faults, {crowd.num_streams:,} streams; the servers counted {healed}",
        f"the longest pause that a caller saw: {longest_s:.2f} s",
        "first answer after a fault, in seconds, over the sessions whose server it was:",
        f"{'fault':32}{'times':>6}{'lasted':>8}{'sessions':>10}{'p50':>8}{'p99':>8}{'max':>8}",
    ]
    kinds: dict[str, list[Fault]] = defaultdict(list)
    for fault in faults.done:
        is_alone = not any(fault.overlaps(other) for other in faults.done)
        kinds[fault.kind if is_alone else f"{fault.kind}, not alone"].append(fault)
    return "\n".join([*lines, *(_row(kind, some) for kind, some in sorted(kinds.items()))])


def _row(kind: str, faults: list[Fault]) -> str:
    found = [caller.answered_after_s(fault.begun_s) for fault in faults for caller in fault.met]
    pauses_s = [pause_s for pause_s in found if pause_s is not None]
    p50, p99, longest = np.quantile(pauses_s, [0.5, 0.99, 1]) if pauses_s else [np.nan] * 3
    lasted_s = np.median([fault.ended_s - fault.begun_s for fault in faults])
    return f"{kind:32}{len(faults):6}{lasted_s:8.2f}{len(pauses_s):10}{p50:8.2f}{p99:8.2f}{longest:8.2f}"
