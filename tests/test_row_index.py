"""Sessions by row: which are idle and which were unused longest, against sorting them all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from longshort_service import row_index
from longshort_service.sessions import SessionTable
from tables import RecordingOwner, TableModel


@pytest.fixture(autouse=True)
def _small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_index, "SAMPLE_ROWS", 8)


@given(
    ages=st.lists(
        st.sampled_from([0.0, 1.0, 1.0, 2.0, 3.5, 1e9]) | st.floats(0, 10), min_size=1, max_size=200
    ),
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 60),
)
@settings(deadline=None)
def test_longest_idle_are_what_sorting_by_last_use_gives(ages: list[float], seed: int, count: int):
    model = TableModel(num_rows=len(ages))
    table = SessionTable[TableModel]()
    numbers = list(range(len(ages)))
    sessions = table.create_many([f"s{number}" for number in numbers], model, numbers, numbers, 0.0)
    model.columns.used_s[:] = ages
    rng = np.random.default_rng(seed)
    busy, streaming, ended = (rng.random(len(ages)) < 0.2 for _ in range(3))
    table.attach_many([sessions[k] for k in np.flatnonzero(streaming)], RecordingOwner(), 0.0)
    table.remove_many([sessions[k] for k in np.flatnonzero(ended)])
    model.columns.is_busy[busy & ~ended] = True
    may_leave = [session for k, session in enumerate(sessions) if not (busy[k] or streaming[k] or ended[k])]
    used = sorted(session.last_used_s for session in may_leave)

    oldest = table.longest_idle(count)
    assert [session.last_used_s for session in oldest] == used[:count]
    assert len({session.id for session in oldest}) == len(oldest)
    assert set(oldest) <= set(may_leave)

    before_s = float(rng.choice(ages))
    expected = {session for session in may_leave if session.last_used_s < before_s}
    found = table.idle_since(before_s, len(ages))
    assert set(found) == expected
    assert [session.last_used_s for session in found] == sorted(session.last_used_s for session in expected)
    some = table.idle_since(before_s, count)
    assert len(some) == min(count, len(expected))
    assert set(some) <= expected


def test_sessions_used_at_the_very_same_time_are_as_many_as_asked_for():
    model = TableModel(num_rows=500)
    table = SessionTable[TableModel]()
    numbers = list(range(500))
    table.create_many([f"s{number}" for number in numbers], model, numbers, numbers, 5.0)
    assert len({session.id for session in table.longest_idle(20)}) == 20


def test_sample_that_misleads_is_made_good_by_looking_at_all_rows():
    """Every third row is looked at here, and these happen to be the oldest."""
    model = TableModel(num_rows=24)
    table = SessionTable[TableModel]()
    numbers = list(range(24))
    table.create_many([f"s{number}" for number in numbers], model, numbers, numbers, 0.0)
    model.columns.used_s[:] = [number if number % 3 == 0 else 100 + number for number in numbers]
    used = [session.last_used_s for session in table.longest_idle(9)]
    assert used == [0, 3, 6, 9, 12, 15, 18, 21, 101]
