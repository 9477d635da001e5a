"""What an opening does with a session whose state belongs to another model file or version than it asks for.

Decides; who moves the session is the opener (from its record) and the exchange (from its row).
"""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, Protocol

from longshort_service import errors
from longshort_service.beginning import begin_again

if TYPE_CHECKING:
    from longshort_service.record import Origin, SessionRecord
    from longshort_service.repository import Model, Repository


class ModelChange(enum.Enum):
    """What the caller wants done."""

    REFUSE = enum.auto()
    MOVE = enum.auto()  # go on with the state, where the files are of one family
    RESET = enum.auto()  # begin anew


class Asked(Protocol):
    """What an opening asks for, as far as it matters here."""

    @property
    def session_id(self) -> str:
        """Which session."""

    @property
    def model(self) -> str:
        """On which model; "" on the one that it has."""

    @property
    def version(self) -> int:
        """On which version; 0 on the one that it has, or on the highest where it may change."""

    @property
    def model_change(self) -> ModelChange:
        """What is to be done with the state of another."""


def model_for(asked: Asked, origin: Origin, repository: Repository) -> Model:
    """Return the model on which a session goes on, or begins anew.

    Raises ModelMismatch or ModelChanged where that is another than it may go on with, and ModelNotFound.
    """
    if asked.model_change is ModelChange.REFUSE:
        check_model(asked, origin.model, origin.version)
        return repository.get(origin.model, origin.version)
    model = repository.get(asked.model or origin.model, asked.version)
    if asked.model_change is ModelChange.MOVE:
        _check_family(asked.session_id, origin, model.origin)
    return model


def check_model(asked: Asked, model: str, version: int) -> None:
    """Raise ModelMismatch where an opening names another model than a session runs on."""
    if (asked.model and asked.model != model) or (asked.version and asked.version != version):
        raise errors.ModelMismatch(
            f"session {asked.session_id} runs on {model}/{version}: a session stays on its model and version "
            "unless its opening asks for a model_change",
            model=model,
            version=version,
        )


def is_same_file(one: Origin, other: Origin) -> bool:
    """Whether two are of one version, and of one file: a version's file may have been replaced between two starts."""
    return (one.model, one.version, one.fingerprint) == (other.model, other.version, other.fingerprint)


def carried_over(asked: Asked, record: SessionRecord, model: Model) -> SessionRecord | None:
    """Return what a session is on the model that `model_for` has named; None where it begins anew."""
    if is_same_file(record.origin, model.origin):
        return record
    if asked.model_change is ModelChange.RESET:
        return None
    if asked.model_change is ModelChange.REFUSE:
        return record  # of another file under the same version: `check_fit` refuses it
    # What has not begun begins in the initial state of the model that it is on, with the constants that it was given.
    states = record.states if record.step else begin_again(model, record.states)
    return dataclasses.replace(record, origin=model.origin, states=tuple(states))


def _check_family(session_id: str, origin: Origin, other: Origin) -> None:
    is_one_family = origin.state_family and origin.state_family == other.state_family
    if origin.fingerprint != other.fingerprint and not is_one_family:
        raise errors.ModelChanged(
            f"session {session_id} cannot move from {origin.model}/{origin.version} to {other.model}/{other.version}: "
            "their signatures do not name one state_family with the same features, outputs and states; reset it",
            session_id=session_id,
        )
