"""The edge of every unary call: parse, handle, serialise, and turn whatever was raised into a status."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import grpc
import numpy as np

from longshort_service import errors
from longshort_service.forecaster import Ahead
from longshort_service.handlers import codec, status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from google.protobuf.message import Message
    from numpy.typing import NDArray

    from longshort_service.keeper import Keeper
    from longshort_service.management import Management
    from longshort_service.record import SessionRecord
    from longshort_service.repository import Model, Repository
    from longshort_service.stepper import Stepper

logger = logging.getLogger(__name__)

RequestT = TypeVar("RequestT", bound="Message")


class EdgeObserver(Protocol):
    """Who is told what callers were told."""

    def error(self, reason: str) -> None:
        """Note that a caller was given an error."""

    def conflict(self, reason: str) -> None:
        """Note that a message was refused by its step number."""

    def step_total(self, model: str, seconds: float, num_messages: int = 1) -> None:
        """Note that messages of values were read, applied and answered in so many seconds each."""


class Forecast(Protocol):
    """What every message that asks for a forecast has."""

    horizon: int

    @property
    def known(self) -> Sequence[float]:
        """What will be known, flat."""


@dataclass(slots=True)
class Edge:
    """What every handler needs: the core's parts, the limits, and the count of calls taken."""

    keeper: Keeper
    stepper: Stepper
    management: Management
    repository: Repository
    observer: EdgeObserver
    max_steps: int
    max_message_bytes: int
    max_streams: int
    max_batch_rows: int
    is_unary_sync: bool = (
        True  # a unary step is answered when it is stored, whatever its session's durability
    )
    max_stream_age_s: float = 0.0  # 0: streams never end for their age
    num_calls: int = 0  # calls being handled now, streams included
    is_draining: bool = False
    _quiet: asyncio.Event = field(default_factory=asyncio.Event)

    def call_began(self) -> None:
        """Count a call until `call_ended`."""
        self.num_calls += 1
        self._quiet.clear()

    def call_ended(self) -> None:
        """Note that a call is handled."""
        self.num_calls -= 1
        if not self.num_calls:
            self._quiet.set()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Count a call while it is handled."""
        self.call_began()
        try:
            yield
        finally:
            self.call_ended()

    async def until_quiet(self) -> None:
        """Wait until no call is being handled."""
        if self.num_calls:
            await self._quiet.wait()

    def refuse_while_draining(self) -> None:
        """Raise Draining where the server takes nothing new."""
        if self.is_draining:
            raise errors.Draining("the server is shutting down: connect again")

    def count(self, error: errors.ServiceError) -> None:
        """Count an error that a caller is given; log it where the fault is ours."""
        self.observer.error(error.reason)
        if isinstance(error, errors.StepRefused):
            self.observer.conflict(error.reason)
        if isinstance(error, errors.OurFault):
            logger.error("a bug of ours", exc_info=error)

    async def forecast(self, record: SessionRecord, model: Model, wanted: Forecast) -> NDArray[np.float32]:
        """Return predictions `[horizon, outputs]` as numbers. Raises what Stepper.forecast raises."""
        rows = await self.stepper.forecast(_ahead(record, model, wanted), self.max_steps)
        return model.signature.answer_row.to_numbers(rows)

    async def forecast_many(
        self, wanted: Sequence[tuple[SessionRecord, Model, Forecast]]
    ) -> list[NDArray[np.float32] | errors.ServiceError]:
        """Return for each predictions `[horizon, outputs]` as numbers, or why there are none."""
        outcomes = await self.stepper.forecast_many([_ahead(*each) for each in wanted], self.max_steps)
        return [
            outcome
            if isinstance(outcome, errors.ServiceError)
            else model.signature.answer_row.to_numbers(outcome)
            for outcome, (_, model, _) in zip(outcomes, wanted, strict=True)
        ]

    def unary(
        self,
        request_type: type[RequestT],
        handle: Callable[[RequestT], Awaitable[Message]],
        *,
        while_draining: bool = False,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the gRPC handler of a unary call; `while_draining`: of one that is still taken then."""

        async def call(raw: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            with self.call():
                try:
                    if not while_draining:
                        self.refuse_while_draining()
                    request = codec.parse(request_type, raw, self.max_message_bytes)
                    return (await handle(request)).SerializeToString()
                except errors.ServiceError as error:
                    self.count(error)
                    refusal = error
                except Exception as error:  # noqa: BLE001  the edge: a bug becomes INTERNAL, its traceback is logged
                    refusal = self.wrap(error)
                await status.abort(context, refusal)
                raise AssertionError("abort raises")

        return grpc.unary_unary_rpc_method_handler(call)

    def wrap(self, error: Exception) -> errors.InternalError:
        """Return an unexpected exception as an error of ours, counted and logged."""
        internal = errors.InternalError("the server has failed to handle this; its log says why")
        internal.__cause__ = error
        self.count(internal)
        return internal


def _ahead(record: SessionRecord, model: Model, wanted: Forecast) -> Ahead:
    return Ahead(record, model, wanted.horizon, np.array(wanted.known, np.float32))
