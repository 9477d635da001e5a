"""The async client: `longshort.Client` with `async with` and `await`."""

from longshort.aio.client import Client
from longshort.aio.session import Session

__all__ = ["Client", "Session"]
