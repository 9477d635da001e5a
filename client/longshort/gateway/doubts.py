"""Outcomes that wait for `retry`, and whatever else waits for an outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from longshort import recovery

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from longshort.errors import LongshortError


class Waiter(Protocol):
    """Where a result goes: a future, or what looks like one."""

    def done(self) -> bool:
        """Return whether nobody awaits it any more."""

    def set_result(self, result: Any, /) -> None:
        """Take the result."""

    def set_exception(self, error: LongshortError, /) -> None:
        """Take the failure."""


class Doubt:
    """A row whose caller has gone after it was sent: it holds the outcome for `retry`.

    `number` is its call's: several of a session are retried in the order of their calls.
    """

    __slots__ = ("_error", "_result", "is_settled", "number", "waiter")

    def __init__(self, number: int) -> None:
        self.number = number
        self.waiter: Waiter | None = None
        self.is_settled = False
        self._result: NDArray[np.float32] | None = None
        self._error: LongshortError | None = None

    @property
    def is_awaited(self) -> bool:
        """Whether a retry waits for it."""
        return self.waiter is not None and not self.waiter.done()

    def put_off(self, error: LongshortError) -> None:
        """Fail the retry that waits for it; the outcome may still come."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_exception(error)
        self.waiter = None

    def settle(self, result: NDArray[np.float32] | None, error: LongshortError | None = None) -> None:
        """Take the outcome."""
        self.is_settled, self._result, self._error = True, result, error
        if self.is_awaited:
            self.tell()

    def tell(self) -> None:
        """Hand the outcome to the retry that waits for it."""
        waiter = self.waiter
        if waiter is None:
            return
        if self._error is None:
            waiter.set_result(self._result)
        else:
            waiter.set_exception(recovery.again(self._error))
