"""Calling StreamFrames as any gRPC client does, with protobuf's own classes."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import grpc
from longshort.v1 import sequence_pb2
from wire import Refusal, Stream, in_band, key, refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wire import Caller

OPEN_PART = sequence_pb2.FRAME_PART_OPEN
VALUES_PART = sequence_pb2.FRAME_PART_VALUES
FORECAST_PART = sequence_pb2.FRAME_PART_FORECAST


def opening(handle: int, session_id: str, model: str = "adder", **fields: Any) -> sequence_pb2.FrameOpen:
    """Return the opening of one session."""
    return sequence_pb2.FrameOpen(
        handle=handle, open=sequence_pb2.Open(session=key(session_id), model=model, **fields)
    )


class Frames:
    """One StreamFrames call."""

    def __init__(self, caller: Caller) -> None:
        self.call = caller.sequence.StreamFrames()
        self._sender = Stream(self.call)

    async def send(self, raw: bytes | None = None, **fields: Any) -> None:
        """Write one frame, or bytes, without waiting for the answer."""
        message = sequence_pb2.StreamFramesRequest(**fields).SerializeToString() if raw is None else raw
        await self._sender.send_bytes(message)

    async def receive(self) -> sequence_pb2.StreamFramesResponse:
        """Read one frame; raises EOFError where the stream has ended well, AioRpcError otherwise."""
        response = await self.call.read()
        if response is grpc.aio.EOF:
            raise EOFError
        assert isinstance(response, sequence_pb2.StreamFramesResponse)
        return response

    async def ask(self, **fields: Any) -> sequence_pb2.StreamFramesResponse:
        """Write one frame and read one."""
        await self.send(**fields)
        return await self.receive()

    async def open(self, *session_ids: str, first: int = 0, **fields: Any) -> list[sequence_pb2.Opened]:
        """Open sessions, all of which must succeed, with handles from `first` on."""
        opens = [opening(handle, name, **fields) for handle, name in enumerate(session_ids, first)]
        response = await self.ask(opens=opens)
        assert list(response.errors) == []
        assert [each.handle for each in response.opened] == [each.handle for each in opens]
        return [each.opened for each in response.opened]

    async def step(
        self, handles: Sequence[int], values: Sequence[float], steps: Sequence[int] = (), **fields: Any
    ) -> dict[int, tuple[int, list[float]] | Refusal]:
        """Send values; return what became of each row, by handle."""
        return rows_of(await self.ask(handles=handles, values=values, steps=steps, **fields))

    async def end(self, raw: bytes | None = None, **fields: Any) -> Refusal:
        """Return how the stream ends, after one more frame where one is given."""
        if fields or raw is not None:
            await self.send(raw, **fields)
        return await refused(self.receive())

    async def half_close(self) -> None:
        """End the stream well; nothing more may come."""
        await self._sender.half_close()


def rows_of(
    response: sequence_pb2.StreamFramesResponse, num_outputs: int = 1
) -> dict[int, tuple[int, list[float]] | Refusal]:
    """Return what became of each row, by handle: step and values, or how it was refused."""
    came: dict[int, tuple[int, list[float]] | Refusal] = {}
    counts = list(response.counts) or [1] * len(response.handles)
    ends = itertools.accumulate(num_outputs * count for count in counts)
    for handle, count, step, end in zip(response.handles, counts, response.steps, ends, strict=True):
        came[handle] = (step, list(response.values[end - num_outputs * count : end]))
    assert sum(counts) * num_outputs == len(response.values)
    return came | refusals_of(response, VALUES_PART)


def refusals_of(
    response: sequence_pb2.StreamFramesResponse, part: sequence_pb2.FramePart
) -> dict[int, Refusal]:
    """Return how a part of a frame was refused, by handle."""
    return {each.handle: in_band(each.error) for each in response.errors if each.part == part}
