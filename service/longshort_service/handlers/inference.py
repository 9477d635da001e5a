"""GRPCInferenceService: the Open Inference Protocol as Triton speaks it, for clients that were written for Triton."""

from __future__ import annotations

import functools
import importlib.metadata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc

from longshort_service import errors
from longshort_service.handlers import inference_models, inference_request
from longshort_service.handlers.inference_sequences import Inference
from longshort_service.handlers.inference_statistics import Statistics
from longshort_service.handlers.inference_stream import InferenceStream
from longshort_service.inference import inference_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from google.protobuf.message import Message

    from longshort_service.handlers.edge import Edge
    from longshort_service.handlers.inference_statistics import Stages
    from longshort_service.handlers.sequence import SequenceHandler
    from longshort_service.repository import Model, ReloadResult
    from longshort_service.transport.call import Call

SERVICE_NAME: Final = "inference.GRPCInferenceService"
EXTENSIONS: Final = (
    "sequence",
    "sequence(string_id)",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)
_MEMORY: Final = "longshort takes and gives tensors in messages, not in shared memory"
_LOGS: Final = "the log is set where the server is started: --log-level and --log-format"
_TRACES: Final = "longshort writes no traces: /metrics has the time that each stage of a step takes"
NOT_OFFERED: Final = {
    **{
        f"{kind}SharedMemory{what}": _MEMORY
        for kind in ("System", "Cuda")
        for what in ("Status", "Register", "Unregister")
    },
    "TraceSetting": _TRACES,
    "LogSettings": _LOGS,
}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the service says or does that is not its own."""

    reload: Callable[[], Awaitable[ReloadResult]]  # looks at the repository again
    stages: Callable[[str], Stages]  # of a model by name
    is_live: Callable[[], bool]
    is_ready: Callable[[], bool]
    max_sequences: int
    session_ttl_s: float


class InferenceHandler:
    """The handlers of GRPCInferenceService; its streams are kept with all others."""

    def __init__(self, edge: Edge, around: Surroundings, *, is_strict: bool) -> None:
        self._edge = edge
        self._around = around
        self._statistics = Statistics(around.stages)
        self._inference = Inference(edge, self._statistics, is_strict=is_strict)

    def routes(self, streams: SequenceHandler) -> dict[str, Callable[[Call], None]]:
        """Return who takes the calls of the streaming method, by path."""
        kind = functools.partial(InferenceStream, self._inference)
        return {f"/{SERVICE_NAME}/ModelStreamInfer": lambda call: streams.converse(call, kind)}

    def generic_handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """Return what a gRPC server is given."""
        edge = self._edge
        methods = {
            "ServerLive": edge.unary(pb.ServerLiveRequest, self._live, while_draining=True),
            "ServerReady": edge.unary(pb.ServerReadyRequest, self._ready, while_draining=True),
            "ModelReady": edge.unary(pb.ModelReadyRequest, self._model_ready, while_draining=True),
            "ServerMetadata": edge.unary(pb.ServerMetadataRequest, self._server_metadata),
            "ModelMetadata": edge.unary(pb.ModelMetadataRequest, self._model_metadata),
            "ModelInfer": edge.unary(pb.ModelInferRequest, self._inference.answer),
            "ModelConfig": edge.unary(pb.ModelConfigRequest, self._model_config),
            "ModelStatistics": edge.unary(pb.ModelStatisticsRequest, self._model_statistics),
            "RepositoryIndex": edge.unary(pb.RepositoryIndexRequest, self._index),
            "RepositoryModelLoad": edge.unary(pb.RepositoryModelLoadRequest, self._load),
            "RepositoryModelUnload": edge.unary(pb.RepositoryModelUnloadRequest, self._unload),
            **{
                name: edge.unary(pb.Nothing, functools.partial(_refuse, why))
                for name, why in NOT_OFFERED.items()
            },
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    # -- the server -----

    async def _live(self, _request: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=self._around.is_live())

    async def _ready(self, _request: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._around.is_ready())

    async def _server_metadata(self, _request: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(
            name="longshort", version=importlib.metadata.version("longshort-server"), extensions=EXTENSIONS
        )

    # -- a model -----

    def _model(self, name: str, version: str) -> Model:
        """Return a loaded version. Raises InvalidMessage or ModelNotFound."""
        return self._edge.repository.get(name, inference_request.version(version))

    def _models(self, name: str) -> list[Model]:
        """Return the loaded versions of a model, of all where the name is empty."""
        return [model for model in self._edge.repository.models() if name in ("", model.name)]

    async def _model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        try:
            self._model(request.name, request.version)
        except errors.ModelNotFound:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._around.is_ready())

    async def _model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        model = self._model(request.name, request.version)
        all_versions = [one.version for one in self._models(model.name)]
        return inference_models.metadata(model, [model.version] if request.version else all_versions)

    async def _model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        config = inference_models.config(
            self._model(request.name, request.version),
            max_rows=self._edge.max_batch_rows,
            max_steps=self._edge.max_steps,
            max_sequences=self._around.max_sequences,
            session_ttl_s=self._around.session_ttl_s,
        )
        return pb.ModelConfigResponse(config=config)

    async def _model_statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        if request.version:
            models = [self._model(request.name, request.version)]
        elif request.name:
            models = self._models(self._model(request.name, "").name)
        else:
            models = self._models("")
        return pb.ModelStatisticsResponse(model_stats=map(self._statistics.message, models))

    # -- the repository -----

    async def _index(self, _request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        response = pb.RepositoryIndexResponse()
        for model in self._models(""):
            response.models.add(name=model.name, version=str(model.version), state="READY")
        return response

    async def _load(self, request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        if request.parameters:
            raise errors.NotOffered(
                "a model is what its folder holds: a load takes no configuration and no files"
            )
        result = await self._around.reload()
        why = [
            f"{label}: {cause}"
            for label, cause in result.failed.items()
            if label.rpartition("/")[0] == request.model_name
        ]
        if why:
            raise errors.ModelNotFound(f"not loaded: {'; '.join(why)}", model=request.model_name)
        self._model(request.model_name, "")
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, request: pb.RepositoryModelUnloadRequest) -> pb.RepositoryModelUnloadResponse:
        self._model(request.model_name, "")
        await self._around.reload()
        if self._models(request.model_name):
            raise errors.NotOffered(
                f"{request.model_name} stays: a version is unloaded when its folder has left the repository and no "
                "session is on it"
            )
        return pb.RepositoryModelUnloadResponse()


async def _refuse(why: str, _request: Message) -> NoReturn:
    raise errors.NotOffered(why)
