"""Tensors of the Open Inference Protocol to rows and back. Pure functions.

A request has the tensors that the model's graph has, at the axes that it has them. Rows are what everything behind the
handlers moves: `[rows, time, width]`, one row of a batch each a row of these.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from longshort_service import errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from longshort_service.inference.inference_pb2 import ModelInferRequest, ModelInferResponse
    from longshort_service.ports import Port
    from longshort_service.signature import Signature

NAMES: Final = {
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "int32": "INT32",
    "int64": "INT64",
}
_DTYPES: Final = {name: np.dtype(dtype).newbyteorder("<") for dtype, name in NAMES.items()}
# Where the elements are that do not come as bytes; there is no field for float16.
_CONTENTS: Final = {
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
}

_MAX_AXES: Final = 32
_MAX_SIZE: Final = 2**31 - 1  # of an axis


def graph_shape(port: Port) -> list[int]:
    """Return the shape of a port's tensor in the graph: -1 where it has rows, or time."""
    shape = list(port.shape)
    for axis in sorted(axis for axis in (port.batch_axis, port.time_axis) if axis is not None):
        shape.insert(axis, -1)
    return shape


def inputs(request: ModelInferRequest) -> dict[str, NDArray[Any]]:
    """Return a request's tensors by name, in their datatypes. Raises WrongShape or NotOffered."""
    raws: Sequence[bytes | None] = request.raw_input_contents or [None] * len(request.inputs)
    if len(raws) != len(request.inputs):
        raise errors.WrongShape(
            f"there are {len(raws)} raw contents for {len(request.inputs)} inputs: send one for each, or none"
        )
    arrays: dict[str, NDArray[Any]] = {}
    for tensor, raw in zip(request.inputs, raws, strict=True):
        refuse_shared_memory(tensor.name, tensor.parameters)
        if tensor.name in arrays:
            raise errors.WrongShape(f"the input {tensor.name} is there twice")
        if raw is not None and tensor.contents.ByteSize():
            raise errors.WrongShape(f"{tensor.name} has raw and typed contents: send one of them")
        arrays[tensor.name] = _array(tensor, raw)
    return arrays


def refuse_shared_memory(name: str, parameters: Iterable[str]) -> None:
    """Raise NotOffered for a tensor that lies in shared memory."""
    if "shared_memory_region" in parameters:
        raise errors.NotOffered(
            f"{name}: longshort takes and gives tensors in messages, not in shared memory"
        )


def _array(tensor: ModelInferRequest.InferInputTensor, raw: bytes | None) -> NDArray[Any]:
    dtype, shape = _DTYPES.get(tensor.datatype), list(tensor.shape[: _MAX_AXES + 1])
    if dtype is None:
        raise errors.WrongShape(
            f"{tensor.name}: datatype {tensor.datatype!r} is none of {', '.join(_DTYPES)}"
        )
    # At once: the product of a message full of sizes takes minutes. Nothing that is there has greater ones.
    if len(shape) > _MAX_AXES or any(not 0 <= size <= _MAX_SIZE for size in shape):
        raise errors.WrongShape(
            f"{tensor.name}: {shape[:_MAX_AXES]} is no shape: it has at most {_MAX_AXES} axes of 0 to {_MAX_SIZE}"
        )
    num_elements = math.prod(shape)
    if raw is None:
        field = _CONTENTS.get(tensor.datatype)
        if field is None:
            raise errors.WrongShape(f"{tensor.name}: {tensor.datatype} travels in raw_input_contents only")
        found = getattr(tensor.contents, field)
        if len(found) != num_elements:
            raise errors.WrongShape(f"{tensor.name}: {len(found)} {field} do not make {shape}")
        array = np.array(found, dtype)
    elif len(raw) != num_elements * dtype.itemsize:
        raise errors.WrongShape(
            f"{tensor.name}: {len(raw)} bytes do not make {shape} of {dtype.itemsize} bytes each"
        )
    else:
        array = np.frombuffer(raw, dtype)
    try:
        return array.reshape(shape).astype(dtype.newbyteorder("="))
    except ValueError as error:  # great axes beside one of 0
        raise errors.WrongShape(f"{tensor.name}: {shape} is no shape: {error}") from error


def rows(arrays: dict[str, NDArray[Any]], signature: Signature) -> NDArray[np.float32]:
    """Return the data inputs of a model as rows `[rows, time, width]`; they are taken out of `arrays`.

    What is left there is for the states that a sequence begins with. Raises WrongShape.
    """
    missing = [port.name for port in signature.inputs if port.name not in arrays]
    if missing:
        raise errors.WrongShape(f"{signature.name} takes {', '.join(missing)}, which the request has not")
    parts = [_with_rows_and_time(port, arrays.pop(port.name)) for port in signature.inputs]
    first = signature.inputs[0]
    for port, part in zip(signature.inputs, parts, strict=True):
        if part.shape[:2] != parts[0].shape[:2]:
            raise errors.WrongShape(
                f"{port.name} has {part.shape[0]} rows of {part.shape[1]} steps, "
                f"{first.name} has {parts[0].shape[0]} of {parts[0].shape[1]}"
            )
    return signature.value_row.pack(parts)


def _with_rows_and_time(port: Port, array: NDArray[Any]) -> NDArray[Any]:
    """Return an input `[rows, time, *shape]`."""
    if array.dtype.name != port.dtype:
        raise errors.WrongShape(f"{port.name} is {NAMES[port.dtype]}, not {NAMES[array.dtype.name]}")
    wanted = graph_shape(port)
    fits = array.ndim == len(wanted) and all(
        want in (-1, have) for want, have in zip(wanted, array.shape, strict=True)
    )
    if not fits:
        raise errors.WrongShape(f"{port.name} is {wanted}, not {list(array.shape)}")
    present = [axis for axis in (port.batch_axis, port.time_axis) if axis is not None]
    moved = np.moveaxis(array, present, range(len(present)))
    if port.time_axis is None:
        moved = np.expand_dims(moved, 0 if port.batch_axis is None else 1)
    return moved if port.batch_axis is not None else np.expand_dims(moved, 0)


def initial_states(arrays: dict[str, NDArray[Any]], signature: Signature) -> dict[str, NDArray[Any]]:
    """Return what a request gives beside the data, for its sequence to begin in, without an axis of rows.

    Such a tensor may have that axis, with one row. What belongs to no state stays as it is, to be refused by name.
    """
    axes = {state.input: (state.batch_axis, len(state.shape)) for state in signature.states}
    given = {}
    for name, array in arrays.items():
        axis, rank = axes.get(name, (0, -1))
        has_row = array.ndim == rank and array.shape[axis] == 1
        given[name] = array.take(0, axis) if has_row else array
    return given


def fill(
    response: ModelInferResponse,
    answers: NDArray[np.float32],
    signature: Signature,
    wanted: Sequence[ModelInferRequest.InferRequestedOutputTensor],
) -> None:
    """Put answers `[rows, time, width]` into a response: the outputs that were asked for, or all."""
    arrays = {
        port.name: _of_the_graph(port, part)
        for port, part in zip(signature.answers, signature.answer_row.unpack(answers), strict=True)
    }
    # Each once, however often it is asked for: a short request must not make an answer of gigabytes.
    for name in dict.fromkeys(output.name for output in wanted) or arrays:
        array = arrays[name]
        response.outputs.add(name=name, datatype=NAMES[array.dtype.name], shape=array.shape)
        response.raw_output_contents.append(
            np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        )


def check_outputs(
    signature: Signature, wanted: Sequence[ModelInferRequest.InferRequestedOutputTensor]
) -> None:
    """Raise WrongShape for an output that the model has not, NotOffered for what cannot be done with one."""
    names = [port.name for port in signature.answers]
    for output in wanted:
        if output.name not in names:
            raise errors.WrongShape(
                f"{signature.name} has no output {output.name!r}; there are: {', '.join(names)}"
            )
        refuse_shared_memory(output.name, output.parameters)
        if "classification" in output.parameters:
            raise errors.NotOffered(f"{output.name}: longshort gives tensors, not classes of them")


def _of_the_graph(port: Port, part: NDArray[Any]) -> NDArray[Any]:
    """Return an answer `[rows, time, *shape]` with the axes that its graph has."""
    if port.time_axis is None:
        part = part[:, -1]  # as the graph, which gives one answer after whatever number of steps
    if port.batch_axis is None:
        part = part[0]
    present = [axis for axis in (port.batch_axis, port.time_axis) if axis is not None]
    return np.moveaxis(part, range(len(present)), present)
