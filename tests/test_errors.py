"""Every error is one reason, one row of the table and one row of the docs."""

from __future__ import annotations

import asyncio
import inspect
import re
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from longshort_service import errors
from longshort_service.app import all_reasons
from longshort_service.handlers import status

DOCS = Path(__file__).parent.parent / "docs" / "errors.md"
# What is caught, never raised: families and the root.
FAMILIES = {
    errors.ServiceError,
    errors.CallerFault,
    errors.PeerFault,
    errors.OurFault,
    errors.StepRefused,
}


def every_error() -> list[type[errors.ServiceError]]:
    return [
        cls
        for cls in vars(errors).values()
        if inspect.isclass(cls) and issubclass(cls, errors.ServiceError) and cls not in FAMILIES
    ]


def documented() -> dict[str, list[str]]:
    """Return the cells of every row of the docs' tables by reason."""
    rows = {}
    for line in DOCS.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if match := re.fullmatch("`([A-Z_]+)`", cells[0]):
            assert match[1] not in rows, f"{match[1]} is documented twice"
            rows[match[1]] = cells
    return rows


def test_tree_is_walked_to_its_leaves():
    """No error hides outside of the module, and none is a family with a reason of its own."""
    found, pending = set(), [errors.ServiceError]
    while pending:
        cls = pending.pop()
        found.add(cls)
        pending += cls.__subclasses__()
    assert found == {*every_error(), *FAMILIES}
    assert all((cls in FAMILIES) == bool(cls.__subclasses__()) for cls in found)


@pytest.mark.parametrize("error", every_error())
def test_error_has_a_row_in_the_table_of_codes(error: type[errors.ServiceError]):
    code, retry_delay_s = status.TABLE[error]
    assert isinstance(code, grpc.StatusCode)
    assert retry_delay_s is None or issubclass(error, errors.PeerFault)


def test_table_of_codes_has_no_row_too_many():
    assert set(status.TABLE) == set(every_error())


@pytest.mark.parametrize("error", every_error())
def test_reason_is_in_upper_snake_case_and_the_class_s_own(error: type[errors.ServiceError]):
    assert re.fullmatch(r"[A-Z]+(_[A-Z]+)*", error.reason)
    assert "reason" in vars(error)


def test_no_two_errors_share_a_reason():
    reasons = [error.reason for error in every_error()]
    assert len(reasons) == len(set(reasons))


def test_metrics_know_every_reason_from_the_start():
    assert sorted(all_reasons()) == sorted(error.reason for error in every_error())


@pytest.mark.parametrize("error", every_error())
def test_error_is_documented_with_its_code_and_retry_delay(error: type[errors.ServiceError]):
    _, code, stream, retry, meaning, remedy = documented()[error.reason]
    wanted_code, retry_delay_s = status.TABLE[error]
    assert code == wanted_code.name
    assert retry == ("-" if retry_delay_s is None else f"{retry_delay_s:g} s")
    assert stream
    assert meaning
    assert remedy


def test_docs_name_no_reason_that_does_not_exist():
    assert set(documented()) == {error.reason for error in every_error()}


@pytest.mark.parametrize("error", every_error())
def test_both_forms_of_an_error_say_the_same(error: type[errors.ServiceError]):
    raised = error("what was wrong: zähler", step=7, name="x")
    message = status.in_band(raised)
    ended = asyncio.run(abort_of(raised))
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert ended.details[0].Unpack(info)
    assert (info.reason, info.domain) == (message.reason, "longshort") == (error.reason, "longshort")
    assert dict(info.metadata) == dict(message.metadata) == {"step": "7", "name": "x"}
    assert ended.code == message.code
    assert ended.message == message.message == "what was wrong: zähler"
    assert len(ended.details) == 1 + message.HasField("retry_delay")
    if message.HasField("retry_delay"):
        assert ended.details[1].Unpack(retry)
        assert retry.retry_delay == message.retry_delay


def test_long_words_of_a_caller_do_not_burst_the_trailer():
    """gRPC drops a status whose trailers exceed 8 KiB; the caller would see no reason at all."""
    raised = errors.ModelNotFound(f"no model {'ä' * 100_000}", model="ä" * 100_000)
    ended = asyncio.run(abort_of(raised))
    assert ended.ByteSize() < 4096
    assert ended.message.startswith("no model ä")


class AbortedContext:
    """Takes an abort as grpc.aio does."""

    def __init__(self) -> None:
        self.trailers: dict[str, bytes] = {}

    async def abort(
        self, code: grpc.StatusCode, details: str, trailing_metadata: tuple[tuple[str, bytes], ...]
    ) -> None:
        self.trailers = dict(trailing_metadata)
        assert status_pb2.Status.FromString(self.trailers[status.DETAILS_KEY]).code == code.value[0]
        assert details


async def abort_of(error: errors.ServiceError) -> status_pb2.Status:
    context = AbortedContext()
    await status.abort(context, error)  # type: ignore[arg-type]
    return status_pb2.Status.FromString(context.trailers[status.DETAILS_KEY])
