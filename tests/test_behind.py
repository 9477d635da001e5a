"""How far sessions are ahead of the store, and from which step their answers wait for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from flaky_store import FlakyStore
from longshort_service.behind import LAGGARD_INTERVALS, Behind, CheckpointLimits
from longshort_service.durability import NEVER, Durability
from longshort_service.outage import Outage
from longshort_service.sessions import SessionTable
from tables import NOW_S, TableModel, move, rows_of

if TYPE_CHECKING:
    from longshort_service.session import Session

INTERVAL_S, STEPS, OUTAGE_S = 1.0, 16, 10.0
NONE, BEHIND, SYNC = Durability.NONE, Durability.BEHIND, Durability.SYNC


class Scene:
    """Three sessions, one of each durability, at step 3 and stored at step 1; time stands still unless it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.store = FlakyStore(lambda: self.now_s)
        self.table: SessionTable[Any] = SessionTable()
        self.model = TableModel()
        self.sessions = {each: self._session(each) for each in Durability}
        self.rows = np.array([session.row for session in self.sessions.values()])
        outage = Outage(self.store, OUTAGE_S, lambda: self.now_s)
        limits = CheckpointLimits(INTERVAL_S, STEPS, answer_timeout_s=5.0, outage_s=OUTAGE_S)
        self.behind = Behind(self.table, outage, limits)
        self.behind.set_all_waits()

    def _session(self, durability: Durability) -> Session[Any]:
        session = self.table.create(durability.name, self.model, epoch=1, incarnation=7, now_s=NOW_S)
        move(session, rows_of(1, 2, 3))
        self.model.columns.durability[session.row] = durability
        session.durable_step = 1
        return session

    def waits_from(self) -> list[int]:
        """Return from which step each session's answers wait, by durability."""
        return [int(self.model.columns.waits_from[row]) for row in self.rows]


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_answers_wait_from_the_first_step_that_a_durability_does_not_allow(scene: Scene):
    assert scene.waits_from() == [NEVER, 1 + STEPS + 1, 2]
    for session, may_go in zip(scene.sessions.values(), (True, True, False), strict=True):
        assert scene.behind.may_go(session, 3, strictly=False) == may_go
        assert scene.behind.may_go(session, 1, strictly=False)
        assert scene.behind.may_go(session, 1, strictly=True)
        assert not scene.behind.may_go(session, 2, strictly=True)


def test_nothing_may_go_of_a_session_that_has_ended(scene: Scene):
    session = scene.sessions[NONE]
    scene.table.remove(session)
    assert not scene.behind.may_go(session, 0, strictly=False)


def test_behind_does_not_wait_for_a_store_that_is_away_until_that_lasts_too_long(scene: Scene):
    scene.store.away_since_s = scene.now_s
    scene.behind.set_all_waits()
    assert scene.waits_from() == [NEVER, NEVER, 2]
    scene.now_s += OUTAGE_S + 0.1
    scene.behind.set_all_waits()
    assert scene.waits_from() == [NEVER, 0, 0]
    scene.store.away_since_s = None
    scene.behind.set_all_waits()
    assert scene.waits_from() == [NEVER, 1 + STEPS + 1, 2]


def test_only_steps_that_are_to_be_stored_make_a_session_behind(scene: Scene):
    end = len(scene.rows)
    assert scene.behind.is_behind(scene.model.columns, end).tolist() == [False, True, True]
    scene.sessions[SYNC].durable_step = 3
    assert scene.behind.is_behind(scene.model.columns, end).tolist() == [False, True, False]


def test_laggards_wait_and_the_lag_is_that_of_the_worst(scene: Scene):
    scene.behind.look(scene.now_s)
    assert scene.behind.lag_s == 0
    late_s = scene.now_s + LAGGARD_INTERVALS * INTERVAL_S
    scene.behind.look(late_s)
    assert scene.waits_from()[1] == 1 + STEPS + 1  # not yet
    scene.behind.look(late_s + 0.1)
    assert scene.behind.lag_s == pytest.approx(LAGGARD_INTERVALS * INTERVAL_S + 0.1)
    assert scene.waits_from() == [NEVER, 0, 0]


def test_nobody_is_a_laggard_while_the_store_is_away(scene: Scene):
    scene.behind.look(scene.now_s)
    scene.store.away_since_s = scene.now_s
    scene.behind.set_all_waits()
    scene.behind.look(scene.now_s + 100 * INTERVAL_S)
    assert scene.waits_from() == [NEVER, NEVER, 2]
    assert scene.behind.lag_s == 100 * INTERVAL_S


def test_what_was_stored_moves_the_stored_step_forward_only(scene: Scene):
    scene.behind.look(scene.now_s)
    scene.behind.stored(scene.model, scene.rows, np.array([2, 2, 3]), scene.now_s + 5, NOW_S + 5)
    columns = scene.model.columns
    assert columns.durable[scene.rows].tolist() == [2, 2, 3]
    assert columns.behind_since_s[scene.rows].tolist() == [scene.now_s + 5, scene.now_s + 5, 0]
    assert columns.written_s[scene.rows].tolist() == [NOW_S + 5] * 3
    assert scene.waits_from() == [NEVER, 2 + STEPS + 1, 4]
    scene.behind.stored(scene.model, scene.rows, np.array([1, 1, 1]), scene.now_s + 6, NOW_S + 6)
    assert columns.durable[scene.rows].tolist() == [2, 2, 3]
    scene.behind.look(scene.now_s + 7)
    assert scene.behind.lag_s == 1
    scene.table.remove(scene.sessions[BEHIND])
    scene.behind.look(scene.now_s + 8)
    assert scene.behind.lag_s == 0
