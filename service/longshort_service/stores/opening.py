"""TEMPORARY by the lead until S1 writes this file whole: memory:// and sqlite:// only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from longshort_service.stores.memory import MemoryStore
from longshort_service.stores.sqlite import SqliteBackend
from longshort_service.stores.threaded import ThreadedStore

if TYPE_CHECKING:
    from collections.abc import Mapping

    from longshort_service.stores.base import Store


def make_store(url: str, *, max_entries: int, tombstone_ttl_s: float, environ: Mapping[str, str]) -> Store:
    if url == "memory://":
        return MemoryStore(max_entries)
    path = url.removeprefix("sqlite:///") if url != "sqlite://" else environ["HOME"] + "/.local/state/longshort/s.db"
    return ThreadedStore(SqliteBackend(Path(path), max_entries))
