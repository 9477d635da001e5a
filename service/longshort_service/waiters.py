"""Answers that wait until the store has caught up with them. No asyncio; time is an argument, of a monotonic clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshort_service import errors
    from longshort_service.repository import Model
    from longshort_service.session import Session


class MayGo(Protocol):
    """Says whether an answer may go."""

    def __call__(self, step: int, *, strictly: bool) -> bool:
        """Return whether an answer at `step` may go; `strictly`: whether that very step is stored."""


@dataclass(frozen=True, slots=True)
class _Waiter:
    step: int
    strictly: bool
    deadline_s: float
    callback: Callable[[errors.ServiceError | None], None]


class Waiters:
    """Who waits for which session, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: dict[Session[Model], list[_Waiter]] = {}

    def __contains__(self, session: Session[Model]) -> bool:
        """Whether anyone waits for a session."""
        return session in self._waiting

    def sessions(self) -> list[Session[Model]]:
        """Return the sessions that anyone waits for."""
        return list(self._waiting)

    def add(
        self,
        session: Session[Model],
        step: int,
        callback: Callable[[errors.ServiceError | None], None],
        deadline_s: float,
        *,
        strictly: bool,
    ) -> None:
        """Have `callback` told once: None when the answer may go, otherwise why it may not."""
        self._waiting.setdefault(session, []).append(_Waiter(step, strictly, deadline_s, callback))

    def tell(self, session: Session[Model], may_go: MayGo) -> None:
        """Let those go that may."""
        self._end(session, lambda waiter: may_go(waiter.step, strictly=waiter.strictly), None)

    def fail(self, session: Session[Model], error: errors.ServiceError) -> None:
        """Tell all who wait for a session that they wait in vain."""
        self._end(session, lambda _waiter: True, error)

    def fail_overdue(self, now_s: float, error: errors.ServiceError) -> None:
        """Tell those whose time is up."""
        for session in self.sessions():
            self._end(session, lambda waiter: waiter.deadline_s <= now_s, error)

    def fail_all(self, error: errors.ServiceError) -> None:
        """Tell everybody."""
        for session in self.sessions():
            self.fail(session, error)

    def _end(
        self,
        session: Session[Model],
        has_ended: Callable[[_Waiter], bool],
        error: errors.ServiceError | None,
    ) -> None:
        waiting = self._waiting.get(session)
        if waiting is None:
            return
        ended = [waiter for waiter in waiting if has_ended(waiter)]
        left = [waiter for waiter in waiting if waiter not in ended]
        if left:
            self._waiting[session] = left
        else:
            del self._waiting[session]
        for waiter in ended:  # last: they may wait again
            waiter.callback(error)
