"""The sessions of one frame stream as columns. A session's slot is its place in them, and its handle on the wire.

It owns ids, slots, positions and what a session may do now. It does not know calls or frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from longshort import arrays, errors, recovery
from longshort.v1 import types_pb2

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longshort.errors import LongshortError
    from longshort.gateway.shape import Shape
    from longshort.v1 import sequence_pb2

# What is true of a session. One that is OPEN and nothing else takes the next row at once.
OPEN: Final = 1  # on the stream that is there now, and where the answers here end
BUSY: Final = 2  # one row of it is ready to be sent, or sent
QUEUED: Final = 4  # calls wait for it
OPENING: Final = 8  # it is to be opened, or its opening was sent
DOUBT: Final = 16  # a call ended without its answer after its values were sent
ENDED: Final = 32  # nothing can be asked of it any more
POSTPONED: Final = 64  # its server has asked for a pause
STORELESS: Final = 128  # for a pause of its flushes only

MAX_SESSIONS: Final = 1_048_576  # handles are below this
_FIRST_CAPACITY: Final = 1_024
_NOTHING_TO_KEEP: Final = np.iinfo(np.uint64).max
_KEPT: Final = frozenset({types_pb2.DURABILITY_BEHIND, types_pb2.DURABILITY_SYNC})


class SessionTable:
    """Ids and columns of the sessions that were asked for and not closed since.

    `flags` and `flag_bytes` are the same memory: NumPy is slow with one number, a bytearray with many.
    `generation` is another object after every slot that is given back, and no other table's: slots that were
    looked up under it are these sessions' while it is there.
    """

    def __init__(self, shape: Shape) -> None:
        self.ids: list[str] = []  # by slot; empty: free
        self.slots: dict[str, int] = {}
        self.opened: list[sequence_pb2.Opened | None] = []  # by slot, as last opened
        self.ends: dict[int, LongshortError] = {}  # why there is no session any more
        self.shape = shape
        self.max_steps = 0  # of a message, as the server said last
        self.keeps_any = False
        self.generation = object()
        self._free: list[int] = []
        self.flag_bytes = bytearray(_FIRST_CAPACITY)
        self.flags: NDArray[np.uint8] = np.frombuffer(self.flag_bytes, np.uint8)  # [capacity], writable
        self.position = np.zeros(_FIRST_CAPACITY, np.uint64)  # [capacity] the step after the last answer
        # [capacity] the values before it need not be kept: the server has stored them, or nobody would be given them
        self.durable_step = np.zeros(_FIRST_CAPACITY, np.uint64)
        # [capacity] may the server lose what it has answered, and take it again?
        self.keeps = np.zeros(_FIRST_CAPACITY, np.bool_)
        self.epoch = np.zeros(_FIRST_CAPACITY, np.uint64)  # [capacity] the greatest that was seen

    def _grow(self) -> None:
        capacity = len(self.flag_bytes)
        self.flag_bytes = self.flag_bytes.ljust(2 * capacity, b"\0")
        self.flags = np.frombuffer(self.flag_bytes, np.uint8)
        self.position = np.pad(self.position, (0, capacity))
        self.durable_step = np.pad(self.durable_step, (0, capacity))
        self.keeps = np.pad(self.keeps, (0, capacity))
        self.epoch = np.pad(self.epoch, (0, capacity))

    def slot_of(self, session_id: str) -> int:
        """Return the slot of an id, a new one where it is new; InvalidRequest for what is no id."""
        try:
            slot = self.slots.get(session_id)
        except TypeError:  # what cannot be hashed is no text either
            slot = None
        if slot is not None:
            return slot
        # What merely looks like text would fail in a frame, and all with it.
        if not isinstance(session_id, str):
            raise errors.InvalidRequest(f"session_id is text, not {session_id!r}", reason="INVALID_OPTION")
        if not arrays.text(session_id, "session_id"):
            raise errors.InvalidRequest("session_id is empty", reason="INVALID_OPTION")
        if self._free:
            slot = self._free.pop()
            self.ids[slot] = session_id
        else:
            slot = len(self.ids)
            if slot == MAX_SESSIONS:
                raise errors.ResourceExhausted(
                    f"a gateway follows at most {MAX_SESSIONS} sessions: close some", reason="GATEWAY_FULL"
                )
            if slot == len(self.flag_bytes):
                self._grow()
            self.ids.append(session_id)
            self.opened.append(None)
        self.slots[session_id] = slot
        return slot

    def opened_slot(self, session_id: str) -> tuple[int, sequence_pb2.Opened]:
        """Return the slot of a session and what it was opened as; NOT_OPEN where it never was."""
        slot = self.slots.get(session_id, -1)
        opened = self.opened[slot] if slot >= 0 else None
        if opened is None:
            raise errors.FailedPrecondition(f"session {session_id} was not used yet", reason="NOT_OPEN")
        return slot, opened

    def open(self, slot: int, opened: sequence_pb2.Opened) -> None:
        """Mark a session as open."""
        keeps = opened.durability in _KEPT
        self.opened[slot] = opened
        self.keeps[slot] = keeps
        self.keeps_any = self.keeps_any or keeps
        self.durable_step[slot] = opened.durable_step if keeps else _NOTHING_TO_KEEP
        self.epoch[slot] = max(int(self.epoch[slot]), opened.epoch)
        self.flag_bytes[slot] |= OPEN

    def note_durable(self, slots: NDArray[np.intp], steps: NDArray[np.uint64]) -> None:
        """Take how far sessions are stored, each of `slots` [n] once."""
        if self.keeps_any:
            keeps = self.keeps[slots]
            self.durable_step[slots[keeps]] = steps[keeps]

    def is_stored(self, slots: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Return of each of `slots` whether all that was answered is known to be stored, or there is nothing."""
        position = self.position[slots]
        stored: NDArray[np.bool_] = self.keeps[slots] & (self.durable_step[slots] >= position) | (
            position == 0
        )
        return stored

    def release(self, slot: int) -> None:
        """Forget a session."""
        del self.slots[self.ids[slot]]
        self.ids[slot] = ""
        self.opened[slot] = None
        self.ends.pop(slot, None)
        self.flag_bytes[slot] = 0
        self.position[slot] = self.durable_step[slot] = self.epoch[slot] = 0
        self.keeps[slot] = False
        self._free.append(slot)
        self.generation = object()

    def end(self, slot: int, error: LongshortError) -> None:
        """Mark a session as ended: whatever is asked of it raises an error like this one."""
        self.flag_bytes[slot] = ENDED
        self.ends[slot] = error
        self.durable_step[slot] = _NOTHING_TO_KEEP

    def check(self, slot: int) -> None:
        """Raise where nothing can be asked of a session now."""
        flags = self.flag_bytes[slot]
        if flags & ENDED:
            raise recovery.again(self.ends[slot])
        if flags & DOUBT:
            raise recovery.doubt()
