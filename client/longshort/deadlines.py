"""Deadlines of sync calls: gRPC's sync streams block without a limit, so a watchdog cuts the overdue ones.

One thread a client, started with the first alarm and asleep until the earliest deadline it knows of. Arming
is cheap on purpose, since every step does it: the thread is woken only for a deadline before that one, and
disarming never wakes it.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Alarm:
    """One session's deadline; `ring` is called by the watchdog's thread once it has passed.

    It rings once and is disarmed then: who changes `ring` under an armed alarm looks at the clock afterwards.
    """

    __slots__ = ("__weakref__", "deadline_s", "ring")

    def __init__(self) -> None:
        self.deadline_s = math.inf  # of time.monotonic(); infinite: disarmed
        self.ring: Callable[[], object] = lambda: None

    def disarm(self) -> None:
        """Let no deadline pass any more. One that passes at this moment may still ring."""
        self.deadline_s = math.inf


class Watchdog:
    """Rings alarms whose deadline has passed. It holds none of them alive."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._alarms: weakref.WeakSet[Alarm] = weakref.WeakSet()
        self._wakes_at_s = math.inf
        self._thread: threading.Thread | None = None
        self._is_stopped = False

    def new_alarm(self) -> Alarm:
        """Return a disarmed alarm of this watchdog."""
        alarm = Alarm()
        with self._changed:
            self._alarms.add(alarm)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="longshort-watchdog", daemon=True)
                self._thread.start()
        return alarm

    def arm(self, alarm: Alarm, deadline_s: float) -> None:
        """Let an alarm ring at a time of time.monotonic()."""
        with self._changed:
            alarm.deadline_s = deadline_s
            if deadline_s < self._wakes_at_s:
                self._wakes_at_s = deadline_s
                self._changed.notify()

    def stop(self) -> None:
        """Let the thread end."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while not self._is_stopped:
                now_s = time.monotonic()
                for alarm in self._alarms:
                    if alarm.deadline_s <= now_s:
                        alarm.disarm()
                        alarm.ring()
                self._wakes_at_s = min((alarm.deadline_s for alarm in self._alarms), default=math.inf)
                sleep_s = max(self._wakes_at_s - now_s, 0)
                self._changed.wait(min(sleep_s, threading.TIMEOUT_MAX))  # no lock can wait longer
