"""Writing on a grpc.aio stream, and telling one's own cancellation from gRPC's."""

from __future__ import annotations

import asyncio
from typing import Any


def is_cancelled() -> bool:
    """Return whether CancelledError means this task: gRPC also raises it for a call that was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def write(call: Any, request: Any, serialized: bytes) -> None:
    """Write without gRPC's own `write`, which may make up the status of the stream.

    Where the server has just ended the stream, `write` puts INTERNAL in the place of the status that is under
    way (grpcio 1.85, `set_internal_error`; one takeover in six here). SESSION_MOVED would pass for a cut, and
    the client would take the session back from its new owner. A grpcio without this private part gets `write`.
    """
    await call.wait_for_connection()
    if call.done():
        return
    send = getattr(getattr(call, "_cython_call", None), "send_serialized_message", None)
    if send is None:
        await call.write(request)
    else:
        await send(serialized)
