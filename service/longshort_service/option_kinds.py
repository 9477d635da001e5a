"""The kinds of value that settings have: durations, sizes, counts, choices, and how each is read and shown.

A reader takes what a flag, a variable or a TOML file holds and raises ValueError with the words that say what
is allowed. Knows no setting by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_SECONDS: Final = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}
_LONGEST_S: Final = 36500 * 86400.0
_BYTES: Final = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1}
# A protobuf message cannot be larger: its sizes are signed 32-bit numbers.
_PROTOBUF_LIMIT_BYTES: Final = (1 << 31) - 1
# What follows the scheme is read by the stores.
_STORE: Final = re.compile(r"memory://|sqlite://(/.+)?|rediss?://[^/\s]\S*|rediss?\+sentinel://[^/\s]+/\S+")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value: its placeholder in help texts, what reads it, what shows it as a person writes it."""

    metavar: str
    read: Callable[[object], Any]
    show: Callable[[Any], str] = str


def _read_number(raw: object, units: dict[str, Any], unit: str) -> float:
    """Read `<number><unit>`; without its own, the number is in `unit`. ValueError where it is neither."""
    match = re.fullmatch(
        r"([0-9]{1,18}|[0-9]{0,9}\.[0-9]{1,9}|[0-9.]+e-[0-9]{2})\s*([A-Za-z]*)", str(raw).strip()
    )
    if isinstance(raw, bool) or match is None or (match[2] or unit) not in units:
        raise ValueError
    return float(match[1]) * float(units[match[2] or unit])


def _time(raw: object) -> float:
    try:
        seconds = _read_number(raw, _SECONDS, "s")
    except ValueError:
        raise ValueError(f"a duration such as 20s, 300ms or 7d (units {', '.join(_SECONDS)})") from None
    if seconds > _LONGEST_S:
        raise ValueError("a duration of at most 36500d")
    return seconds


def _time_above_zero(raw: object) -> float:
    seconds = _time(raw)
    if seconds == 0:
        raise ValueError("a duration above zero, such as 20s")
    return seconds


def _show_time(seconds: float) -> str:
    unit = next((unit for unit, size in _SECONDS.items() if seconds >= size), "us" if seconds else "s")
    return f"{seconds / _SECONDS[unit]:g}{unit}"


def _size(raw: object) -> int:
    allowed = f"a size from 1KiB to {_PROTOBUF_LIMIT_BYTES}, such as 4194304, 512KiB or 4MiB"
    try:
        num_bytes = int(_read_number(raw, _BYTES, "B"))
    except ValueError:
        raise ValueError(allowed) from None
    if not 1024 <= num_bytes <= _PROTOBUF_LIMIT_BYTES:
        raise ValueError(allowed)
    return num_bytes


def _show_size(num_bytes: int) -> str:
    unit = next(unit for unit, size in _BYTES.items() if num_bytes % size == 0)
    return f"{num_bytes // _BYTES[unit]}{unit}"


def _whole(lowest: int, highest: int) -> Callable[[object], int]:
    def read(raw: object) -> int:
        digits = str(raw).strip().replace("_", "")
        is_whole = not isinstance(raw, bool) and re.fullmatch("[0-9]{1,18}", digits) is not None
        if not is_whole or not lowest <= int(digits) <= highest:
            raise ValueError(f"a whole number from {lowest} to {highest}")
        return int(digits)

    return read


def _choice(*allowed: str) -> Callable[[object], str]:
    def read(raw: object) -> str:
        word = str(raw).strip().lower()
        if word not in allowed:
            raise ValueError(f"one of {', '.join(allowed)}")
        return word

    return read


def _text(raw: object) -> str:
    if not isinstance(raw, str) or not raw.strip():
        raise ValueError("text that is not empty")
    return raw.strip()


def _folder(raw: object) -> Path:
    return Path(_text(raw)).expanduser()


def _store(raw: object) -> str:
    url = str(raw).strip()
    if _STORE.fullmatch(url) is None:
        raise ValueError(
            "memory://, sqlite:// (in your state folder), sqlite:///FILE, redis://HOST:PORT, rediss://HOST:PORT "
            "or redis+sentinel://HOST:PORT,HOST:PORT/SERVICE"
        )
    return url


def without_password(url: str) -> str:
    """Return a URL as it may be logged: without what stands between the scheme and the host, and its query."""
    return re.sub(r"(?<=password=)[^&']*", "***", re.sub(r"://[^/]*@", "://***@", url))


FOLDER: Final = Kind("FOLDER", _folder)
HOST: Final = Kind("HOST", _text)
PORT: Final = Kind("PORT", _whole(0, 65535))
STORE: Final = Kind("URL", _store)
PROVIDER: Final = Kind("cpu|cuda", _choice("cpu", "cuda"))
THREADS: Final = Kind("N", _whole(1, 256))
ROWS: Final = Kind("N", _whole(1, 65536))
STEPS: Final = Kind("N", _whole(1, 1_048_576))
COUNT: Final = Kind("N", _whole(1, 1_000_000_000))
SIZE: Final = Kind("SIZE", _size, _show_size)
TIME: Final = Kind("TIME", _time_above_zero, _show_time)
TIME_OR_ZERO: Final = Kind("TIME", _time, _show_time)
DURABILITY: Final = Kind("none|behind|sync", _choice("none", "behind", "sync"))
UNARY: Final = Kind("sync|session", _choice("sync", "session"))
SEQUENCES: Final = Kind("triton|strict", _choice("triton", "strict"))
LOG_FORMAT: Final = Kind("auto|json|text", _choice("auto", "json", "text"))
LOG_LEVEL: Final = Kind("LEVEL", _choice("debug", "info", "warning", "error"))
