"""What a session object shows without asking its server: the same for the sync and the async client."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from longshort import arrays, errors, named, recovery, results
from longshort.backoff import Backoff, pause_s
from longshort.core import SessionCore
from longshort.patience import Patience
from longshort.route import Route
from longshort.v1 import types_pb2

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from longshort.actions import Wait
    from longshort.opening import Opening
    from longshort.servers import Servers
    from longshort.v1 import sequence_pb2

AnswersName = Literal["all", "last", "none"]
ANSWERS: Final[dict[str, types_pb2.Answers]] = {
    "all": types_pb2.ANSWERS_ALL,
    "last": types_pb2.ANSWERS_LAST,
    "none": types_pb2.ANSWERS_NONE,
}


class SessionView:
    """The attributes of a session, as of its last answer."""

    def __init__(self, opening: Opening, servers: Servers[Any], timeout_s: float, give_up_s: float) -> None:
        self._opening = opening
        self._timeout_s = arrays.seconds(timeout_s, "timeout_s")
        self._give_up_s = give_up_s
        self._patience = Patience(time.monotonic(), self._timeout_s, give_up_s)  # of the call under way
        self._route = Route(servers, opening.session_id)
        self._address = servers.target.text
        self._core = SessionCore(opening, Backoff(random.random))
        self._is_closed = False

    @property
    def id(self) -> str:
        """The session's id."""
        return self._opening.session_id

    @property
    def created(self) -> bool:
        """Whether this opening began the session."""
        return self._opening.created

    @property
    def model(self) -> str:
        """The name of its model."""
        return self._core.opened.model

    @property
    def version(self) -> int:
        """The model version it stays on."""
        return self._core.opened.version

    @property
    def fingerprint(self) -> str:
        """What identifies the model file's graph and weights."""
        return self._core.opened.fingerprint

    @property
    def incarnation(self) -> int:
        """Drawn by the server when the session was created, reset or imported."""
        return self._core.opened.incarnation

    @property
    def num_features(self) -> int:
        """The width of a row of values."""
        if not self._core.opened.num_features:
            raise errors.FailedPrecondition(
                "the session is not open yet: await it, or use async with", reason="NOT_OPEN"
            )
        return self._core.opened.num_features

    @property
    def num_outputs(self) -> int:
        """The width of a row of an answer."""
        return self._core.opened.num_outputs

    @property
    def max_steps(self) -> int:
        """The greatest number of steps in one message; longer arrays are cut."""
        return self._core.opened.max_steps

    @property
    def durability(self) -> str:
        """What the server gives: none, behind or sync."""
        return results.durability_name(self._core.opened.durability)

    @property
    def position(self) -> int:
        """The next step: the number of steps answered."""
        return self._core.position

    @property
    def durable_step(self) -> int:
        """The step that would survive the loss of the server, as last heard."""
        return self._core.durable_step

    @property
    def in_doubt(self) -> bool:
        """Whether a call ended without its answer after its values were sent; `retry()` gets it."""
        return self._core.in_doubt

    @property
    def ended(self) -> bool:
        """Whether this object can do nothing more: closed, or its session taken, replaced or lost."""
        return self._core.has_ended

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    def __repr__(self) -> str:
        return (
            f"<{type(self).__module__}.Session {self.id} of {self.model}/{self.version} at {self.position}>"
        )

    def _within(self, timeout_s: float | None) -> float:
        """Return a call's time limit in seconds, or raise InvalidRequest."""
        return self._timeout_s if timeout_s is None else arrays.seconds(timeout_s, "timeout_s")

    def _begin_call(self, timeout_s: float | None) -> None:
        """Set the end of a call that begins now, or raise InvalidRequest."""
        self._patience = Patience(time.monotonic(), self._within(timeout_s), self._give_up_s)

    def _take(self, response: sequence_pb2.StreamResponse) -> bool:
        """Take one message of the stream; return whether it has opened the session."""
        was_open = self._core.is_open
        self._core.received(response)
        has_opened = self._core.is_open and not was_open
        if has_opened:
            self._route.succeeded()
            self._patience.served()
        return has_opened

    def _pause_s(self, action: Wait) -> float | None:
        """Return how long to wait before the next action, or None where the time is up."""
        has_other = action.failure is not None and self._route.moves_on()
        left_s = self._patience.ends_at_s - time.monotonic()
        return pause_s(action.delay_s, action.asked_s, left_s, has_other=has_other)

    def _time_is_up(self) -> errors.LongshortError:
        """Return what to raise once the call under way has come to its end; its stream is to be dropped."""
        error = self._core.timed_out(gave_up=self._patience.gives_up)
        return recovery.untold(error, self._address, self._patience.limit_s)


def answers_named(name: AnswersName) -> types_pb2.Answers:
    """Return the enum's value, or raise InvalidRequest."""
    if not isinstance(name, str) or name not in ANSWERS:
        raise errors.InvalidRequest(f"answers is all, last or none, not {name!r}", reason="INVALID_OPTION")
    return ANSWERS[name]


def one_step(value: ArrayLike | named.Named, num_features: int) -> NDArray[Any]:
    """Return one step's value as the rows of a message, or raise InvalidRequest."""
    if isinstance(value, Mapping):
        return named.one_step(value)
    return arrays.one_row(value, num_features)


def many_steps(values: ArrayLike | named.Named, num_features: int) -> NDArray[Any]:
    """Return the values of several steps as the rows of messages, or raise InvalidRequest."""
    if isinstance(values, Mapping):
        return named.many_steps(values)
    return arrays.many_rows(values, num_features)


def known_rows(known: ArrayLike | None) -> NDArray[np.float32] | None:
    """Return what a forecast is told as f32, or raise InvalidRequest. Its shape is the core's to check."""
    if isinstance(known, Mapping):
        raise errors.InvalidRequest(
            "what will be known goes as one array [rows, known features], not by name", reason="WRONG_TYPE"
        )
    return None if known is None else arrays.floats(known)


def single_row(rows: NDArray[Any] | None) -> Any:  # numbers or names, as the values were
    """Return the answer [outputs] f32, or its arrays [*shape] by name, of a message of one step."""
    if rows is None or not len(rows):
        # Only by number: the step was first taken with answers="none", and its stored answer is empty.
        raise errors.FailedPrecondition("the step was taken without an answer", reason="NO_ANSWER")
    if rows.dtype.names is not None:
        return {name: array[-1] for name, array in named.by_name(rows).items()}
    return rows[-1]


def all_rows(rows: NDArray[Any] | None) -> Any:  # numbers or names, as the values were
    """Return answers [rows, outputs] f32, or their arrays [rows, *shape] by name."""
    if rows is None:
        raise errors.ServerFault("an answer without rows", reason="PROTOCOL_VIOLATION")
    return rows if rows.dtype.names is None else named.by_name(rows)


def no_rows(_rows: NDArray[Any] | None) -> None:
    """Return nothing, where nothing was asked for."""


def concurrent_use() -> errors.ConcurrentUse:
    """Return the error of a second call while one is under way."""
    return errors.ConcurrentUse(
        "the session is in another call: it belongs to one thread or task at a time", reason="CONCURRENT_USE"
    )


def closed_error(what: str) -> errors.SessionClosed:
    """Return the error of a call on what was closed."""
    return errors.SessionClosed(f"the {what} is closed", reason="CLOSED")
