"""A blocking backend as a store: its calls run in threads, and it is known whether it is away.

Owns the threads, the bound on what waits for them, and the log of outages. Knows no SQL and no Redis.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from longshort_service import errors
from longshort_service.stores.backend import BackendError
from longshort_service.stores.settler import Settler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from longshort_service.record import SessionRecord
    from longshort_service.stores.backend import Accepted, Backend
    from longshort_service.stores.base import Refusal, StoreOpening, StoreRequest

logger = logging.getLogger(__name__)

# Calls that wait for a thread or are in one. Openings and writes come in batches: more waiting calls mean a store that
# does not keep up, and who waits behind them would wait for seconds.
MAX_CALLS: Final = 256
# A cause that changes during an outage is logged, but no more often than this.
_LOG_PAUSE_S: Final = 10.0

T = TypeVar("T")


class _Kind(enum.Enum):
    """What a call is for, where the store is away."""

    ORDINARY = enum.auto()
    MAKES_ROOM = enum.auto()
    PING = enum.auto()


class ThreadedStore:
    """A durable store over a backend. From the first failure on every call fails at once, until a ping goes well.

    But for calls that make room, where room is what is missing: a full store would stay full. A call whose caller is
    cancelled goes on to its end.
    """

    is_durable = True

    def __init__(self, backend: Backend, *, max_calls: int = MAX_CALLS) -> None:
        self.away_since_s: float | None = None
        self._backend = backend
        self._max_calls = max_calls
        self._num_calls = 0
        self._is_full = False  # what the last failure says
        self._logged = ""  # the last line of this outage, and when it was logged
        self._logged_at_s = 0.0
        self._outage_lock = threading.Lock()
        self._threads = ThreadPoolExecutor(backend.num_threads, "longshort-store")
        self._settling = ThreadPoolExecutor(1, "longshort-settle")
        self._settler = Settler(partial(self._call, self._settling, backend.settle))

    async def open_many(
        self, requests: Sequence[StoreRequest], now_s: float
    ) -> list[StoreOpening | errors.ServiceError]:
        """See Store.open_many."""
        return await self._call(self._threads, partial(self._backend.open_many, requests, now_s))

    async def write(self, records: Sequence[SessionRecord], *, settled: bool = True) -> list[Refusal | None]:
        """See Store.write."""
        accepted: Accepted = await self._call(self._threads, partial(self._backend.write, records))
        # What was refused needs no waiting; a refusal beside it does.
        if settled and accepted.place and None in accepted.refusals:
            place = await self._settler.settle()
            # Another server, or this one anew: it may have lost what the first one had not made durable.
            if place != accepted.place:
                raise errors.StoreUnavailable(
                    "the session store was restarted or replaced before it had kept what it was given: try again"
                )
        return accepted.refusals

    async def read(self, session_id: str) -> SessionRecord | None:
        """See Store.read."""
        return await self._call(self._threads, partial(self._backend.read, session_id))

    async def delete_many(self, entries: Sequence[tuple[str, int | None]]) -> list[bool]:
        """See Store.delete_many."""
        return await self._make_room(partial(self._backend.delete_many, entries))

    async def bury_many(
        self, entries: Sequence[tuple[str, int]], before_s: float, now_s: float
    ) -> list[bool]:
        """See Store.bury_many."""
        return await self._make_room(partial(self._backend.bury_many, entries, before_s, now_s))

    async def list_ids(self, prefix: str, after: str, limit: int) -> list[str]:
        """See Store.list_ids."""
        return await self._call(self._threads, partial(self._backend.list_ids, prefix, after, limit))

    async def idle_since(self, before_s: float, limit: int) -> list[tuple[str, int]]:
        """See Store.idle_since."""
        return await self._make_room(partial(self._backend.idle_since, before_s, limit))

    async def forget_tombstones(self, before_s: float) -> int:
        """See Store.forget_tombstones."""
        return await self._make_room(partial(self._backend.forget_tombstones, before_s))

    async def has_records_of(self, model: str, version: int) -> bool:
        """See Store.has_records_of."""
        return await self._call(self._threads, partial(self._backend.has_records_of, model, version))

    def num_records(self) -> int:
        """See Store.num_records."""
        return self._backend.num_records()

    async def ping(self) -> None:
        """See Store.ping."""
        await self._call(self._threads, self._backend.ping, _Kind.PING)

    async def close(self) -> None:
        """See Store.close. Waits for the calls in hand."""
        for threads in (self._threads, self._settling):
            await asyncio.to_thread(threads.shutdown)
        await asyncio.to_thread(self._backend.close)

    async def _make_room(self, call: Callable[[], T]) -> T:
        return await self._call(self._threads, call, _Kind.MAKES_ROOM)

    async def _call(
        self, threads: ThreadPoolExecutor, call: Callable[[], T], kind: _Kind = _Kind.ORDINARY
    ) -> T:
        self._refuse_while_away(kind)
        if self._num_calls >= self._max_calls:
            raise errors.StoreUnavailable(
                f"{self._num_calls} calls wait for the session store, as many as may: try again a little later"
            )
        self._num_calls += 1
        future = asyncio.get_running_loop().run_in_executor(threads, self._run, call, kind)
        future.add_done_callback(self._call_ended)
        # A write that is under way cannot be taken back, and its thread is not free before.
        return await asyncio.shield(future)

    def _call_ended(self, _future: asyncio.Future[T]) -> None:
        self._num_calls -= 1

    def _run(self, call: Callable[[], T], kind: _Kind) -> T:
        """Run a call, in its thread, and note how it went."""
        self._refuse_while_away(
            kind
        )  # it has gone since this call began to wait; each would wait as long again
        try:
            result = call()
        except BackendError as error:
            self._note_failure(error)
            raise _unavailable(error) from error
        if kind is not _Kind.MAKES_ROOM:  # that room can be made does not say that there is enough
            self._note_success()
        return result

    def _refuse_while_away(self, kind: _Kind) -> None:
        is_worth_it = kind is _Kind.PING or (kind is _Kind.MAKES_ROOM and self._is_full)
        if self.away_since_s is not None and not is_worth_it:
            raise errors.StoreUnavailable("the session store is away: try again a little later")

    def _note_failure(self, error: BackendError) -> None:
        now_s = time.monotonic()
        with self._outage_lock:
            is_first = self.away_since_s is None
            self._is_full = error.is_full
            if is_first:
                self.away_since_s = now_s
            is_news = is_first or (str(error) != self._logged and now_s - self._logged_at_s >= _LOG_PAUSE_S)
            if is_news:
                self._logged, self._logged_at_s = str(error), now_s
        if is_news:
            logger.warning("the session store is %s: %s", "away" if is_first else "still away", error)

    def _note_success(self) -> None:
        if self.away_since_s is None:  # as nearly always: without the lock
            return
        with self._outage_lock:
            since_s, self.away_since_s = self.away_since_s, None
            self._is_full = False
        if since_s is not None:
            logger.warning("the session store is back after %.1f s", time.monotonic() - since_s)


def _unavailable(error: BackendError) -> errors.StoreUnavailable:
    return errors.StoreUnavailable(f"the session store cannot do what was asked: {error.cause}")
