"""What sessions need of a model version: rows while there are some, and records that fit it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from longshort_service import errors
from longshort_service.batching import Job
from longshort_service.record import Origin
from longshort_service.served_model import (
    allocate_row,
    allocate_scratch,
    check_fit,
    failure_of,
    not_finite,
    values_refused,
)
from tables import HIDDEN, TableModel, fill_row, move, new_session, rows_of, signature_of


def test_row_for_a_session_holds_the_initial_state_whoever_had_it_before():
    model = TableModel(num_rows=1)
    slot = allocate_row(model)
    fill_row(model, slot, 9)
    model.arena.free(slot)
    assert model.arena.read(allocate_row(model))[0].tolist() == [[0] * HIDDEN]


def test_rows_that_are_not_there_are_sessions_exhausted_and_none_is_taken():
    model = TableModel(num_rows=3)
    allocate_scratch(model, 2)
    with pytest.raises(errors.SessionsExhausted, match="all 3 state rows of toy") as caught:
        allocate_scratch(model, 2)
    assert caught.value.metadata == {"model": "toy"}
    assert model.arena.num_held == 2
    allocate_row(model)
    with pytest.raises(errors.SessionsExhausted, match="all 3 state rows of toy"):
        allocate_row(model)


def test_record_that_the_model_made_fits_it():
    model = TableModel()
    _, session = new_session(model)
    check_fit(session.record(), model)  # at step 0 there is nothing but the states
    move(session, rows_of(1, 2))
    check_fit(session.record(), model)


@pytest.mark.parametrize(
    "change",
    [
        {"origin": Origin("toy", 1, "another")},
        {"states": ()},
        {"states": (np.zeros((1, HIDDEN + 1), np.float32),)},
        {"last_values": np.zeros(2, np.float32)},
        {"last_values": None},
        {"last_output": np.zeros(2, np.float32)},
        {"last_message": None},
        {"last_answer": None},
        {"last_answer": np.zeros(1, np.float32)},
        {"last_answer": np.zeros((1, 2), np.float32)},
        {"step": 0, "last_message": None, "last_answer": None},
    ],
    ids=str,
)
def test_record_of_another_model_does_not_fit(change: dict[str, object]):
    model = TableModel(signature=signature_of())
    _, session = new_session(model)
    move(session, rows_of(1))
    with pytest.raises(errors.ModelChanged):
        check_fit(dataclasses.replace(session.record(), **change), model)  # type: ignore[arg-type]


def test_result_that_is_not_finite_names_the_model():
    assert not_finite("metro").metadata == {"model": "metro"}


def test_model_without_states_goes_on_from_a_record_without_any():
    signature = dataclasses.replace(signature_of(), states=())
    model = TableModel(signature=signature)
    _, session = new_session(model)
    move(session, rows_of(1, 2))
    record = session.record()
    assert (record.states, record.step) == ((), 2)
    check_fit(record, model)


def test_states_of_another_dtype_do_not_fit():
    model = TableModel()
    _, session = new_session(model)
    record = session.record()
    (state,) = record.states
    with pytest.raises(errors.ModelChanged):
        check_fit(dataclasses.replace(record, states=(state.astype(np.float64),)), model)


def test_row_that_was_not_applied_says_why():
    job = Job(rows_of(1, 2).reshape(2, 1, 1), TableModel().arena.allocate_many(2))
    assert isinstance(failure_of(job, 0, "toy"), errors.NonFiniteResult)
    job.refusals = {1: values_refused("toy", ValueError("beyond the table"))}
    assert isinstance(failure_of(job, 0, "toy"), errors.NonFiniteResult)
    refusal = failure_of(job, 1, "toy")
    assert isinstance(refusal, errors.ValuesRefused)
    assert "beyond the table" in refusal.message
    job.failure = errors.EngineDead("dead", model="toy")
    assert failure_of(job, 1, "toy") is job.failure
