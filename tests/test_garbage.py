"""The collector's policy: what outlives a full collection is not looked at again, and circles go at the next thaw."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from longshort_service import garbage
from longshort_service.garbage import GarbagePolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class FakeLoop:
    """Notes what is to be called when, and is its own handle."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, Callable[[], None]]] = []
        self.is_cancelled = False

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> FakeLoop:
        self.calls.append((delay_s, callback))
        return self

    def cancel(self) -> None:
        self.is_cancelled = True


class Circle:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def loop() -> Iterator[FakeLoop]:
    loop: Any = FakeLoop()
    before = (gc.get_threshold(), list(gc.callbacks))
    policy = GarbagePolicy(loop)
    policy.start()
    yield loop
    policy.stop()
    assert (gc.get_threshold(), gc.callbacks) == before
    assert gc.get_freeze_count() == 0
    assert loop.is_cancelled


def test_what_outlives_a_full_collection_is_not_looked_at_again(loop: FakeLoop):
    assert len(loop.calls) == 1
    num_frozen = gc.get_freeze_count()
    kept = [[number] for number in range(1000)]
    gc.collect()
    assert gc.get_freeze_count() >= num_frozen + len(kept)
    assert len(gc.get_objects(generation=2)) < len(kept)


def test_circle_that_is_young_goes_as_ever(loop: FakeLoop):
    found = weakref.ref(Circle())
    gc.collect()
    assert found() is None
    assert len(loop.calls) == 1


def test_circle_that_was_frozen_goes_at_the_next_thaw(loop: FakeLoop):
    circle = Circle()
    found = weakref.ref(circle)
    gc.collect()
    del circle
    gc.collect()
    assert found() is not None
    _, thaw = loop.calls[-1]
    thaw()
    assert found() is None
    assert gc.get_freeze_count() > 0
    assert len(loop.calls) == 2


def test_thaws_are_the_rarer_the_longer_they_take(loop: FakeLoop, monkeypatch: pytest.MonkeyPatch):
    now_s = iter([0.0, 0.25, 1.0, 1.001])
    monkeypatch.setattr(garbage.time, "perf_counter", now_s.__next__)
    for expected_s in (2500.0, 600.0):
        loop.calls[-1][1]()
        assert loop.calls[-1][0] == pytest.approx(expected_s)
