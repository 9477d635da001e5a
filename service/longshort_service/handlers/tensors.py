"""Tensor messages of longshort.v1 to arrays and back. Pure functions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from longshort.v1 import types_pb2

from longshort_service import errors
from longshort_service.values import check_num_steps

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from longshort_service.ports import RowLayout

DTYPES: Final[dict[types_pb2.DataType, str]] = {
    types_pb2.DATA_TYPE_FLOAT16: "float16",
    types_pb2.DATA_TYPE_FLOAT32: "float32",
    types_pb2.DATA_TYPE_FLOAT64: "float64",
    types_pb2.DATA_TYPE_INT32: "int32",
    types_pb2.DATA_TYPE_INT64: "int64",
}
_NUMBERS: Final = {dtype: number for number, dtype in DTYPES.items()}
# What is said of a shape before anything is computed from it: a message has room for a million axes.
_MAX_AXES: Final = 32
_MAX_SIZE: Final = 2**31 - 1


def message(name: str, array: NDArray[Any]) -> types_pb2.Tensor:
    """Return an array of one of the five dtypes as a tensor."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return types_pb2.Tensor(
        name=name, dtype=_NUMBERS[array.dtype.name], shape=array.shape, data=little.tobytes()
    )


def array(tensor: types_pb2.Tensor, dtype: str, shape: Sequence[int | None]) -> NDArray[Any]:
    """Return a tensor's array, a copy. Raises WrongShape unless it has that dtype and shape; None is any size."""
    sizes, wanted = _sizes(tensor), ["time" if size is None else size for size in shape]
    if DTYPES.get(tensor.dtype) != dtype:
        raise errors.WrongShape(
            f"{tensor.name} is {DTYPES.get(tensor.dtype, 'of no known dtype')}, it must be {dtype}"
        )
    fits = len(sizes) == len(shape) and all(
        want in (None, have) for have, want in zip(sizes, shape, strict=True)
    )
    if not fits:
        raise errors.WrongShape(f"{tensor.name} is {wanted}, not {sizes}".replace("'", ""))
    written = np.dtype(dtype).newbyteorder("<")
    if len(tensor.data) != written.itemsize * math.prod(sizes):
        raise errors.WrongShape(
            f"{tensor.name}: {len(tensor.data)} bytes do not make {sizes} of {written.itemsize} bytes each"
        )
    try:
        return np.frombuffer(tensor.data, written).reshape(sizes).astype(dtype)
    except ValueError as error:  # of no element, and yet too large
        raise errors.WrongShape(f"{tensor.name}: {sizes} is no shape: {error}") from None


def _sizes(tensor: types_pb2.Tensor) -> list[int]:
    sizes = list(tensor.shape[: _MAX_AXES + 1])
    if len(sizes) > _MAX_AXES or any(not 0 <= size <= _MAX_SIZE for size in sizes):
        raise errors.WrongShape(
            f"{tensor.name}: {sizes[:_MAX_AXES]} is no shape: it has at most {_MAX_AXES} axes of 0 to {_MAX_SIZE}"
        )
    return sizes


def by_name(tensors: Iterable[types_pb2.Tensor]) -> dict[str, NDArray[Any]]:
    """Return tensors of any dtype and shape by name. Raises WrongShape for one that is damaged or there twice."""
    arrays: dict[str, NDArray[Any]] = {}
    for tensor in tensors:
        if tensor.name in arrays:
            raise errors.WrongShape(f"the tensor {tensor.name} is there twice")
        dtype = DTYPES.get(tensor.dtype)
        if dtype is None:
            raise errors.WrongShape(f"{tensor.name}: dtype {tensor.dtype} means nothing")
        arrays[tensor.name] = array(tensor, dtype, _sizes(tensor))
    return arrays


def rows(tensors: Sequence[types_pb2.Tensor], layout: RowLayout, max_steps: int) -> NDArray[np.float32]:
    """Return one tensor for each port, `[time, *shape]`, as rows `[time, width]`.

    Raises WrongShape, EmptyValues or TooManySteps.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    names = [port.name for port in layout.ports]
    if sorted(by_name) != sorted(names) or len(by_name) != len(tensors):
        wanted = "one tensor, named" if len(names) == 1 else "one tensor each of"
        given = ", ".join(sorted(tensor.name for tensor in tensors[: 2 * len(names)]))
        raise errors.WrongShape(f"the model takes {wanted} {', '.join(names)}; given were {given}")
    arrays = [array(by_name[port.name], port.dtype, [None, *port.shape]) for port in layout.ports]
    num_steps = len(arrays[0])
    for port, one in zip(layout.ports, arrays, strict=True):
        if len(one) != num_steps:
            raise errors.WrongShape(f"{port.name} has {len(one)} steps, {names[0]} has {num_steps}")
    check_num_steps(num_steps, max_steps)
    return layout.pack(arrays)


def messages(rows: NDArray[np.float32], layout: RowLayout) -> Iterable[types_pb2.Tensor]:
    """Return rows `[time, width]` as one tensor for each port, `[time, *shape]`."""
    return [message(port.name, one) for port, one in zip(layout.ports, layout.unpack(rows), strict=True)]
