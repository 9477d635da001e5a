"""Futures that are calls of a gateway: whoever stops awaiting one withdraws it, or leaves it in doubt."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longshort import errors
from longshort.gateway.calls import ArrayCall, StepCall

if TYPE_CHECKING:
    from collections.abc import Sequence

    from longshort.gateway.doubts import Doubt
    from longshort.gateway.turns import Turns


class StepFuture(asyncio.Future[NDArray[np.float32]], StepCall):
    """One step. It is its own call: a gateway makes one object a step."""

    turns: Turns

    def cancel(self, msg: Any | None = None) -> bool:
        """Withdraw the step; what was sent is in doubt."""
        if not self.done():
            self.turns.abandon(self)
        return super().cancel(msg)


class ArrayFuture(asyncio.Future[NDArray[np.float32]]):
    """The result of an array call, awaited by one coroutine: cancelled when it is done, it was not taken."""

    call: ArrayCall
    turns: Turns

    def cancel(self, msg: Any | None = None) -> bool:
        """Withdraw the call; the rows that were sent are in doubt."""
        if not self.done():
            self.turns.abandon(self.call)
        elif not self.cancelled():
            self.turns.doubt_sent(self.call)
        return super().cancel(msg)


class RetryFuture(asyncio.Future[NDArray[np.float32]]):
    """The outcome of a row that was in doubt, awaited by one coroutine: cancelled when it is done, it was not taken."""

    doubt: Doubt
    slot: int
    turns: Turns

    def cancel(self, msg: Any | None = None) -> bool:
        """Leave the row in doubt again."""
        if not self.cancelled():
            self.turns.abandon_retry(self.slot, self.doubt)
        return super().cancel(msg)


async def outcomes_of(parts: Sequence[ArrayFuture]) -> list[NDArray[np.float32] | errors.RowsFailed]:
    """Return the outcomes of the parts of one call, whose caller gets all or none.

    Where one of them fails as a whole its error is raised: none is handed out, and what was sent is in doubt.
    """
    try:
        outcomes = await asyncio.gather(*parts, return_exceptions=True)
    except asyncio.CancelledError:
        _leave(parts)
        raise
    told = [each for each in outcomes if isinstance(each, np.ndarray | errors.RowsFailed)]
    if len(told) < len(parts):
        _leave(parts)
        raise next(each for each in outcomes if not isinstance(each, np.ndarray | errors.RowsFailed))
    return told


def _leave(parts: Sequence[ArrayFuture]) -> None:
    for part in parts:
        part.cancel()
