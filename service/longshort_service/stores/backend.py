"""What a blocking store promises to the facade that runs it in threads, and how it fails.

Owns no state. The words of the calls are those of `Store`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from longshort_service import errors
    from longshort_service.record import SessionRecord
    from longshort_service.stores.base import Refusal, StoreOpening, StoreRequest


class StoreConfigError(ValueError):
    """A store that cannot be used as it is; the message is one line that says what to change."""


class BackendError(Exception):
    """What was asked failed for a reason outside this program; `cause` says in one line what, and what to do.

    The cause is told to remote callers: it names no file and no address. The message is for the log: it adds the place
    and, as `detail`, the backend's own words. `is_full`: the store has no room, so what makes room is worth trying.
    """

    def __init__(self, cause: str, *, place: str = "", detail: str = "", is_full: bool = False) -> None:
        super().__init__((f"{place}: " if place else "") + cause + (f" ({detail})" if detail else ""))
        self.cause = cause
        self.is_full = is_full


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of a write. `place` says where it was accepted, "" where it is durable already."""

    refusals: list[Refusal | None]
    place: str = ""


class Backend(Protocol):
    """A store as plain blocking code. Each call may raise BackendError; then nothing is known of what was asked.

    Calls come from as many threads at once as `num_threads` says, `settle` from one more.
    """

    num_threads: int

    def open_many(
        self, requests: Sequence[StoreRequest], now_s: float
    ) -> list[StoreOpening | errors.ServiceError]:
        """See Store.open_many."""

    def write(self, records: Sequence[SessionRecord]) -> Accepted:
        """See Store.write; returns when the records are accepted."""

    def settle(self) -> str:
        """Return when all that was accepted before is durable, and the place for which that is so."""

    def read(self, session_id: str) -> SessionRecord | None:
        """See Store.read."""

    def delete_many(self, entries: Sequence[tuple[str, int | None]]) -> list[bool]:
        """See Store.delete_many."""

    def bury_many(self, entries: Sequence[tuple[str, int]], before_s: float, now_s: float) -> list[bool]:
        """See Store.bury_many."""

    def list_ids(self, prefix: str, after: str, limit: int) -> list[str]:
        """See Store.list_ids."""

    def idle_since(self, before_s: float, limit: int) -> list[tuple[str, int]]:
        """See Store.idle_since."""

    def forget_tombstones(self, before_s: float) -> int:
        """See Store.forget_tombstones."""

    def has_records_of(self, model: str, version: int) -> bool:
        """See Store.has_records_of."""

    def num_records(self) -> int:
        """See Store.num_records. Asked by any thread, and while the store is away."""

    def ping(self) -> None:
        """Write a little: what can be reached and not written is away too."""

    def close(self) -> None:
        """Release what the backend holds. Nothing else is under way, and nothing comes after."""
