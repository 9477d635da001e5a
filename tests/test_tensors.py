"""Tensor messages of longshort.v1: what is read of them, and that no shape in one harms the service."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from longshort.v1 import types_pb2
from longshort_service import errors
from longshort_service.handlers import tensors
from longshort_service.ports import Port, RowLayout

if TYPE_CHECKING:
    from collections.abc import Sequence


def tensor(shape: Sequence[int], data: bytes = b"") -> types_pb2.Tensor:
    return types_pb2.Tensor(name="a", dtype=types_pb2.DATA_TYPE_FLOAT32, shape=shape, data=data)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (1,) * 32])
def test_array_comes_back_as_it_went(shape: tuple[int, ...]):
    array = np.random.default_rng(0).random(shape, np.float32)
    back = tensors.by_name([tensors.message("a", array)])["a"]
    assert back.shape == shape
    assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        pytest.param([1] * 33, bytes(4), id="more axes than an array has"),
        pytest.param([2**31], b"", id="an axis beyond all measure"),
        pytest.param([-1], b"", id="less than nothing"),
        pytest.param([0, *[2**31 - 1] * 31], b"", id="nothing of the greatest size"),
        pytest.param([2], bytes(4), id="too few bytes"),
    ],
)
def test_shape_that_no_array_has_is_refused(shape: list[int], data: bytes):
    with pytest.raises(errors.WrongShape):
        tensors.by_name([tensor(shape, data)])


def test_shape_of_half_a_million_axes_costs_nothing_and_is_not_repeated():
    begun = time.perf_counter()
    for read in (
        lambda huge: tensors.by_name([huge]),
        lambda huge: tensors.array(huge, "float32", [None, 1]),
    ):
        with pytest.raises(errors.WrongShape) as caught:
            read(tensor([2**31 - 1] * 500_000))
        assert len(str(caught.value)) < 1000
    assert time.perf_counter() - begun < 5


def test_refusal_names_what_came_and_what_is_wanted():
    layout = RowLayout((Port("token", (1,), "int64"), Port("load", (1,))))
    token = tensors.message("token", np.zeros((2, 1), np.int64))
    with pytest.raises(errors.WrongShape, match=r"one tensor each of token, load; given were token$"):
        tensors.rows([token], layout, 8)
    with pytest.raises(errors.WrongShape, match="token is float32, it must be int64"):
        tensors.rows([tensors.message(name, np.zeros((2, 1), "f4")) for name in ("token", "load")], layout, 8)
