"""ModelService: which models there are, what they promise, and loading new ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc
from longshort.v1 import model_pb2

from longshort_service.handlers import codec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from longshort_service.handlers.edge import Edge
    from longshort_service.repository import Model, ReloadResult

SERVICE_NAME: Final = "longshort.v1.ModelService"


class ModelHandler:
    """The handlers of ModelService. `reload` looks at the repository again."""

    def __init__(self, edge: Edge, reload: Callable[[], Awaitable[ReloadResult]]) -> None:
        self._edge = edge
        self._reload_repository = reload

    def generic_handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """Return what a gRPC server is given."""
        edge = self._edge
        methods = {
            "ListModels": edge.unary(model_pb2.ListModelsRequest, self._list),
            "GetModel": edge.unary(model_pb2.GetModelRequest, self._get),
            "ReloadModels": edge.unary(model_pb2.ReloadModelsRequest, self._reload),
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    def _message(self, model: Model) -> model_pb2.Model:
        return codec.model_message(model, self._edge.repository, self._edge.max_steps)

    async def _list(self, _request: model_pb2.ListModelsRequest) -> model_pb2.ListModelsResponse:
        return model_pb2.ListModelsResponse(models=map(self._message, self._edge.repository.models()))

    async def _get(self, request: model_pb2.GetModelRequest) -> model_pb2.GetModelResponse:
        model = self._edge.repository.get(request.name, request.version)
        return model_pb2.GetModelResponse(model=self._message(model))

    async def _reload(self, _request: model_pb2.ReloadModelsRequest) -> model_pb2.ReloadModelsResponse:
        result = await self._reload_repository()
        return model_pb2.ReloadModelsResponse(
            models=map(self._message, self._edge.repository.models()),
            loaded=result.loaded,
            unloaded=result.unloaded,
            failed=result.failed,
        )
