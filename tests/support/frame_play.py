"""The core of a gateway and a server of dictionaries, played against each other by hand: no threads, a made clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from frame_server import Connection, FrameServer
from longshort import errors
from longshort.backoff import Backoff
from longshort.gateway.actions import CONNECT, RECEIVE, Idle, SendFrame
from longshort.gateway.calls import ArrayCall, StepCall
from longshort.gateway.shape import Shape
from longshort.gateway.stream import FrameStream
from longshort.gateway.table import ENDED
from longshort.opening import Opening

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Promise:
    """A waiter that remembers what it was told, once."""

    def __init__(self) -> None:
        self.outcome: Any = None
        self._is_done = False

    def done(self) -> bool:
        return self._is_done

    def set_result(self, result: Any) -> None:
        self._settle(result)

    def set_exception(self, error: errors.LongshortError) -> None:
        self._settle(error)

    def cancel(self) -> None:
        self._settle("cancelled")

    def _settle(self, outcome: Any) -> None:
        assert not self._is_done, f"told twice: {self.outcome} and {outcome}"
        self._is_done, self.outcome = True, outcome


class Step(Promise, StepCall):
    """A step whose caller looks at it later."""

    done = Promise.done
    set_result = Promise.set_result
    set_exception = Promise.set_exception


class Play:
    """One core, one server, and the wire between them, which a test may cut at any point."""

    def __init__(
        self, server: FrameServer | None = None, *, max_kept_steps: int = 1000, **options: Any
    ) -> None:
        self.server = server or FrameServer()
        opening = Opening(None, **{"model": "m", "client_id": "play"} | options)
        self.client_id = opening.client_id
        self.core = FrameStream(
            opening,
            lambda: Backoff(lambda: 0.5),
            Shape(),
            address="here:1",
            max_kept_steps=max_kept_steps,
            give_up_s=60.0,
        )
        self.connection: Connection | None = None
        self.answers: list[bytes] = []  # on their way to the core
        self.now_s = 0.0
        self.num_connects = 0

    def step(self, session_id: str, value: Any, at: int | None = None) -> Step:
        call = Step()
        try:
            self.core.step(call, session_id, value, at)
        except errors.LongshortError as error:
            call.set_exception(error)
        return call

    def slots(self, ids: Sequence[str]) -> np.ndarray:
        return np.array([self.core.table.slot_of(each) for each in ids], np.intp)

    def steps(self, ids: Sequence[str], values: Any) -> tuple[Promise, ArrayCall]:
        array = np.array(values, np.float32)
        rows = array.reshape(len(ids), -1, self.server.num_features)
        waiter = Promise()
        call = ArrayCall(waiter, ids, self.slots(ids), rows.shape[1], is_flat=array.ndim < 3)
        self.core.steps(call, rows)
        return waiter, call

    def forecast(self, ids: Sequence[str], horizon: int) -> tuple[Promise, ArrayCall]:
        waiter = Promise()
        call = ArrayCall(waiter, ids, self.slots(ids), horizon, is_flat=False)
        self.core.forecast(call, horizon)
        return waiter, call

    def ask(self, method: Callable[..., None], *arguments: Any) -> Promise:
        waiter = Promise()
        try:
            method(waiter, *arguments)
        except errors.LongshortError as error:
            waiter.set_exception(error)
        return waiter

    def close_session(self, session_id: str) -> Promise:
        return self.ask(self.core.close_session, session_id)

    def flush(self, ids: Sequence[str] | None = None) -> Promise:
        table, waiter = self.core.table, Promise()
        known = [key for key, slot in table.slots.items() if not table.flag_bytes[slot] & ENDED]
        ids = known if ids is None else ids
        if not ids:
            waiter.set_result(None)
            return waiter
        self.core.flush(ArrayCall(waiter, ids, self.slots(ids), 1, is_flat=True))
        return waiter

    def retry(self, session_id: str) -> Promise:
        slot = self.core.table.slots[session_id]
        return self.ask(lambda waiter: self.core.retry(slot, waiter))

    def cancel(self, call: Any, waiter: Promise | None = None) -> bool:
        """Let the caller go away, as a shell does."""
        in_doubt = self.core.turns.abandon(call)
        (waiter or call).cancel()
        return in_doubt

    def position(self, session_id: str) -> int:
        return int(self.core.table.position[self.core.table.slots[session_id]])

    # The wire

    def move(self) -> Any:
        """Let the core take one action; what it sends is answered, and the answer waits. Return the action."""
        action = self.core.next_action(self.now_s)
        if action is CONNECT:
            self.num_connects += 1
            self.connection, self.answers = Connection(self.server), []
        elif isinstance(action, SendFrame):
            assert self.connection is not None
            self.answers.append(self.connection.answer(action.raw))
        elif action is RECEIVE and self.answers:
            failure = self.core.received(self.answers.pop(0), self.now_s)
            if failure is not None:
                self.core.disconnected(failure, self.now_s)
        return action

    def cut(self, error: errors.LongshortError | None = None) -> None:
        """End the stream; an answer under way is lost."""
        self.connection, self.answers = None, []
        self.core.disconnected(error or errors.Unavailable("cut"), self.now_s)

    def send(self) -> None:
        """Go on until a frame has been sent and its answer waits."""
        for _ in range(10):
            action = self.move()
            if isinstance(action, SendFrame):
                return
            if isinstance(action, Idle) and action.until_s is not None:
                self.now_s = max(self.now_s, action.until_s)
        raise AssertionError("nothing was sent")

    def run(self, limit: int = 2000) -> None:
        """Go on until nothing more can be done, letting time pass."""
        for _ in range(limit):
            action = self.move()
            if isinstance(action, Idle):
                if action.until_s is None:
                    return
                self.now_s = max(self.now_s, action.until_s)
        raise AssertionError("no end")
