"""Replicas over one store, as gRPC servers of this process: epochs, the step table and lag as designed, no model.

They own what a client has to live with: replicas that stop, drain, refuse, end streams, or store behind.
"""

from __future__ import annotations

import threading
from concurrent import futures
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from longshort.errors import Code
from longshort.status import DETAILS_KEY
from longshort.v1 import sequence_pb2, sequence_pb2_grpc, session_pb2, session_pb2_grpc, types_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

BEHIND, UNSTORED, SYNC = types_pb2.DURABILITY_BEHIND, types_pb2.DURABILITY_NONE, types_pb2.DURABILITY_SYNC


def answer_to(history: list[float]) -> float:
    """A model that remembers: the answer depends on every value, in order; exact in float32."""
    total = 0.0
    for place, value in enumerate(history, start=1):
        total = (total * 31 + place * value) % 65_521
    return total


def answers_to(values: list[float]) -> list[float]:
    return [answer_to(values[: count + 1]) for count in range(len(values))]


@dataclass
class Held:
    """A session as a server or the store holds it."""

    epoch: int = 0
    history: list[float] = field(default_factory=list)
    last: tuple[int, list[float], list[float]] | None = None  # first step, values, answer

    def copy(self) -> Held:
        return Held(self.epoch, list(self.history), self.last)


@dataclass
class Store:
    """What survives every replica."""

    records: dict[str, Held] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)


class Replica(sequence_pb2_grpc.SequenceServiceServicer, session_pb2_grpc.SessionServiceServicer):
    """One server. `lag` is how many steps it may be ahead of the store.

    `ends` holds what ends the next streams, at their next message of values: (code, reason). `refuses` is what every
    opening and call is refused with, while it is set. `flush_errors` are given to flushes before they succeed, and
    `value_errors` in place of answers to values that were applied. With `tells_later` a durable step comes alone, after
    the answer.
    """

    def __init__(
        self, store: Store, lag: int = 0, durability: Any = SYNC, address: str = "127.0.0.1:0"
    ) -> None:
        self.store, self.lag, self.durability = store, lag, durability
        self.memory: dict[str, Held] = {}
        self.ends: list[tuple[grpc.StatusCode, str]] = []
        self.refuses: tuple[grpc.StatusCode, str] | None = None
        self.flush_errors: list[str] = []
        self.value_errors: list[str] = []
        self.tells_later = False
        self.opens: list[sequence_pb2.Open] = []
        self.num_calls = 0
        host, _, port = address.rpartition(":")
        self._host, self._port = host, int(port)
        self.start()

    @property
    def address(self) -> str:
        return f"{self._host}:{self._port}"

    def start(self) -> None:
        self.memory = {}
        self._pool = futures.ThreadPoolExecutor(32)
        self._server = grpc.server(self._pool, options=[("grpc.so_reuseport", 0)])
        sequence_pb2_grpc.add_SequenceServiceServicer_to_server(self, self._server)
        session_pb2_grpc.add_SessionServiceServicer_to_server(self, self._server)
        self._port = self._server.add_insecure_port(self.address)
        self._server.start()

    def stop(self) -> None:
        """Cut every stream and forget what was not stored."""
        self._server.stop(0).wait()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def Stream(self, request_iterator: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        first = next(request_iterator).open
        self._check(context)
        yield sequence_pb2.StreamResponse(opened=self._open(first))
        key, epoch = first.session.id, self.memory[first.session.id].epoch
        for request in request_iterator:
            if self.ends and request.HasField("values"):
                end(context, *self.ends.pop(0), client_id=first.client_id)
            with self.store.lock:
                if self.memory[key].epoch != epoch or self.store.records[key].epoch != epoch:
                    end(context, grpc.StatusCode.ABORTED, "SESSION_MOVED", client_id=self.opens[-1].client_id)
                former_step = len(self.store.records[key].history)
                response = self._answer(key, request)
                durable_step = len(self.store.records[key].history)
            if self.tells_later and response.HasField("answer"):
                response.answer.durable_step = former_step
            yield response
            if self.tells_later:
                yield sequence_pb2.StreamResponse(durable=sequence_pb2.Durable(durable_step=durable_step))

    def GetSession(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._check(context)
        record = self.store.records[request.session.id]
        described = session_pb2.Session(key=request.session, step=len(record.history), epoch=record.epoch)
        memory = [
            types_pb2.Tensor(name=name, dtype=types_pb2.DATA_TYPE_FLOAT32, shape=[1], data=bytes(4))
            for name in ("c0", "h0")
        ]
        return session_pb2.GetSessionResponse(session=described, memory=memory)

    def Delete(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._check(context)
        del self.store.records[request.session.id]
        return session_pb2.DeleteResponse()

    def _check(self, context: Any) -> None:
        self.num_calls += 1
        if self.refuses is not None:
            end(context, *self.refuses)

    def _open(self, request: sequence_pb2.Open) -> sequence_pb2.Opened:
        key = request.session.id
        with self.store.lock:
            self.opens.append(request)
            created = key not in self.store.records
            record = self.store.records.setdefault(key, Held())
            held = self.memory.get(key)
            if held is None or held.epoch != record.epoch:
                held = self.memory[key] = record.copy()
            held.epoch = record.epoch = record.epoch + 1
            return sequence_pb2.Opened(
                session=request.session,
                model="metro",
                version=1,
                created=created,
                step=len(held.history),
                durable_step=len(record.history),
                durability=self.durability,
                incarnation=7,
                epoch=held.epoch,
                num_features=1,
                num_outputs=1,
                max_steps=64,
            )

    def _answer(self, key: str, request: Any) -> sequence_pb2.StreamResponse:
        held = self.memory[key]
        if request.HasField("flush"):
            if self.flush_errors:
                return in_band(Code.UNAVAILABLE, self.flush_errors.pop(0))
            self.store.records[key] = held.copy()
            return sequence_pb2.StreamResponse(flushed=sequence_pb2.Flushed(durable_step=len(held.history)))
        values, step = list(request.values.values), request.values.step
        replayed = held.last is not None and held.last[:2] == (step, values)
        if not replayed and step != len(held.history):
            return in_band(Code.FAILED_PRECONDITION, "STEP_CONFLICT")
        if not replayed:
            held.history += values
            rows = [answer_to(held.history[: step + count + 1]) for count in range(len(values))]
            held.last = step, values, [] if request.values.answers == types_pb2.ANSWERS_NONE else rows
        if len(held.history) - len(self.store.records[key].history) >= self.lag:
            self.store.records[key] = held.copy()
        if self.value_errors:
            return in_band(Code.UNAVAILABLE, self.value_errors.pop(0))
        answer = sequence_pb2.Answer(
            values=held.last[2],  # type: ignore[index]  # set above
            step=len(held.history),
            durable_step=len(self.store.records[key].history),
            replayed=replayed,
        )
        return sequence_pb2.StreamResponse(answer=answer)


def in_band(code: Code, reason: str) -> sequence_pb2.StreamResponse:
    error = types_pb2.Error(code=code, reason=reason, retry_delay={"nanos": 20_000_000})
    return sequence_pb2.StreamResponse(error=error)


def end(context: Any, code: grpc.StatusCode, reason: str, **metadata: str) -> None:
    """End a call as the service does, or as a proxy where there is no reason."""
    if reason:
        status = status_pb2.Status(code=code.value[0], message=reason)
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="longshort", metadata=metadata))
        status.details.append(detail)
        context.set_trailing_metadata([(DETAILS_KEY, status.SerializeToString())])
    context.abort(code, reason or "Received RST_STREAM with error code 2")
