import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from longshort.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SessionLocation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SESSION_LOCATION_UNSPECIFIED: _ClassVar[SessionLocation]
    SESSION_LOCATION_LIVE: _ClassVar[SessionLocation]
    SESSION_LOCATION_STORED: _ClassVar[SessionLocation]
SESSION_LOCATION_UNSPECIFIED: SessionLocation
SESSION_LOCATION_LIVE: SessionLocation
SESSION_LOCATION_STORED: SessionLocation

class Session(_message.Message):
    __slots__ = ("key", "model", "version", "step", "durable_step", "incarnation", "epoch", "location", "idle", "streaming", "fingerprint", "computed_with")
    KEY_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DURABLE_STEP_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    IDLE_FIELD_NUMBER: _ClassVar[int]
    STREAMING_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_WITH_FIELD_NUMBER: _ClassVar[int]
    key: _types_pb2.SessionKey
    model: str
    version: int
    step: int
    durable_step: int
    incarnation: int
    epoch: int
    location: SessionLocation
    idle: _duration_pb2.Duration
    streaming: bool
    fingerprint: str
    computed_with: str
    def __init__(self, key: _Optional[_Union[_types_pb2.SessionKey, _Mapping]] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., step: _Optional[int] = ..., durable_step: _Optional[int] = ..., incarnation: _Optional[int] = ..., epoch: _Optional[int] = ..., location: _Optional[_Union[SessionLocation, str]] = ..., idle: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., streaming: _Optional[bool] = ..., fingerprint: _Optional[str] = ..., computed_with: _Optional[str] = ...) -> None: ...

class GetSessionRequest(_message.Message):
    __slots__ = ("session", "include_memory", "min_step")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_MEMORY_FIELD_NUMBER: _ClassVar[int]
    MIN_STEP_FIELD_NUMBER: _ClassVar[int]
    session: _types_pb2.SessionKey
    include_memory: bool
    min_step: int
    def __init__(self, session: _Optional[_Union[_types_pb2.SessionKey, _Mapping]] = ..., include_memory: _Optional[bool] = ..., min_step: _Optional[int] = ...) -> None: ...

class GetSessionResponse(_message.Message):
    __slots__ = ("session", "memory")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    session: Session
    memory: _containers.RepeatedCompositeFieldContainer[_types_pb2.Tensor]
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., memory: _Optional[_Iterable[_Union[_types_pb2.Tensor, _Mapping]]] = ...) -> None: ...

class ListSessionsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "model", "id_prefix")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ID_PREFIX_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    model: str
    id_prefix: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., model: _Optional[str] = ..., id_prefix: _Optional[str] = ...) -> None: ...

class ListSessionsResponse(_message.Message):
    __slots__ = ("sessions", "next_page_token")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[Session]
    next_page_token: str
    def __init__(self, sessions: _Optional[_Iterable[_Union[Session, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ResetRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: _types_pb2.SessionKey
    def __init__(self, session: _Optional[_Union[_types_pb2.SessionKey, _Mapping]] = ...) -> None: ...

class ResetResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: Session
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ...) -> None: ...

class ForkRequest(_message.Message):
    __slots__ = ("session", "fork", "min_step")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    FORK_FIELD_NUMBER: _ClassVar[int]
    MIN_STEP_FIELD_NUMBER: _ClassVar[int]
    session: _types_pb2.SessionKey
    fork: _types_pb2.SessionKey
    min_step: int
    def __init__(self, session: _Optional[_Union[_types_pb2.SessionKey, _Mapping]] = ..., fork: _Optional[_Union[_types_pb2.SessionKey, _Mapping]] = ..., min_step: _Optional[int] = ...) -> None: ...

class ForkResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: Session
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ...) -> None: ...

class ExportRequest(_message.Message):
    __slots__ = ("session", "min_step")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    MIN_STEP_FIELD_NUMBER: _ClassVar[int]
    session: _types_pb2.SessionKey
    min_step: int
    def __init__(self, session: _Optional[_Union[_types_pb2.SessionKey, _Mapping]] = ..., min_step: _Optional[int] = ...) -> None: ...

class ExportResponse(_message.Message):
    __slots__ = ("record", "step")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    record: bytes
    step: int
    def __init__(self, record: _Optional[bytes] = ..., step: _Optional[int] = ...) -> None: ...

class ImportRequest(_message.Message):
    __slots__ = ("session", "record")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    session: _types_pb2.SessionKey
    record: bytes
    def __init__(self, session: _Optional[_Union[_types_pb2.SessionKey, _Mapping]] = ..., record: _Optional[bytes] = ...) -> None: ...

class ImportResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: Session
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ...) -> None: ...

class DeleteRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: _types_pb2.SessionKey
    def __init__(self, session: _Optional[_Union[_types_pb2.SessionKey, _Mapping]] = ...) -> None: ...

class DeleteResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
