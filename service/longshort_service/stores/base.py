"""What every store promises.

A store keeps for each session an entry: its epoch, who opened it last, and its record. What has expired leaves a
tombstone. Times are arguments, in seconds since 1970. What a call does to one session is atomic, also against other
servers. Calls take many sessions at once, each at most once in a call, so that a store over a network is asked once.

Epochs are never used again, whatever the store has lost: a durable store draws them from a clock, in microseconds, and
above every epoch that it knows.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from longshort_service import errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from longshort_service.record import Origin, SessionRecord


class OpenMode(enum.Enum):
    """What an opening may find."""

    OPEN_OR_CREATE = enum.auto()
    OPEN = enum.auto()
    CREATE = enum.auto()


class Found(enum.Enum):
    """What an opening found."""

    OPENED = enum.auto()  # the entry was there; its epoch was raised
    CREATED = enum.auto()  # there was none; one was made
    ABSENT = enum.auto()  # there is none and the mode does not create; nothing has changed
    EXPIRED = enum.auto()  # there is a tombstone and the mode is not CREATE; nothing has changed
    EXISTS = enum.auto()  # there is one and the mode is CREATE; nothing has changed


@dataclass(frozen=True, slots=True)
class Birth:
    """What an opening stores of a session that it creates: step 0 of this incarnation in the initial state."""

    origin: Origin
    incarnation: int
    record: SessionRecord | None = None  # stored in the place of step 0, with the epoch that is drawn


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """What an opening asks of the store. Without a `birth` nothing is created, whatever the mode: ABSENT."""

    session_id: str
    mode: OpenMode
    client_id: str = ""  # told to the owner that is superseded by this
    birth: Birth | None = None


@dataclass(frozen=True, slots=True)
class StoreOpening:
    """What an opening found. `record` is what was stored before the raise.

    Its `is_gapless` is what it was stored with: the opening clears the stored mark. None where the store keeps no
    record of a session that is live elsewhere (memory://), and where nothing was opened. `is_settled` says that the
    record is known to be durable.
    """

    found: Found
    previous_epoch: int = 0
    epoch: int = 0
    record: SessionRecord | None = None
    is_settled: bool = False
    # The epoch from which on this very process has opened it, with no other between; 0: another did last. Memory of
    # that epoch or a later one is the newest there is, also where the reply to an opening was lost.
    owned_since: int = 0
    client_id: str = ""  # where it EXISTS and has not begun: of the opening that created it


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a record was not stored: its entry is gone, or another opening has raised its epoch."""

    is_gone: bool
    client_id: str = ""  # of the opening that raised it
    epoch: int = 0  # that it was raised to
    owned_since: int = 0  # as in StoreOpening: an opening of this process raised it, and its reply was lost


class Store(Protocol):
    """The contract of a store. Whatever asks it may raise StoreUnavailable; then nothing is known of what was asked.

    A call in hand is never cancelled: its caller waits for its end.
    """

    is_durable: bool  # whether what is written survives the loss of this server
    away_since_s: float | None  # since when it has failed, by time.monotonic; None: the last call went well

    async def open_many(
        self, requests: Sequence[StoreRequest], now_s: float
    ) -> list[StoreOpening | errors.ServiceError]:
        """Raise each session's epoch and return the previous one with the record as of then, or make the entry.

        SessionsExhausted is returned for those whose entry would be one too many, RecordDamaged where what is stored
        cannot be read; the epoch has been raised then.
        """

    async def write(self, records: Sequence[SessionRecord], *, settled: bool = True) -> list[Refusal | None]:
        """Store each record whose entry has the record's very epoch; say for each why it was not.

        One that was given up and arrives late changes nothing: of two writes under one epoch the later call holds. Its
        mark `is_gapless` is stored with it. With `settled` the call returns when what was stored is durable, as
        far as the store can tell; without, when it was accepted. `records` may be built in another thread, when they
        are first looked at.
        """

    async def read(self, session_id: str) -> SessionRecord | None:
        """Return the stored record; None where there is none. Raises no epoch.

        SessionExpired at a tombstone, RecordDamaged where what is stored cannot be read.
        """

    async def delete_many(self, entries: Sequence[tuple[str, int | None]]) -> list[bool]:
        """Remove entries without a tombstone, of given ids and epochs (None: whatever it is); say which there were."""

    async def bury_many(
        self, entries: Sequence[tuple[str, int]], before_s: float, now_s: float
    ) -> list[bool]:
        """Replace each entry that has the given epoch and was last used before `before_s` by a tombstone.

        Say for each whether that was done.
        """

    async def list_ids(self, prefix: str, after: str, limit: int) -> list[str]:
        """Return up to `limit` session ids that begin with `prefix` and come after `after`, in order."""

    async def idle_since(self, before_s: float, limit: int) -> list[tuple[str, int]]:
        """Return up to `limit` ids with their epochs last used before `before_s`, in no particular order."""

    async def forget_tombstones(self, before_s: float) -> int:
        """Drop the tombstones made before `before_s`; return how many, as far as the store counts them."""

    async def has_records_of(self, model: str, version: int) -> bool:
        """Whether a record of this model version is stored."""

    def num_records(self) -> int:
        """Return how many records are stored, as far as is known without waiting."""

    async def ping(self) -> None:
        """Ask whether the store is there. Raises StoreUnavailable; clears `away_since_s` otherwise."""

    async def close(self) -> None:
        """Release what the store holds."""


async def open_one(store: Store, request: StoreRequest, now_s: float) -> StoreOpening:
    """Open one session in a store. Raises SessionsExhausted, RecordDamaged or StoreUnavailable."""
    (opening,) = await store.open_many([request], now_s)
    if isinstance(opening, errors.ServiceError):
        raise opening
    return opening
