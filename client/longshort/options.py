"""How the client's channels are set, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

ChannelOptions = tuple[tuple[str, Any], ...]

DEFAULT_TIMEOUT_S: Final = 60.0  # outlasts the restart of a server with its models
DEFAULT_GIVE_UP_S: Final = (
    60.0  # a caller who waits longer still is told after this time that no server is there
)
CLOSE_TIMEOUT_S: Final = (
    2.0  # for the end of a half-closed stream; the server needs it to store the last step
)

_DEFAULTS: Final[ChannelOptions] = (
    # A peer that is frozen or behind a cut cable says nothing: ask it, while there are calls. The server must
    # allow this rate (grpc.http2.min_ping_interval_without_data_ms), or it hangs up for "too many pings".
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # An explanation of 4,096 steps of a network of some size; gRPC's 4 MiB would not hold it.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    # gRPC waits up to 2 minutes between its own connection attempts, during which every call fails at once.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # what a connection attempt gets, not a pause
    ("grpc.max_reconnect_backoff_ms", 500),
)


def channel_options(extra: Sequence[tuple[str, Any]]) -> ChannelOptions:
    """Return the defaults with the caller's options in place of those of the same name, or beside them."""
    return tuple({**dict(_DEFAULTS), **dict(extra)}.items())
