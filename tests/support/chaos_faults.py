"""What is done to servers while callers stream: killed, frozen, cut off, drained, and their store restarted.

Each fault is over, and what it ended is back, when its method returns; what was met is noted with its time. A hand does
one after the other; what several hands do overlaps.
"""

from __future__ import annotations

import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chaos_cables import Cables, State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack

    from chaos_callers import Caller
    from servers import Server
    from valkey import Valkey

NUM_REPLICAS: Final = 3
FROZEN_S: Final = (8.0, 9.5)  # longer than the client's keepalive and ping timeout together
THAWED_S: Final = (0.1, 0.6)  # less than --checkpoint-interval
HELD_S: Final = (0.5, 8.0)  # some are over before anybody notices
CUT_S: Final = (0.5, 3.0)
STORE_AWAY_S: Final = (0.1, 2.0)
PAUSE_S: Final = (0.1, 1.5)  # from one fault to the next: some clients have not recovered
COUNTED: Final = ("moves", "replays", "conflicts", "errors")
Kind = Callable[[int, random.Random], None]  # of a fault, done to the server of this number
SAMPLE: Final = re.compile(r"^longshort_(\w+)_total(?:{.*})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Fault:
    kind: str
    begun_s: float  # by `time.monotonic`
    ended_s: float  # all is back
    met: list[Caller]  # whose server it was

    def overlaps(self, other: Fault) -> bool:
        """Return whether both were there at a time."""
        return self is not other and self.begun_s < other.ended_s and other.begun_s < self.ended_s


class Faults:
    """Servers that are on the same ports as long as the run lasts, and what has been done to them."""

    def __init__(self, start: Callable[[int], Server], num_servers: int, callers: list[Caller]) -> None:
        self._start = start  # by port, 0 for a free one
        self._callers = callers
        self.servers = [start(0) for _ in range(num_servers)]
        self.all_servers = list(self.servers)  # those that have ended too
        self.done: list[Fault] = []
        self.counts: Counter[str] = Counter()  # of metrics, over all processes

    @property
    def addresses(self) -> list[str]:
        """Where callers find the servers."""
        return [server.address for server in self.servers]

    def hands(self) -> list[list[Kind]]:
        """Return what can be done to a server of this number; what different hands do may be at the same time."""
        return [[self.kill]]

    def play(self, num_faults: int, seed: int, stop: threading.Event) -> None:
        """Do half of the faults one after the other, every kind in turn, and let all hands do the rest together."""
        hands = self.hands()
        num_alone = num_faults // 2 if len(hands) > 1 else num_faults
        self._play([kind for hand in hands for kind in hand], num_alone, random.Random(seed), stop)
        num_left = num_faults - num_alone
        with ThreadPoolExecutor(len(hands)) as pool:
            work = [
                pool.submit(
                    self._play,
                    kinds,
                    (num_left + number) // len(hands),
                    random.Random(seed + number + 1),
                    stop,
                )
                for number, kinds in enumerate(hands)
            ]
        for hand in work:
            hand.result()
        stop.wait(PAUSE_S[1])
        for server in self.servers:
            self._harvest(server)

    def _play(
        self,
        kinds: list[Kind],
        num_faults: int,
        chance: random.Random,
        stop: threading.Event,
    ) -> None:
        """Do every kind in turn, in a new order each round."""
        round_: list[Kind] = []
        for _ in range(num_faults):
            if stop.wait(chance.uniform(*PAUSE_S)):
                return
            round_ = round_ or chance.sample(kinds, len(kinds))
            round_.pop()(chance.choice(self._used()), chance)

    def kill(self, number: int, _: random.Random) -> None:
        """SIGKILL, and a new process at once."""
        self._harvest(self.servers[number])
        with self._noted("killed", number):
            self.servers[number].stop(signal.SIGKILL)
            self._restart(number)

    def _used(self) -> list[int]:
        """Return the servers that have sessions: of one that is back they may be elsewhere still."""
        wheres = {caller.where() for caller in self._callers}
        used = [number for number, address in enumerate(self.addresses) if address in wheres]
        return used or list(range(len(self.servers)))

    def _restart(self, number: int) -> None:
        self.servers[number] = self._start(self.servers[number].port)
        self.all_servers.append(self.servers[number])

    def _harvest(self, server: Server) -> None:
        """Add up what a process has counted; those of one that is killed end with it."""
        for name, value in SAMPLE.findall(server.metrics()):
            if name in COUNTED:
                self.counts[name] += int(float(value))

    @contextmanager
    def _noted(self, kind: str, number: int | None) -> Iterator[None]:
        """Note a fault of one server, or of all, that lasts as long as the block."""
        address = None if number is None else self.addresses[number]
        met = [caller for caller in self._callers if number is None or caller.where() == address]
        begun_s = time.monotonic()
        yield
        self.done.append(Fault(kind, begun_s, time.monotonic(), met))


class ClusterFaults(Faults):
    """Three replicas on one Valkey, cables before and behind each of them, which end with the stack."""

    def __init__(
        self, start: Callable[..., Server], store: Valkey, callers: list[Caller], stack: ExitStack
    ) -> None:
        self._store = store
        self._has_store = (
            threading.Lock()
        )  # a service whose store is away does not start: who restarts it waits
        self._behind = stack.enter_context(Cables([store.port] * NUM_REPLICAS))
        urls = {}  # of the store, by the port of the server that has it

        def start_one(port: int) -> Server:
            url = urls.get(port) or f"redis://127.0.0.1:{self._behind.ports[len(urls)]}"
            with self._has_store:
                server = start("--store", url, port=port)
            urls[server.port] = url
            return server

        super().__init__(start_one, NUM_REPLICAS, callers)
        self._before = stack.enter_context(Cables([server.port for server in self.servers]))

    @property
    def addresses(self) -> list[str]:
        return [f"127.0.0.1:{port}" for port in self._before.ports]

    def hands(self) -> list[list[Kind]]:
        return [
            [self.kill, self.freeze, self.freeze_and_kill_others, self.drain],
            [self.part_from_callers, self.part_from_store, self.stop_store, self.kill_store],
        ]

    def freeze(self, number: int, chance: random.Random) -> None:
        """SIGSTOP until its sessions are with others, then SIGCONT: it still believes that they are its own."""
        with self._noted("frozen", number):
            self.servers[number].process.send_signal(signal.SIGSTOP)
            time.sleep(chance.uniform(*FROZEN_S))
            self.servers[number].process.send_signal(signal.SIGCONT)

    def freeze_and_kill_others(self, number: int, chance: random.Random) -> None:
        """As `freeze`; those who have its sessions now die before they have stored them again.

        A write of the thawed one that came through would be what the store has of a session: older than promised.
        """
        with self._noted("frozen, others killed", number):
            self.servers[number].process.send_signal(signal.SIGSTOP)
            time.sleep(chance.uniform(*FROZEN_S))
            others = [other for other in range(len(self.servers)) if other != number]
            for other in others:
                self._harvest(self.servers[other])
            self.servers[number].process.send_signal(signal.SIGCONT)
            time.sleep(chance.uniform(*THAWED_S))
            for other in others:
                self.servers[other].stop(signal.SIGKILL)
            for other in others:
                self._restart(other)

    def drain(self, number: int, _: random.Random) -> None:
        """SIGTERM, as a rolling restart does."""
        self._harvest(self.servers[number])
        with self._noted("drained", number):
            assert self.servers[number].stop(signal.SIGTERM) == 0
            self._restart(number)

    def part_from_callers(self, number: int, chance: random.Random) -> None:
        """The way between callers and a replica is cut or silent."""
        self._part("from callers", self._before, number, chance)

    def part_from_store(self, number: int, chance: random.Random) -> None:
        """The way between a replica and Valkey is cut or silent."""
        with self._has_store:
            self._part("from the store", self._behind, number, chance)

    def stop_store(self, _: int, chance: random.Random) -> None:
        """Valkey ends in good order and comes back."""
        with self._has_store, self._noted("store stopped", None):
            self._store.stop()
            self._bring_back_store(chance)

    def kill_store(self, _: int, chance: random.Random) -> None:
        """Valkey is killed and comes back with what was in its file."""
        with self._has_store, self._noted("store killed", None):
            self._store.kill()
            self._bring_back_store(chance)

    def _bring_back_store(self, chance: random.Random) -> None:
        time.sleep(chance.uniform(*STORE_AWAY_S))
        self._store.restart()

    def _part(self, whom: str, cables: Cables, number: int, chance: random.Random) -> None:
        state = chance.choice([State.HELD, State.CUT])
        with self._noted(f"{state.value} {whom}", number):
            cables.set(number, state)
            time.sleep(chance.uniform(*(HELD_S if state is State.HELD else CUT_S)))
            cables.set(number, State.WHOLE)
