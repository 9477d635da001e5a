"""Calling the service as clients of the Open Inference Protocol do, byte for byte: with the service's own messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from longshort_service.handlers.inference_tensors import NAMES
from longshort_service.inference import inference_pb2 as pb
from wire import refusal_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from wire import Caller, Refusal

SERVICE = "inference.GRPCInferenceService"
DTYPES = {name: np.dtype(dtype).newbyteorder("<") for dtype, name in NAMES.items()}


def request_of(
    model: str, inputs: dict[str, NDArray[Any]] | list[float], request_id: str = "", **parameters: Any
) -> pb.ModelInferRequest:
    """Return a request with raw contents. A list of numbers is one row of steps of one number, as adders take them."""
    if isinstance(inputs, list):
        inputs = {"x": np.array(inputs, np.float32).reshape(1, -1, 1)}
    request = pb.ModelInferRequest(model_name=model, id=request_id)
    for name, array in inputs.items():
        datatype = NAMES[array.dtype.name]
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(array.astype(DTYPES[datatype]).tobytes())
    fill(request, parameters)
    return request


def fill(request: pb.ModelInferRequest, parameters: dict[str, Any]) -> None:
    """Put parameters into a request: by `sequence`, `start`, `end`, `step` those of a sequence."""
    short = {
        "sequence": "sequence_id",
        "start": "sequence_start",
        "end": "sequence_end",
        "step": "sequence_step",
    }
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    for key, value in parameters.items():
        setattr(request.parameters[short.get(key, key)], kinds[type(value)], value)


def arrays_of(response: pb.ModelInferResponse) -> dict[str, NDArray[Any]]:
    """Return a response's tensors by name."""
    return {
        output.name: np.frombuffer(raw, DTYPES[output.datatype]).reshape(output.shape)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def numbers_of(response: pb.ModelInferResponse) -> list[float]:
    """Return the numbers of a response with one tensor."""
    (array,) = arrays_of(response).values()
    return [float(number) for number in array.ravel()]


class Triton:
    """The service as a client of Triton sees it, on a caller's connection."""

    def __init__(self, caller: Caller) -> None:
        self._channel = caller.channel

    async def call(self, method: str, request: Any, response_type: Any) -> Any:
        """Make a unary call."""
        return await self._method(method, response_type)(request)

    async def infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        """Make one inference."""
        response = await self.call("ModelInfer", request, pb.ModelInferResponse)
        assert isinstance(response, pb.ModelInferResponse)
        return response

    async def numbers(self, model: str, inputs: Any, request_id: str = "", **parameters: Any) -> list[float]:
        """Return the numbers that a request is answered with."""
        return numbers_of(await self.infer(request_of(model, inputs, request_id, **parameters)))

    async def refused(self, request: pb.ModelInferRequest) -> Refusal:
        """Return how a request is refused."""
        try:
            response = await self.infer(request)
        except grpc.aio.AioRpcError as error:
            return refusal_of(error)
        raise AssertionError(f"the request was answered: {response}")

    def stream(self, *metadata: tuple[str, str]) -> Any:
        """Begin a stream."""
        call = self._channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        return call(metadata=metadata)

    def _method(self, method: str, response_type: Any) -> Callable[[Any], Any]:
        return self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=response_type.FromString,
        )
