"""A process that opens many streams at once and keeps all of them busy; prints when each had its first answer.

Usage: many_streams.py ADDRESS MODEL NUM_STREAMS NUM_CHANNELS. Ends by itself, at the latest after 30 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
import uuid
from typing import TYPE_CHECKING

import grpc
from longshort.v1 import sequence_pb2, types_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE_S = 30.0


async def follow(
    channel: grpc.aio.Channel, model: str, first_answered: Callable[[], None], done: asyncio.Event
):
    """Open one session and step it one value at a time until every stream has had its first answer."""
    call = channel.stream_stream("/longshort.v1.SequenceService/Stream")()
    opening = sequence_pb2.Open(session=types_pb2.SessionKey(id=str(uuid.uuid4())), model=model)
    await call.write(sequence_pb2.StreamRequest(open=opening).SerializeToString())
    await call.read()
    value = sequence_pb2.StreamRequest(values=sequence_pb2.Values(values=[1.0])).SerializeToString()
    num_answers = 0
    while not done.is_set():
        await call.write(value)
        response = sequence_pb2.StreamResponse.FromString(await call.read())
        assert response.WhichOneof("kind") == "answer", response
        num_answers += 1
        if num_answers == 1:
            first_answered()
    call.cancel()
    return num_answers


async def main(address: str, model: str, num_streams: int, num_channels: int) -> None:
    channels = [
        grpc.aio.insecure_channel(address, options=[("grpc.channel", k)]) for k in range(num_channels)
    ]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    firsts: list[float] = []
    done, everyone = asyncio.Event(), asyncio.Event()
    begin_s = time.perf_counter()

    def first_answered() -> None:
        firsts.append(time.perf_counter() - begin_s)
        if len(firsts) == num_streams:
            everyone.set()

    tasks = [
        asyncio.create_task(follow(channels[k % num_channels], model, first_answered, done))
        for k in range(num_streams)
    ]
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(everyone.wait(), DEADLINE_S)
    elapsed_s = time.perf_counter() - begin_s
    done.set()
    finished, _ = await asyncio.wait(tasks, timeout=10)
    num_answers = sum(task.result() for task in finished)
    sys.stdout.write(
        json.dumps(
            {
                "served": len(firsts),
                "median_s": sorted(firsts)[len(firsts) // 2],
                "slowest_s": max(firsts),
                "answers": num_answers,
                "answers_per_second": num_answers / elapsed_s,
            }
        )
    )


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
