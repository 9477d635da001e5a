"""Log lines: one each, parseable, whatever is put into them."""

from __future__ import annotations

import io
import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from longshort_service import logs

if TYPE_CHECKING:
    from collections.abc import Iterator


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def root_logger_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def lines_of(log_format: str, stream: io.StringIO | None = None) -> io.StringIO:
    stream = stream if stream is not None else io.StringIO()
    logs.setup(log_format, "info", stream)
    return stream


def test_a_json_line_has_time_level_logger_message_and_fields():
    stream = lines_of("json")
    logging.getLogger("longshort_service.app").info(
        "loaded %s", "metro", extra={"fields": {"version": 3, "took_s": 0.25}, "peer": "ipv4"}
    )
    line = json.loads(stream.getvalue())
    age = datetime.now(UTC) - datetime.fromisoformat(line.pop("time"))
    assert abs(age.total_seconds()) < 60
    assert line == {
        "level": "info",
        "logger": "longshort_service.app",
        "message": "loaded metro",
        "version": 3,
        "took_s": 0.25,
        "peer": "ipv4",
    }


def test_whatever_is_logged_is_one_parseable_json_line():
    stream = lines_of("json")
    fields = {
        "nan": float("nan"),
        "bytes": b"\xff",
        "text": 'a "quote"\nand a line',
        "level": "mine",
        "of": [1],
    }
    logging.getLogger("x").warning("two\nlines", extra={"fields": fields})
    (text,) = stream.getvalue().splitlines()
    line = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (line["message"], line["level"], line["nan"]) == ("two\nlines", "warning", "nan")
    assert line["text"] == fields["text"]


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_traceback_is_in_the_log(log_format: str):
    stream = lines_of(log_format)
    try:
        int("engine")
    except ValueError:
        logging.getLogger("x").exception("failed")
    assert "Traceback" in stream.getvalue()
    assert "ValueError: invalid literal" in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 1 or log_format == "text"


def test_a_text_line_can_be_read_and_cannot_be_forged():
    stream = lines_of("text")
    logging.getLogger("longshort_service.app").info(
        "opened\nfalse line", extra={"fields": {"session": "s-1", "note": "a b", "empty": "", "odd": "x\ny"}}
    )
    (line,) = stream.getvalue().splitlines()
    assert line.endswith(r"INFO    app: opened\nfalse line session=s-1 note='a b' empty='' odd='x\ny'")


def test_auto_is_text_on_a_terminal_and_json_elsewhere():
    terminal, pipe = lines_of("auto", Terminal()), io.StringIO()
    logging.getLogger("x").info("hello")
    assert terminal.getvalue().endswith("INFO    x: hello\n")
    lines_of("auto", pipe)
    logging.getLogger("x").info("hello")
    assert json.loads(pipe.getvalue())["message"] == "hello"


def test_setting_up_again_replaces_the_first_and_leaves_others_handlers():
    first, second, foreign = io.StringIO(), io.StringIO(), logging.NullHandler()
    logging.getLogger().addHandler(foreign)
    logs.setup("json", "info", first)
    logs.setup("json", "error", second)
    logging.getLogger("x").info("not enough")
    logging.getLogger("x").error("enough")
    assert first.getvalue() == ""
    assert json.loads(second.getvalue())["message"] == "enough"
    assert foreign in logging.getLogger().handlers


def test_a_table_stands_on_lines_of_its_own_that_no_name_in_it_can_forge():
    stream = lines_of("text")
    fields = {"model": "m/1", "table": "values x\nstate \x1b[31m", "cause": "one line"}
    logging.getLogger("x").info("inferred", extra={"fields": fields})
    first, *lines = stream.getvalue().splitlines()
    assert first.endswith("x: inferred model=m/1 cause='one line'")
    assert lines == ["    values x", r"    'state \x1b[31m'"]
