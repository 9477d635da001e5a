"""How long one call goes on: until its own time is up, or until no server has taken it for too long."""

from __future__ import annotations


class Patience:
    """The end of one call, in seconds of time.monotonic().

    `deadline_s` is that of the call itself. One that is without a server has `give_up_s` from then on to find one.
    """

    __slots__ = ("_alone_since_s", "_give_up_s", "_timeout_s", "deadline_s")

    def __init__(self, now_s: float, timeout_s: float, give_up_s: float) -> None:
        self._timeout_s = timeout_s
        self.deadline_s = now_s + timeout_s
        self._give_up_s = give_up_s
        self._alone_since_s: float | None = None

    @property
    def ends_at_s(self) -> float:
        """When it ends, as things are."""
        if self._alone_since_s is None:
            return self.deadline_s
        return min(self.deadline_s, self._alone_since_s + self._give_up_s)

    @property
    def gives_up(self) -> bool:
        """Whether it ends before the call's own time is up."""
        return self.ends_at_s < self.deadline_s

    @property
    def limit_s(self) -> float:
        """The limit that ends it: what the caller is told."""
        return self._give_up_s if self.gives_up else self._timeout_s

    def alone(self, now_s: float) -> None:
        """Note that there is no server, as may have been noted before."""
        if self._alone_since_s is None:
            self._alone_since_s = now_s

    def served(self) -> None:
        """Note that a server has taken the call."""
        self._alone_since_s = None
