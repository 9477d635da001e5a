"""Values and answers by name: one array for each input or output of a model, of any dtype and shape.

Inside the client the steps of a message are one array, whatever they hold: of named arrays a structured one, a field
an array. It is cut, joined, compared and counted as an array of numbers is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from longshort.arrays import answer_rows as numbers
from longshort.errors import InvalidRequest, ServerFault
from longshort.v1 import types_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from longshort.v1 import sequence_pb2

_DTYPES: Final[dict[types_pb2.DataType, str]] = {
    types_pb2.DATA_TYPE_FLOAT32: "<f4",
    types_pb2.DATA_TYPE_FLOAT64: "<f8",
    types_pb2.DATA_TYPE_FLOAT16: "<f2",
    types_pb2.DATA_TYPE_INT32: "<i4",
    types_pb2.DATA_TYPE_INT64: "<i8",
}
_NUMBERS: Final = {dtype: number for number, dtype in _DTYPES.items()}

Named = Mapping[str, "ArrayLike"]


def one_step(values: Named) -> NDArray[Any]:
    """Return one step's arrays [*shape] as [1] of fields, or raise InvalidRequest."""
    return many_steps({name: _typed(name, array)[None] for name, array in _named(values)})


def many_steps(values: Named) -> NDArray[Any]:
    """Return arrays [time, *shape] as [time] of fields, or raise InvalidRequest."""
    arrays = {name: _typed(name, array) for name, array in _named(values)}
    if not all(array.ndim for array in arrays.values()):
        raise InvalidRequest(
            "expected arrays of values, got a single one: use step() for it", reason="WRONG_SHAPE"
        )
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InvalidRequest(f"the arrays are not of equally many steps: {told}", reason="WRONG_SHAPE")
    return _joined(arrays)


def messages(arrays: Named) -> list[types_pb2.Tensor]:
    """Return arrays as tensors, as they are, of none none; or raise InvalidRequest."""
    return [_message(name, _typed(name, array)) for name, array in _named(arrays)] if arrays else []


def row_messages(row: np.void) -> list[types_pb2.Tensor]:
    """Return one row's fields as tensors [*shape]."""
    return [_message(name, np.ascontiguousarray(row[name])) for name in row.dtype.names or ()]


def step_messages(rows: NDArray[Any]) -> list[types_pb2.Tensor]:
    """Return the steps of a message, [time] of fields, as tensors [time, *shape]."""
    return [_message(name, rows[name]) for name in rows.dtype.names or ()]


def from_messages(tensors: Iterable[types_pb2.Tensor]) -> dict[str, NDArray[Any]]:
    """Return tensors as arrays of their own memory by name."""
    arrays: dict[str, NDArray[Any]] = {}
    for message in tensors:
        if message.dtype not in _DTYPES:
            raise ServerFault(f"tensor {message.name} has the unknown type {message.dtype}")
        flat = np.frombuffer(message.data, _DTYPES[message.dtype])
        arrays[message.name] = flat.reshape(tuple(message.shape)).copy()
    return arrays


def answer_steps(tensors: Sequence[types_pb2.Tensor]) -> NDArray[Any]:
    """Return the tensors [rows, *shape] of an answer as [rows] of fields."""
    return _joined(from_messages(tensors))


def answer_rows(answer: sequence_pb2.Answer, num_outputs: int) -> NDArray[Any]:
    """Return an answer as [rows, outputs] f32, or as [rows] of fields where its values were sent by name."""
    return answer_steps(answer.tensors) if answer.tensors else numbers(answer.values, num_outputs)


def by_name(rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return [rows] of fields as arrays [rows, *shape]."""
    return {name: np.ascontiguousarray(rows[name]) for name in rows.dtype.names or ()}


def _named(values: Named) -> Iterable[tuple[str, ArrayLike]]:
    if not values:
        raise InvalidRequest("values by name need at least one name", reason="EMPTY_VALUES")
    for name, array in values.items():
        if not isinstance(name, str) or not name:
            raise InvalidRequest(f"the name of an array is text, not {name!r}", reason="INVALID_OPTION")
        yield name, array


def _typed(name: str, values: ArrayLike) -> NDArray[Any]:
    """Return an array of a dtype that can be sent. Python's own numbers become what NumPy makes of them."""
    try:
        array = np.asarray(values)
    except ValueError as error:  # a ragged list
        raise InvalidRequest(f"{name}: {error}", reason="WRONG_SHAPE") from None
    if array.dtype.newbyteorder("<").str not in _NUMBERS:
        allowed = ", ".join(np.dtype(dtype).name for dtype in _NUMBERS)
        raise InvalidRequest(f"{name} is {array.dtype}: it must be one of {allowed}", reason="WRONG_TYPE")
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _joined(arrays: dict[str, NDArray[Any]]) -> NDArray[Any]:
    fields = [(name, array.dtype, array.shape[1:]) for name, array in arrays.items()]
    rows = np.zeros(len(next(iter(arrays.values()))), np.dtype(fields))
    for name, array in arrays.items():
        rows[name] = array
    return rows


def _message(name: str, array: NDArray[Any]) -> types_pb2.Tensor:
    return types_pb2.Tensor(
        name=name, dtype=_NUMBERS[array.dtype.newbyteorder("<").str], shape=array.shape, data=array.tobytes()
    )
