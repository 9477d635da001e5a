"""What sessions need of a model version: its signature, its rows, its columns; and rows for whoever needs some."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from longshort_service import errors
from longshort_service.arena import ArenaFull

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from longshort_service.arena import Arena, Slot, Slots
    from longshort_service.batching import Job
    from longshort_service.columns import SessionColumns
    from longshort_service.record import Origin, SessionRecord
    from longshort_service.signature import Signature


class ServedModel(Protocol):
    """What the table needs to know of a model version. Compared and hashed by identity."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def version(self) -> int:
        """Its version."""

    @property
    def origin(self) -> Origin:
        """What the numbers of its sessions come from."""

    @property
    def signature(self) -> Signature:
        """What its numbers mean."""

    @property
    def arena(self) -> Arena:
        """Its rows."""

    @property
    def columns(self) -> SessionColumns:
        """What is known of the sessions in them."""

    def piece_steps(self, num_rows: int) -> int:
        """Return the number of steps above which messages of so many sessions take more than one run."""


ModelT = TypeVar("ModelT", bound=ServedModel)


def check_fit(record: SessionRecord, model: ServedModel) -> None:
    """Raise ModelChanged where a record cannot be continued by a model: another file, or arrays that do not fit."""
    signature = model.signature
    label = f"{model.name}/{model.version}"
    if record.fingerprint != signature.fingerprint:
        raise errors.ModelChanged(
            f"session {record.session_id} was stored with another file of {label}: reset it",
            session_id=record.session_id,
        )
    num_outputs = signature.answer_row.width
    row, output = (None, None) if record.step == 0 else ((signature.value_row.width,), (num_outputs,))
    answer = record.last_answer
    fits = (
        _has_shapes_of(record, signature)
        and _shape(record.last_values) == row
        and _shape(record.last_output) == output
        and (record.last_message is None) == (answer is None)
        and (answer is None or (answer.ndim == 2 and answer.shape[1] == num_outputs))
    )
    if not fits:
        raise errors.ModelChanged(
            f"the stored state of session {record.session_id} does not fit {label}: reset it",
            session_id=record.session_id,
        )


def _has_shapes_of(record: SessionRecord, signature: Signature) -> bool:
    if not record.states:
        # It begins, in the initial state of whatever model; or there is nothing to remember.
        return record.step == 0 or not signature.states
    return [(state.shape, state.dtype.name) for state in record.states] == [
        (state.row_shape(), state.dtype) for state in signature.states
    ]


def _shape(array: NDArray[np.float32] | None) -> tuple[int, ...] | None:
    return None if array is None else array.shape


def allocate_row(model: ServedModel) -> Slot:
    """Return a row of the model in its initial state. Raises SessionsExhausted."""
    try:
        return model.arena.allocate()
    except ArenaFull as error:
        raise _exhausted(model) from error


def allocate_scratch(model: ServedModel, count: int) -> Slots:
    """Return rows to work on, whatever they hold. Raises SessionsExhausted."""
    try:
        return model.arena.allocate_many(count)
    except ArenaFull as error:
        raise _exhausted(model) from error


def _exhausted(model: ServedModel) -> errors.SessionsExhausted:
    return errors.SessionsExhausted(
        f"all {model.arena.num_rows} state rows of {model.name} are in use: wait and send again",
        model=model.name,
    )


def failure_of(job: Job, row: int, model_name: str) -> errors.ServiceError:
    """Return why a row of an ended job was not applied."""
    if job.failure is not None:
        return job.failure
    return (job.refusals or {}).get(row) or not_finite(model_name)


def values_refused(model_name: str, error: Exception) -> errors.ValuesRefused:
    """Return the error of a message at which the model's graph itself failed."""
    return errors.ValuesRefused(
        f"the model cannot run on these values; the session has not moved: {error}", model=model_name
    )


def not_finite(model_name: str) -> errors.NonFiniteResult:
    """Return the error of a message whose result is not finite."""
    return errors.NonFiniteResult(
        "the model's answer to these values is not finite; the session has not moved", model=model_name
    )
