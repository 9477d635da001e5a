"""One call as the server has it: messages in and out, its end. It knows no methods and no coroutines."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc._cython.cygrpc import (
    ReceiveCloseOnServerOperation,
    ReceiveMessageOperation,
    SendInitialMetadataOperation,
    SendMessageOperation,
    SendStatusFromServerOperation,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

logger = logging.getLogger(__name__)

_NO_FLAGS: Final = 0


class Call:
    """A call from its arrival to its end, all of it on the loop's thread.

    Callbacks are called from the loop, never inside the method that they were given to, except where the call is over
    already. One that raises ends its call with UNKNOWN and is logged. After `on_closed` nothing is called any more.
    """

    __slots__ = (
        "_ending",
        "_is_cancelled",
        "_is_ending",
        "_is_exchanging",
        "_is_finished",
        "_is_writing",
        "_on_message",
        "_on_written",
        "_opening",
        "_queued",
        "_start",
        "deadline_s",
        "metadata",
        "on_closed",
        "path",
        "peer",
    )

    def __init__(self, event: Any) -> None:
        """Take the call of a RequestCallEvent."""
        self.path: str = event.call_details.method.decode()
        self.metadata: tuple[tuple[str, str | bytes], ...] = event.invocation_metadata
        self.peer: str = event.call.peer().decode()
        self.deadline_s: float = (
            event.call_details.deadline
        )  # Unix time; centuries ahead where the client set none
        # Told once, when the call is over and its last callback was called: whether it was cancelled, by the client,
        # its deadline, a lost connection or a stopping server. False: its status was sent.
        self.on_closed: Callable[[bool], None] | None = None
        self._start: Callable[..., int] | None = event.call.start_server_batch  # None: over
        self._on_message: Callable[[bytes | None], None] | None = None  # None: no read is under way
        self._on_written: Callable[[bool], None] | None = None
        self._queued: deque[tuple[bytes, Callable[[bool], None] | None]] = deque()
        self._opening: tuple[Any, ...] = (SendInitialMetadataOperation(None, _NO_FLAGS),)  # (): sent
        self._ending: tuple[Any, ...] = ()  # the status, while it waits for queued messages
        self._is_writing = False
        self._is_exchanging = False
        self._is_finished = False  # nothing more may be written
        self._is_ending = False  # the status is under way
        self._is_cancelled: bool | None = None  # None: gRPC has not said yet that the call is over
        self._start((ReceiveCloseOnServerOperation(_NO_FLAGS),), self._was_closed)

    @property
    def is_active(self) -> bool:
        """Whether the call can still be answered."""
        return self._is_cancelled is None and not self._is_finished

    @property
    def is_cancelled(self) -> bool:
        """Whether the call is over without the status that it was to have."""
        return self._is_cancelled is True

    def read(self, on_message: Callable[[bytes | None], None]) -> None:
        """Read the next message; None where the client has half-closed or the call is over. One read at a time.

        Raises RuntimeError where a read is under way.
        """
        if self._on_message is not None:
            raise RuntimeError("a read is under way")
        start = self._start
        if start is None:
            on_message(None)
            return
        self._on_message = on_message
        start((ReceiveMessageOperation(_NO_FLAGS),), self._was_read)

    def write(self, message: bytes, on_written: Callable[[bool], None] | None = None) -> None:
        """Write a message after those written before; `on_written` hears when gRPC took it, or that it never will."""
        if self._is_finished or self._start is None:
            if on_written is not None:
                on_written(False)  # noqa: FBT003  callbacks are told by position
        elif self._is_writing or self._is_exchanging:
            self._queued.append((message, on_written))
        else:
            self._send(message, on_written)

    def exchange(self, message: bytes, on_message: Callable[[bytes | None], None]) -> None:
        """Write a message and read the next one as one operation: half the events, for who answers in turn.

        Until that message comes gRPC takes no other from us: those written are queued, and `finish` drops them.
        Raises RuntimeError where a read is under way.
        """
        if self._is_writing or self._is_finished or self._start is None:
            self.write(message)
            self.read(on_message)
            return
        if self._on_message is not None:
            raise RuntimeError("a read is under way")
        self._on_message = on_message
        self._is_exchanging = True
        sending, receiving = SendMessageOperation(message, _NO_FLAGS), ReceiveMessageOperation(_NO_FLAGS)
        self._start((*self._opening, sending, receiving), self._was_exchanged)
        self._opening = ()

    def send_initial_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Send initial metadata now; otherwise empty ones go with the first message.

        Raises RuntimeError where they have been sent. Metadata that HTTP/2 does not allow end the call: INTERNAL.
        """
        if not self._opening:
            raise RuntimeError("initial metadata have been sent")
        if self._start is None:
            return
        self._start((SendInitialMetadataOperation(tuple(metadata), _NO_FLAGS),), _ignore)
        self._opening = ()

    def finish(
        self,
        code: grpc.StatusCode = grpc.StatusCode.OK,
        details: str = "",
        trailing_metadata: Iterable[tuple[str, str | bytes]] | None = None,
    ) -> None:
        """End the call with a status, after what was written before. On a call that has its end this does nothing.

        Metadata that HTTP/2 does not allow make the status INTERNAL.
        """
        if self._is_finished:
            return
        if self._is_cancelled is None:
            trailers = None if trailing_metadata is None else tuple(trailing_metadata)
            ending = (SendStatusFromServerOperation(trailers, code.value[0], details, _NO_FLAGS),)
            if self._queued and not self._is_exchanging:
                self._ending = ending
            else:
                self._end(ending)
        self._is_finished = True

    def _send(self, message: bytes, on_written: Callable[[bool], None] | None) -> None:
        self._is_writing = True
        self._on_written = on_written
        assert self._start is not None  # noqa: S101  a call with something under way is not over
        self._start((*self._opening, SendMessageOperation(message, _NO_FLAGS)), self._was_written)
        self._opening = ()

    def _send_queued(self) -> None:
        if self._queued:
            self._send(*self._queued.popleft())
        if self._ending and not self._queued:
            self._end(self._ending)
            self._ending = ()

    def _drop_queued(self) -> None:
        queued, self._queued = self._queued, deque()
        for _, on_written in queued:
            if on_written is not None:
                on_written(False)  # noqa: FBT003  as above

    def _end(self, ending: tuple[Any, ...]) -> None:
        assert self._start is not None  # noqa: S101  as above
        self._start((*self._opening, *ending), self._was_ended)
        self._opening = ()
        self._is_ending = True

    def _was_read(self, event: Any) -> None:
        self._hand_over(event.batch_operations[0].message())

    def _was_exchanged(self, event: Any) -> None:
        self._is_exchanging = False
        if self._queued and self._is_finished:
            self._drop_queued()
        elif self._queued:
            self._send_queued()
        self._hand_over(event.batch_operations[-1].message())

    def _hand_over(self, message: bytes | None) -> None:
        on_message = self._on_message
        self._on_message = None
        assert on_message is not None  # noqa: S101  what a read brings has its reader
        try:
            on_message(message)
        except Exception:
            logger.exception("a reader of %s has failed", self.path)
            self._fail()
        if self._is_cancelled is not None:
            self._settle()

    def _was_written(self, event: Any) -> None:
        on_written = self._on_written
        self._is_writing = False
        if self._queued:
            self._send_queued()
        if on_written is not None:
            try:
                on_written(event.success)
            except Exception:
                logger.exception("a writer of %s has failed", self.path)
                self._fail()
        if self._is_cancelled is not None:
            self._settle()

    def _was_ended(self, _event: object) -> None:
        self._is_ending = False
        if self._is_cancelled is not None:
            self._settle()

    def _was_closed(self, event: Any) -> None:
        self._is_cancelled = event.batch_operations[0].cancelled()
        self._settle()

    def _settle(self) -> None:
        """Say that the call is over, and let go of it, once nothing is under way any more."""
        is_busy = self._is_writing or self._is_exchanging or self._is_ending or self._on_message is not None
        if is_busy or self._start is None:
            return
        self._start = self._on_written = None
        on_closed, self.on_closed = self.on_closed, None
        if on_closed is not None:
            on_closed(self._is_cancelled is True)

    def _fail(self) -> None:
        self.finish(grpc.StatusCode.UNKNOWN, "the server has failed to handle this call; its log says why")


def _ignore(_event: object) -> None:
    pass
