"""Answers that wait for the store: each is told once, when it may go or why it may not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from longshort_service import errors
from longshort_service.waiters import Waiters
from tables import TableModel, new_session

if TYPE_CHECKING:
    from longshort_service.errors import ServiceError
    from longshort_service.session import Session

AWAY = errors.StoreUnavailable("away")


class Told:
    """Waits for a session at several steps and remembers what it was told, in order."""

    def __init__(self, waiters: Waiters, session: Session[Any]) -> None:
        self.seen: list[tuple[int, ServiceError | None]] = []
        self._waiters, self._session = waiters, session

    def wait(self, step: int, deadline_s: float = 9.0, *, strictly: bool = False) -> None:
        def told(error: ServiceError | None) -> None:
            self.seen.append((step, error))

        self._waiters.add(self._session, step, told, deadline_s, strictly=strictly)


@pytest.fixture
def waiters() -> Waiters:
    return Waiters()


@pytest.fixture
def session() -> Session[Any]:
    return new_session(TableModel())[1]


def test_those_go_that_may_and_the_others_stay(waiters: Waiters, session: Session[Any]):
    told = Told(waiters, session)
    for step in (3, 1, 2):
        told.wait(step)
    waiters.tell(session, lambda step, *, strictly: step < 3 and not strictly)
    assert told.seen == [(1, None), (2, None)]
    assert waiters.sessions() == [session]
    waiters.tell(session, lambda step, *, strictly: step == 3 and not strictly)
    assert told.seen[2:] == [(3, None)]
    assert waiters.sessions() == []


def test_who_waits_strictly_is_asked_about_so(waiters: Waiters, session: Session[Any]):
    told = Told(waiters, session)
    told.wait(1, strictly=True)
    told.wait(2)
    waiters.tell(session, lambda step, *, strictly: step > 0 and not strictly)
    assert told.seen == [(2, None)]
    waiters.tell(session, lambda step, *, strictly: step > 0 and strictly)
    assert told.seen == [(2, None), (1, None)]


def test_session_that_is_lost_fails_all_its_own_and_no_other(waiters: Waiters, session: Session[Any]):
    other = new_session(TableModel(), "t")[1]
    told, others = Told(waiters, session), Told(waiters, other)
    told.wait(1)
    told.wait(2)
    others.wait(1)
    waiters.fail(session, AWAY)
    waiters.fail(session, AWAY)  # nobody is told twice
    assert told.seen == [(1, AWAY), (2, AWAY)]
    assert others.seen == []
    waiters.fail_all(AWAY)
    assert others.seen == [(1, AWAY)]


def test_only_those_fail_whose_time_is_up(waiters: Waiters, session: Session[Any]):
    told = Told(waiters, session)
    told.wait(1, deadline_s=5.0)
    told.wait(2, deadline_s=5.1)
    waiters.fail_overdue(4.9, AWAY)
    assert told.seen == []
    waiters.fail_overdue(5.0, AWAY)
    assert told.seen == [(1, AWAY)]


def test_who_is_told_may_wait_again(waiters: Waiters, session: Session[Any]):
    seen: list[int] = []

    def again(_error: ServiceError | None) -> None:
        seen.append(len(seen))
        waiters.add(session, 2, lambda _error: seen.append(9), 9.0, strictly=False)

    waiters.add(session, 1, again, 1.0, strictly=False)
    waiters.fail_overdue(1.0, AWAY)
    assert (seen, waiters.sessions()) == ([0], [session])


def test_nobody_waits_and_nobody_is_told(waiters: Waiters, session: Session[Any]):
    waiters.tell(session, lambda step, *, strictly: bool(step) or strictly)
    waiters.fail_overdue(9.0, AWAY)
    waiters.fail_all(AWAY)
    assert waiters.sessions() == []


def test_it_is_known_for_which_sessions_anyone_waits(waiters: Waiters, session: Session[Any]):
    assert session not in waiters
    Told(waiters, session).wait(1)
    assert session in waiters
    waiters.fail(session, AWAY)
    assert session not in waiters
