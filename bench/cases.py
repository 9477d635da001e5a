"""What is measured: the cases of each profile. A case is one rival under one load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ECHO: Final = "echo"
ECHO_AIO: Final = "echo, grpc.aio"
THREADS: Final = "naive threads"
ASYNCIO: Final = "naive asyncio"
WINDOW: Final = "window of 128"
LONGSHORT: Final = "longshort"
BARE: Final = "bare onnxruntime"
FRAMES: Final = "longshort, frames"
GATEWAY_ARRAYS: Final = "longshort, gateway arrays"
GATEWAY_CALLS: Final = "longshort, gateway calls"
# Stored how, and where. With `always` Valkey writes to its file before it answers, as SQLite does.
DURABLE: Final = (
    ("behind", "sqlite"),
    ("behind", "valkey everysec"),
    ("sync", "sqlite"),
    ("sync", "valkey always"),
)
STREAMED: Final = (ECHO, ECHO_AIO, THREADS, ASYNCIO, LONGSHORT)

LIGHT_CLIENTS: Final = 128
LIGHT_RATE: Final = 1280.0  # each client one value every 100 ms
LIVE_SESSIONS: Final = 100
LIVE_RATE: Final = 1000.0
# A thread for each stream: at 10,000 of them it is the operating system that is measured.
MOST_THREADS: Final = 1024


@dataclass(frozen=True, slots=True)
class Model:
    """The size of a model with random weights."""

    hidden: int
    layers: int

    def __str__(self) -> str:
        """Return it as the reports say it."""
        return f"{self.hidden} x {self.layers}"


SMALL: Final = Model(64, 1)
LARGE: Final = Model(256, 2)


@dataclass(frozen=True, slots=True)
class Case:
    """One rival under one load.

    `load` is "closed" (the next message when the last is answered), "open" (`rate` messages a second of all sessions
    together) or "replay" (as open, while one more session replays as fast as it can).
    """

    rival: str
    model: Model
    sessions: int
    load: str = "closed"
    rate: float = 0.0
    store: str = "memory"  # "sqlite", "valkey everysec" or "valkey always"
    durability: str = "none"

    @property
    def is_durable(self) -> bool:
        """Whether its sessions are stored on the way."""
        return self.durability != "none"


@dataclass(frozen=True, slots=True)
class Profile:
    """How much is measured and how long."""

    cases: tuple[Case, ...]
    seconds: float
    repetitions: int
    million: bool = False


def profiles() -> dict[str, Profile]:
    """Return the profiles by the name that BENCH gives."""
    small = _cases(SMALL, (1, 16, 128, 1024), (5_000, 10_000, 20_000))
    everything = _cases(
        SMALL, (1, 16, 128, 1024, 10_000), (2_500, 5_000, 10_000, 15_000, 20_000, 30_000, 40_000)
    )
    return {
        "smoke": Profile(_cases(SMALL, (1, 128), ()), seconds=0.5, repetitions=1),
        "quick": Profile(small, seconds=4.0, repetitions=2),
        "full": Profile(
            everything + _cases(LARGE, (1, 16, 128, 1024), ()), seconds=5.0, repetitions=3, million=True
        ),
        "durable": Profile(tuple(_undurable(SMALL) + _durable(SMALL)), seconds=3.0, repetitions=2),
        "million": Profile((), seconds=5.0, repetitions=2, million=True),
    }


def _durable(model: Model) -> list[Case]:
    """Return what is stored on the way: frames, and under SYNC a value a message too."""
    stored = [Case(FRAMES, model, 1024, store=store, durability=durability) for durability, store in DURABLE]
    return stored + [
        Case(LONGSHORT, model, count, store=store, durability=durability)
        for durability, store in DURABLE
        if durability == "sync"
        for count in (1, 128)
    ]


def _undurable(model: Model) -> list[Case]:
    """Return what that is held against."""
    return [Case(FRAMES, model, 1024), *(Case(LONGSHORT, model, count) for count in (1, 128))]


def _cases(model: Model, streams: tuple[int, ...], rates: tuple[int, ...]) -> tuple[Case, ...]:
    """Return the cases of one model; rivals that are compared stand side by side, and run one after another."""
    found = [Case(BARE, model, batch) for batch in (1, 128, 1024)]
    found += [Case(rival, model, 1024) for rival in (FRAMES, GATEWAY_ARRAYS, GATEWAY_CALLS)]
    found += _durable(model)
    for count in streams:
        found += [
            Case(rival, model, count) for rival in STREAMED if rival != THREADS or count <= MOST_THREADS
        ]
    found += [Case(WINDOW, model, count) for count in streams if count in (1, 128)]
    for rate in (LIGHT_RATE, *rates):
        rivals = STREAMED if rate == LIGHT_RATE else (ASYNCIO, LONGSHORT)
        found += [Case(rival, model, LIGHT_CLIENTS, "open", rate) for rival in rivals]
    found += [Case(LONGSHORT, model, LIVE_SESSIONS, load, LIVE_RATE) for load in ("open", "replay")]
    return tuple(found)
