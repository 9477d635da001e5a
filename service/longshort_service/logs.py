"""Log lines: one JSON object each for machines, or text for people, on the standard library's logging.

Owns the form of a line and where lines go. The composition root calls `setup` once; everyone else takes
`logging.getLogger(__name__)` and gives fields as `extra={"fields": {"model": "metro"}}`.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Final, TextIO

_HANDLER_NAME: Final = "longshort"
# Fields of several lines, which people read as lines.
_BLOCKS: Final = ("table", "cause")
# What every record carries by itself; whatever else it carries came from `extra`.
_OWN_ATTRIBUTES: Final = frozenset(
    (*vars(logging.LogRecord("", 0, "", 0, "", (), None)), "message", "asctime", "taskName")
)


def setup(log_format: str, log_level: str, stream: TextIO) -> None:
    """Send the log of the whole process to `stream`, in place of an earlier call's.

    `log_format` is json, text, or auto (text where the stream is a terminal); `log_level` debug, info,
    warning or error.
    """
    as_text = log_format == "text" or (log_format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.set_name(_HANDLER_NAME)
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    root = logging.getLogger()
    for earlier in [h for h in root.handlers if h.get_name() == _HANDLER_NAME]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(log_level.upper())


class JsonFormatter(logging.Formatter):
    """A JSON object a line: time (RFC 3339, UTC), level, logger, message, the fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": _time(record).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key, value in _fields(record).items():
            line.setdefault(key, value)
        if record.exc_info:
            line.setdefault("exception", self.formatException(record.exc_info))
        try:
            return json.dumps(line, default=str, allow_nan=False)
        except ValueError:  # a NaN or an infinity, which JSON has no number for
            return json.dumps({key: _plain(value) for key, value in line.items()}, default=str)


class TextFormatter(logging.Formatter):
    """Time, level, logger, message, then fields as key=value; tables and a traceback follow on lines of their own."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time = _time(record).astimezone().strftime("%H:%M:%S.%f")[:-3]
        logger = record.name.removeprefix("longshort_service.")
        fields = _fields(record)
        blocks = [fields.pop(key) for key in _BLOCKS if "\n" in str(fields.get(key, ""))]
        told = "".join(f" {key}={_quoted(value)}" for key, value in fields.items())
        message = record.getMessage().replace("\n", "\\n")
        line = f"{time} {record.levelname:<7} {logger}: {message}{told}"
        for block in blocks:
            line += "".join(f"\n    {_printable(text)}" for text in str(block).split("\n"))
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """Return what was given in `extra`: the mapping `fields`, and whatever libraries give beside it."""
    extra = {key: value for key, value in vars(record).items() if key not in _OWN_ATTRIBUTES}
    fields: dict[str, object] = extra.pop("fields", {})
    return extra | fields


def _plain(value: object) -> object:
    return value if isinstance(value, str | int | bool | None) else str(value)


def _printable(text: str) -> str:
    return text if text.isprintable() else repr(text)


def _quoted(value: object) -> str:
    text = str(value)
    return text if text.isprintable() and text and " " not in text else repr(text)
