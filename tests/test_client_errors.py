"""What servers and proxies say, and which error it becomes."""

from __future__ import annotations

import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from longshort import errors, status
from longshort.errors import Code
from longshort.v1 import types_pb2


def trailers(*details: object) -> list[tuple[str, str | bytes]]:
    told = status_pb2.Status(code=1)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        told.details.append(packed)
    return [("other", "x"), (status.DETAILS_KEY, told.SerializeToString())]


def test_status_with_our_details_becomes_the_error_of_its_reason():
    info = error_details_pb2.ErrorInfo(
        reason="SESSION_MOVED", domain="longshort", metadata={"client_id": "c", "cause": "opened"}
    )
    retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000))
    error = status.from_status(10, "moved", trailers(info, retry))
    assert type(error) is errors.SessionTaken
    assert (error.reason, error.code, error.retry_delay_s) == ("SESSION_MOVED", Code.ABORTED, 1.5)
    assert error.metadata == {"client_id": "c", "cause": "opened"}
    assert str(error) == "SESSION_MOVED: moved"


@pytest.mark.parametrize(
    "strangers_trailers",
    [
        [],
        [(status.DETAILS_KEY, b"\xff\xff no protobuf")],
        [(status.DETAILS_KEY, "text")],
        trailers(error_details_pb2.ErrorInfo(reason="STEP_GAP", domain="another.service")),
        trailers(error_details_pb2.DebugInfo(detail="a stack")),
    ],
)
def test_status_with_strangers_details_is_read_by_its_code_alone(
    strangers_trailers: list[tuple[str, str | bytes]],
):
    error = status.from_status(14, "Socket closed", strangers_trailers)
    assert type(error) is errors.Unavailable
    assert (error.reason, error.metadata, error.retry_delay_s) == ("", {}, None)
    assert str(error) == "Socket closed"


def test_message_in_band_becomes_the_error_of_its_reason():
    message = types_pb2.Error(code=9, reason="STEP_GAP", message="gap", metadata={"expected_step": "3"})
    error = status.from_message(message)
    assert type(error) is errors.StepGap
    assert (error.code, error.metadata, error.retry_delay_s) == (9, {"expected_step": "3"}, None)
    message.retry_delay.nanos = 250_000_000
    assert status.from_message(message).retry_delay_s == 0.25


@pytest.mark.parametrize("code", list(Code))
def test_unknown_reason_becomes_the_error_of_its_code(code: Code):
    error = status.make(code, "m", "A_REASON_OF_TOMORROW", {}, None)
    assert error.code is code
    assert error.reason == "A_REASON_OF_TOMORROW"
    if code not in (Code.OK, Code.ABORTED, Code.UNKNOWN, Code.INTERNAL, Code.DATA_LOSS):
        assert type(error) is not errors.ServerFault


def test_code_outside_of_the_table_is_unknown():
    assert status.make(99, "m", "", {}, None).code is Code.UNKNOWN


def test_every_error_is_told_by_its_own_class_and_has_a_cause_in_words():
    seen = [errors.LongshortError]
    while seen:
        cls = seen.pop()
        seen += cls.__subclasses__()
        assert getattr(errors, cls.__name__) is cls
        assert cls.__doc__
        assert issubclass(cls, errors.LongshortError)
        assert cls("m").code is cls.default_code
