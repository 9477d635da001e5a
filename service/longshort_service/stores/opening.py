"""From the URL of a setting to the store that it names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from longshort_service.stores.backend import StoreConfigError
from longshort_service.stores.memory import MemoryStore
from longshort_service.stores.redis_address import parse_address
from longshort_service.stores.sqlite import SqliteBackend
from longshort_service.stores.sqlite_file import default_path
from longshort_service.stores.threaded import ThreadedStore

if TYPE_CHECKING:
    from collections.abc import Mapping

    from longshort_service.stores.backend import Backend
    from longshort_service.stores.base import Store


def make_store(url: str, *, max_entries: int, environ: Mapping[str, str]) -> Store:
    """Return the store at `url`, opened and looked at. Raises StoreConfigError where it cannot be used.

    Blocks until it has answered: for some seconds where it is away.
    """
    scheme, _, place = url.partition("://")
    if scheme == "memory":
        return MemoryStore(max_entries)
    if scheme == "sqlite":
        # sqlite:///relative and sqlite:////absolute: the first slash ends a host that is not there.
        path = _home_expanded(place.removeprefix("/")) if place else default_path(environ)
        return ThreadedStore(SqliteBackend(path, max_entries))
    return ThreadedStore(_redis_backend(url, max_entries))


def _home_expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise StoreConfigError(f"store: {path}: there is no such home folder") from error


def _redis_backend(url: str, max_entries: int) -> Backend:
    address = parse_address(url)
    try:
        # Who keeps sessions elsewhere does without redis-py.
        from longshort_service.stores.redis import RedisBackend  # noqa: PLC0415
    except ImportError as error:
        raise StoreConfigError(
            f"store: {error.name} is missing: pip install 'longshort-server[redis]'"
        ) from error
    return RedisBackend(address, max_entries)
