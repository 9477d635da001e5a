"""What the Open Inference Protocol is told of models: their tensors, their configuration in Triton's words. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from longshort_service.handlers.inference_tensors import NAMES, graph_shape
from longshort_service.inference import inference_pb2
from longshort_service.inference.inference_pb2 import ModelConfig, ModelMetadataResponse
from longshort_service.version_folder import MODEL_FILE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from longshort_service.ports import Port
    from longshort_service.repository import Model
    from longshort_service.signature import Signature

PLATFORM: Final = "onnxruntime_onnx"
BACKEND: Final = "onnxruntime"
_ON_GPU: Final = "CUDA"
_DTYPES: Final = {
    "float16": inference_pb2.TYPE_FP16,
    "float32": inference_pb2.TYPE_FP32,
    "float64": inference_pb2.TYPE_FP64,
    "int32": inference_pb2.TYPE_INT32,
    "int64": inference_pb2.TYPE_INT64,
}
_MAX_INT32: Final = 2**31 - 1


def metadata(model: Model, versions: Iterable[int]) -> ModelMetadataResponse:
    """Return the tensors of a version, and which versions there are."""
    return ModelMetadataResponse(
        name=model.name,
        versions=map(str, versions),
        platform=PLATFORM,
        inputs=_tensors(model.signature.inputs),
        outputs=_tensors(model.signature.answers),
    )


def _tensors(ports: Sequence[Port]) -> list[ModelMetadataResponse.TensorMetadata]:
    return [
        ModelMetadataResponse.TensorMetadata(
            name=port.name, datatype=NAMES[port.dtype], shape=graph_shape(port)
        )
        for port in ports
    ]


def config(
    model: Model, *, max_rows: int, max_steps: int, max_sequences: int, session_ttl_s: float
) -> ModelConfig:
    """Return a version's configuration."""
    signature = model.signature
    rows_first = all(port.batch_axis == 0 for port in (*signature.inputs, *signature.answers))
    skipped = 1 if rows_first else 0
    message = ModelConfig(
        name=model.name,
        platform=PLATFORM,
        backend=BACKEND,
        max_batch_size=max_rows if rows_first else 0,
        default_model_filename=MODEL_FILE,
        model_transaction_policy=inference_pb2.ModelTransactionPolicy(decoupled=False),
    )
    for port in signature.inputs:
        message.input.add(name=port.name, data_type=_dtype(port.dtype), dims=graph_shape(port)[skipped:])
    for port in signature.answers:
        message.output.add(name=port.name, data_type=_dtype(port.dtype), dims=graph_shape(port)[skipped:])
    kind = "KIND_GPU" if _ON_GPU in model.lane.provider.upper() else "KIND_CPU"
    message.instance_group.add(
        name=f"{model.name}_0", count=1, kind=inference_pb2.ModelInstanceGroup.Kind.Value(kind)
    )
    for key, value in (
        ("version", str(model.version)),
        ("max_steps", str(max_steps)),
        ("fingerprint", signature.fingerprint),
    ):
        message.parameters[key].string_value = value
    if signature.states:
        _fill_sequences(message.sequence_batching, signature, max_sequences, session_ttl_s)
    else:
        message.dynamic_batching.SetInParent()
    return message


def _fill_sequences(
    message: inference_pb2.ModelSequenceBatching,
    signature: Signature,
    max_sequences: int,
    session_ttl_s: float,
) -> None:
    message.max_sequence_idle_microseconds = round(session_ttl_s * 1e6)
    message.oldest.max_candidate_sequences = min(max_sequences, _MAX_INT32)
    for state in signature.states:
        if state.output:
            message.state.add(
                input_name=state.input,
                output_name=state.output,
                data_type=_dtype(state.dtype),
                dims=state.row_shape(),
            )


def _dtype(name: str) -> inference_pb2.DataType:
    return _DTYPES[name]
