"""Arrays in and out of the client's messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from longshort import arrays, errors, named, results
from longshort.v1 import session_pb2, types_pb2


@pytest.mark.parametrize("value", [3, 3.5, np.float64(3), True, [3], np.array(3, np.uint8), (3.0,)])
def test_numbers_of_any_kind_are_a_row(value: Any):
    row = arrays.one_row(value, 1)
    assert (row.shape, row.dtype) == ((1, 1), np.float32)
    assert row[0, 0] == np.float32(np.asarray(value).item())


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([[1.0]], "WRONG_SHAPE"),
        ([1, 2], "WRONG_SHAPE"),
        ([], "WRONG_SHAPE"),
        ("3", "WRONG_TYPE"),
        (None, "WRONG_TYPE"),
        (1j, "WRONG_TYPE"),
        (np.datetime64("2026-01-01"), "WRONG_TYPE"),
    ],
)
def test_what_is_no_row_is_refused(value: Any, reason: str):
    with pytest.raises(errors.InvalidRequest) as caught:
        arrays.one_row(value, 1)
    assert caught.value.reason == reason


def test_rows_are_time_by_features_and_never_guessed():
    assert arrays.many_rows([1, 2, 3], 1).shape == (3, 1)
    assert arrays.many_rows(np.ones((4, 2)), 2).shape == (4, 2)
    assert arrays.many_rows(np.empty((0, 2)), 2).shape == (0, 2)
    for values, features in (([1, 2, 3], 3), (np.ones((2, 3)), 2), (np.ones((1, 1, 1)), 1), (1, 1)):
        with pytest.raises(errors.InvalidRequest):
            arrays.many_rows(values, features)


def test_rows_are_a_copy_that_the_caller_may_change_afterwards():
    values = np.ones(3, np.float32)
    rows = arrays.many_rows(values, 1)
    values[0] = 9
    assert rows[0, 0] == 1


def test_number_beyond_float32_becomes_infinity_for_the_server_to_refuse():
    assert np.isinf(arrays.one_row(1e300, 1)).all()


def test_tensors_keep_name_type_and_shape():
    message = types_pb2.Tensor(
        name="t",
        dtype=types_pb2.DATA_TYPE_INT64,
        shape=[2, 1],
        data=np.array([5, -6], "<i8").tobytes(),
    )
    array = named.from_messages([message])["t"]
    assert array.tolist() == [[5], [-6]]
    message.dtype = types_pb2.DATA_TYPE_UNSPECIFIED
    with pytest.raises(errors.ServerFault):
        named.from_messages([message])


def test_memory_of_a_model_with_states_of_other_names_names_them():
    session = results.SessionInfo.of(session_pb2.Session(model="wave"), {"h": np.zeros(4), "c": np.ones(4)})
    with pytest.raises(errors.FailedPrecondition, match="no states c0 and h0, but h, c: ") as caught:
        results.Memory.of(session)
    assert caught.value.reason == "NO_LSTM"
