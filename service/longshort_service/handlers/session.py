"""SessionService: looking at sessions and managing them."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any, Final

import grpc
from longshort.v1 import session_pb2

from longshort_service import errors
from longshort_service.handlers import codec, tensors

if TYPE_CHECKING:
    from longshort_service.handlers.edge import Edge

SERVICE_NAME: Final = "longshort.v1.SessionService"
_DEFAULT_PAGE: Final = 100
_MAX_PAGE: Final = 1000


class SessionHandler:
    """The handlers of SessionService."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._management = edge.management

    def generic_handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """Return what a gRPC server is given."""
        edge = self._edge
        methods = {
            "GetSession": edge.unary(session_pb2.GetSessionRequest, self._get),
            "ListSessions": edge.unary(session_pb2.ListSessionsRequest, self._list),
            "Reset": edge.unary(session_pb2.ResetRequest, self._reset),
            "Fork": edge.unary(session_pb2.ForkRequest, self._fork),
            "Export": edge.unary(session_pb2.ExportRequest, self._export),
            "Import": edge.unary(session_pb2.ImportRequest, self._import),
            "Delete": edge.unary(session_pb2.DeleteRequest, self._delete),
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    async def _get(self, request: session_pb2.GetSessionRequest) -> session_pb2.GetSessionResponse:
        view = await self._management.get(codec.session_id(request.session), request.min_step)
        response = session_pb2.GetSessionResponse(session=codec.session_message(view))
        if request.include_memory:
            signature = self._edge.repository.get(view.record.model, view.record.version).signature
            for spec, state in zip(signature.states, view.record.states, strict=True):
                response.memory.append(tensors.message(spec.input, state))
        return response

    async def _list(self, request: session_pb2.ListSessionsRequest) -> session_pb2.ListSessionsResponse:
        views, after = await self._management.list(
            prefix=request.id_prefix,
            after=_decode_token(request.page_token),
            limit=min(request.page_size or _DEFAULT_PAGE, _MAX_PAGE),
            model=request.model,
        )
        token = base64.urlsafe_b64encode(after.encode()).decode()
        return session_pb2.ListSessionsResponse(
            sessions=[codec.session_message(view) for view in views], next_page_token=token
        )

    async def _reset(self, request: session_pb2.ResetRequest) -> session_pb2.ResetResponse:
        view = await self._management.reset(codec.session_id(request.session))
        return session_pb2.ResetResponse(session=codec.session_message(view))

    async def _fork(self, request: session_pb2.ForkRequest) -> session_pb2.ForkResponse:
        fork_id = codec.session_id(request.fork, may_be_empty=True)
        view = await self._management.fork(codec.session_id(request.session), fork_id, request.min_step)
        return session_pb2.ForkResponse(session=codec.session_message(view))

    async def _export(self, request: session_pb2.ExportRequest) -> session_pb2.ExportResponse:
        record, step = await self._management.export(codec.session_id(request.session), request.min_step)
        return session_pb2.ExportResponse(record=record, step=step)

    async def _import(self, request: session_pb2.ImportRequest) -> session_pb2.ImportResponse:
        session_id = codec.session_id(request.session) if request.session.ByteSize() else ""
        view = await self._management.import_(session_id, request.record)
        return session_pb2.ImportResponse(session=codec.session_message(view))

    async def _delete(self, request: session_pb2.DeleteRequest) -> session_pb2.DeleteResponse:
        await self._management.delete(codec.session_id(request.session))
        return session_pb2.DeleteResponse()


def _decode_token(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError) as error:
        raise errors.InvalidMessage("page_token is not one that this service gave") from error
