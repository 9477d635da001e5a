"""Plays over services that end under them: a client by hand on each of the three ways, first message to last."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any, Final

import grpc
from fault_seams import Phase
from frame_follower import FrameFollower
from histories import Follower, StoreCaller, reason_of
from wire import OPEN, OPEN_OR_CREATE, refusal_of

if TYPE_CHECKING:
    import numpy as np
    from fault_seams import FaultPoint
    from faulty_server import FaultyServer, FaultyServers
    from numpy.typing import NDArray

MODEL: Final = "lstm"
NUM_STEPS: Final = 19
# How the values of each session are cut into messages. The first is that of plays of one session.
SIZES: Final = (
    (1, 2, 1, 3, 1, 1, 2, 3, 1, 2, 1, 1),
    (1, 1, 2, 3, 1, 3, 3, 2, 1, 1, 1),
    (1, 1, 1, 1, 3, 1, 1, 1, 1, 1, 1, 1, 2, 2, 1),
)
FLUSH_AT, LEAVE_AT, DRAIN_AT = 7, 11, 14  # steps, each the end of a message of every session
# What happens beside the messages: the last of them may be answered before.
BESIDE: Final = {Phase.WRITE, Phase.HALF_CLOSE, Phase.DRAIN}
PATIENCE_S: Final = 20.0
# Soon, so that checkpoints fall among so few messages.
SETTINGS: Final = {
    "checkpoint_interval_s": 0.005,
    "checkpoint_steps": 3,
    "max_sessions": 64,
    "max_batch_rows": 16,
}


class Play:
    """Followers from their first message to their last. A kind of play says what they do at one service."""

    num_sessions: int

    def __init__(
        self,
        servers: FaultyServers,
        settings: dict[str, Any],
        name: str,
        values: NDArray[np.float32],  # [sessions, steps], of as many sessions or more
        durability: Any,
    ) -> None:
        self._servers = servers
        self._settings = SETTINGS | settings
        self.followers = [
            Follower(f"{name}-{place}", MODEL, values[place], SIZES[place], durability)
            for place in range(self.num_sessions)
        ]

    async def until_killed(self, point: FaultPoint, arrival: int) -> None:
        """Go on until the service has killed itself at a point; all may have been answered before."""
        server = self._servers.start(point=point.name, arrival=arrival, **self._settings)
        end = "answered"
        try:
            await self._play(server, drains=point.phase is Phase.DRAIN)
        except grpc.aio.AioRpcError as error:
            end = reason_of(error)
        may_end_so = {"": True, "DRAINING": point.phase is Phase.DRAIN, "answered": point.phase in BESIDE}
        assert may_end_so.get(end), end
        assert self._servers.wait(server) == -signal.SIGKILL

    async def to_the_end(self) -> None:
        """Go on, on another service, until all is answered."""
        server = self._servers.start(**self._settings)
        await self._play(server, drains=False)
        self._servers.kill(server)

    async def _play(self, server: FaultyServer, *, drains: bool) -> None:
        async with asyncio.timeout(PATIENCE_S), StoreCaller(server.address) as caller:
            await self._through(caller, server if drains else None)

    async def _through(self, caller: StoreCaller, drained: FaultyServer | None) -> None:
        """Go on to the end of the values; `drained` is sent SIGTERM on the way."""
        raise NotImplementedError


class StreamPlay(Play):
    """One session on a stream of its own."""

    num_sessions = 1

    async def _through(self, caller: StoreCaller, drained: FaultyServer | None) -> None:
        (follower,) = self.followers
        stream, step = await follower.open(caller)
        step = await follower.go_on(stream, step, FLUSH_AT)
        if step == FLUSH_AT:
            await follower.flush(stream)
        step = await follower.go_on(stream, step, LEAVE_AT)
        if step == LEAVE_AT:
            await stream.leave()
            stream, step = await follower.open(caller)
        if drained is not None:
            step = await follower.go_on(stream, step, DRAIN_AT)
            drained.send(signal.SIGTERM)
        await follower.go_on(stream, step)


class FramePlay(Play):
    """Several sessions on one stream of frames."""

    num_sessions = len(SIZES)

    async def _through(self, caller: StoreCaller, drained: FaultyServer | None) -> None:
        follower = FrameFollower(self.followers)
        frames, _ = await follower.open(caller)
        if await follower.go_on(frames, FLUSH_AT) == FLUSH_AT:
            await follower.flush(frames)
        if await follower.go_on(frames, LEAVE_AT) == LEAVE_AT:
            await follower.leave(frames)
            frames, _ = await follower.open(caller)
        if drained is not None:
            await follower.go_on(frames, DRAIN_AT)
            drained.send(signal.SIGTERM)
        await follower.go_on(frames, NUM_STEPS)


class StepPlay(Play):
    """One session by unary calls: no opening says where it stands, so what was not answered is sent again."""

    num_sessions = 1

    async def _through(self, caller: StoreCaller, drained: FaultyServer | None) -> None:
        (follower,) = self.followers
        step = len(follower.answers)
        while step < NUM_STEPS:
            if drained is not None and step >= DRAIN_AT:
                drained.send(signal.SIGTERM)
            step = await self._call(caller, follower, step)

    @staticmethod
    async def _call(caller: StoreCaller, follower: Follower, step: int) -> int:
        """Send the message that begins at a step; return where to go on, which is below it after a loss."""
        end = follower.end_of(step)
        mode = OPEN_OR_CREATE if follower.incarnation is None else OPEN
        try:
            response = await caller.step(
                follower.session_id, follower.take(step, end), step, follower.model, mode=mode
            )
        except grpc.aio.AioRpcError as error:
            if reason_of(error) != "STEP_GAP":
                raise
            return follower.go_on_from(int(refusal_of(error).metadata["expected_step"]), 0)
        follower.note_incarnation(response.incarnation)
        follower.answered(response.answer.values, response.answer.step, response.answer.durable_step)
        return end


PLAYS: Final[dict[str, type[Play]]] = {"stream": StreamPlay, "frames": FramePlay, "step": StepPlay}
