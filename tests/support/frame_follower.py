"""A client by hand of several sessions on one stream of frames: each is followed by its own rules."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from frame_wire import Frames, rows_of
from longshort.v1 import sequence_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from histories import Follower
    from wire import Caller


@dataclass
class FrameFollower:
    """Sessions whose handles are their places. A frame has one message of each that is not as far as is wanted."""

    followers: Sequence[Follower]
    _steps: list[int] = field(init=False)  # where each goes on
    _num_outputs: int = field(init=False)

    async def open(self, caller: Caller) -> tuple[Frames, int]:
        """Open all; return their stream, and where the one that is least far goes on."""
        frames = Frames(caller)
        opens = [
            sequence_pb2.FrameOpen(handle=handle, open=each.opening())
            for handle, each in enumerate(self.followers)
        ]
        response = await frames.ask(opens=opens)
        assert not response.errors, response
        assert [each.handle for each in response.opened] == list(range(len(self.followers)))
        self._steps = [
            follower.opened(each.opened)
            for follower, each in zip(self.followers, response.opened, strict=True)
        ]
        self._num_outputs = response.opened[0].opened.num_outputs
        return frames, min(self._steps)

    async def go_on(self, frames: Frames, until_step: int) -> int:
        """Send frames until no session is below a step; return where the one that is least far goes on."""
        while behind := [handle for handle, step in enumerate(self._steps) if step < until_step]:
            await self._send(frames, behind)
        return min(self._steps)

    async def flush(self, frames: Frames) -> None:
        """Wait until all is stored."""
        handles = list(range(len(self.followers)))
        response = await frames.ask(flushes=handles)
        assert sorted(response.flushed) == handles, response
        for handle, step in zip(response.flushed, response.flushed_steps, strict=True):
            self.followers[handle].note_durable(step)

    @staticmethod
    async def leave(frames: Frames) -> None:
        """Half-close."""
        await frames.call.done_writing()
        with contextlib.suppress(EOFError):
            await frames.receive()

    async def _send(self, frames: Frames, handles: list[int]) -> None:
        """Send the next message of each of some sessions in one frame, and take its answer."""
        steps = [self._steps[handle] for handle in handles]
        ends = [self.followers[handle].end_of(step) for handle, step in zip(handles, steps, strict=True)]
        values: list[float] = []
        for handle, step, end in zip(handles, steps, ends, strict=True):
            values += self.followers[handle].take(step, end)
        counts = [end - step for step, end in zip(steps, ends, strict=True)]
        columns = (
            {"counts": counts} if max(counts) > 1 else {}
        )  # as gateways do: such a frame goes another way
        response = await frames.ask(handles=handles, steps=steps, values=values, **columns)
        assert not response.errors, response
        assert list(response.handles) == handles
        durable_steps = list(response.durable_steps) or [0] * len(handles)
        rows = rows_of(response, self._num_outputs)
        for handle, durable_step in zip(handles, durable_steps, strict=True):
            row = rows[handle]
            assert isinstance(row, tuple), row
            step, outputs = row
            self.followers[handle].answered(outputs, step, durable_step)
            self._steps[handle] = step
