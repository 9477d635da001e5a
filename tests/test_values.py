"""What a caller sent becomes rows that a model may see, or is refused with the right reason."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from longshort_service import errors
from longshort_service.ports import Port
from longshort_service.signature import Channel, MissingValue, Signature
from longshort_service.values import check_num_steps, check_values, checksum, shape_rows
from tables import signature_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

NAN, INF = float("nan"), float("inf")
REJECT = signature_of(features=2, missing=MissingValue.REJECT)
REPEAT = signature_of(features=2, missing=MissingValue.REPEAT_LAST)
PASS = signature_of(features=2, missing=MissingValue.PASS)


def flat(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def rows(*values: tuple[float, float]) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def test_flat_values_become_rows_of_the_models_width():
    assert shape_rows(flat(1, 2, 3, 4), REJECT, 10).tolist() == [[1, 2], [3, 4]]


def test_no_values_are_empty_values():
    with pytest.raises(errors.EmptyValues):
        shape_rows(flat(), REJECT, 10)


def test_half_a_row_is_a_wrong_shape_and_names_the_features():
    with pytest.raises(errors.WrongShape, match="x0, x1") as caught:
        shape_rows(flat(1, 2, 3), REJECT, 10)
    assert caught.value.metadata == {"num_values": "3", "num_features": "2"}


def test_message_of_the_limit_is_taken_and_one_more_step_is_too_many():
    assert len(shape_rows(flat(*range(6)), REJECT, 3)) == 3
    with pytest.raises(errors.TooManySteps) as caught:
        shape_rows(flat(*range(8)), REJECT, 3)
    assert caught.value.metadata == {"num_steps": "4", "max_steps": "3"}


def test_checksum_is_the_crc_of_the_little_endian_values_as_sent():
    sent = rows((1, NAN), (2, 3))
    assert checksum(sent) == zlib.crc32(sent.astype("<f4").tobytes())
    assert checksum(sent.astype(">f4")) == checksum(sent)


def test_finite_rows_pass_uncopied():
    sent = rows((1, 2))
    assert check_values(sent, REJECT, None) is sent


@pytest.mark.parametrize("signature", [REJECT, REPEAT, PASS], ids=lambda s: s.missing.value)
@pytest.mark.parametrize("value", [INF, -INF])
def test_infinity_is_refused_whatever_missing_values_mean(signature: object, value: float):
    with pytest.raises(errors.ValueNotFinite, match="row 1, x0") as caught:
        check_values(rows((NAN, 1), (value, 1)), signature, flat(1, 1))  # type: ignore[arg-type]
    assert caught.value.metadata == {"row": "1"}


def test_nan_is_refused_where_the_signature_says_reject():
    with pytest.raises(errors.ValueMissing, match="row 0, x1"):
        check_values(rows((1, NAN)), REJECT, flat(1, 1))


def test_nan_goes_to_the_model_where_the_signature_says_pass():
    sent = rows((1, NAN))
    assert check_values(sent, PASS, None) is sent


@pytest.mark.parametrize("first", [(NAN, 1), (1, NAN)])
def test_first_value_of_a_session_cannot_be_missing(first: tuple[float, float]):
    with pytest.raises(errors.ValueMissing, match="first value"):
        check_values(rows(first, (1, 2)), REPEAT, None)


def test_missing_value_repeats_the_column_s_last_of_the_message():
    sent = rows((1, 2), (NAN, 3), (NAN, NAN), (4, NAN))
    assert check_values(sent, REPEAT, None).tolist() == [[1, 2], [1, 3], [1, 3], [4, 3]]
    assert np.isnan(sent).sum() == 4  # what was sent is left alone: it is the message's identity


def test_missing_value_repeats_the_session_s_last_at_a_message_s_start():
    sent = rows((NAN, NAN), (NAN, 3))
    assert check_values(sent, REPEAT, flat(8, 9)).tolist() == [[8, 9], [8, 3]]


@given(
    st.lists(st.tuples(*[st.one_of(st.just(NAN), st.integers(-99, 99).map(float))] * 2), min_size=1),
    st.data(),
)
def test_filling_a_sequence_is_the_same_however_it_is_cut(
    cells: list[tuple[float, float]], data: st.DataObject
):
    whole = rows((0, 0), *cells)
    expected = check_values(whole, REPEAT, None)
    cut = data.draw(st.integers(1, len(whole)))
    head = check_values(whole[:cut], REPEAT, None)
    tail = check_values(whole[cut:], REPEAT, head[-1]) if cut < len(whole) else whole[:0]
    assert np.array_equal(np.vstack([head, tail]), expected)
    assert np.isfinite(expected).all()


WHOLE = Signature(
    "whole",
    (Channel("n"), Channel("x")),
    (Channel("y"),),
    (),
    inputs=(Port("count", (), "int64"), Port("level", (1,), "float64")),
)


def test_numbers_become_rows_of_the_model_s_dtypes():
    made = shape_rows(flat(3, 0.5, -4, 1.5), WHOLE, 10)
    count, level = WHOLE.value_row.unpack(made)
    assert (count.tolist(), level.tolist()) == ([3, -4], [[0.5], [1.5]])
    assert check_values(made, WHOLE, None) is made


def test_number_that_the_dtype_cannot_hold_is_a_wrong_shape_and_names_its_feature():
    with pytest.raises(errors.WrongShape, match=r"n: 0\.5 is no int64"):
        shape_rows(flat(1, 2, 0.5, 2), WHOLE, 10)


@pytest.mark.parametrize(
    ("level", "error"), [(NAN, errors.ValueMissing), (INF, errors.ValueNotFinite), (1e300, None)]
)
def test_missing_and_infinite_numbers_of_other_dtypes_are_seen(level: float, error: type[Exception] | None):
    row = WHOLE.value_row.pack([np.array([-1]), np.array([[level]])])  # the bytes of -1 are no float32's
    if error is None:
        assert check_values(row, WHOLE, None) is row
    else:
        with pytest.raises(error, match="row 0, x"):
            check_values(row, WHOLE, None)


@pytest.mark.parametrize(
    ("num_steps", "error"), [(0, errors.EmptyValues), (4, errors.TooManySteps), (3, None)]
)
def test_steps_are_counted(num_steps: int, error: type[Exception] | None):
    if error is None:
        check_num_steps(num_steps, 3)
    else:
        with pytest.raises(error):
            check_num_steps(num_steps, 3)
