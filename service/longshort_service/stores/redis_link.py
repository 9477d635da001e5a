"""Connections to Redis or Valkey: making them, judging the server at each, and what errors mean.

Owns what a server must be like to keep sessions. Knows no keys and no sessions.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import redis
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from longshort_service.stores.backend import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis.connection import ConnectionInterface

    from longshort_service.stores.redis_address import RedisAddress

# A server that is silent for so long is away. Its scripts take milliseconds.
TIMEOUT_S: Final = 2.0
_OLDEST_VERSION: Final = (7, 2)  # WAITAOF; Valkey calls itself 7.2.4 to who asks for Redis

# What a server says of itself beside each write: its settings may be changed while it runs.
LOOK: Final = (("INFO", "server", "persistence"), ("CONFIG", "GET", "appendfsync"))

_NO_RIGHTS: Final = "its user may not do what is needed: docs/stores.md lists the commands"
# What goes wrong outside this program, as redis-py's types say it, the narrower ones first.
_CAUSES: Final[dict[type[exceptions.RedisError], str]] = {
    exceptions.AuthenticationError: "it wants another user or password, as in redis://user:password@host",
    exceptions.BusyLoadingError: "it is reading its file and will be back",
    exceptions.TimeoutError: f"it did not answer within {TIMEOUT_S:g} s: see whether it is overloaded or frozen",
    exceptions.ConnectionError: "it cannot be reached: see whether it runs",
    exceptions.OutOfMemoryError: "it is out of memory: raise its maxmemory, or delete sessions",
    exceptions.ReadOnlyError: "it is a replica, which takes no writes: give the address of its primary, or sentinels",
    exceptions.NoPermissionError: _NO_RIGHTS,
    exceptions.MasterDownError: "it is a replica without its primary: see its log",
}
# The same as the server's own word for it, where redis-py has no type.
_WORDS: Final = {
    "ACL failure": _NO_RIGHTS,
    "MISCONF": "it cannot write to its disk and takes nothing more: see its log",
    "NOREPLICAS": "it has fewer replicas than its min-replicas-to-write: start them",
    "BUSY": "a script holds it: see its log",
    "DB index is out of range": "it has no database of this number: give a smaller one, or raise its databases",
    "WAITAOF cannot be used": "its appendonly was set to no while it ran: set it to yes again",
    "WRONGTYPE": "keys that begin with longshort: are not longshort's: give it a database of its own",
}


class UnfitServerError(exceptions.RedisError):
    """A server that would not keep what it is given; the message says which setting must change."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a server makes of a write."""

    is_append_only: bool  # whether it is kept in a file at all
    is_always_fsynced: bool  # whether it is on the disk before it is answered
    has_waitaof: bool  # whether the server tells when it is on the disk


def connect(address: RedisAddress, on_settings: Callable[[ServerSettings], None]) -> redis.Redis:
    """Return a client that judges each server it connects to, and tells its settings. Connects when it is used."""

    def on_connect(connection: ConnectionInterface) -> None:
        connection.on_connect()  # type: ignore[no-untyped-call]
        on_settings(inspect(connection))

    timeouts: dict[str, Any] = {
        "socket_timeout": TIMEOUT_S,
        "socket_connect_timeout": TIMEOUT_S,
        "socket_keepalive": True,
        # An opening that is sent twice raises the epoch twice: whoever asked decides what to do.
        "retry": Retry(NoBackoff(), 0),
        # The replies are read as this version has them.
        "protocol": 2,
    }
    tls: dict[str, Any] = {"ssl": True, **address.options} if address.is_tls else {}
    options: dict[str, Any] = {
        "db": address.database,
        "username": address.username,
        "password": address.password,
        "redis_connect_func": on_connect,
    }
    if not address.service:
        ((host, port),) = address.hosts
        return redis.Redis(host=host, port=port, **timeouts, **tls, **options)
    sentinel_options = {**timeouts, **tls, **address.sentinel_options}
    sentinels = Sentinel(address.hosts, sentinel_kwargs=sentinel_options, **timeouts, **tls)  # type: ignore[no-untyped-call]
    primary: redis.Redis = sentinels.master_for(address.service, **options)  # type: ignore[no-untyped-call]
    return primary


def inspect(connection: ConnectionInterface) -> ServerSettings:
    """Ask a server how it keeps what it is given. Raises UnfitServerError where it may lose it."""
    info = _fields(_ask(connection, "INFO"))
    if info.get("loading") == "1":  # meanwhile it says that it has no append-only file
        raise exceptions.BusyLoadingError("loading")
    problem = find_problem(info)
    if problem:
        raise UnfitServerError(problem)
    try:
        fsync = _ask(connection, "CONFIG", "GET", "appendfsync")
    except exceptions.ResponseError as error:
        fsync = error
    try:
        _ask(connection, "WAITAOF", "0", "0", "0")
        has_waitaof = True
    except exceptions.ResponseError:
        has_waitaof = False
    return ServerSettings(
        is_append_only=info.get("aof_enabled") == "1",
        is_always_fsynced=is_always(fsync),
        has_waitaof=has_waitaof,
    )


def is_always(fsync: object) -> bool:
    """Whether the reply to CONFIG GET appendfsync says `always`; a user that may not read it gets the weaker words."""
    return fsync == [b"appendfsync", b"always"]


def find_problem(info: dict[str, str]) -> str:
    """Return why a server with this INFO will not do, "" where it will."""
    version = info.get("redis_version", "0")
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < _OLDEST_VERSION:
        return f"it is Redis {version}: give Redis 7.2 or newer, or Valkey"
    if info.get("cluster_enabled") == "1":
        return (
            "it is a cluster, which cannot run scripts over all sessions: give a single server, or sentinels"
        )
    policy = info.get("maxmemory_policy", "noeviction")
    if info.get("maxmemory", "0") != "0" and policy != "noeviction":
        return f"its maxmemory-policy is {policy}, which drops sessions: set it to noeviction"
    return ""


def _ask(connection: ConnectionInterface, *words: str) -> Any:
    connection.send_command(*words)  # type: ignore[no-untyped-call]
    return connection.read_response()


def _fields(info: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in info.decode("utf-8", "replace").splitlines())
    return {name: value for name, _, value in lines}


def refused(command: str, error: exceptions.RedisError) -> exceptions.RedisError:
    """Return the error of a command to raise: what a script of ours says unheard of is a bug, all else the server's."""
    if command == "EVAL" or _cause(error) is not None:
        return error
    return UnfitServerError(f"it refuses {command} ({error}): see its settings and its log")


@contextmanager
def explained(address: RedisAddress) -> Iterator[None]:
    """Raise what goes wrong with the server, and is no bug, as BackendError."""
    try:
        yield
    except UnfitServerError as error:
        raise BackendError(str(error), place=str(address)) from error
    except MasterNotFoundError as error:
        raise BackendError(_sentinel_cause(error), place=str(address)) from error
    except exceptions.RedisError as error:
        cause = _cause(error)
        if cause is None:
            raise
        is_full = isinstance(error, exceptions.OutOfMemoryError)
        if address.is_tls and type(error) in {exceptions.ConnectionError, exceptions.TimeoutError}:
            cause = f"{cause}, and whether it speaks TLS there: rediss:// asks for it"
        raise BackendError(cause, place=str(address), detail=str(error), is_full=is_full) from error


def _sentinel_cause(error: MasterNotFoundError) -> str:
    """Say why no sentinel named a primary. The message holds what each said, as redis-py shows its objects."""
    if exceptions.AuthenticationError.__name__ in str(error):
        return (
            "its sentinels want another user or password: give ?sentinel_password=... (and sentinel_username)"
        )
    if exceptions.ConnectionError.__name__ in str(error) or exceptions.TimeoutError.__name__ in str(error):
        return "its sentinels cannot be reached: see whether they run"
    return "its sentinels know no primary of this name that is up: check the name, and see their logs"


def _cause(error: exceptions.RedisError) -> str | None:
    by_type = (cause for kind, cause in _CAUSES.items() if isinstance(error, kind))
    by_word = (cause for word, cause in _WORDS.items() if str(error).startswith(word))
    return next(by_type, None) or next(by_word, None)
