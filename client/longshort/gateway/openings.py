"""How the sessions of a frame stream are opened, the first time and again, and what the answers mean.

It owns which openings wait for a later moment. It does not know the stream.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

from longshort import errors, recovery
from longshort.gateway.filling import max_row_steps
from longshort.gateway.rows import Row
from longshort.gateway.table import OPENING, POSTPONED, STORELESS
from longshort.recovery import Verdict
from longshort.v1 import sequence_pb2, types_pb2

if TYPE_CHECKING:
    from longshort.backoff import Backoff
    from longshort.errors import LongshortError
    from longshort.gateway.frame import Frame
    from longshort.gateway.kept import KeptValues
    from longshort.gateway.shape import Shape
    from longshort.gateway.table import SessionTable
    from longshort.gateway.turns import Turns
    from longshort.opening import Opening

MAX_OPENS: Final = 4_096  # in a frame; half a MiB


class Openings:
    """The openings of one frame stream. `opening` says what all sessions are opened with, but for their ids."""

    def __init__(
        self, opening: Opening, table: SessionTable, turns: Turns, kept: KeptValues, backoff: Backoff
    ) -> None:
        self.client_id = opening.client_id
        self._template = opening.request(None).open
        self._table = table
        self._turns = turns
        self._kept = kept
        self._backoff = backoff
        self._later: list[tuple[float, int]] = []  # heap of (when, slot)
        self._lost_tries: set[int] = set()  # slots whose first opening was sent, and its answer lost
        self._ours: set[int] = set()  # slots that such a try created
        self._initial: dict[int, list[types_pb2.Tensor]] = {}  # by slot, of those that were not open yet
        self._unwanted: list[int] = []  # handles that the server has open, of sessions that have ended here

    @property
    def has_some(self) -> bool:
        """Whether there is something for the next frame."""
        return bool(self._turns.unopened or self._unwanted)

    def take(self, frame: Frame) -> list[sequence_pb2.FrameOpen]:
        """Put what is to be opened in a frame, and the handles to be closed; return the openings for the wire."""
        # At once: the slot may be another session's by the frame after it.
        frame.unwanted, self._unwanted = self._unwanted, []
        unopened, flags = self._turns.unopened, self._table.flag_bytes
        while unopened and len(frame.opens) < MAX_OPENS:
            slot = unopened.popleft()
            if flags[slot] & OPENING:  # not closed meanwhile
                frame.opens.append(slot)
        return [sequence_pb2.FrameOpen(handle=slot, open=self._open(slot)) for slot in frame.opens]

    def begin_with(self, slot: int, initial: list[types_pb2.Tensor] | None) -> None:
        """Note what a session begins with where its first opening creates it. None: what the model says.

        An opening that was refused leaves its own behind for the values that come next: they must not begin elsewhere.
        """
        if self._table.opened[slot] is not None:
            return
        if initial is not None:
            self._initial[slot] = initial
        elif not self._table.flag_bytes[slot] & OPENING:  # otherwise one is under way, with what it was given
            self._initial.pop(slot, None)

    def _open(self, slot: int) -> sequence_pb2.Open:
        message, before = sequence_pb2.Open(), self._table.opened[slot]
        message.CopyFrom(self._template)
        message.session.id = self._table.ids[slot]
        message.epoch = int(self._table.epoch[slot])
        if before is None:
            message.initial.extend(self._initial.get(slot, ()))
        else:
            message.model, message.version = before.model, before.version
            message.model_change = types_pb2.MODEL_CHANGE_UNSPECIFIED
        if before is not None or slot in self._ours:
            message.mode = types_pb2.OPEN_MODE_OPEN
        return message

    def opened(self, slot: int, opened: sequence_pb2.Opened) -> None:
        """Take that a session is open: it goes on, or has ended."""
        table = self._table
        before = table.opened[slot]
        opened.created = self._was_created(slot, opened)  # of its first opening, as long as it is followed
        table.flag_bytes[slot] &= ~OPENING
        self._backoff.reset()
        self._lost_tries.discard(slot)
        self._ours.discard(slot)
        self._initial.pop(slot, None)
        end: LongshortError | None = None
        if not self._fits(opened):
            end = _other_shape(opened, table.shape)
        elif before is None:
            table.position[slot] = opened.step
        elif before.incarnation != opened.incarnation:
            end = recovery.replaced()
        elif not self._can_catch_up(slot, opened):
            end = self._does_not_fit(slot, opened)
        if end is not None:
            self._turns.end(slot, end)
            self._unwanted.append(slot)
            return
        table.open(slot, opened)
        self._turns.advance(slot)

    def _was_created(self, slot: int, opened: sequence_pb2.Opened) -> bool:
        before = self._table.opened[slot]
        if before is not None:
            return before.created
        may_create = self._template.mode != types_pb2.OPEN_MODE_OPEN
        by_lost_try = may_create and slot in self._lost_tries and opened.step == 0
        return opened.created or slot in self._ours or by_lost_try

    def _fits(self, opened: sequence_pb2.Opened) -> bool:
        """Take the shape of the first session for that of all."""
        shape = self._table.shape
        if not shape.is_known:
            shape.num_features, shape.num_outputs = opened.num_features, opened.num_outputs
        self._table.max_steps = opened.max_steps
        return (shape.num_features, shape.num_outputs) == (opened.num_features, opened.num_outputs)

    def _can_catch_up(self, slot: int, opened: sequence_pb2.Opened) -> bool:
        """Plan what brings a reopened session to where the answers here end; return whether it is possible."""
        position = int(self._table.position[slot])
        if opened.step == position:
            return True
        if opened.step > position:
            # Ahead of all answers here it can only be by the unanswered message, which is sent unchanged.
            pending = self._turns.pending(slot)
            if pending is None or (pending.first_step, pending.count) != (position, opened.step - position):
                return False
            pending.is_taken = True
            return True
        missing = self._kept.missing(slot, opened.step, position, max_row_steps(self._table))
        for message in reversed(missing or ()):
            rows = message.rows
            resent = Row(slot, None, 0, rows, 0, len(rows), message.first_step, is_taken=True)
            self._turns.put_back(resent)
        return missing is not None

    def _does_not_fit(self, slot: int, opened: sequence_pb2.Opened) -> LongshortError:
        position = int(self._table.position[slot])
        is_promised = self._table.keeps[slot]  # that what is kept no more is stored
        oldest_step = self._kept.start_step(slot, position) if is_promised else None
        return recovery.does_not_fit(opened.step, position, oldest_step)

    def failed(self, slot: int, error: LongshortError, now_s: float) -> None:
        """Take that a session could not be opened: try again later, or tell those who wait for it."""
        turns, table = self._turns, self._table
        was_open = table.opened[slot] is not None
        is_ours = error.metadata.get("client_id") == self.client_id and slot in self._lost_tries
        if isinstance(error, errors.SessionExists) and is_ours:
            self._lost_tries.discard(slot)
            self._ours.add(slot)
            turns.unopened.append(slot)
            return
        verdict = recovery.judge(error, client_id=self.client_id, was_open=was_open)
        if verdict is Verdict.RETRY:
            self.postpone(slot, error, now_s)
            return
        table.flag_bytes[slot] &= ~OPENING
        if (
            error.reason == "INVALID_SESSION_ID"
        ):  # one of many: the server says what is wrong, and here is where
            error = type(error).like(error, f"session {table.ids[slot]!r}: {error.message}")
        if verdict is Verdict.LOST:
            turns.end(slot, recovery.ending(error, table.ids[slot], int(table.position[slot])))
        else:
            turns.give_up_behind(slot, error, error)

    def postpone(self, slot: int, error: LongshortError, now_s: float, *, flag: int = POSTPONED) -> None:
        """Let a session wait a moment, or only its flushes (STORELESS); its neighbours go on."""
        self._table.flag_bytes[slot] |= flag
        heapq.heappush(self._later, (now_s + self._backoff.next_delay_s(error.retry_delay_s), slot))

    def resume(self, now_s: float) -> float | None:
        """Take up what has waited long enough; return when the next is due, if one waits."""
        while self._later and self._later[0][0] <= now_s:
            slot = heapq.heappop(self._later)[1]
            flags = self._table.flag_bytes[slot]
            if not flags & (POSTPONED | STORELESS):
                continue  # it has ended meanwhile, or was closed
            self._table.flag_bytes[slot] = flags & ~(POSTPONED | STORELESS)
            if flags & OPENING:
                self._turns.unopened.append(slot)
            else:
                self._turns.advance(slot)
        return self._later[0][0] if self._later else None

    def stop(self, sent: list[int]) -> None:
        """Take that there is no stream any more, which has not answered the openings that were sent."""
        self._lost_tries.update(slot for slot in sent if self._table.opened[slot] is None)
        self._later.clear()
        self._unwanted.clear()

    def forget(self, slot: int) -> None:
        """Forget a session that was closed."""
        self._lost_tries.discard(slot)
        self._ours.discard(slot)
        self._initial.pop(slot, None)


def _other_shape(opened: sequence_pb2.Opened, shape: Shape) -> LongshortError:
    return errors.ModelMismatch(
        f"session {opened.session.id} is of model {opened.model}/{opened.version} with {opened.num_features} "
        f"features and {opened.num_outputs} outputs, the others of this gateway have {shape.num_features} and "
        f"{shape.num_outputs}: follow it with another gateway",
        reason="OTHER_SHAPE",
    )
