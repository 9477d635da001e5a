"""Rows of words: whatever dtype and shape a step's tensors have, they come back bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from longshort_service.ports import DTYPES, NotRepresentable, Port, RowLayout

PORT = st.tuples(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, max_dims=3, max_side=4))


def layout_of(*kinds: tuple[str, tuple[int, ...]]) -> RowLayout:
    return RowLayout([Port(f"t{k}", shape, dtype) for k, (dtype, shape) in enumerate(kinds)])


@given(
    st.lists(PORT, min_size=1, max_size=4), hnp.array_shapes(min_dims=0, max_dims=2, max_side=3), st.data()
)
def test_tensors_come_back_bit_for_bit(
    kinds: list[tuple[str, tuple[int, ...]]], lead: tuple[int, ...], data: st.DataObject
):
    layout = layout_of(*kinds)
    tensors = []
    for dtype, shape in kinds:
        size = int(np.prod((*lead, *shape))) * np.dtype(dtype).itemsize
        raw = data.draw(st.binary(min_size=size, max_size=size))
        tensors.append(np.frombuffer(raw, dtype).reshape((*lead, *shape)))
    rows = layout.pack(tensors)
    assert (rows.dtype, rows.shape) == (np.float32, (*lead, layout.width))
    copied = rows.copy()  # what happens to rows on their way
    for tensor, back in zip(tensors, layout.unpack(copied), strict=True):
        assert back.dtype == tensor.dtype
        assert back.shape == tensor.shape
        assert back.tobytes() == tensor.tobytes()


def test_row_of_float32_is_its_numbers():
    layout = layout_of(("float32", (2,)), ("float32", ()), ("float32", (1, 2)))
    numbers = np.arange(10, dtype=np.float32).reshape(2, 5)
    assert layout.is_float32
    assert (layout.width, layout.num_elements) == (5, 5)
    assert layout.from_numbers(numbers) is numbers
    assert layout.to_numbers(numbers) is numbers
    assert layout.unpack(numbers)[2].tolist() == [[[3, 4]], [[8, 9]]]
    assert [layout.word_of(k) for k in range(5)] == [0, 1, 2, 3, 4]


def test_numbers_become_each_port_s_dtype_and_numbers_again():
    layout = layout_of(("int64", ()), ("float64", (2,)), ("float16", (3,)), ("float32", (1,)))
    assert (layout.width, layout.num_elements) == (2 + 4 + 2 + 1, 7)
    numbers = np.array([[5, 0.1, -2, 1, 2, 3, 7.5], [-6, 1e30, 4, 0, 0.5, 9, 1]], np.float32)
    rows = layout.from_numbers(numbers)
    assert [tensor.dtype.name for tensor in layout.unpack(rows)] == ["int64", "float64", "float16", "float32"]
    assert layout.to_numbers(rows).tolist() == numbers.tolist()
    assert layout.to_numbers(rows, np.float64).dtype == np.float64
    assert layout.word_of(6) == 8


@pytest.mark.parametrize("element", [0, 1, 4, 7])
def test_number_that_is_no_float32_has_no_word(element: int):
    layout = layout_of(("int64", ()), ("float64", (2,)), ("float16", (3,)), ("float32", (1,)))
    with pytest.raises(LookupError):
        layout.word_of(element)


@pytest.mark.parametrize(
    ("dtype", "number"),
    [
        ("int32", 0.5),
        ("int32", 2.0**31),
        ("int32", -(2.0**31) - 256),
        ("int64", 2.0**63),
        ("int64", np.nan),
        ("int64", np.inf),
        ("float16", 65520.0),
    ],
)
def test_number_that_the_dtype_cannot_hold_is_named(dtype: str, number: float):
    layout = layout_of(("float32", (2,)), (dtype, (2,)))
    with pytest.raises(NotRepresentable, match=dtype) as caught:
        layout.from_numbers(np.array([[1, 2, 3, 4], [1, 2, 3, number]], np.float32))
    assert caught.value.column == 3


@pytest.mark.parametrize(
    ("dtype", "number"),
    [
        ("int32", 2.0**31 - 128),
        ("int32", -(2.0**31)),
        ("float16", 0.1),
        ("float16", np.inf),
        ("float64", np.nan),
    ],
)
def test_number_that_the_dtype_holds_or_rounds_is_taken(dtype: str, number: float):
    layout = layout_of((dtype, (1,)))
    found = layout.to_numbers(layout.from_numbers(np.array([number], np.float32)))
    np.testing.assert_allclose(found, [number], rtol=1e-3)


@pytest.mark.parametrize(
    ("kinds", "tensors", "finite"),
    [
        ([("float32", (2,))], [[[1, 2], [np.nan, 1]]], [True, False]),
        # The bytes of -1 are those of no float32.
        ([("int32", (1,)), ("float64", ())], [[[-1], [-1]], [1e300, np.inf]], [True, False]),
        ([("float16", (1,)), ("int64", ())], [[[np.nan], [1]], [2, -1]], [False, True]),
    ],
)
def test_row_is_finite_where_all_of_its_numbers_are(
    kinds: list[tuple[str, tuple[int, ...]]], tensors: list[Any], finite: list[bool]
):
    layout = layout_of(*kinds)
    rows = layout.pack([np.array(one, dtype) for one, (dtype, _) in zip(tensors, kinds, strict=True)])
    assert layout.are_finite(rows).tolist() == finite


def test_rows_that_can_be_held_are_told_from_those_that_cannot():
    layout = RowLayout([Port("n", (1,), "int32"), Port("h", (), "float16"), Port("d", (1,), "float64")])
    good = [[1, 0.1, np.inf], [-(2**31), np.nan, 1e38], [-0.0, np.inf, np.nan]]
    bad = [[0.5, 1, 1], [np.nan, 1, 1], [2**31, 1, 1], [1, 1e5, 1]]
    numbers = np.array([good[0], bad[0], good[1], *bad[1:], good[2]], np.float32)
    can = layout.can_hold(numbers)
    assert can.tolist() == [True, False, True, False, False, False, True]
    for row, fits in zip(numbers, can.tolist(), strict=True):
        if fits:
            layout.from_numbers(row[None])
        else:
            with pytest.raises(NotRepresentable):
                layout.from_numbers(row[None])
