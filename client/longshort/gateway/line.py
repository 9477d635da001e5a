"""What waits for one session, in the order of calls.

It owns who may go before whom. It does not know what the session may do now.
"""

from __future__ import annotations

from collections import deque

from longshort.gateway.rows import CloseRow, FlushRow, ForecastRow, OpenRow, Row

Queued = Row | ForecastRow | FlushRow | OpenRow | CloseRow


class Line(deque[Queued]):
    """One session's line; the first is next."""

    def take(self, *, is_storeless: bool) -> Queued | None:
        """Take what is next; None where it has to wait.

        While there is no store (`is_storeless`) a flush lets all before it but a closing: values go on in the server's
        memory.
        """
        if not (is_storeless and isinstance(self[0], FlushRow)):
            return self.popleft()
        place = next((place for place, item in enumerate(self) if not isinstance(item, FlushRow)), None)
        if place is None or isinstance(self[place], CloseRow):
            return None
        item = self[place]
        del self[place]
        return item

    def put_last(self, flush: FlushRow) -> None:
        """Put a flush that was refused behind all but a closing."""
        closings = (place for place, item in enumerate(self) if isinstance(item, CloseRow))
        self.insert(next(closings, len(self)), flush)

    def pending(self) -> Row | None:
        """Return the message that was sent and not answered, if none of the session's rows is under way."""
        for item in self:
            if isinstance(item, Row) and item.is_begun and item.sink is not None:
                return item
        return None

    def drop_resent(self) -> None:
        """Drop what was to be sent again for a server that has forgotten it: the next stream finds it out anew."""
        while self and isinstance(self[0], Row) and self[0].sink is None:
            self.popleft()
