"""Watching the model repository: what is new there is loaded, what is gone is unloaded, without being asked.

Owns what was seen at the last look and which versions have failed. It looks at regular times: notices of the file
system do not come over network volumes.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from longshort_service.version_folder import Look, scan

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from longshort_service.repository import Model, ReloadResult, Repository
    from longshort_service.version_folder import VersionFolder

logger = logging.getLogger(__name__)


class RepositoryWatch:
    """Looks every `interval_s`; `is_in_use` says whether any session is on a version."""

    def __init__(
        self, repository: Repository, is_in_use: Callable[[Model], Awaitable[bool]], interval_s: float
    ) -> None:
        self._repository = repository
        self._is_in_use = is_in_use
        self._interval_s = interval_s
        self._before: dict[tuple[str, int], VersionFolder] = {}  # at the last look
        self._steady: list[VersionFolder] = []  # as it was at the look before
        self._failed: set[VersionFolder] = set()  # as each was when it could not be loaded
        self._cause = ""  # why the last look came to nothing
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look; an interval of 0 never does."""
        if self._interval_s:
            self._task = asyncio.get_running_loop().create_task(self._look_regularly())

    def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()

    async def look(self) -> ReloadResult:
        """Look once and follow what has changed. What fails is logged, and tried again when its files change."""
        result = await self._repository.reload(self._is_in_use, self._changes)
        self._failed = {
            folder for folder in self._steady if folder.label in result.failed or folder in self._failed
        }
        cause = result.failed.get(str(self._repository.root), "")
        if cause and cause != self._cause:
            logger.error("models are not watched", extra={"fields": {"cause": cause}})
        self._cause = cause
        return result

    def _changes(self, root: Path) -> Look:
        """Want what looks as it did last time and has not failed like this: what changes is still being copied.

        What was there at either look is present. Raises OSError where nothing is there at all: a volume that is not
        mounted is an empty folder.
        """
        found = {folder.key: folder for folder in scan(root)}
        if not found:
            raise FileNotFoundError(f"there is no model in {root}")
        self._steady = [folder for key, folder in found.items() if self._before.get(key) == folder]
        present = found.keys() | self._before.keys()
        self._before = found
        return Look([folder for folder in self._steady if folder not in self._failed], present)

    async def _look_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.look()
            except Exception:
                logger.exception("looking for new models failed")
