"""A thread that watches file descriptors for one who waits elsewhere. It reads nothing and decides nothing."""

from __future__ import annotations

import os
import selectors
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Watcher:
    """Watches one descriptor, itself a set of them (epoll's, kqueue's), and tells when there is something in it.

    Having told, it rests until `resume`: what is ready stays ready until its owner has dealt with it.
    """

    def __init__(self, fd: int, tell: Callable[[], None]) -> None:
        """Watch from now on; `tell` is called in the watcher's thread."""
        self.is_resting = False
        self._fd = fd
        self._tell = tell
        self._resumed = threading.Semaphore(0)
        self._end_fd, self._end_writer_fd = os.pipe()
        self._thread = threading.Thread(target=self._watch, name="descriptors", daemon=True)
        self._thread.start()

    def resume(self) -> None:
        """Watch on. Only while it rests."""
        self.is_resting = False
        self._resumed.release()

    def close(self) -> None:
        """End the thread and wait for it."""
        os.close(self._end_writer_fd)  # the other end becomes readable
        self._resumed.release()
        self._thread.join()
        os.close(self._end_fd)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._fd, selectors.EVENT_READ)
            selector.register(self._end_fd, selectors.EVENT_READ)
            while all(key.fd != self._end_fd for key, _ in selector.select()):
                self.is_resting = True
                self._tell()
                self._resumed.acquire()
