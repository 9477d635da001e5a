from longshort.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FramePart(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FRAME_PART_UNSPECIFIED: _ClassVar[FramePart]
    FRAME_PART_OPEN: _ClassVar[FramePart]
    FRAME_PART_VALUES: _ClassVar[FramePart]
    FRAME_PART_FORECAST: _ClassVar[FramePart]
    FRAME_PART_FLUSH: _ClassVar[FramePart]
FRAME_PART_UNSPECIFIED: FramePart
FRAME_PART_OPEN: FramePart
FRAME_PART_VALUES: FramePart
FRAME_PART_FORECAST: FramePart
FRAME_PART_FLUSH: FramePart

class StreamRequest(_message.Message):
    __slots__ = ("open", "values", "forecast", "flush")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    FORECAST_FIELD_NUMBER: _ClassVar[int]
    FLUSH_FIELD_NUMBER: _ClassVar[int]
    open: Open
    values: Values
    forecast: StreamForecast
    flush: Flush
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., values: _Optional[_Union[Values, _Mapping]] = ..., forecast: _Optional[_Union[StreamForecast, _Mapping]] = ..., flush: _Optional[_Union[Flush, _Mapping]] = ...) -> None: ...

class StreamResponse(_message.Message):
    __slots__ = ("opened", "answer", "error", "durable", "flushed")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    FLUSHED_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    answer: Answer
    error: _types_pb2.Error
    durable: Durable
    flushed: Flushed
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., error: _Optional[_Union[_types_pb2.Error, _Mapping]] = ..., durable: _Optional[_Union[Durable, _Mapping]] = ..., flushed: _Optional[_Union[Flushed, _Mapping]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("session", "model", "version", "mode", "client_id", "durability", "epoch", "model_change", "initial")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MODEL_CHANGE_FIELD_NUMBER: _ClassVar[int]
    INITIAL_FIELD_NUMBER: _ClassVar[int]
    session: _types_pb2.SessionKey
    model: str
    version: int
    mode: _types_pb2.OpenMode
    client_id: str
    durability: _types_pb2.Durability
    epoch: int
    model_change: _types_pb2.ModelChange
    initial: _containers.RepeatedCompositeFieldContainer[_types_pb2.Tensor]
    def __init__(self, session: _Optional[_Union[_types_pb2.SessionKey, _Mapping]] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., mode: _Optional[_Union[_types_pb2.OpenMode, str]] = ..., client_id: _Optional[str] = ..., durability: _Optional[_Union[_types_pb2.Durability, str]] = ..., epoch: _Optional[int] = ..., model_change: _Optional[_Union[_types_pb2.ModelChange, str]] = ..., initial: _Optional[_Iterable[_Union[_types_pb2.Tensor, _Mapping]]] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("session", "model", "version", "created", "step", "durable_step", "durability", "incarnation", "epoch", "num_features", "num_outputs", "max_steps", "fingerprint")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DURABLE_STEP_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUM_FEATURES_FIELD_NUMBER: _ClassVar[int]
    NUM_OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    session: _types_pb2.SessionKey
    model: str
    version: int
    created: bool
    step: int
    durable_step: int
    durability: _types_pb2.Durability
    incarnation: int
    epoch: int
    num_features: int
    num_outputs: int
    max_steps: int
    fingerprint: str
    def __init__(self, session: _Optional[_Union[_types_pb2.SessionKey, _Mapping]] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., created: _Optional[bool] = ..., step: _Optional[int] = ..., durable_step: _Optional[int] = ..., durability: _Optional[_Union[_types_pb2.Durability, str]] = ..., incarnation: _Optional[int] = ..., epoch: _Optional[int] = ..., num_features: _Optional[int] = ..., num_outputs: _Optional[int] = ..., max_steps: _Optional[int] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class Values(_message.Message):
    __slots__ = ("values", "tensors", "step", "answers")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    tensors: _containers.RepeatedCompositeFieldContainer[_types_pb2.Tensor]
    step: int
    answers: _types_pb2.Answers
    def __init__(self, values: _Optional[_Iterable[float]] = ..., tensors: _Optional[_Iterable[_Union[_types_pb2.Tensor, _Mapping]]] = ..., step: _Optional[int] = ..., answers: _Optional[_Union[_types_pb2.Answers, str]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("values", "tensors", "step", "durable_step", "replayed", "forecast")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DURABLE_STEP_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    FORECAST_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    tensors: _containers.RepeatedCompositeFieldContainer[_types_pb2.Tensor]
    step: int
    durable_step: int
    replayed: bool
    forecast: bool
    def __init__(self, values: _Optional[_Iterable[float]] = ..., tensors: _Optional[_Iterable[_Union[_types_pb2.Tensor, _Mapping]]] = ..., step: _Optional[int] = ..., durable_step: _Optional[int] = ..., replayed: _Optional[bool] = ..., forecast: _Optional[bool] = ...) -> None: ...

class StreamForecast(_message.Message):
    __slots__ = ("horizon", "known")
    HORIZON_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    horizon: int
    known: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, horizon: _Optional[int] = ..., known: _Optional[_Iterable[float]] = ...) -> None: ...

class Flush(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Flushed(_message.Message):
    __slots__ = ("durable_step",)
    DURABLE_STEP_FIELD_NUMBER: _ClassVar[int]
    durable_step: int
    def __init__(self, durable_step: _Optional[int] = ...) -> None: ...

class Durable(_message.Message):
    __slots__ = ("durable_step",)
    DURABLE_STEP_FIELD_NUMBER: _ClassVar[int]
    durable_step: int
    def __init__(self, durable_step: _Optional[int] = ...) -> None: ...

class StepRequest(_message.Message):
    __slots__ = ("session", "model", "version", "mode", "values", "initial")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    INITIAL_FIELD_NUMBER: _ClassVar[int]
    session: _types_pb2.SessionKey
    model: str
    version: int
    mode: _types_pb2.OpenMode
    values: Values
    initial: _containers.RepeatedCompositeFieldContainer[_types_pb2.Tensor]
    def __init__(self, session: _Optional[_Union[_types_pb2.SessionKey, _Mapping]] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., mode: _Optional[_Union[_types_pb2.OpenMode, str]] = ..., values: _Optional[_Union[Values, _Mapping]] = ..., initial: _Optional[_Iterable[_Union[_types_pb2.Tensor, _Mapping]]] = ...) -> None: ...

class StepResponse(_message.Message):
    __slots__ = ("answer", "created", "incarnation")
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    answer: Answer
    created: bool
    incarnation: int
    def __init__(self, answer: _Optional[_Union[Answer, _Mapping]] = ..., created: _Optional[bool] = ..., incarnation: _Optional[int] = ...) -> None: ...

class ForecastRequest(_message.Message):
    __slots__ = ("session", "horizon", "min_step", "known")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    HORIZON_FIELD_NUMBER: _ClassVar[int]
    MIN_STEP_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    session: _types_pb2.SessionKey
    horizon: int
    min_step: int
    known: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, session: _Optional[_Union[_types_pb2.SessionKey, _Mapping]] = ..., horizon: _Optional[int] = ..., min_step: _Optional[int] = ..., known: _Optional[_Iterable[float]] = ...) -> None: ...

class ForecastResponse(_message.Message):
    __slots__ = ("values", "step")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    step: int
    def __init__(self, values: _Optional[_Iterable[float]] = ..., step: _Optional[int] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("session", "values", "min_step", "tensors")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    MIN_STEP_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    session: _types_pb2.SessionKey
    values: _containers.RepeatedScalarFieldContainer[float]
    min_step: int
    tensors: _containers.RepeatedCompositeFieldContainer[_types_pb2.Tensor]
    def __init__(self, session: _Optional[_Union[_types_pb2.SessionKey, _Mapping]] = ..., values: _Optional[_Iterable[float]] = ..., min_step: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[_types_pb2.Tensor, _Mapping]]] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("tensors", "step")
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[_types_pb2.Tensor]
    step: int
    def __init__(self, tensors: _Optional[_Iterable[_Union[_types_pb2.Tensor, _Mapping]]] = ..., step: _Optional[int] = ...) -> None: ...

class StreamFramesRequest(_message.Message):
    __slots__ = ("opens", "handles", "counts", "steps", "values", "answers", "forecasts", "closes", "flushes")
    OPENS_FIELD_NUMBER: _ClassVar[int]
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    FORECASTS_FIELD_NUMBER: _ClassVar[int]
    CLOSES_FIELD_NUMBER: _ClassVar[int]
    FLUSHES_FIELD_NUMBER: _ClassVar[int]
    opens: _containers.RepeatedCompositeFieldContainer[FrameOpen]
    handles: _containers.RepeatedScalarFieldContainer[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    steps: _containers.RepeatedScalarFieldContainer[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    answers: _types_pb2.Answers
    forecasts: _containers.RepeatedCompositeFieldContainer[FrameForecast]
    closes: _containers.RepeatedScalarFieldContainer[int]
    flushes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, opens: _Optional[_Iterable[_Union[FrameOpen, _Mapping]]] = ..., handles: _Optional[_Iterable[int]] = ..., counts: _Optional[_Iterable[int]] = ..., steps: _Optional[_Iterable[int]] = ..., values: _Optional[_Iterable[float]] = ..., answers: _Optional[_Union[_types_pb2.Answers, str]] = ..., forecasts: _Optional[_Iterable[_Union[FrameForecast, _Mapping]]] = ..., closes: _Optional[_Iterable[int]] = ..., flushes: _Optional[_Iterable[int]] = ...) -> None: ...

class FrameOpen(_message.Message):
    __slots__ = ("handle", "open")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    handle: int
    open: Open
    def __init__(self, handle: _Optional[int] = ..., open: _Optional[_Union[Open, _Mapping]] = ...) -> None: ...

class FrameForecast(_message.Message):
    __slots__ = ("handle", "horizon", "known")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    HORIZON_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    handle: int
    horizon: int
    known: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, handle: _Optional[int] = ..., horizon: _Optional[int] = ..., known: _Optional[_Iterable[float]] = ...) -> None: ...

class StreamFramesResponse(_message.Message):
    __slots__ = ("opened", "handles", "counts", "steps", "values", "durable_steps", "replayed", "errors", "forecasts", "flushed", "flushed_steps")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    DURABLE_STEPS_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    FORECASTS_FIELD_NUMBER: _ClassVar[int]
    FLUSHED_FIELD_NUMBER: _ClassVar[int]
    FLUSHED_STEPS_FIELD_NUMBER: _ClassVar[int]
    opened: _containers.RepeatedCompositeFieldContainer[FrameOpened]
    handles: _containers.RepeatedScalarFieldContainer[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    steps: _containers.RepeatedScalarFieldContainer[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    durable_steps: _containers.RepeatedScalarFieldContainer[int]
    replayed: _containers.RepeatedScalarFieldContainer[int]
    errors: _containers.RepeatedCompositeFieldContainer[FrameError]
    forecasts: _containers.RepeatedCompositeFieldContainer[FrameForecastAnswer]
    flushed: _containers.RepeatedScalarFieldContainer[int]
    flushed_steps: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, opened: _Optional[_Iterable[_Union[FrameOpened, _Mapping]]] = ..., handles: _Optional[_Iterable[int]] = ..., counts: _Optional[_Iterable[int]] = ..., steps: _Optional[_Iterable[int]] = ..., values: _Optional[_Iterable[float]] = ..., durable_steps: _Optional[_Iterable[int]] = ..., replayed: _Optional[_Iterable[int]] = ..., errors: _Optional[_Iterable[_Union[FrameError, _Mapping]]] = ..., forecasts: _Optional[_Iterable[_Union[FrameForecastAnswer, _Mapping]]] = ..., flushed: _Optional[_Iterable[int]] = ..., flushed_steps: _Optional[_Iterable[int]] = ...) -> None: ...

class FrameOpened(_message.Message):
    __slots__ = ("handle", "opened")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    handle: int
    opened: Opened
    def __init__(self, handle: _Optional[int] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ...) -> None: ...

class FrameError(_message.Message):
    __slots__ = ("handle", "error", "part")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    handle: int
    error: _types_pb2.Error
    part: FramePart
    def __init__(self, handle: _Optional[int] = ..., error: _Optional[_Union[_types_pb2.Error, _Mapping]] = ..., part: _Optional[_Union[FramePart, str]] = ...) -> None: ...

class FrameForecastAnswer(_message.Message):
    __slots__ = ("handle", "values", "step")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    handle: int
    values: _containers.RepeatedScalarFieldContainer[float]
    step: int
    def __init__(self, handle: _Optional[int] = ..., values: _Optional[_Iterable[float]] = ..., step: _Optional[int] = ...) -> None: ...
