"""Whether the store is away, and for too long. Knows nothing of sessions."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from longshort_service import errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshort_service.stores.base import Store

logger = logging.getLogger(__name__)


class Outage:
    """The store as its clients see it. `monotonic` is the clock of `Store.away_since_s`."""

    def __init__(self, store: Store, limit_s: float, monotonic: Callable[[], float]) -> None:
        self._store = store
        self._limit_s = limit_s
        self._monotonic = monotonic
        self._seen = (False, False)

    @property
    def is_away(self) -> bool:
        """Whether the last call of the store has failed."""
        return self._store.away_since_s is not None

    @property
    def is_over_limit(self) -> bool:
        """Whether it is away for longer than sessions may go on without it."""
        since_s = self._store.away_since_s
        return since_s is not None and self._monotonic() - since_s > self._limit_s

    def has_changed(self) -> bool:
        """Whether either answer is another than when this was asked last."""
        seen, self._seen = self._seen, (self.is_away, self.is_over_limit)
        if self._seen[1] and not seen[1]:
            logger.error("the session store is away for too long: nothing more is taken until it is back")
        return seen != self._seen

    async def ask(self) -> None:
        """Ask the store whether it is back."""
        with contextlib.suppress(errors.StoreUnavailable):  # it says so itself, once
            await self._store.ping()
