"""Turns at a session: openings and management calls of one session happen one after the other."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass(slots=True)
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_users: int = 0  # whoever has it or waits for it


class Turns:
    """A lock for each session that anyone is at just now; the others cost nothing."""

    def __init__(self) -> None:
        self._turns: dict[str, _Turn] = {}

    @asynccontextmanager
    async def of(self, session_id: str) -> AsyncIterator[None]:
        """Wait for one's turn at a session and keep the others off it within the block."""
        turn = self._turns.setdefault(session_id, _Turn())
        turn.num_users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.num_users -= 1
            if not turn.num_users:
                del self._turns[session_id]

    def __len__(self) -> int:
        """Return how many sessions anyone is at."""
        return len(self._turns)
