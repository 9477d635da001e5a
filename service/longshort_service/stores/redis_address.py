"""The address of a Redis store: one server, or the sentinels that know which server is the primary.

Owns the form of its URL. Opens nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from longshort_service.stores.backend import StoreConfigError

_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_TLS_OPTIONS: Final = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
_SENTINEL_OPTIONS: Final = frozenset({"sentinel_username", "sentinel_password"})
FORM: Final = "redis://[user:password@]host[:port][/db] or redis+sentinel://host:port,host:port/service[/db]"


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where the store is. `hosts` are sentinels where there is a `service`, otherwise one server."""

    hosts: tuple[tuple[str, int], ...]
    service: str  # the primary's name at the sentinels; "" without them
    database: int
    username: str | None
    password: str | None
    is_tls: bool
    options: dict[str, str]  # of TLS, by redis-py's names
    sentinel_options: dict[str, str]  # username and password

    def __str__(self) -> str:
        """Return what a log may hold: no password."""
        places = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{places} ({self.service})" if self.service else places


def parse_address(url: str) -> RedisAddress:
    """Read `redis://`, `rediss://` (TLS) and both with `+sentinel`. Raises StoreConfigError."""
    parts = urlsplit(url)
    has_sentinels = parts.scheme.endswith("+sentinel")
    credentials, _, places = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    service, database = _split_path(parts, has_sentinels=has_sentinels)
    is_tls = parts.scheme.startswith("rediss")
    known = (_TLS_OPTIONS if is_tls else frozenset()) | (_SENTINEL_OPTIONS if has_sentinels else frozenset())
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in options.keys() - known:
        raise StoreConfigError(
            f"store: {parts.scheme}:// has no option {name}; it has {', '.join(sorted(known)) or 'none at all'}"
        )
    hosts = tuple(_host(place, _SENTINEL_PORT if has_sentinels else _PORT) for place in places.split(","))
    if parts.fragment or (len(hosts) > 1 and not has_sentinels):
        raise StoreConfigError(f"store: give {FORM}")
    return RedisAddress(
        hosts=hosts,
        service=service,
        database=database,
        username=unquote(username) or None,
        password=unquote(password) or None,
        is_tls=is_tls,
        options={name: value for name, value in options.items() if name in _TLS_OPTIONS},
        sentinel_options={
            name.removeprefix("sentinel_"): value
            for name, value in options.items()
            if name in _SENTINEL_OPTIONS
        },
    )


def _split_path(parts: SplitResult, *, has_sentinels: bool) -> tuple[str, int]:
    """Return the service, "" without sentinels, and the number of the database."""
    words = [unquote(word) for word in parts.path.strip("/").split("/") if word]
    service = words.pop(0) if has_sentinels and words else ""
    database = words.pop(0) if words else "0"
    if not (database.isascii() and database.isdigit()):
        raise StoreConfigError(f"store: {database} is no number of a database: give {FORM}")
    if words or (has_sentinels and not service):
        raise StoreConfigError(f"store: give {FORM}")
    return service, int(database)


def _host(place: str, default_port: int) -> tuple[str, int]:
    """Read `host`, `host:port` or `[IPv6]:port`."""
    try:
        parts = urlsplit(f"//{place}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise StoreConfigError(f"store: {place}: {error}") from error
    if not host:
        raise StoreConfigError(f"store: give {FORM}")
    return host, port or default_port
