"""When Python looks for garbage in circles: never among a million sessions while callers wait.

Owns the settings of the process's garbage collector while the service runs. Knows no sessions: it goes by what
collections find.
"""

from __future__ import annotations

import gc
import logging
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger(__name__)

OLDEST: Final = 2  # the generation of a full collection
# Middle collections between full ones (Python: 10). Each full one looks at some 15,000 objects, 1 to 3 ms; more and
# smaller ones cost no more in all, as each object is looked at once.
MIDDLE_COLLECTIONS: Final = 1
# Looking at everything stops the service for as long as it takes: 0.2 s with a million sessions. It may take one
# part in ten thousand of the time.
THAW_INTERVAL_S: Final = 600.0
THAW_SHARE: Final = 1e-4


class GarbagePolicy:
    """What has outlived one full collection is frozen: later ones pass it over, so that none takes long.

    Python's own full collection looks at every object there is, each time a quarter more have come. The service's
    objects end by their reference counts, frozen or not; circles are made by errors (a traceback holds the frame that
    holds the error). A circle that was frozen before it was garbage stays until the next thaw.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def start(self) -> None:
        """Freeze what there is: modules, models, whatever the start has left. Call it once the service is up."""
        self._thresholds = gc.get_threshold()
        gc.set_threshold(self._thresholds[0], self._thresholds[1], MIDDLE_COLLECTIONS)
        gc.callbacks.append(self._on_collection)
        self._thaw()

    def stop(self) -> None:
        """Leave the collector as it was found."""
        self._timer.cancel()
        gc.callbacks.remove(self._on_collection)
        gc.set_threshold(*self._thresholds)
        gc.unfreeze()

    def _on_collection(self, phase: str, info: dict[str, int]) -> None:
        if phase == "stop" and info["generation"] == OLDEST:
            gc.freeze()

    def _thaw(self) -> None:
        """Look at everything once, and come back when that has been paid for."""
        begin_s = time.perf_counter()
        gc.unfreeze()
        num_found = gc.collect()
        seconds = time.perf_counter() - begin_s
        logger.debug("garbage", extra={"fields": {"objects": num_found, "seconds": round(seconds, 3)}})
        self._timer = self._loop.call_later(max(THAW_INTERVAL_S, seconds / THAW_SHARE), self._thaw)
