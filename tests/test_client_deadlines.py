"""The watchdog that cuts overdue calls, and the pauses between tries."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from typing import TYPE_CHECKING

import pytest
from longshort.backoff import FIRST_DELAY_S, MAX_DELAY_S, Backoff
from longshort.deadlines import Watchdog

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    watchdog = Watchdog()
    yield watchdog
    watchdog.stop()


def test_overdue_alarm_rings_once(watchdog: Watchdog):
    alarm, rung = watchdog.new_alarm(), threading.Semaphore(0)
    alarm.ring = rung.release
    watchdog.arm(alarm, time.monotonic() + 0.02)
    assert rung.acquire(timeout=5)
    assert not rung.acquire(timeout=0.05)


def test_disarmed_alarm_does_not_ring(watchdog: Watchdog):
    alarm, rung = watchdog.new_alarm(), threading.Event()
    alarm.ring = rung.set
    watchdog.arm(alarm, time.monotonic() + 0.05)
    alarm.disarm()
    assert not rung.wait(0.15)


def test_earlier_deadline_overtakes_a_later_one_that_is_slept_for(watchdog: Watchdog):
    late, soon, rung = watchdog.new_alarm(), watchdog.new_alarm(), threading.Event()
    watchdog.arm(late, time.monotonic() + 60)
    time.sleep(0.02)
    soon.ring = rung.set
    watchdog.arm(soon, time.monotonic() + 0.02)
    assert rung.wait(5)


def test_alarm_set_after_an_idle_time_rings(watchdog: Watchdog):
    alarm = watchdog.new_alarm()
    for _ in range(3):
        rung = threading.Event()
        alarm.ring = rung.set
        watchdog.arm(alarm, time.monotonic() + 0.02)
        assert rung.wait(5)


def test_deadline_beyond_what_a_lock_can_wait_for_leaves_the_watchdog_awake(watchdog: Watchdog):
    endless, soon, rung = watchdog.new_alarm(), watchdog.new_alarm(), threading.Event()
    watchdog.arm(endless, time.monotonic() + 2 * threading.TIMEOUT_MAX)
    time.sleep(0.02)
    soon.ring = rung.set
    watchdog.arm(soon, time.monotonic() + 0.02)
    assert rung.wait(5)


def test_watchdog_keeps_no_alarm_alive_and_its_thread_ends():
    watchdog = Watchdog()
    alarm = weakref.ref(watchdog.new_alarm())
    gc.collect()
    assert alarm() is None
    thread = watchdog._thread
    assert thread is not None
    watchdog.stop()
    thread.join(5)
    assert not thread.is_alive()


def test_pauses_double_up_to_a_bound_and_start_anew_after_an_answer():
    backoff = Backoff(lambda: 0.999999)
    delays = [backoff.next_delay_s(None) for _ in range(12)]
    assert delays[0] == pytest.approx(FIRST_DELAY_S, rel=1e-3)
    assert delays == sorted(delays)
    assert delays[-1] == pytest.approx(MAX_DELAY_S, rel=1e-3)
    backoff.reset()
    assert backoff.next_delay_s(None) == pytest.approx(FIRST_DELAY_S, rel=1e-3)


def test_pause_is_never_shorter_than_the_server_asks():
    assert Backoff(lambda: 0.0).next_delay_s(3.0) >= 3.0
