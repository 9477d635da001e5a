"""Coroutine handlers as grpc.aio has them, each call in a task of its own."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from longshort_service.transport.context import CallEnded, Context

if TYPE_CHECKING:
    from longshort_service.transport.call import Call

    Method = grpc.RpcMethodHandler[Any, Any]

logger = logging.getLogger(__name__)

# A cancelled handler that is still there after so long is left behind and told of.
CANCEL_TIMEOUT_S: Final = 5.0


class CoroutineCalls:
    """The calls that coroutine handlers have in hand.

    Unary handlers are `async def (request, context)`. Streaming ones read and write their context, or take the
    requests as an async iterator and are async generators of responses.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, call: Call, method: Method) -> None:
        """Have a handler answer a call. It is cancelled where the call is."""
        context = Context(call, method)
        task = asyncio.get_running_loop().create_task(_handle(call, method, context))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        def on_closed(is_cancelled: bool) -> None:  # noqa: FBT001  callbacks are told by position
            if is_cancelled:
                task.cancel()
            context.tell_done()

        call.on_closed = on_closed

    async def until_done(self) -> None:
        """Wait until the handlers of cancelled calls have returned."""
        if self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=CANCEL_TIMEOUT_S)
            for task in left:
                logger.error("a handler does not end although it was cancelled: %r", task)


async def _handle(call: Call, method: Method, context: Context) -> None:
    try:
        await _respond(method, context)
        context.finish()
    except (grpc.aio.AbortError, CallEnded):
        pass  # the call has its end
    except asyncio.CancelledError:
        call.finish(grpc.StatusCode.CANCELLED)
        raise
    except Exception as error:
        logger.exception("the handler of %s has failed", call.path)
        call.finish(grpc.StatusCode.UNKNOWN, f"Unexpected {type(error)}: {error}")


async def _respond(method: Method, context: Context) -> None:
    """Run the handler and write its responses."""
    if method.request_streaming:
        request: Any = context.requests()
    elif (request := await context.read()) is grpc.aio.EOF:  # type: ignore[attr-defined]
        await context.abort(grpc.StatusCode.INTERNAL, "the call ended before its request")
    name = f"{'stream' if method.request_streaming else 'unary'}_{'stream' if method.response_streaming else 'unary'}"
    handler = getattr(method, name)
    if inspect.isasyncgenfunction(handler):
        async for response in handler(request, context):
            await context.write(response)
    elif method.response_streaming:
        await handler(request, context)
    else:
        response = await handler(request, context)
        if context.is_successful():
            await context.write(response)
