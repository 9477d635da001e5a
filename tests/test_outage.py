"""Whether the store is away, for too long, and whether that is news."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from flaky_store import FlakyStore
from longshort_service.outage import Outage

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


@pytest.fixture
def clock() -> list[float]:
    return [100.0]


@pytest.fixture
def store(clock: list[float]) -> FlakyStore:
    return FlakyStore(lambda: clock[0])


@pytest.fixture
def outage(store: FlakyStore, clock: list[float]) -> Outage:
    return Outage(store, 10.0, lambda: clock[0])


def test_store_that_answers_is_there(outage: Outage):
    assert not outage.is_away
    assert not outage.is_over_limit
    assert not outage.has_changed()


def test_away_is_not_yet_too_long(
    outage: Outage, store: FlakyStore, clock: list[float], caplog: pytest.LogCaptureFixture
):
    store.away_since_s = 100.0
    clock[0] = 110.0
    assert (outage.is_away, outage.is_over_limit) == (True, False)
    assert outage.has_changed()
    assert not outage.has_changed()
    clock[0] = 110.1
    assert outage.is_over_limit
    with caplog.at_level(logging.ERROR):
        assert outage.has_changed()
        assert not outage.has_changed()
    assert len(caplog.records) == 1  # said once
    store.away_since_s = None
    assert (outage.is_away, outage.is_over_limit) == (False, False)
    assert outage.has_changed()
    assert not outage.has_changed()


def test_store_is_asked_until_it_is_back(
    outage: Outage, store: FlakyStore, run: Callable[..., Any], clock: list[float]
):
    store.is_down = True
    run(outage.ask())
    assert store.away_since_s == clock[0]
    clock[0] += 5
    run(outage.ask())
    assert store.away_since_s == clock[0] - 5  # since it was first found away
    store.is_down = False
    run(outage.ask())
    assert not outage.is_away
    assert store.calls["ping"] == 3
