"""A server of frames made of dictionaries: it does what the comments of StreamFrames say, row by row, slowly.

Every value goes through protobuf's own classes, so that it also checks the bytes that a client makes by hand.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from longshort import errors, status
from longshort.errors import Code
from longshort.v1 import sequence_pb2, types_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

UNSTORED = types_pb2.DURABILITY_NONE
BEHIND = types_pb2.DURABILITY_BEHIND
SYNC = types_pb2.DURABILITY_SYNC
OPEN_PART = sequence_pb2.FRAME_PART_OPEN
VALUES_PART = sequence_pb2.FRAME_PART_VALUES
FORECAST_PART = sequence_pb2.FRAME_PART_FORECAST
FLUSH_PART = sequence_pb2.FRAME_PART_FLUSH


class Refusal(Exception):
    """A part of a frame that fails."""

    def __init__(self, code: Code, reason: str, delay_s: float | None = None, **metadata: object) -> None:
        super().__init__(reason)
        self.message = types_pb2.Error(code=code, reason=reason, message=reason.lower())
        self.message.metadata.update({key: str(value) for key, value in metadata.items()})
        if delay_s is not None:
            self.message.retry_delay.FromNanoseconds(int(delay_s * 1e9))

    @property
    def error(self) -> errors.LongshortError:
        """The same as the status of a stream."""
        return status.from_message(self.message)


def model(history: Iterable[Iterable[float]]) -> list[float]:
    """A model that remembers: each answer depends on every value before it, in order."""
    total = 0.0
    for place, row in enumerate(history, start=1):
        total = (total * 31 + place * sum(row)) % 65_521
    return [total, -total]


def alone(values: Any) -> np.ndarray:
    """Return the answers [time, 2] f32 of a session that takes [time] or [time, features] alone."""
    rows = np.asarray(values, np.float32).reshape(len(values), -1).tolist()
    return np.array([model(rows[: end + 1]) for end in range(len(rows))], np.float32)


@dataclass
class Stored:
    """What the server remembers of a session."""

    history: list[list[float]] = field(default_factory=list)
    last: tuple[int, int, int, list[float]] | None = None  # first step, count, CRC-32, answers
    incarnation: int = 1
    epoch: int = 0
    client_id: str = ""

    def copy(self) -> Stored:
        return Stored(list(self.history), self.last, self.incarnation, self.epoch, self.client_id)


@dataclass
class Store:
    """What outlives servers, and may be shared by several: records, and the epoch of each session."""

    records: dict[str, Stored] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    is_away: bool = False

    def check(self) -> None:
        if self.is_away:
            raise Refusal(Code.UNAVAILABLE, "STORE_UNAVAILABLE", delay_s=1.0)


@dataclass
class FrameServer:
    """One server: sessions in a dictionary, beside a store.

    `refuse_open` and `refuse_row` may raise Refusal for an id. `stores` says whether values become durable with
    each frame.
    """

    durability: int = UNSTORED
    num_features: int = 1
    max_steps: int = 4
    stores: bool = False
    store: Store = field(default_factory=Store)
    sessions: dict[str, Stored] = field(default_factory=dict)
    requests: list[sequence_pb2.StreamFramesRequest] = field(default_factory=list)
    refuse_open: Callable[[str], None] = lambda _: None
    refuse_row: Callable[[str], None] = lambda _: None
    num_incarnations: int = 0

    def crash(self) -> None:
        """Forget what is not stored."""
        self.sessions = {}

    def checkpoint(self) -> None:
        """Store all sessions, unless the store is away."""
        if not self.store.is_away:
            for key in self.sessions:
                self.write(key)

    def write(self, key: str) -> None:
        """Store a session, if no other server has opened it since; raise Refusal where the store is away."""
        if self.durability != UNSTORED:
            self.store.check()
            if self.store.epochs[key] == self.sessions[key].epoch:
                self.store.records[key] = self.sessions[key].copy()

    def durable_step(self, key: str) -> int:
        return len(self.store.records[key].history) if key in self.store.records else 0

    def reset(self, key: str) -> None:
        """Put a session back to step 0."""
        self.num_incarnations += 1
        self.sessions[key] = Stored(incarnation=1000 + self.num_incarnations, epoch=self._raised(key))
        self.write(key)

    def take(self, key: str, client_id: str) -> None:
        """Open a session for another client."""
        self.sessions[key].epoch = self._raised(key)
        self.sessions[key].client_id = client_id

    def _raised(self, key: str) -> int:
        self.store.epochs[key] = self.store.epochs.get(key, 0) + 1
        return self.store.epochs[key]

    def open(self, asked: sequence_pb2.Open) -> tuple[Stored, bool]:
        """Open a session; return it and whether that has created it, or raise Refusal."""
        key = asked.session.id
        self.refuse_open(key)
        held = self.sessions.get(key)
        if held is not None and held.epoch != self.store.epochs[key]:
            held = None  # another server has it, or had it since
        record = self.store.records.get(key)
        exists = held is not None or record is not None
        if not exists and asked.mode == types_pb2.OPEN_MODE_OPEN:
            raise Refusal(Code.NOT_FOUND, "SESSION_NOT_FOUND")
        if exists and asked.mode == types_pb2.OPEN_MODE_CREATE:
            raise Refusal(Code.ALREADY_EXISTS, "SESSION_EXISTS", client_id=(held or record).client_id)  # type: ignore[union-attr]
        if self.store.is_away:
            if held is None or asked.epoch != held.epoch:
                self.store.check()
            return held, False  # type: ignore[return-value]  # as it is, without a raise
        if held is None and record is None:
            self.num_incarnations += 1
            held = Stored(incarnation=self.num_incarnations)
        session = self.sessions[key] = held or record.copy()  # type: ignore[union-attr]
        session.epoch = self._raised(key)
        session.client_id = asked.client_id
        if not exists:
            self.write(key)
        elif record is not None:
            record.epoch = session.epoch
        return session, not exists


@dataclass
class Connection:
    """One frame stream of a server."""

    server: FrameServer
    handles: dict[int, tuple[str, int]] = field(default_factory=dict)  # id, epoch

    def answer(self, raw: bytes) -> bytes:
        """Answer one frame."""
        request = sequence_pb2.StreamFramesRequest.FromString(raw)
        self.server.requests.append(request)
        response = sequence_pb2.StreamFramesResponse()
        for handle in request.closes:
            self.handles.pop(handle, None)
        for item in request.opens:
            self._part(response, item.handle, OPEN_PART, lambda item=item: self._open(item, response))
        self._values(request, response)
        if self.server.stores:
            self.server.checkpoint()
        for item in request.forecasts:
            self._part(response, item.handle, FORECAST_PART, lambda item=item: self._forecast(item, response))
        assert len(set(request.flushes)) == len(request.flushes)
        for handle in request.flushes:
            self._part(response, handle, FLUSH_PART, lambda handle=handle: self._flush(handle, response))
        return response.SerializeToString()

    @staticmethod
    def _part(response: Any, handle: int, part: Any, do: Callable[[], None]) -> None:
        try:
            do()
        except Refusal as refusal:
            response.errors.add(handle=handle, part=part, error=refusal.message)

    def _open(self, item: Any, response: Any) -> None:
        server, key = self.server, item.open.session.id
        session, created = server.open(item.open)
        self.handles[item.handle] = (key, session.epoch)
        opened = sequence_pb2.Opened(
            session=item.open.session,
            model=item.open.model,
            version=1,
            created=created,
            step=len(session.history),
            durable_step=server.durable_step(key),
            durability=server.durability,
            incarnation=session.incarnation,
            epoch=session.epoch,
            num_features=server.num_features,
            num_outputs=2,
            max_steps=server.max_steps,
        )
        response.opened.add(handle=item.handle, opened=opened)

    def session(self, handle: int) -> tuple[str, Stored]:
        """Return what a handle names, or raise Refusal."""
        if handle not in self.handles:
            raise Refusal(Code.FAILED_PRECONDITION, "UNKNOWN_HANDLE")
        key, epoch = self.handles[handle]
        session = self.server.sessions.get(key)
        if session is None:
            raise Refusal(Code.ABORTED, "SESSION_MOVED", cause="deleted")
        if session.epoch != epoch:
            raise Refusal(Code.ABORTED, "SESSION_MOVED", cause="opened", client_id=session.client_id)
        return key, session

    def _values(self, request: Any, response: Any) -> None:
        handles = list(request.handles)
        counts = list(request.counts) or [1] * len(handles)
        assert len(request.steps) == len(counts) == len(handles)
        assert len(request.values) == sum(counts) * self.server.num_features
        assert len(set(handles)) == len(handles), "HANDLE_TWICE"
        values = np.array(request.values, np.float32).reshape(-1, self.server.num_features)
        for handle, step, end, count in zip(handles, request.steps, np.cumsum(counts), counts, strict=True):
            self._part(
                response,
                handle,
                VALUES_PART,
                lambda row=(handle, step, values[end - count : end]): self._row(*row, response),
            )
        if all(count == 1 for count in response.counts):
            del response.counts[:]
        if not any(response.durable_steps):
            del response.durable_steps[:]

    def _row(self, handle: int, step: int, rows: np.ndarray, response: Any) -> None:
        key, session = self.session(handle)
        self.server.refuse_row(key)
        place, now, crc = (step, len(rows)), len(session.history), zlib.crc32(rows.tobytes())
        assert len(rows) <= self.server.max_steps
        if step == now:
            if np.isnan(rows).any():
                bad = int(np.flatnonzero(np.isnan(rows).any(axis=1))[0])
                raise Refusal(Code.INVALID_ARGUMENT, "VALUE_MISSING", row=bad)
            answers = []
            for row in rows.tolist():
                session.history.append(row)
                answers += model(session.history)
            session.last = (*place, crc, answers)
        elif session.last is not None and session.last[:2] == place:
            if session.last[2] != crc:
                raise Refusal(Code.FAILED_PRECONDITION, "VALUES_DIFFER", expected_step=now)
            response.replayed.append(handle)
        else:
            reason = "STEP_GAP" if step > now else "STEP_CONFLICT"
            raise Refusal(Code.FAILED_PRECONDITION, reason, expected_step=now)
        if self.server.durability == SYNC:
            self.server.write(key)
        answers = session.last[3]  # type: ignore[index]
        response.handles.append(handle)
        response.counts.append(len(answers) // 2)
        response.steps.append(len(session.history))
        response.values.extend(answers)
        response.durable_steps.append(self.server.durable_step(key))

    def _forecast(self, item: Any, response: Any) -> None:
        _, session = self.session(item.handle)
        if not session.history:
            raise Refusal(Code.FAILED_PRECONDITION, "SESSION_EMPTY")
        last = model(session.history)[0]
        values = [number for ahead in range(item.horizon) for number in (last, float(ahead))]
        response.forecasts.add(handle=item.handle, values=values, step=len(session.history))

    def _flush(self, handle: int, response: Any) -> None:
        key, _ = self.session(handle)
        self.server.write(key)
        response.flushed.append(handle)
        response.flushed_steps.append(self.server.durable_step(key))
