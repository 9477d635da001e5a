"""A client by hand, which follows one session by the rules of the contract and by nothing else.

Owns what a client has to keep: its values, cut into messages, the answers it has, and from where it may send again.
It checks what it is told as it goes: an answer that changes, or less than what was called durable, is a failed test.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from longshort.v1 import sequence_pb2, session_pb2, types_pb2
from wire import OPEN, OPEN_OR_CREATE, Caller, Refusal, Stream, key, refusal_of, values_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

CLIENT_ID = "by hand"
NONE, BEHIND, SYNC = types_pb2.DURABILITY_NONE, types_pb2.DURABILITY_BEHIND, types_pb2.DURABILITY_SYNC


class SessionLostError(Exception):
    """The server says that it does not have what this client cannot send again."""


class SessionReplacedError(Exception):
    """The session is another one of the same name."""


class StoreStream(Stream):
    """A stream of a session that is stored: what it is told between answers goes to `on_durable`."""

    on_durable: Callable[[int], None] | None = None

    async def receive(self) -> sequence_pb2.StreamResponse:
        while True:
            response = await super().receive()
            if response.WhichOneof("kind") != "durable":
                return response
            if self.on_durable is not None:
                self.on_durable(response.durable.durable_step)

    async def flush(self) -> int:
        """Wait until all is stored; return up to where."""
        response = await self.ask(flush=sequence_pb2.Flush())
        assert response.WhichOneof("kind") == "flushed", response
        return response.flushed.durable_step

    async def leave(self) -> None:
        """Half-close."""
        await self.call.done_writing()
        with contextlib.suppress(EOFError):
            await self.receive()

    async def refusal(self, **kind: Any) -> Refusal:
        """Return how the stream ends, after one more message where one is given; answers may come before."""
        if kind:
            await self.send(**kind)
        while True:
            try:
                await self.receive()
            except grpc.aio.AioRpcError as error:
                return refusal_of(error)


class StoreCaller(Caller):
    """A connection whose streams are of sessions that are stored."""

    def stream(self) -> StoreStream:
        return StoreStream(self.sequence.Stream())

    async def open(
        self, session_id: str = "", model: str = "adder", **fields: Any
    ) -> tuple[StoreStream, sequence_pb2.Opened]:
        stream, opened = await super().open(session_id, model, **fields)
        assert isinstance(stream, StoreStream)
        return stream, opened

    async def described(self, session_id: str = "s") -> session_pb2.Session:
        """Return what there is to say of a session."""
        request = session_pb2.GetSessionRequest(session=key(session_id))
        response = await self.sessions.GetSession(request)
        assert isinstance(response, session_pb2.GetSessionResponse)
        return response.session


@dataclass
class Follower:
    """One session of one feature. `sizes` cuts its values into messages."""

    session_id: str
    model: str
    values: NDArray[np.float32]  # [steps]
    sizes: Sequence[int]
    durability: Any = BEHIND
    answers: list[bytes] = field(default_factory=list)  # of each step, [outputs] f32
    durable_step: int = 0  # the greatest that it was told
    epoch: int = 0
    incarnation: int | None = None
    num_replays: int = 0

    def __post_init__(self) -> None:
        self._starts = [0, *itertools.accumulate(self.sizes)]
        assert self._starts[-1] == len(self.values)
        self.unanswered: tuple[int, int] | None = None  # first step and end

    @property
    def is_done(self) -> bool:
        return len(self.answers) == len(self.values)

    @property
    def _kept_from(self) -> int:
        """The first step whose value it could send again."""
        answered = len(self.answers)
        return answered if self.durability == NONE else min(self.durable_step, answered)

    async def open(self, caller: StoreCaller) -> tuple[StoreStream, int]:
        """Open the session; return its stream and where to go on. Raises SessionLostError, SessionReplacedError."""
        stream = caller.stream()
        stream.on_durable = self.note_durable
        try:
            response = await stream.ask(open=self.opening())
        except grpc.aio.AioRpcError as error:
            if reason_of(error) in {"SESSION_NOT_FOUND", "SESSION_EXPIRED"}:
                raise SessionLostError(reason_of(error)) from error
            raise
        return stream, self.opened(response.opened)

    def opening(self) -> sequence_pb2.Open:
        """Return the opening, of a session that is new or of the one that it has followed."""
        return sequence_pb2.Open(
            session=key(self.session_id),
            model=self.model,
            mode=OPEN_OR_CREATE if self.incarnation is None else OPEN,
            client_id=CLIENT_ID,
            durability=self.durability,
            epoch=self.epoch,
        )

    def opened(self, opened: sequence_pb2.Opened) -> int:
        """Take the answer to the opening; return where to go on. Raises SessionLostError, SessionReplacedError."""
        self.note_incarnation(opened.incarnation)
        assert opened.epoch >= self.epoch  # the same only where the store is away
        self.epoch = opened.epoch
        self.durability = opened.durability
        return self.go_on_from(opened.step, opened.durable_step)

    def note_incarnation(self, incarnation: int) -> None:
        """Raise SessionReplacedError where the session is not the one of before."""
        if self.incarnation is not None and incarnation != self.incarnation:
            raise SessionReplacedError
        self.incarnation = incarnation

    def go_on_from(self, step: int, durable_step: int) -> int:
        """Return the first step to send, by E, which is `step`, and A, which is what was answered.

        Raises SessionLostError.
        """
        answered = len(self.answers)
        assert step >= durable_step
        assert step >= self.durable_step, "what was called durable is gone"
        self.durable_step = max(self.durable_step, durable_step)
        if step <= answered:
            if step < self._kept_from:
                raise SessionLostError(f"at step {step}, and values are kept from {self._kept_from}")
            return step
        assert self.unanswered is not None, "the session is ahead of all that was sent"
        first, end = self.unanswered
        assert (first, end) == (answered, step), "the session has moved by something that nobody sent"
        return first

    async def go_on(self, stream: StoreStream, step: int, until_step: int | None = None) -> int:
        """Send messages from `step` on, each when the one before it is answered; return the step reached."""
        until_step = len(self.values) if until_step is None else until_step
        while step < until_step:
            end = self.end_of(step)
            await self.send(stream, step, end)
            step = end
        return step

    async def send(self, stream: StoreStream, step: int, end: int) -> None:
        """Send the values of steps `step` to `end` as one message, and take its answer."""
        values = self.take(step, end)
        await stream.send(values=values_of(values, step))
        response = await stream.receive()
        assert response.WhichOneof("kind") == "answer", response
        answer = response.answer
        self.answered(answer.values, answer.step, answer.durable_step)
        self.num_replays += answer.replayed

    def end_of(self, step: int) -> int:
        """Return the end of the message that begins at a step."""
        return min(each for each in self._starts if each > step)

    def take(self, step: int, end: int) -> list[float]:
        """Return the values of steps `step` to `end`; they are the one message that is not answered."""
        self.unanswered = (step, end)
        return list(self.values[step:end].tolist())

    def answered(self, values: Sequence[float], step: int, durable_step: int) -> None:
        """Take the answer to the message that is not answered, `values` flat."""
        assert self.unanswered is not None
        first, end = self.unanswered
        rows = np.array(values, np.float32).reshape(end - first, -1)
        assert step == end
        for place, row in enumerate(rows, start=first):
            if place < len(self.answers):
                assert self.answers[place] == row.tobytes(), "an answer has changed"
            else:
                self.answers.append(row.tobytes())
        self.note_durable(durable_step)
        self.unanswered = None

    async def flush(self, stream: StoreStream) -> None:
        """Wait until all is stored."""
        self.note_durable(await stream.flush())

    def note_durable(self, step: int) -> None:
        """Note up to where the session is said to be stored."""
        assert step <= len(self.answers) or self.unanswered is not None, (
            "what nobody applied is called durable"
        )
        self.durable_step = max(self.durable_step, step)


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """Return the reason of a status, "" where it is none of the service's own."""
    trailers = dict(error.trailing_metadata() or ())
    return refusal_of(error).reason if "grpc-status-details-bin" in trailers else ""
