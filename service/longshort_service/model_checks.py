"""What is refused of a model file before anything runs it: it may come from anywhere.

Needs onnx. Owns the refusals that only the inside of a file shows; its size and outside are `model_file`'s.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, external_data_helper, helper

from longshort_service import model_file as model_files
from longshort_service.graph_check import ModelError
from longshort_service.graph_facts import facts_of, inferred_values, nodes_of, tensors_of
from longshort_service.tensor_file import inside

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from longshort_service.graph_facts import GraphFacts

# The domains whose operators onnxruntime brings; of others it knows what a library of the model's maker registers.
DOMAINS: Final = (
    *("", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training", "ai.onnx.training"),
    *("com.microsoft", "com.microsoft.experimental", "com.microsoft.nchwc", "com.ms.internal.nhwc"),
)
# One tensor of a run; a graph may ask for more than any machine has in a few bytes.
MAX_TENSOR_BYTES: Final = 2**31
_LONGEST_PACKING: Final = 8  # an int64 that takes one byte in the file


def read_facts(file: Path, num_bytes: int) -> GraphFacts:
    """Return what a model file of `num_bytes` says of its graph, where nothing in it has to be refused.

    Raises ModelError, which says what is wrong with it.
    """
    try:
        model = onnx.load(file, load_external_data=False)
    except DecodeError as error:
        raise ModelError(f"{file}: is no ONNX file, or not all of one: {error}") from None
    _check_texts(model, file)
    elsewhere = external_files(model, file)
    num_bytes += sum(path.stat().st_size for path in elsewhere)
    if num_bytes > model_files.MAX_MODEL_BYTES:
        raise model_files.too_large(file, num_bytes)
    _check_operators(model, file)
    inferred = inferred_values(model)
    _check_sizes(model, inferred, file, num_bytes)
    return facts_of(model, inferred, elsewhere)


def external_files(model: onnx.ModelProto, file: Path) -> list[Path]:
    """Return the files that hold a model's weights. Raises ModelError where one is not in the model's own folder."""
    found: set[Path] = set()
    for tensor in tensors_of(model):
        if external_data_helper.uses_external_data(tensor):
            entries = {entry.key: entry.value for entry in tensor.external_data}
            location = entries.get("location", "")
            path = inside(file.parent, location)
            if path is None:
                raise ModelError(
                    f"{file}: the weights {tensor.name!r} lie in {location!r}: they must be a file in the model's "
                    "own folder, named by a relative path that no link leads out of"
                )
            found.add(path)
    return sorted(found)


def _check_texts(model: onnx.ModelProto, file: Path) -> None:
    """Raise ModelError for a name that is no text.

    Of one that is no UTF-8 protobuf makes bytes, and onnxruntime fails on it later; one with control characters would
    write what it likes to the terminals that it is shown on.
    """
    for text in _texts(model):
        if not isinstance(text, str):
            raise ModelError(f"{file}: is no ONNX file, or damaged: the name {text!r} is no UTF-8")
        if not text.isprintable():
            raise ModelError(f"{file}: the name {text!r} holds characters that cannot be printed: rename it")


def _texts(model: onnx.ModelProto) -> Iterator[object]:
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        yield value.name
        yield from (axis.dim_param for axis in value.type.tensor_type.shape.dim)
    for node in nodes_of(model):
        yield from (node.op_type, node.domain, *node.input, *node.output)
    for tensor in tensors_of(model):
        yield tensor.name
        yield from (text for entry in tensor.external_data for text in (entry.key, entry.value))


def _check_operators(model: onnx.ModelProto, file: Path) -> None:
    own = {(function.domain, function.name) for function in model.functions}
    strange = sorted(
        {
            (node.domain, node.op_type)
            for node in nodes_of(model)
            if node.domain not in DOMAINS and (node.domain, node.op_type) not in own
        }
    )
    if strange:
        names = ", ".join(f"{name} of {domain}" for domain, name in strange[:5])
        raise ModelError(
            f"{file}: uses custom operators, which onnxruntime does not bring: {names}. Export the model with "
            "standard operators (ai.onnx, ai.onnx.ml, com.microsoft)"
        )


def _check_sizes(
    model: onnx.ModelProto, inferred: list[onnx.ValueInfoProto], file: Path, num_bytes: int
) -> None:
    for tensor in tensors_of(model):
        promised = math.prod(tensor.dims) * _item_bytes(tensor.data_type)
        if min(tensor.dims, default=1) < 0 or promised > _LONGEST_PACKING * num_bytes:
            raise ModelError(
                f"{file}: the tensor {tensor.name!r} says it is {list(tensor.dims)}, {promised} bytes, "
                f"in a file of {num_bytes}"
            )
    for value in [*model.graph.input, *model.graph.output, *inferred]:
        axes = value.type.tensor_type.shape.dim
        size = math.prod(max(1, axis.dim_value) for axis in axes) * _item_bytes(
            value.type.tensor_type.elem_type
        )
        if size > MAX_TENSOR_BYTES:
            raise ModelError(
                f"{file}: the tensor {value.name!r} is {[axis.dim_value or axis.dim_param for axis in axes]}, "
                f"at least {size} bytes; {MAX_TENSOR_BYTES} is the limit"
            )


def _item_bytes(number: int) -> int:
    try:
        return int(helper.tensor_dtype_to_np_dtype(number).itemsize)
    except (KeyError, ValueError, TypeError):
        return 1 if number != TensorProto.UNDEFINED else 0
