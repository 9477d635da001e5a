"""The async client: `longshort.Client` and `longshort.Gateway` with `async with` and `await`."""

from longshort.aio.client import Client
from longshort.aio.gateway import Gateway
from longshort.aio.session import Session

__all__ = ["Client", "Gateway", "Session"]
