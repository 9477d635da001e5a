"""The client of longshort: recurrent models that remember, over gRPC.

`Client` is the sync client, `longshort.aio.Client` the async one; `Gateway` and `longshort.aio.Gateway` follow
thousands of sessions over one stream. Errors are in `longshort.errors`.
"""

from longshort import aio, errors
from longshort.client import Client
from longshort.errors import LongshortError
from longshort.gateway.blocking import Gateway
from longshort.results import Channel, Memory, ModelInfo, SessionInfo
from longshort.session import Session

__all__ = [
    "Channel",
    "Client",
    "Gateway",
    "LongshortError",
    "Memory",
    "ModelInfo",
    "Session",
    "SessionInfo",
    "aio",
    "errors",
]
