"""A million sessions in one process: memory, the cost of a step beside a thousand's, opening, idling, ending."""

from __future__ import annotations

import re
import time
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench import load_client
from bench.cases import SMALL
from bench.measure import FRAMES_METHOD, service
from bench.processes import server

if TYPE_CHECKING:
    from bench.measured import Measured
    from bench.processes import Server

FEW: Final = 1_000
MANY: Final = 1_000_000
ROWS: Final = 1_000  # of a frame
STATE_BYTES: Final = 2 * SMALL.layers * SMALL.hidden * 4
IDLE_TIMEOUT_S: Final = 5.0
TTL_S: Final = 90.0  # long enough for all to be idle first
POLL_S: Final = 0.1
PHASE_TIMEOUT_S: Final = 300.0
SESSIONS: Final = re.compile(r'^longshort_sessions\{state="(\w+)"\} (\S+)$', re.MULTILINE)
FLAGS: Final = (
    *("--max-sessions", str(MANY + 1)),
    *("--max-stored-sessions", str(MANY + 1)),
    *("--idle-timeout", f"{IDLE_TIMEOUT_S}s"),
    *("--session-ttl", f"{TTL_S}s"),
    *("--tombstone-ttl", "1s"),
)


@dataclass(frozen=True, slots=True)
class Phase:
    """Something that is done to all sessions: how long it took and what it cost, in the server's CPU time of each."""

    seconds: float
    cpu_us_each: float


@dataclass(frozen=True, slots=True)
class Million:
    """One comparison of many sessions with few."""

    few: Measured
    many: Measured
    resident_bytes_each: float  # over the service without sessions
    opening: Phase
    idling: Phase
    ending: Phase


def measure_million(seconds: float, sessions: int = MANY) -> Million:
    """Open, step, leave and outlive so many sessions. RuntimeError where the service does not get there."""
    with server(service(SMALL, *FLAGS)) as running:
        few = _load(running, FEW, seconds)
    with server(service(SMALL, *FLAGS)) as running:
        before_bytes = running.resident_bytes()
        many = _load(running, sessions, seconds)
        idling = _until_none(running, ("live", "idle"), sessions)
        ending = _until_none(running, ("live", "idle", "spilled"), sessions)
    return Million(
        few=few,
        many=many,
        resident_bytes_each=(many.resident_bytes - before_bytes) / sessions,
        opening=Phase(many.ramp_s, 1e6 * many.ramp_cpu_s / sessions),
        idling=idling,
        ending=ending,
    )


def _load(running: Server, sessions: int, seconds: float) -> Measured:
    """Open sessions on one stream and step a thousand of them in each frame, all in turn."""
    return load_client.stream_load(
        running,
        method=FRAMES_METHOD,
        sessions=sessions,
        rows=ROWS,
        seconds=seconds,
        settle_s=0,
        ramp_timeout_s=PHASE_TIMEOUT_S,
    )


def _until_none(running: Server, states: tuple[str, ...], sessions: int) -> Phase:
    """Watch the service's sessions until none is in those states; the seconds count from the first that left them."""
    deadline_s = time.monotonic() + TTL_S + PHASE_TIMEOUT_S
    begin_s, cpu_begin_s = time.monotonic(), running.cpu_s()
    first = left = _held(running, states)
    while left > 0:
        time.sleep(POLL_S)
        if left == first:
            begin_s, cpu_begin_s = time.monotonic(), running.cpu_s()
        left = _held(running, states)
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"{left} sessions are still {' or '.join(states)}")
    return Phase(time.monotonic() - begin_s, 1e6 * (running.cpu_s() - cpu_begin_s) / sessions)


def _held(running: Server, states: tuple[str, ...]) -> int:
    """Return the number of sessions in any of the states, as /metrics counts them."""
    with urllib.request.urlopen(running.said["metrics"], timeout=PHASE_TIMEOUT_S) as response:
        text = response.read().decode()
    return sum(int(float(count)) for state, count in SESSIONS.findall(text) if state in states)
