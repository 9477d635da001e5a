"""What the client hands out, as values: sessions, models, memories."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from longshort import errors, named
from longshort.v1 import model_pb2, session_pb2, types_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

Missing = Literal["reject", "repeat_last", "pass", "unknown"]
Location = Literal["live", "stored", "unknown"]

_MISSING: dict[int, Missing] = {
    model_pb2.MISSING_VALUE_REJECT: "reject",
    model_pb2.MISSING_VALUE_REPEAT_LAST: "repeat_last",
    model_pb2.MISSING_VALUE_PASS: "pass",
}
_LOCATIONS: dict[int, Location] = {
    session_pb2.SESSION_LOCATION_LIVE: "live",
    session_pb2.SESSION_LOCATION_STORED: "stored",
}
_DURABILITIES = {
    types_pb2.DURABILITY_NONE: "none",
    types_pb2.DURABILITY_BEHIND: "behind",
    types_pb2.DURABILITY_SYNC: "sync",
}


class Memory(NamedTuple):
    """The two memories of a session whose model has the states c0 and h0, as `longshort train` makes them."""

    long_term: NDArray[np.generic]  # cell state [layers, hidden] f32
    short_term: NDArray[np.generic]  # hidden state [layers, hidden] f32

    @classmethod
    def of(cls, session: SessionInfo) -> Memory:
        """Return the memories of a described session; FailedPrecondition where its model has other states."""
        try:
            return cls(session.memory["c0"], session.memory["h0"])
        except KeyError:
            names = ", ".join(session.memory) or "none"
            raise errors.FailedPrecondition(
                f"model {session.model} has no states c0 and h0, but {names}: get_session(id, include_memory=True) "
                "returns them",
                reason="NO_LSTM",
            ) from None


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One session as its server sees it."""

    id: str
    model: str
    version: int
    step: int
    durable_step: int
    incarnation: int
    epoch: int
    location: Location
    idle_s: float
    streaming: bool
    fingerprint: str
    memory: Mapping[str, NDArray[np.generic]] = field(default_factory=dict, compare=False)  # by state input

    @classmethod
    def of(
        cls, message: session_pb2.Session, memory: Mapping[str, NDArray[np.generic]] | None = None
    ) -> SessionInfo:
        """Return it from its message."""
        return cls(
            id=message.key.id,
            model=message.model,
            version=message.version,
            step=message.step,
            durable_step=message.durable_step,
            incarnation=message.incarnation,
            epoch=message.epoch,
            location=_LOCATIONS.get(message.location, "unknown"),
            idle_s=message.idle.seconds + message.idle.nanos / 1e9,
            streaming=message.streaming,
            fingerprint=message.fingerprint,
            memory=memory or {},
        )


@dataclass(frozen=True, slots=True)
class Channel:
    """One column of a row of values or of an answer."""

    name: str
    unit: str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model version and what it promises."""

    name: str
    version: int
    description: str
    features: tuple[Channel, ...]
    outputs: tuple[Channel, ...]
    missing: Missing
    max_steps: int
    forecasts: bool
    explains: bool
    state_bytes: int
    fingerprint: str
    scores: Mapping[str, float]
    trained_on: str
    provider: str
    signature: str
    serving: bool
    known_features: tuple[str, ...] = ()

    @classmethod
    def of(cls, message: model_pb2.Model) -> ModelInfo:
        """Return it from its message."""
        return cls(
            name=message.name,
            version=message.version,
            description=message.description,
            features=tuple(Channel(channel.name, channel.unit) for channel in message.features),
            outputs=tuple(Channel(channel.name, channel.unit) for channel in message.outputs),
            missing=_MISSING.get(message.missing, "unknown"),
            max_steps=message.max_steps,
            forecasts=message.forecasts,
            explains=message.explains,
            state_bytes=message.state_bytes,
            fingerprint=message.fingerprint,
            scores=dict(message.scores),
            trained_on=message.trained_on,
            provider=message.provider,
            signature=message.signature,
            serving=message.serving,
            known_features=tuple(message.known_features),
        )


def described(response: session_pb2.GetSessionResponse) -> SessionInfo:
    """Return a session with its memories, where the response has them."""
    return SessionInfo.of(response.session, named.from_messages(response.memory))


def durability_name(durability: types_pb2.Durability) -> str:
    """Return the name that callers know a durability by."""
    return _DURABILITIES.get(durability, "unknown")
