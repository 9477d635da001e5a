"""Which session each handle of one frame stream names, as columns, so that a frame is looked up at once.

Owns the handles of one stream. Knows no gRPC, no stores and no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic

import numpy as np

from longshort_service import errors
from longshort_service.arena import Slots
from longshort_service.served_model import ModelT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from longshort_service.session import Session

MAX_HANDLES: Final = 1 << 20  # the columns grow to the highest handle: a wild one must not take all memory
_CLOSED, _LOST = -1, -2  # as rows


class HandleTable(Generic[ModelT]):
    """The sessions of one frame stream by handle. A handle is open, lost (its session is gone) or closed."""

    def __init__(self) -> None:
        self.models: list[ModelT] = []  # in the order in which the stream met them
        self._rows = np.empty(0, np.intp)  # [handles] the arena's rows, or _CLOSED or _LOST
        self._generations = np.empty(0, np.int64)
        self._models = np.empty(0, np.int16)  # indices of `models`; a lost one's values still have a width
        self._places = np.empty(0, np.intp)  # scratch of `repeated`
        self._sessions: list[Session[ModelT] | None] = []
        self._losses: dict[int, errors.ServiceError] = {}
        self.version = 0  # raised whenever a handle comes to name something else

    def __iter__(self) -> Iterator[Session[ModelT]]:
        """Iterate over the open sessions."""
        return (session for session in self._sessions if session is not None)

    def open(self, handle: int, session: Session[ModelT]) -> None:
        """Give a closed or lost handle below MAX_HANDLES to a session."""
        if handle >= len(self._rows):
            self._grow(handle + 1)
        if session.model not in self.models:
            self.models.append(session.model)
        slot = session.slot
        self.version += 1
        self._rows[handle] = slot.row
        self._generations[handle] = slot.generation
        self._models[handle] = self.models.index(session.model)
        self._sessions[handle] = session
        self._losses.pop(handle, None)
        session.model.columns.handle[slot.row] = handle

    def close(self, handle: int) -> Session[ModelT] | None:
        """Close a handle; return the session that it named, if it did."""
        if handle >= len(self._rows):
            return None
        self.version += 1
        session, self._sessions[handle] = self._sessions[handle], None
        self._rows[handle] = _CLOSED
        self._losses.pop(handle, None)
        return session

    def lose(self, session: Session[ModelT], error: errors.ServiceError) -> bool:
        """Note that a session is the stream's no more: the next message of its handle is answered with the error.

        Return whether it had one. Where it has none yet, its row says what an earlier stream called it.
        """
        handle = int(session.model.columns.handle[session.row])
        if handle >= len(self._sessions) or self._sessions[handle] is not session:
            return False
        self.version += 1
        self._sessions[handle] = None
        self._rows[handle] = _LOST
        self._losses[handle] = error
        return True

    def get(self, handle: int) -> Session[ModelT]:
        """Return the session of a handle. Raises UnknownHandle, or what the session was lost by."""
        session = self._sessions[handle] if handle < len(self._sessions) else None
        if session is None:
            raise self.refusal(handle)
        return session

    def find_session(self, handle: int) -> Session[ModelT] | None:
        """Return the session of a handle; None where it is not open."""
        return self._sessions[handle] if handle < len(self._sessions) else None

    def durable_steps(self, found: Found) -> NDArray[np.int64]:
        """Return up to which step the sessions of handles are stored; 0 for a handle that is not open."""
        rows = np.maximum(found.rows, 0)
        if len(self.models) == 1:
            durable_steps = self.models[0].columns.durable[rows]
        else:
            durable_steps = np.zeros(len(rows), np.int64)
            for index, model in enumerate(self.models):
                of_model = found.models == index
                durable_steps[of_model] = model.columns.durable[rows[of_model]]
        durable_steps[found.rows < 0] = 0
        return durable_steps

    def refusal(self, handle: int) -> errors.ServiceError:
        """Return why a handle that is not open is refused."""
        return self._losses.get(handle) or errors.UnknownHandle(
            f"handle {handle} is not open on this stream: open a session with it first", handle=handle
        )

    def find(self, handles: NDArray[np.uint32]) -> Found:
        """Look handles up."""
        if not len(self._rows):
            self._grow(1)
        is_known = handles < len(self._rows)
        places = np.where(is_known, handles, 0).astype(np.intp)
        rows = np.where(is_known, self._rows[places], _CLOSED)
        return Found(handles, places, rows, self._models[places], is_known & (rows != _CLOSED))

    def slots(self, found: Found, positions: slice | NDArray[np.intp]) -> Slots:
        """Return the rows of open handles that were found."""
        return Slots(found.rows[positions], self._generations[found.places[positions]])

    def repeated(self, found: Found) -> NDArray[np.bool_] | None:
        """Return which of the handles are there more than once; None: none is."""
        order = np.arange(len(found.places))
        self._places[found.places] = order
        if (self._places[found.places] == order).all():
            return None
        # By the handles: those out of range share a place with handle 0.
        _, inverse, counts = np.unique(found.handles, return_inverse=True, return_counts=True)
        several: NDArray[np.bool_] = counts[inverse] > 1
        return several

    def _grow(self, num_handles: int) -> None:
        """Make room by doubling. What was there is copied; a million handles take 34 MB."""
        size = min(max(num_handles, 2 * len(self._rows), 1024), MAX_HANDLES)
        more = size - len(self._rows)
        self._rows = np.concatenate([self._rows, np.full(more, _CLOSED, np.intp)])
        self._generations = np.concatenate([self._generations, np.zeros(more, np.int64)])
        self._models = np.concatenate([self._models, np.zeros(more, np.int16)])
        self._places = np.zeros(size, np.intp)
        self._sessions.extend([None] * more)


class Found:
    """What handles were found to name, by position."""

    __slots__ = ("handles", "is_known", "models", "places", "rows")

    def __init__(
        self,
        handles: NDArray[np.uint32],
        places: NDArray[np.intp],
        rows: NDArray[np.intp],
        models: NDArray[np.int16],
        is_known: NDArray[np.bool_],
    ) -> None:
        self.handles = handles
        self.places = places  # of handles out of range 0
        self.rows = rows  # below 0 where the handle is not open
        self.models = models
        self.is_known = is_known  # open or lost: the width of its values is known
