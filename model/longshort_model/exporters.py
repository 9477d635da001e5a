"""PyTorch's two exporters, with their traps disarmed; and what is taken out of the files that they write.

Owns the calls of torch.onnx. Whether a file is right, `module_parity` finds out.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, cast

import onnx
import torch

from longshort_model.export import ExportError
from longshort_model.module_face import BATCH, TIME
from longshort_model.module_taken import SIZES
from longshort_model.user_module import failure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from longshort_model.module_calls import Taken
    from longshort_model.module_face import Face

TRACED_OPSET: Final = 17
IR_VERSION: Final = 10  # the newest that onnxruntime 1.22 reads
STATE_PREFIX: Final = "next_"  # of the name that a state comes out under


def by_tracing(taken: Taken) -> onnx.ModelProto:
    """Export with torch.onnx.export(dynamo=False): a recurrent layer is one node with little around it.

    Deprecated, and still the one whose files are leaner. Raises ExportError.
    """
    names, file = _names(taken), io.BytesIO()
    with _quiet():
        try:
            torch.onnx.export(
                taken.module,
                tuple(_example(taken)),
                file,  # type: ignore[arg-type]  # its types know no file in memory
                dynamo=False,
                input_names=names[0],
                output_names=names[1],
                dynamic_axes=_dynamic_axes(taken),
                opset_version=TRACED_OPSET,
            )
        except Exception as error:
            raise ExportError(failure(error)) from error
    return _finished(onnx.load_from_string(file.getvalue()), taken)


def by_dynamo(taken: Taken) -> onnx.ModelProto:
    """Export with torch.onnx.export(dynamo=True). Raises ExportError, also where onnxscript is not installed."""
    if find_spec("onnxscript") is None:
        raise ExportError("the package onnxscript is not installed")
    names = _names(taken)
    sizes = {what: torch.export.Dim(what, min=1, max=2**20) for what in (BATCH, TIME)}
    shapes = [
        {axis: sizes[str(size)] for axis, size in enumerate(face.sizes) if not isinstance(size, int)}
        for face in (*taken.inputs, *taken.states)
    ]
    with _quiet():
        try:
            for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
                # A second export in one process fails over what the first one left there.
                getattr(torch.ops.aten, kind).input._dispatch_cache.clear()  # noqa: SLF001
            program: Any = torch.onnx.export(
                taken.module,
                tuple(_example(taken)),
                dynamo=True,
                dynamic_shapes=(tuple(shapes),),
                input_names=names[0],
                output_names=names[1],
                verbose=False,
            )
        except Exception as error:
            raise ExportError(failure(error.__cause__ or error)) from error
    return _finished(program.model_proto, taken)


def output_name(face: Face) -> str:
    """Return the name that a state's new value has in the graph."""
    return STATE_PREFIX + face.name


def _names(taken: Taken) -> tuple[list[str], list[str]]:
    states = [output_name(face) for face in taken.states]
    return (
        [face.name for face in (*taken.inputs, *taken.states)],
        [*(face.name for face in taken.answers), *states],
    )


def _example(taken: Taken) -> list[Tensor]:
    batch, time = SIZES[0]
    generator = torch.Generator().manual_seed(2)
    return [
        *(face.draw(generator, batch, time) for face in taken.inputs),
        *(f.start(batch) for f in taken.states),
    ]


def _dynamic_axes(taken: Taken) -> dict[str, dict[int, str]]:
    inputs, outputs = _names(taken)
    return {
        name: {axis: str(size) for axis, size in enumerate(face.sizes) if not isinstance(size, int)}
        for name, face in zip((*inputs, *outputs), _faces(taken), strict=True)
    }


def _faces(taken: Taken) -> tuple[Face, ...]:
    """Return the tensors in the order of `_names`: what goes in, then what comes out."""
    return (*taken.inputs, *taken.states, *taken.answers, *taken.states)


def _finished(model: onnx.ModelProto, taken: Taken) -> onnx.ModelProto:
    """Declare the shapes as they are, and take out what names the machine that the file was made on.

    The exporters leave the example's sizes in declared shapes, and lines of the user's files in every node.
    """
    inputs, outputs = _names(taken)
    graph = model.graph
    faces = dict(zip((*inputs, *outputs), _faces(taken), strict=True))
    missing = [name for name in inputs if name not in {tensor.name for tensor in graph.input}]
    if missing:
        raise ExportError(f"the graph does not read {', '.join(missing)}")
    for tensor in (*graph.input, *graph.output):
        declared = tensor.type.tensor_type
        del declared.shape.dim[:]
        for size in faces[tensor.name].sizes:
            dim = declared.shape.dim.add()
            if isinstance(size, int):
                dim.dim_value = size
            else:
                dim.dim_param = size
    del graph.value_info[:]
    del model.metadata_props[:]
    _strip(graph)
    for function in model.functions:
        _strip(function)
    graph.name, model.producer_name, model.doc_string = "longshort", f"pytorch {torch.__version__}", ""
    model.ir_version = min(model.ir_version, IR_VERSION)
    return model


def _strip(graph: Any) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    tensors = [*graph.input, *graph.output, *graph.initializer] if isinstance(graph, onnx.GraphProto) else []
    for tensor in cast("list[Any]", tensors):
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _strip(attribute.g)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' words to themselves: what matters of them is checked afterwards."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
