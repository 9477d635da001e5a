"""Where servers are, as a caller says it: one address, several, or a DNS name that stands for all of them.

It owns the reading of what a caller says, and of what a name server answers; the asking is the shell's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from longshort import errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NAME_SCHEME: Final = "dns:///"

_HOST_PORT: Final = re.compile(r"(\[[^\s\[\]]+\]|[^\s:/\[\]]+):([0-9]{1,5})")
_SCHEMES: Final = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "vsock:", "xds:")  # gRPC's own names


@dataclass(frozen=True, slots=True)
class Target:
    """The servers of one client or gateway.

    `addresses` are gRPC's, at least one. Where they are behind a name, `host` and `port` are what has to be resolved;
    until that is done the name stands in for its addresses, and gRPC resolves it.
    """

    text: str  # as the caller said it
    addresses: tuple[str, ...]
    host: str = ""
    port: int = 0

    @property
    def has_name(self) -> bool:
        """Whether the addresses are those of a DNS name, and may change."""
        return bool(self.host)

    @property
    def channel_options(self) -> tuple[tuple[str, Any], ...]:
        """What its channels need: behind a name, a certificate and a proxy know the name, not the address."""
        return (("grpc.default_authority", f"{self.host}:{self.port}"),) if self.has_name else ()


def parsed(address: str | Sequence[str]) -> Target:
    """Return where the servers are, or raise InvalidRequest.

    `address` is HOST:PORT, or several with commas or as a sequence, or dns:///NAME:PORT, whose addresses are all
    replicas; other names with one of gRPC's schemes go to gRPC as they are.
    """
    parts = address.split(",") if isinstance(address, str) else address
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise _wrong(address)
    addresses = tuple(dict.fromkeys(part.strip() for part in parts))
    if not addresses:
        raise _wrong(address)
    for part in addresses:
        _check(part, address)
    text = ",".join(addresses)
    match = _HOST_PORT.fullmatch(addresses[0].removeprefix(NAME_SCHEME))
    if len(addresses) == 1 and text.startswith(NAME_SCHEME) and match:
        return Target(text, addresses, match[1].strip("[]"), int(match[2]))
    return Target(text, addresses)


def resolved(infos: Iterable[tuple[Any, ...]]) -> list[str]:
    """Return the answer of getaddrinfo as gRPC's addresses, in one order whatever the name server's was."""
    hosts = {(info[4][0], info[4][1]) for info in infos}
    return sorted(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in hosts)


def _check(part: str, address: object) -> None:
    match = _HOST_PORT.fullmatch(part)
    if not part.startswith(_SCHEMES) and not (match and 0 < int(match[2]) < 2**16):
        raise _wrong(address)


def _wrong(address: object) -> errors.InvalidRequest:
    return errors.InvalidRequest(
        f"address is HOST:PORT, as in 127.0.0.1:50051, or several, not {address!r}", reason="INVALID_OPTION"
    )
