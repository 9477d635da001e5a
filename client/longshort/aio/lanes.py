"""The lanes of one gateway: who has which session, and calls that several of them share.

A session never changes its lane, so that its values and doubts are in one core; what moves is a lane, from a server
that fails to the next one.
"""

from __future__ import annotations

import asyncio
import math
import random
from typing import TYPE_CHECKING, Final

from longshort.aio.calls import outcomes_of
from longshort.aio.deadlines import Deadlines
from longshort.aio.frame_pump import FramePump
from longshort.aio.lane import Lane
from longshort.aio.names import Lookups
from longshort.aio.room import Room
from longshort.backoff import Backoff
from longshort.gateway.shape import Shape
from longshort.gateway.shares import lane_of, merged
from longshort.gateway.spread import Spread
from longshort.gateway.stream import FrameStream
from longshort.gateway.table import ENDED
from longshort.servers import Servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import grpc
    import numpy as np
    from numpy.typing import NDArray

    from longshort.addresses import Target
    from longshort.aio.calls import ArrayFuture
    from longshort.errors import LongshortError
    from longshort.gateway.calls import ArrayCall
    from longshort.gateway.group import Group
    from longshort.gateway.shares import Share
    from longshort.opening import Opening

    Ask = Callable[[FrameStream, ArrayCall, slice | NDArray[np.intp]], None]

# A lane goes to one server as a whole. With four a server, one that fails leaves its part to several others; more would
# make the frames smaller, which is what a gateway is there to avoid. A name may stand for any number of servers.
LANES_PER_SERVER: Final = 4
MAX_LANES: Final = 16
# A store's own failover takes 2 to 10 s and is over for all servers at once; a server that is cut off from it stays so.
STORE_PATIENCE_S: Final = 10.0


class Lanes:
    """All lanes of a gateway, over the same servers and in the same room. The kept values are divided among them.

    `name` is the gateway's: it says where its lanes go. One server: one lane. Otherwise their number is fixed from the
    beginning, as a session's lane depends on it.
    """

    def __init__(
        self,
        target: Target,
        new_channel: Callable[[str], grpc.aio.Channel],
        opening: Opening,
        *,
        name: str,
        max_waiting_steps: int,
        max_kept_steps: int,
        give_up_s: float,
    ) -> None:
        num_lanes, shape = _num_lanes(target), Shape()
        # With the same keys all gateways would load the same servers. A name may outlive a gateway: one that is started
        # anew under it finds its sessions where they are hot, and what no store has of them.
        keys = [f"{name}:lane-{number}" for number in range(num_lanes)]
        self._servers = Servers(target, new_channel, Spread(keys))
        self._lookups = Lookups(self._servers)
        cores = [
            FrameStream(
                opening,
                lambda: Backoff(random.random),
                shape,
                address=target.text,
                max_kept_steps=max(max_kept_steps // num_lanes, 1),
                give_up_s=give_up_s,
                store_patience_s=STORE_PATIENCE_S if num_lanes > 1 else math.inf,
            )
            for _ in keys
        ]
        self.shape = shape
        self.room = Room([core.turns for core in cores], max_waiting_steps)
        self._all = tuple(map(self._lane, cores, keys))
        self._only = self._all[0] if num_lanes == 1 else None

    def _lane(self, core: FrameStream, key: str) -> Lane:
        pump = FramePump(
            core,
            self._servers,
            self._lookups,
            key,
            on_answer=self.room.let_in,
            on_end=self._lane_ended,
        )
        return Lane(core, pump, Deadlines(core, self._servers.target.text, self.room.let_in))

    def _lane_ended(self) -> None:
        if all(lane.core.has_ended for lane in self._all):
            self.room.close()
        else:  # the others go on, and their calls still have to wait for room
            self.room.let_in()

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._all)

    def of(self, session_id: str) -> Lane:
        """Return a session's lane."""
        return self._only or self._all[lane_of(session_id, len(self._all))]

    def shares(self, group: Group) -> list[tuple[Lane, Share]]:
        """Return the lanes that a group's sessions have, each with what is its."""
        return [(self._all[share.lane], share) for share in group.shares(len(self._all))]

    def ids(self) -> list[str]:
        """Return the ids of all sessions that are followed and have not ended."""
        tables = [lane.core.table for lane in self._all]
        return [
            key for table in tables for key, slot in table.slots.items() if not table.flag_bytes[slot] & ENDED
        ]

    @property
    def failure(self) -> LongshortError | None:
        """Why calls wait, where one lane knows a reason."""
        return next((lane.core.failure for lane in self._all if lane.core.failure is not None), None)

    async def ask(
        self, group: Group, num_steps: int, limit_s: float, ask: Ask, *, is_flat: bool
    ) -> NDArray[np.float32]:
        """Ask each lane for its share of a call, and return the answers in the caller's order.

        `num_steps` is the length of each row's answer. RowsFailed has the caller's rows; any other error is that of the
        whole call.
        """
        shares = self.shares(group)
        max_weight = max(self.room.max_weight // len(shares), 1)
        parts: list[ArrayFuture] = []
        try:
            for lane, share in shares:
                part = lane.new_array(share.group, num_steps, limit_s, max_weight, is_flat=is_flat)
                ask(lane.core, part.call, share.rows)
                parts.append(part)
                lane.pump.wake()
        except BaseException:
            for part in parts:
                part.cancel()
            raise
        if len(parts) == 1:
            return await parts[0]
        return merged(group.ids, [share for _, share in shares], await outcomes_of(parts))

    async def close(self, error: LongshortError) -> None:
        """Close all streams and channels; what waits fails."""
        for lane in self._all:
            lane.deadlines.stop()
        await asyncio.gather(*(lane.pump.close(error) for lane in self._all))
        self.room.close()
        self._lookups.close()
        for channel in self._servers.close():
            await channel.close(None)


def _num_lanes(target: Target) -> int:
    if target.has_name:
        return MAX_LANES
    return 1 if len(target.addresses) == 1 else min(LANES_PER_SERVER * len(target.addresses), MAX_LANES)
