"""One lane of a gateway: a core, what moves its frames, and what looks at its deadlines."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from longshort.aio.calls import ArrayFuture
from longshort.gateway.calls import ArrayCall

if TYPE_CHECKING:
    from longshort.aio.deadlines import Deadlines
    from longshort.aio.frame_pump import FramePump
    from longshort.gateway.group import Group
    from longshort.gateway.stream import FrameStream


@dataclass(frozen=True, slots=True)
class Lane:
    """The sessions of one frame stream, whichever server that goes to: no session ever changes its lane."""

    core: FrameStream
    pump: FramePump
    deadlines: Deadlines

    def new_array(
        self, group: Group, num_steps: int, limit_s: float, max_weight: int, *, is_flat: bool
    ) -> ArrayFuture:
        """Return an array call of this lane's sessions that is still to be asked; one of no sessions is answered."""
        future = ArrayFuture(loop=asyncio.get_running_loop())
        future.turns = self.core.turns
        future.call = ArrayCall(
            future,
            group.ids,
            group.slots(self.core.table),
            num_steps,
            is_flat=is_flat,
            deadline_s=self.deadlines.after(limit_s),
            max_weight=max_weight,
        )
        if not len(group):  # nothing will answer it
            num_outputs = self.core.table.shape.num_outputs
            future.set_result(
                np.empty((0, num_outputs) if is_flat else (0, num_steps, num_outputs), np.float32)
            )
        return future
