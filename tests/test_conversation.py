"""What both kinds of stream share, without a wire: a call that ends while its message is in hand."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

from longshort_service.handlers.conversation import Conversation

if TYPE_CHECKING:
    from collections.abc import Callable


class OneCall:
    """A call whose client does what the test says; and the edge, which counts it."""

    is_active = True
    max_stream_age_s = 0.0
    on_closed: Callable[[bool], None]

    def __init__(self) -> None:
        self.num_open = 0

    def read(self, received: Callable[[bytes | None], None]) -> None:
        self.receive = received

    def call_began(self) -> None:
        self.num_open += 1

    def call_ended(self) -> None:
        self.num_open -= 1


class Slow(Conversation):
    """Answers each message with a coroutine that it keeps."""

    def _take(self, raw: bytes) -> None:
        self.work = self._echo(raw)
        self._slowly(self.work)

    async def _echo(self, raw: bytes) -> bytes:
        await asyncio.sleep(60)
        return raw

    def _leave(self) -> None:
        pass


def test_message_that_comes_with_the_end_of_its_call_leaves_no_work_that_nobody_awaits(
    run: Callable[..., Any],
):
    async def scenario() -> None:
        for num_turns in range(3):
            call = OneCall()
            stream = Slow(call, call, lambda _: None)
            call.receive(b"x")
            for _ in range(num_turns):
                await asyncio.sleep(0)
            call.on_closed(True)  # noqa: FBT003  as the transport calls it
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert inspect.getcoroutinestate(stream.work) == inspect.CORO_CLOSED
            assert call.num_open == 0

    run(scenario())
