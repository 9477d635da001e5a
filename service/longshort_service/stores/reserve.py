"""Room on a disk that is kept back for when it is full: even a deletion is written somewhere first.

Owns a file without a name, which is this process's alone and gone with it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

# As much as SQLite's WAL holds before it is copied into the file (1000 pages of 4 KiB): with so much given back the
# copy fits, whatever it makes the file grow by, and leaves the WAL's own room to the deletion.
_NUM_BYTES: Final = 4 * 1024 * 1024


class Reserve:
    """Room on the disk of `folder`: 4 MiB, on a small disk half of what is free. Raises OSError where none is made."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  open as long as the store is
        # On a small disk the WAL is given the other half: it, too, never holds more than this.
        self._num_bytes = min(_NUM_BYTES, shutil.disk_usage(folder).free // 2)
        self.is_whole = False
        self.fill()

    def fill(self) -> None:
        """Take the room again where it was given back; `is_whole` says whether there was enough."""
        if self.is_whole:
            return
        num_written = 0
        with suppress(OSError):  # full still, or again
            # Random: a disk that compresses would keep no room for zeros.
            num_written = os.pwrite(self._file.fileno(), os.urandom(self._num_bytes), 0)
        if num_written == self._num_bytes:
            self.is_whole = True
        else:
            self.give_back()

    def give_back(self) -> None:
        """Free the room for others."""
        self._file.truncate(0)
        self.is_whole = False

    def close(self) -> None:
        """Free the room for good."""
        self._file.close()
