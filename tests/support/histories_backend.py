"""A backend on a line that a test cuts or holds: for stores that are away, and for calls that overtake one another."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from longshort_service.stores.backend import BackendError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from longshort_service.app import App

PATIENCE_S = 20.0


@dataclass
class Hold:
    """Holds the next call of a method, before or after it is done."""

    is_after: bool
    _has_come: threading.Event = field(default_factory=threading.Event)
    _may_go: threading.Event = field(default_factory=threading.Event)

    async def arrival(self) -> None:
        """Wait until the call is held."""
        assert await asyncio.to_thread(self._has_come.wait, PATIENCE_S), "the call did not come"

    def let_go(self) -> None:
        self._may_go.set()

    def pass_through(self) -> None:
        self._has_come.set()
        assert self._may_go.wait(PATIENCE_S), "nobody let the call go"


class BackendLine:
    """Stands in a service between its store and the backend."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._holds: dict[str, Hold] = {}
        self.is_cut = False

    @classmethod
    def of(cls, app: App) -> BackendLine:
        """Put a line into a service whose store is durable."""
        store: Any = app._store
        line = cls(store._backend)
        store._backend = line
        return line

    def __getattr__(self, name: str) -> Any:
        wanted = getattr(self._backend, name)
        return wanted if not callable(wanted) else lambda *words: self._call(name, wanted, words)

    @asynccontextmanager
    async def holding(self, method: str, *, after: bool = False) -> AsyncIterator[Hold]:
        """Hold the next call of a method, until it is let go or at the end of the block."""
        hold = self._holds[method] = Hold(is_after=after)
        try:
            yield hold
        finally:
            self._holds.pop(method, None)
            hold.let_go()

    def _call(self, name: str, wanted: Any, words: tuple[Any, ...]) -> Any:
        hold = None if name in {"num_records", "close"} else self._holds.pop(name, None)
        if hold is not None and not hold.is_after:
            hold.pass_through()
        if self.is_cut and name not in {"num_records", "close"}:
            raise BackendError("the line is cut")
        result = wanted(*words)
        if hold is not None and hold.is_after:
            hold.pass_through()
        return result
