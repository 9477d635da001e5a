"""Sessions in Redis or Valkey, shared by servers. Plain blocking code for a few threads.

Owns the words of the calls to the scripts, and when what was accepted is durable.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import secrets
import time
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from longshort_service import errors
from longshort_service.record import encode
from longshort_service.stores import redis_link, redis_scripts
from longshort_service.stores.backend import Accepted, BackendError, StoreConfigError
from longshort_service.stores.base import Found, Refusal, StoreOpening
from longshort_service.stores.reading import born_of, exhausted, exists, expired, read_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from longshort_service.record import SessionRecord
    from longshort_service.stores.base import StoreRequest
    from longshort_service.stores.redis_address import RedisAddress

logger = logging.getLogger(__name__)

# Sessions of one script: while it runs the server does nothing else, some 5 us a session.
_CHUNK: Final = 64
# A disk that is slow is told from a server that is frozen: WAITAOF gives up before the socket does, and is asked again.
_WAIT_MS: Final = 1500
_WAITS: Final = 6
# What `appendfsync everysec` may lose: a second, and another that an fsync may be late.
_FSYNC_S: Final = 2.0
_FORGET_LIMIT: Final = 1000


class RedisBackend:
    """Keeps sessions on a server, at most `max_entries`. StoreConfigError where it cannot be used as it is."""

    num_threads = 4  # openings go on while a large write is under way

    def __init__(self, address: RedisAddress, max_entries: int) -> None:
        self._address = address
        self._max_entries = max_entries
        self._num_entries = 0
        self._server_id = secrets.token_hex(8)  # of this process
        self._numbers = itertools.count(1)  # of writes: one that was given up may arrive behind a later one
        # As the server said at the last connection or write.
        self._settings = redis_link.ServerSettings(
            is_append_only=True, is_always_fsynced=False, has_waitaof=True
        )
        self._redis = redis_link.connect(address, self._note_settings)
        try:
            self.ping()
        except BackendError as error:
            self.close()
            raise StoreConfigError(f"store: {error}") from error
        except RedisError as error:  # whatever a server says at first, it is its settings or the URL
            self.close()
            raise StoreConfigError(f"store: {address}: cannot be used ({error})") from error
        logger.info(
            "sessions are kept on a server",
            extra={"fields": {"address": str(address), "sessions": self._num_entries}},
        )

    def _note_settings(self, settings: redis_link.ServerSettings) -> None:
        if self._settings.is_append_only and not settings.is_append_only:
            logger.warning(
                "the session store %s has appendonly off: what it has accepted is called durable, and is lost "
                "when it restarts; set appendonly yes",
                self._address,
            )
        elif self._settings.has_waitaof and not settings.has_waitaof:
            logger.warning(
                "the session store %s does not allow WAITAOF: what it has accepted is called durable %g s later",
                self._address,
                _FSYNC_S,
            )
        self._settings = settings

    @property
    def _is_durable_at_once(self) -> bool:
        """Whether no more than acceptance can be had, or is needed."""
        return self._settings.is_always_fsynced or not self._settings.is_append_only

    def open_many(
        self, requests: Sequence[StoreRequest], now_s: float
    ) -> list[StoreOpening | errors.ServiceError]:
        """See Store.open_many."""
        head = (self._max_entries, now_s, self._server_id)
        words = [_opening_words(request, now_s) for request in requests]
        replies = self._run_counted(redis_scripts.OPEN, head, words)
        return [self._opening(request, reply) for request, reply in zip(requests, replies, strict=True)]

    def _opening(self, request: StoreRequest, reply: list[bytes]) -> StoreOpening | errors.ServiceError:
        word = reply[0].decode()
        if word == "EXHAUSTED":
            return exhausted(self._num_entries, self._max_entries)
        found = Found[word]
        if found is Found.CREATED:
            return StoreOpening(found, 0, int(reply[2]))
        if found is Found.EXISTS:
            return exists(request.session_id, reply[1] or b"", reply[2].decode())
        if found is not Found.OPENED:
            return StoreOpening(found)
        try:
            record = _record(request.session_id, *reply[3:6])
        except errors.RecordDamaged as damaged:
            return damaged
        previous_epoch, epoch = int(reply[1]), int(reply[2])
        return StoreOpening(
            found,
            previous_epoch,
            epoch,
            record,
            is_settled=self._is_durable_at_once,
            owned_since=int(reply[6]),
        )

    def write(self, records: Sequence[SessionRecord]) -> Accepted:
        """See Store.write."""
        words = [
            (
                each.session_id,
                each.epoch,
                int(each.is_gapless),
                each.last_used_s,
                _model_word(each),
                encode(each),
            )
            for each in records
        ]
        head = (next(self._numbers), self._server_id)
        writes = [("EVAL", redis_scripts.WRITE, 0, *head, *chunk) for chunk in _chunks(words)]
        *replies, info, fsync = self._run([*writes, *redis_link.LOOK])
        self._note_settings(
            dataclasses.replace(
                self._settings,
                is_append_only=info["aof_enabled"] == 1,
                is_always_fsynced=redis_link.is_always(fsync),
            )
        )
        refusals = [_refusal(reply) for reply in itertools.chain.from_iterable(replies)]
        return Accepted(refusals, "" if self._is_durable_at_once else str(info["run_id"]))

    def settle(self) -> str:
        """See Backend.settle: a write of its own, after all that were accepted, is waited for."""
        if not self._settings.has_waitaof:
            time.sleep(_FSYNC_S)
            (info,) = self._run([("INFO", "server")])
            return str(info["run_id"])
        waits = [("WAITAOF", 1, 0, _WAIT_MS)] * _WAITS
        *replies, info = self._run([("EVAL", redis_scripts.PING, 0), *waits, ("INFO", "server")])
        (num_local, _num_replicas) = replies[-1]
        if not num_local:
            raise BackendError(
                f"what it accepted is not on its disk after {_WAITS * _WAIT_MS / 1000:g} s: "
                "see whether its disk keeps up",
                place=str(self._address),
            )
        return str(info["run_id"])

    def read(self, session_id: str) -> SessionRecord | None:
        """See Store.read."""
        (reply,) = self._run([("EVAL", redis_scripts.READ, 0, session_id)])
        if reply == 0:
            return None
        if reply == 1:
            raise expired(session_id)
        return _record(session_id, *reply)

    def delete_many(self, entries: Sequence[tuple[str, int | None]]) -> list[bool]:
        """See Store.delete_many."""
        words = [(session_id, "" if epoch is None else epoch) for session_id, epoch in entries]
        replies = self._run_counted(redis_scripts.DELETE, (), words)
        return [reply == 1 for reply in replies]

    def bury_many(self, entries: Sequence[tuple[str, int]], before_s: float, now_s: float) -> list[bool]:
        """See Store.bury_many."""
        return [reply == 1 for reply in self._run_counted(redis_scripts.BURY, (before_s, now_s), entries)]

    def list_ids(self, prefix: str, after: str, limit: int) -> list[str]:
        """See Store.list_ids. Ids are printable ASCII: all with a prefix come before the prefix and DEL."""
        lowest = f"({after}" if after >= prefix else f"[{prefix}"
        lowest = lowest if len(lowest) > 1 else "-"
        (ids,) = self._run([("EVAL", redis_scripts.LIST, 0, lowest, f"({prefix}\x7f", limit)])
        return [session_id.decode() for session_id in ids]

    def idle_since(self, before_s: float, limit: int) -> list[tuple[str, int]]:
        """See Store.idle_since."""
        (found,) = self._run([("EVAL", redis_scripts.IDLE, 0, before_s, limit)])
        return [(name.decode(), int(epoch)) for name, epoch in zip(found[::2], found[1::2], strict=True)]

    def forget_tombstones(self, before_s: float) -> int:
        """See Store.forget_tombstones."""
        num_dropped = 0
        while True:
            (reply,) = self._run([("EVAL", redis_scripts.FORGET, 0, before_s, _FORGET_LIMIT)])
            num_dropped += int(reply)
            if reply < _FORGET_LIMIT:
                return num_dropped

    def has_records_of(self, model: str, version: int) -> bool:
        """See Store.has_records_of."""
        (is_there,) = self._run([("EVAL", redis_scripts.HAS, 0, f"{version}/{model}")])
        return bool(is_there)

    def num_records(self) -> int:
        """See Store.num_records."""
        return self._num_entries

    def ping(self) -> None:
        """See Backend.ping."""
        (self._num_entries,) = self._run([("EVAL", redis_scripts.PING, 0)])

    def close(self) -> None:
        """See Backend.close."""
        self._redis.close()

    def _run_counted(
        self, script: str, head: Sequence[object], words: Sequence[Sequence[object]]
    ) -> list[Any]:
        """Run a script whose last reply is the number of entries, over the words of many sessions."""
        replies = self._run([("EVAL", script, 0, *head, *chunk) for chunk in _chunks(words)])
        for reply in replies:
            self._num_entries = reply.pop()
        return list(itertools.chain.from_iterable(replies))

    def _run(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands over one connection in one go, and return their replies. Raises BackendError."""
        if not commands:
            return []
        with redis_link.explained(self._address):
            with self._redis.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)  # type: ignore[no-untyped-call]
                replies = pipe.execute(raise_on_error=False)
            # redis-py would put the command, a record's bytes and all, into the message.
            for (word, *_), reply in zip(commands, replies, strict=True):
                if isinstance(reply, RedisError) and word != "CONFIG":  # which a user need not be allowed
                    raise redis_link.refused(word, reply)
        return replies


def _chunks(words: Sequence[Sequence[object]]) -> Iterable[list[object]]:
    """Return the words of all sessions in a row, cut after so many sessions."""
    for begin in range(0, len(words), _CHUNK):
        yield list(itertools.chain.from_iterable(words[begin : begin + _CHUNK]))


def _opening_words(request: StoreRequest, now_s: float) -> tuple[object, ...]:
    if request.birth is None:
        return (request.session_id, request.mode.name, request.client_id, "", "")
    # The script draws the epoch: it is kept beside the bytes.
    born = born_of(request.session_id, request.birth, now_s)
    return (request.session_id, request.mode.name, request.client_id, _model_word(born), encode(born))


def _model_word(record: SessionRecord) -> str:
    return f"{record.version}/{record.model}"


def _refusal(reply: int | list[bytes]) -> Refusal | None:
    if isinstance(reply, list):
        client_id, epoch, owned_since = reply
        return Refusal(
            is_gone=False, client_id=client_id.decode(), epoch=int(epoch), owned_since=int(owned_since)
        )
    return None if reply == 1 else Refusal(is_gone=True)


def _record(session_id: str, mark: bytes, data: bytes | None, born: bytes | None) -> SessionRecord:
    """Read what the scripts return of a record: its mark, its bytes, and the epoch of its birth."""
    record = read_record(session_id, data or b"", is_gapless=mark == b"1")
    return record if record.epoch else dataclasses.replace(record, epoch=int(born or 0))
