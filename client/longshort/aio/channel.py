"""Opening a channel of grpc.aio: what the client and the gateway do alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from longshort.options import channel_options

if TYPE_CHECKING:
    from collections.abc import Sequence


def new_channel(
    address: str, credentials: grpc.ChannelCredentials | None, options: Sequence[tuple[str, Any]]
) -> grpc.aio.Channel:
    """Return a channel to HOST:PORT, in plain text without credentials; `options` stand above our own."""
    settings = channel_options(options)
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=settings)
    return grpc.aio.secure_channel(address, credentials, options=settings)
